//! Where the API is, whom to believe that it is, and who we are to it: from a kubeconfig, and from the configuration's own
//! keys, which come first.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::super::{
    config::{Access, Token},
    error::{CniError, Code},
};

/// All that a connection needs. Certificates and keys are PEM.
#[derive(Debug)]
pub(super) struct Connection {
    /// `https://host:port`, without a slash at its end.
    pub(super) server: String,
    pub(super) trust: Trust,
    pub(super) token: Option<Token>,
    pub(super) identity: Option<Identity>,
}

/// Whom to believe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Authority(Vec<u8>),
    /// Whom the host believes.
    Host,
    Everybody,
}

/// A client certificate and its key.
pub(super) struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What is known of `kind: Config`. Other fields say nothing about how to connect.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    username: String,
    #[serde(rename = "as")]
    impersonated: String,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

impl Connection {
    pub(super) fn read(access: &Access) -> Result<Self, CniError> {
        let (cluster, user, folder) = match &access.kubeconfig {
            None => (Cluster::default(), User::default(), PathBuf::new()),
            Some(path) => {
                let text = read_file(path, "the kubeconfig")?;
                let file = parse(&text).map_err(|problem| wrong_file(path, problem))?;
                let (cluster, user) = file.current().map_err(|problem| wrong_file(path, problem))?;
                cluster.check().and_then(|()| user.check()).map_err(|problem| wrong_file(path, problem))?;
                (cluster, user, path.parent().map(Path::to_owned).unwrap_or_default())
            }
        };
        Ok(Self {
            server: server(access, &cluster)?,
            trust: trust(access, &cluster, &folder)?,
            token: token(access, &user, &folder)?,
            identity: identity(access, &user, &folder)?,
        })
    }
}

/// What can be wrong is said without the text itself, which has secrets.
fn parse(text: &[u8]) -> Result<File, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(at) => format!("it is not the YAML of a kubeconfig: line {}, column {}", at.line(), at.column()),
        None => "it is not the YAML of a kubeconfig".to_owned(),
    })
}

impl File {
    /// Cluster and user of the context that counts.
    fn current(self) -> Result<(Cluster, User), String> {
        let wanted = &self.current_context;
        let context = match self.contexts.as_slice() {
            [only] if wanted.is_empty() => only,
            all => match all.iter().find(|context| context.name == *wanted) {
                Some(context) => context,
                None if wanted.is_empty() => return Err("it has no `current-context`".to_owned()),
                None => return Err(format!("its `current-context` {wanted:?} is not in it")),
            },
        };
        let Context { cluster, user } = &context.context;
        let found = self.clusters.into_iter().find(|c| c.name == *cluster);
        let found_user = self.users.into_iter().find(|u| u.name == *user);
        match (found, found_user) {
            (None, _) => Err(format!("the cluster {cluster:?} of its context is not in it")),
            (Some(_), None) if !user.is_empty() => {
                Err(format!("the user {user:?} of its context is not in it"))
            }
            (Some(cluster), user) => Ok((cluster.cluster, user.map(|u| u.user).unwrap_or_default())),
        }
    }
}

impl Cluster {
    fn check(&self) -> Result<(), String> {
        for (key, value) in [("tls-server-name", &self.tls_server_name), ("proxy-url", &self.proxy_url)] {
            if !value.is_empty() {
                return Err(format!(
                    "its cluster has `{key}`, which is not supported: name a server that needs none"
                ));
            }
        }
        Ok(())
    }
}

impl User {
    fn check(&self) -> Result<(), String> {
        let instead = "give the user a `token`, a `tokenFile` or a client certificate";
        let unsupported = if self.exec.is_some() {
            "`exec`, and this program starts no others for credentials"
        } else if self.auth_provider.is_some() {
            "`auth-provider`, which Kubernetes has given up"
        } else if !self.username.is_empty() {
            "`username`, which Kubernetes no longer takes"
        } else if !self.impersonated.is_empty() {
            "`as`, and this program asks in its own name only"
        } else {
            return Ok(());
        };
        Err(format!("its user has {unsupported}: {instead}"))
    }
}

