//! One GET over TLS, and what each way of failing means.

use std::{sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::Deserialize;
use ureq::{
    Agent,
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig},
};

use super::{
    super::{
        config::Token,
        error::{CniError, Code},
        request::PodName,
    },
    failed,
    kubeconfig::{Connection, Identity, Trust},
};

/// etcd takes no object of more than 1.5 MiB.
const ANSWER_MAX: u64 = 4 << 20;
/// Where distributions keep the certificates that the host believes.
const HOST_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The pod's object, as bytes.
pub(super) fn get(connection: &Connection, pod: &PodName, patience: Duration) -> Result<Vec<u8>, CniError> {
    let server = &connection.server;
    let failed = |code, details: String| failed(pod, code, format!("{server}: {details}"));
    let mut config = Agent::config_builder()
        .timeout_global(Some(patience))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent("canal-cni");
    if server.starts_with("https:") {
        config = config.tls_config(tls(connection).map_err(|problem| failed(Code::InvalidConfig, problem))?);
    }
    // Both names are checked ones, that need no escapes.
    let url = format!("{server}/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    let mut request = Agent::from(config.build()).get(&url).header("accept", "application/json");
    if let Some(Token(token)) = &connection.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let broken = |error: &ureq::Error| {
        let (code, details) = explain(error, patience);
        failed(code, details)
    };
    let mut response = request.call().map_err(|e| broken(&e))?;
    let body = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(|e| broken(&e))?;
    match response.status().as_u16() {
        200 => Ok(body),
        status => {
            let (code, details) = refused(status, &said(&body), pod);
            Err(failed(code, details))
        }
    }
}

fn tls(connection: &Connection) -> Result<TlsConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider.clone());
    let builder = match &connection.trust {
        Trust::Authority(pem) => builder.root_certs(RootCerts::Specific(Arc::new(authorities(pem)?))),
        Trust::Host => builder.root_certs(RootCerts::Specific(Arc::new(hosts_authorities()?))),
        // The roots are not looked at, and the default ones are not compiled in.
        Trust::Everybody => {
            builder.root_certs(RootCerts::Specific(Arc::new(Vec::new()))).disable_verification(true)
        }
    };
    let identity = connection.identity.as_ref().map(|identity| client(identity, &provider)).transpose()?;
    Ok(builder.client_cert(identity).build())
}

fn authorities(pem: &[u8]) -> Result<Vec<Certificate<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => {
            Ok(all.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
        }
        Ok(_) => Err("there is no certificate in its certificate authority".to_owned()),
        Err(e) => Err(format!("its certificate authority is not PEM: {e}")),
    }
}

fn hosts_authorities() -> Result<Vec<Certificate<'static>>, String> {
    let pem = HOST_AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok());
    let hint = "name the certificate authority of Kubernetes in the kubeconfig (`certificate-authority-data`): this host \
                has none of its own";
    authorities(&pem.ok_or(hint)?)
}

/// Checked here, since a pair that does not fit would be found only when it is too late to say so.
fn client(identity: &Identity, provider: &CryptoProvider) -> Result<ClientCert, String> {
    let wrong = |problem: &dyn std::fmt::Display| {
        format!("the client certificate and its key cannot be used: {problem}")
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.certificate)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(&e))?;
    if chain.is_empty() {
        return Err(wrong(&"there is no certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|e| wrong(&e))?;
    let certificates: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let for_client = PrivateKey::from_pem(&identity.key).map_err(|e| wrong(&e))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| wrong(&e))?;
    Ok(ClientCert::new_with_certs(&certificates, for_client))
}

/// The server has not answered, or not in HTTP.
fn explain(error: &ureq::Error, patience: Duration) -> (Code, String) {
    if let Some(tls) = tls_error(error) {
        return (Code::InvalidConfig, explain_tls(tls));
    }
    match error {
        ureq::Error::Timeout(_) => {
            let details =
                format!("no whole answer within {patience:?}; is it overloaded, or a firewall in between?");
            (Code::TryAgain, details)
        }
        ureq::Error::HostNotFound => {
            (Code::TryAgain, "its name has no address; can this node resolve it?".to_owned())
        }
        ureq::Error::Io(e) => {
            (Code::TryAgain, format!("{e}; does the API listen there, and is the way to it open?"))
        }
        ureq::Error::ConnectionFailed => {
            (Code::TryAgain, "cannot connect; does the API listen there?".to_owned())
        }
        ureq::Error::BodyExceedsLimit(limit) => (
            Code::InvalidConfig,
            format!("it answers with more than {limit} bytes, and no pod is as large; is this the API?"),
        ),
        other => (Code::InvalidConfig, format!("{other}; is this the address of the API?")),
    }
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn explain_tls(error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is not by the certificate authority that the configuration names; give the kubeconfig the one of \
             this cluster"
                .to_owned()
        }
        InvalidCertificate(problem) => {
            format!("its certificate is not good: {problem}; renew it, or name the server by a name that is in it")
        }
        AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => format!("it does not take our client certificate ({error}); renew it"),
        InvalidMessage(_) => "it does not speak TLS; is it http:// instead?".to_owned(),
        other => format!("no TLS connection: {other}"),
    }
}

/// What a `Status` says, in one short line.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let message = serde_json::from_slice::<Status>(body).map(|status| status.message).unwrap_or_default();
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

fn refused(status: u16, said: &str, pod: &PodName) -> (Code, String) {
    let said = if said.is_empty() { format!("status {status}") } else { format!("status {status}, {said}") };
    match status {
        401 => (
            Code::TryAgain,
            format!(
                "it does not know us ({said}): the token or certificate has expired, or is another cluster's; renew it"
            ),
        ),
        403 => (
            Code::InvalidConfig,
            format!("it knows us, and does not let us ({said}): let this user `get` pods in all namespaces"),
        ),
        404 => (
            Code::TryAgain,
            format!(
                "there is no pod {} in namespace {} ({said}): it has been deleted, or was made by the node itself and is not \
                 known there yet",
                pod.name, pod.namespace
            ),
        ),
        408 | 429 | 500..=599 => (Code::TryAgain, format!("it cannot answer now ({said})")),
        _ => (
            Code::InvalidConfig,
            format!("it answers as no API of Kubernetes does ({said}); is this its address?"),
        ),
    }
}
