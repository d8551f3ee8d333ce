//! How to reach etcd, already validated by `config`. Secrets do not print.

use std::{fmt, path::PathBuf};

use serde::{Serialize, Serializer};

use super::EtcdPrefix;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`, all of one scheme, no trailing slash.
    pub endpoints: Vec<String>,
    /// Nobody named them.
    pub by_default: bool,
    pub prefix: EtcdPrefix,
    pub tls: TlsFiles,
    pub credentials: Option<Credentials>,
}

impl EtcdOptions {
    pub fn is_tls(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"))
    }

    /// Without scheme and port.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().filter_map(|url| Some(url.split_once("://")?.1.rsplit_once(':')?.0))
    }
}

/// PEM files. A CA alone is enough; certificate and key come together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    pub ca: Option<PathBuf>,
    pub client: Option<ClientCertificate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// Text that must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("[redacted]")
    }
}