fn server(access: &Access, cluster: &Cluster) -> Result<String, CniError> {
    let server = access.server.as_deref().unwrap_or(&cluster.server).trim_end_matches('/');
    // Configurations from before kubeconfigs name the version as well.
    let server = server.strip_suffix("/api/v1").unwrap_or(server).trim_end_matches('/');
    let rest = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://"));
    if rest.is_some_and(|rest| !rest.is_empty()) {
        return Ok(server.to_owned());
    }
    let msg = if server.is_empty() {
        "the configuration does not say where the API of Kubernetes is".to_owned()
    } else {
        format!("the server of Kubernetes is {server:?}")
    };
    let hint =
        "name it in a kubeconfig (`kubernetes.kubeconfig`) or as `policy.k8s_api_root`: https://host:port";
    Err(CniError::new(Code::InvalidConfig, msg, hint))
}

fn trust(access: &Access, cluster: &Cluster, folder: &Path) -> Result<Trust, CniError> {
    let what = "the certificate authority of Kubernetes";
    if let Some(path) = &access.certificate_authority {
        return read_file(path, what).map(Trust::Authority);
    }
    let named =
        data_or_file(&cluster.certificate_authority_data, &cluster.certificate_authority, folder, what)?;
    Ok(match named {
        Some(authority) => Trust::Authority(authority),
        None if cluster.insecure_skip_tls_verify => Trust::Everybody,
        None => Trust::Host,
    })
}

/// A file comes first, as it may have been renewed since.
fn token(access: &Access, user: &User, folder: &Path) -> Result<Option<Token>, CniError> {
    if let Some(token) = &access.token {
        return Ok(Some(token.clone()));
    }
    if !user.token_file.is_empty() {
        match read_file(&folder.join(&user.token_file), "the token for Kubernetes") {
            Ok(text) => return Ok(Some(Token(String::from_utf8_lossy(&text).trim().to_owned()))),
            Err(error) if user.token.is_empty() => return Err(error),
            Err(_) => {}
        }
    }
    Ok((!user.token.is_empty()).then(|| Token(user.token.trim().to_owned())))
}

fn identity(access: &Access, user: &User, folder: &Path) -> Result<Option<Identity>, CniError> {
    let (what, whose) =
        ("the client certificate for Kubernetes", "the key of the client certificate for Kubernetes");
    let certificate = match &access.client_certificate {
        Some(path) => Some(read_file(path, what)?),
        None => data_or_file(&user.client_certificate_data, &user.client_certificate, folder, what)?,
    };
    let key = match &access.client_key {
        Some(path) => Some(read_file(path, whose)?),
        None => data_or_file(&user.client_key_data, &user.client_key, folder, whose)?,
    };
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
        (Some(_), None) => Err(CniError::new(
            Code::InvalidConfig,
            format!("{what} has no key"),
            "name its key beside it, or neither",
        )),
        (None, Some(_)) => Err(CniError::new(
            Code::InvalidConfig,
            format!("{whose} is there, and no certificate"),
            "name the certificate beside it, or neither",
        )),
    }
}

/// Paths are relative to the kubeconfig's folder.
fn data_or_file(data: &str, file: &str, folder: &Path, what: &str) -> Result<Option<Vec<u8>>, CniError> {
    if !data.is_empty() {
        let compact: String = data.split_whitespace().collect();
        return STANDARD.decode(compact).map(Some).map_err(|e| {
            let hint = format!("what the kubeconfig has for it is not base64: {e}");
            CniError::new(Code::InvalidConfig, format!("cannot read {what}"), hint)
        });
    }
    if file.is_empty() { Ok(None) } else { read_file(&folder.join(file), what).map(Some) }
}

fn read_file(path: &Path, what: &str) -> Result<Vec<u8>, CniError> {
    fs::read(path).map_err(|e| {
        let hint = format!("{}: {e}; is it the path on the node, and readable?", path.display());
        CniError::new(Code::InvalidConfig, format!("cannot read {what}"), hint)
    })
}

fn wrong_file(path: &Path, problem: String) -> CniError {
    CniError::new(Code::InvalidConfig, format!("cannot use the kubeconfig {}", path.display()), problem)
}
