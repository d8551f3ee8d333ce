//! Where a setting comes from when its flag is not given.

use std::{collections::BTreeMap, env, fs};

use super::ConfigError;

/// Other names that a flag's value is known by, after `CANAL_…` and `FLANNELD_…`.
const ALIASES: [(&str, &str); 5] = [
    ("etcd-endpoints", "ETCD_ENDPOINTS"),
    ("etcd-cafile", "ETCD_CA_CERT_FILE"),
    ("etcd-certfile", "ETCD_CERT_FILE"),
    ("etcd-keyfile", "ETCD_KEY_FILE"),
    ("node-name", "NODENAME"),
];

/// A setting and its origin, so that errors name what the operator wrote. It may be a password: no `Debug`.
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: String,
}

impl Value {
    pub(super) fn wrong(&self, problem: &str) -> ConfigError {
        ConfigError::new(&self.origin, format!("{:?} {problem}", self.text))
    }
}

pub(super) struct Environment {
    variables: BTreeMap<String, String>,
    hostname: Option<String>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: env::vars_os().filter_map(text).collect(),
            hostname: fs::read_to_string("/proc/sys/kernel/hostname").ok(),
        }
    }

    #[cfg(test)]
    pub(super) fn of(variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            hostname: Some("Host-1".into()),
        }
    }

    /// The flag if it was given, else the first variable that stands for it.
    pub(super) fn find(&self, flag: &str, given: Option<String>) -> Option<Value> {
        if let Some(text) = given {
            return Some(Value { text, origin: format!("--{flag}") });
        }
        let name = flag.to_uppercase().replace('-', "_");
        let alias = ALIASES.iter().find(|(known, _)| *known == flag).map(|(_, alias)| (*alias).to_owned());
        [format!("CANAL_{name}"), format!("FLANNELD_{name}")]
            .into_iter()
            .chain(alias)
            .find_map(|name| self.variable(&name))
    }

    pub(super) fn variable(&self, name: &str) -> Option<Value> {
        let text = self.variables.get(name).filter(|text| !text.is_empty())?;
        Some(Value { text: text.clone(), origin: name.to_owned() })
    }

    pub(super) fn hostname(&self) -> Option<Value> {
        let text = self.hostname.as_deref().map(str::trim).filter(|name| !name.is_empty())?;
        Some(Value { text: text.to_owned(), origin: "host name".into() })
    }
}
