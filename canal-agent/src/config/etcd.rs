//! The settings about etcd, which have to fit each other.

use std::{fs, path::PathBuf};

use super::{
    ConfigError, RunArgs,
    environment::{Environment, Value},
};
use crate::store::{
    EtcdOptions, EtcdPrefix, Secret, TlsFiles,
    options::{ClientCertificate, Credentials},
};

/// Not flannel's second one, 4001: whoever listens there while etcd is away would be believed.
const DEFAULT_ENDPOINTS: &str = "127.0.0.1:2379";
const DEFAULT_PREFIX: &str = "/coreos.com/network";

pub(super) fn options(args: &RunArgs, environment: &Environment) -> Result<EtcdOptions, ConfigError> {
    let find = |flag: &'static str, given: &Option<String>| environment.find(flag, given.clone());
    let ca = find("etcd-cafile", &args.etcd_cafile);
    let certificate = find("etcd-certfile", &args.etcd_certfile);
    let key = find("etcd-keyfile", &args.etcd_keyfile);
    let tls_setting = [&ca, &certificate, &key].into_iter().flatten().next();
    let endpoints = find("etcd-endpoints", &args.etcd_endpoints).or_else(|| felix_address(environment));
    if endpoints.is_none()
        && let Some(srv) = environment.variable("ETCD_DISCOVERY_SRV")
    {
        return Err(
            srv.wrong("asks DNS for the servers, which is not supported; name them with ETCD_ENDPOINTS")
        );
    }
    let by_default = endpoints.is_none();
    let endpoints = endpoints
        .unwrap_or_else(|| Value { text: DEFAULT_ENDPOINTS.into(), origin: "--etcd-endpoints".into() });
    let prefix = find("etcd-prefix", &args.etcd_prefix);
    Ok(EtcdOptions {
        endpoints: self::endpoints(&endpoints, tls_setting)?,
        by_default,
        prefix: EtcdPrefix::new(prefix.as_ref().map_or(DEFAULT_PREFIX, |value| value.text.as_str()))
            .map_err(|e| {
                ConfigError::new(
                    prefix.as_ref().map_or("--etcd-prefix", |value| &value.origin),
                    e.to_string(),
                )
            })?,
        tls: TlsFiles {
            ca: ca.map(|ca| pem(&ca, "CERTIFICATE-----")).transpose()?,
            client: client_certificate(certificate, key)?,
        },
        credentials: credentials(
            find("etcd-username", &args.etcd_username),
            environment
                .find("etcd-password", args.etcd_password.as_ref().map(|text| text.reveal().to_owned())),
        )?,
    })
}

/// Felix's older way to name one server.
fn felix_address(environment: &Environment) -> Option<Value> {
    let address = environment.variable("FELIX_ETCDADDR")?;
    let scheme = environment.variable("FELIX_ETCDSCHEME").map(|scheme| format!("{}://", scheme.text));
    Some(Value { text: format!("{}{}", scheme.unwrap_or_default(), address.text), origin: address.origin })
}

/// `tls` is any TLS file that was given: it decides the scheme of endpoints that name none.
fn endpoints(list: &Value, tls: Option<&Value>) -> Result<Vec<String>, ConfigError> {
    let mut endpoints = Vec::new();
    for text in list.text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let wrong = |problem: &str| {
            // A password in the address must not reach the log through the error.
            let shown = text.rsplit_once('@').map_or(text, |(_, host)| host);
            ConfigError::new(&list.origin, format!("{shown:?} {problem}"))
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_lowercase(), rest),
            None if tls.is_some() => ("https".into(), text),
            None => ("http".into(), text),
        };
        match (scheme.as_str(), tls) {
            ("https", _) | ("http", None) => {}
            ("http", Some(tls)) => {
                return Err(wrong(&format!(
                    "is not TLS, but {} is given; write https://, or drop it",
                    tls.origin
                )));
            }
            _ => return Err(wrong("has an unknown scheme; write http:// or https://")),
        }
        let authority = rest.trim_end_matches('/');
        if authority.contains('@') {
            return Err(wrong("must not carry a user; use --etcd-username and --etcd-password"));
        }
        let host_port = authority.rsplit_once(':').filter(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            let host_ok = if bracketed {
                host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_ok()
            } else {
                !host.is_empty() && host.chars().all(legal)
            };
            host_ok
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if host_port.is_none() {
            return Err(wrong("is not an etcd server; write http://host:2379"));
        }
        endpoints.push(format!("{scheme}://{authority}"));
    }
    let mixed =
        endpoints.iter().any(|e| e.starts_with("https:")) && endpoints.iter().any(|e| e.starts_with("http:"));
    if mixed {
        return Err(list.wrong("mixes http and https; use one of them for all servers"));
    }
    if endpoints.is_empty() {
        return Err(list.wrong("names no server; write http://host:2379"));
    }
    Ok(endpoints)
}

fn client_certificate(
    certificate: Option<Value>,
    key: Option<Value>,
) -> Result<Option<ClientCertificate>, ConfigError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(ClientCertificate {
            certificate: pem(&certificate, "CERTIFICATE-----")?,
            key: pem(&key, "PRIVATE KEY-----")?,
        })),
        (Some(alone), None) => Err(ConfigError::new(alone.origin, "the key is missing; add --etcd-keyfile")),
        (None, Some(alone)) => {
            Err(ConfigError::new(alone.origin, "the certificate is missing; add --etcd-certfile"))
        }
    }
}

fn credentials(name: Option<Value>, password: Option<Value>) -> Result<Option<Credentials>, ConfigError> {
    match (name, password) {
        (None, None) => Ok(None),
        (Some(name), Some(password)) => {
            Ok(Some(Credentials { username: name.text, password: Secret::new(password.text) }))
        }
        (Some(alone), None) => {
            Err(ConfigError::new(alone.origin, "the password is missing; set CANAL_ETCD_PASSWORD"))
        }
        (None, Some(alone)) => {
            Err(ConfigError::new(alone.origin, "the user is missing; add --etcd-username"))
        }
    }
}

/// The path, if the file can be read and holds what it should.
fn pem(value: &Value, label: &str) -> Result<PathBuf, ConfigError> {
    let content = fs::read(&value.text).map_err(|e| value.wrong(&format!("cannot be read: {e}")))?;
    if !content.windows(label.len()).any(|window| window == label.as_bytes()) {
        let what = label.trim_end_matches('-').to_lowercase();
        return Err(value.wrong(&format!("holds no {what} in PEM format; check the file")));
    }
    Ok(PathBuf::from(&value.text))
}
