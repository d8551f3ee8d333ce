//! Where a setting comes from when its flag is not given.

use std::{collections::BTreeMap, env, fs, io, path::Path};

use super::ConfigError;
use crate::model::felix::Source;

/// Other names that a flag's value is known by, after `CANAL_…` and `FLANNELD_…`: those of calico/node, then Felix's.
const ALIASES: [(&str, &[&str]); 8] = [
    ("etcd-endpoints", &["ETCD_ENDPOINTS", "FELIX_ETCDENDPOINTS"]),
    ("etcd-cafile", &["ETCD_CA_CERT_FILE", "FELIX_ETCDCAFILE"]),
    ("etcd-certfile", &["ETCD_CERT_FILE", "FELIX_ETCDCERTFILE"]),
    ("etcd-keyfile", &["ETCD_KEY_FILE", "FELIX_ETCDKEYFILE"]),
    ("etcd-username", &["ETCD_USERNAME"]),
    ("etcd-password", &["ETCD_PASSWORD"]),
    ("node-name", &["NODENAME"]),
    ("nodename-file", &["CALICO_NODENAME_FILE"]),
];

/// A variable that begins so, in any case, holds one of Felix's parameters.
const FELIX: &str = "FELIX_";
const FLANNELD: &str = "FLANNELD_";

/// A setting and its origin, so that errors name what the operator wrote. It may be a password: no `Debug`.
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: String,
}

impl Value {
    pub(super) fn wrong(&self, problem: &str) -> ConfigError {
        ConfigError::new(&self.origin, format!("{:?} {problem}", self.text))
    }

    /// What it says. flanneld goes on without a variable that makes no sense, and so does this: with a word in `notices`.
    pub(super) fn read<T>(
        &self,
        parse: impl FnOnce(&Self) -> Result<T, ConfigError>,
        notices: &mut Vec<String>,
    ) -> Result<Option<T>, ConfigError> {
        match parse(self) {
            Err(error) if self.origin.starts_with(FLANNELD) => {
                notices.push(format!("{error}: ignored, the default counts"));
                Ok(None)
            }
            parsed => parsed.map(Some),
        }
    }
}

pub(super) struct Environment {
    variables: BTreeMap<String, String>,
    hostname: Option<String>,
    /// Felix's configuration file, once read. A parameter there is what its variable would be.
    felix_file: Option<Source>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: env::vars_os().filter_map(text).collect(),
            hostname: fs::read_to_string("/proc/sys/kernel/hostname").ok(),
            felix_file: None,
        }
    }

    #[cfg(test)]
    pub(super) fn of(variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            hostname: Some("Host-1".into()),
            felix_file: None,
        }
    }

    /// Reads Felix's file, if there is one.
    pub(super) fn read_felix_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let origin = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => self.felix_file = Some(Source { values: ini(&text), origin }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(ConfigError::new(
                    origin,
                    format!("cannot be read: {error}; remove it, or name another with --felix-config-file"),
                ));
            }
        }
        Ok(())
    }

    /// The flag if it was given, else the first variable that stands for it. A flag without text says that there is none.
    pub(super) fn find(&self, flag: &str, given: Option<String>) -> Option<Value> {
        if let Some(text) = given {
            return (!text.is_empty()).then(|| Value { text, origin: format!("--{flag}") });
        }
        let name = flag.to_uppercase().replace('-', "_");
        let aliases =
            ALIASES.iter().find(|(known, _)| *known == flag).map_or(&[][..], |(_, aliases)| aliases);
        [format!("CANAL_{name}"), format!("{FLANNELD}{name}")]
            .iter()
            .map(String::as_str)
            .chain(aliases.iter().copied())
            .find_map(|name| self.variable(name))
    }

    /// Every text of a flag that may be given several times, else the one of its variable, which is taken whole.
    pub(super) fn find_all(&self, flag: &str, given: &[String]) -> Vec<Value> {
        if given.is_empty() {
            return self.find(flag, None).into_iter().collect();
        }
        given.iter().filter_map(|text| self.find(flag, Some(text.clone()))).collect()
    }

    /// Variables that flanneld would take for flags, if it had such flags.
    pub(super) fn strangers_of_flanneld(&self, is_flag: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        let set = self.variables.iter().filter(|(_, text)| !text.is_empty()).map(|(name, _)| name.as_str());
        set.filter(move |name| {
            name.strip_prefix(FLANNELD).is_some_and(|flag| {
                !is_flag(&flag.to_lowercase().replace('_', "-")) && !is_flag(&flag.to_lowercase())
            })
        })
    }

    /// Felix's variables are found in any case, and in its file behind them.
    pub(super) fn variable(&self, name: &str) -> Option<Value> {
        let value = |name: &str, text: &String| Value { text: text.clone(), origin: name.to_owned() };
        let Some(parameter) = name.strip_prefix(FELIX) else {
            let text = self.variables.get(name).filter(|text| !text.is_empty())?;
            return Some(value(name, text));
        };
        let set = self.variables.iter().find(|(n, text)| n.eq_ignore_ascii_case(name) && !text.is_empty());
        if let Some((name, text)) = set {
            return Some(value(name, text));
        }
        let file = self.felix_file.as_ref()?;
        let (name, text) = file.values.iter().find(|(n, _)| n.eq_ignore_ascii_case(parameter))?;
        Some(value(&format!("{name} in {}", file.origin), text))
    }

    /// Felix's parameters that are set on this machine, what beats the rest first.
    pub(super) fn felix(&self) -> Vec<Source> {
        let parameter = |(name, text): (&String, &String)| {
            let prefix = name.get(..FELIX.len()).filter(|prefix| prefix.eq_ignore_ascii_case(FELIX))?;
            Some((name[prefix.len()..].to_owned(), text.clone()))
        };
        let environment = Source {
            origin: "environment".to_owned(),
            values: self
                .variables
                .iter()
                .filter_map(parameter)
                .filter(|(_, text)| !text.is_empty())
                .collect(),
        };
        [Some(environment), self.felix_file.clone()].into_iter().flatten().collect()
    }

    pub(super) fn hostname(&self) -> Option<Value> {
        let text = self.hostname.as_deref().map(str::trim).filter(|name| !name.is_empty())?;
        Some(Value { text: text.to_owned(), origin: "host name".into() })
    }
}

/// `Parameter = value` lines; sections count for nothing, an empty value is not set.
fn ini(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';', '[']))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn felixs_file_is_read_line_by_line() {
        let text = "# comment\n[global]\nLogPrefix = a=b \n; x = y\n\nEmpty =\n[other]\nVXLANPort=8472\nnonsense\n = z\n";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(ini(text), [pair("LogPrefix", "a=b"), pair("VXLANPort", "8472")]);
    }

    #[test]
    fn a_parameter_of_felix_is_found_in_any_case_and_the_environment_beats_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("felix.cfg");
        let mut environment = Environment::of(&[
            ("Felix_EtcdAddr", "env:1"),
            ("FELIX_EMPTY", ""),
            ("FELIXHOSTNAME", "no"),
            ("FELIX_é", "x"),
        ]);
        environment.read_felix_file(&path).unwrap();
        fs::write(&path, "EtcdAddr = file:1\nFelixHostname = file\nEmpty = set\n").unwrap();
        environment.read_felix_file(&path).unwrap();
        let text = |name: &str| environment.variable(name).map(|value| (value.text, value.origin));
        assert_eq!(text("FELIX_ETCDADDR"), Some(("env:1".to_owned(), "Felix_EtcdAddr".to_owned())));
        let origin = |name: &str| format!("{name} in {}", path.display());
        assert_eq!(text("FELIX_FELIXHOSTNAME"), Some(("file".to_owned(), origin("FelixHostname"))));
        assert_eq!(text("FELIX_EMPTY"), Some(("set".to_owned(), origin("Empty"))));
        assert_eq!(text("FELIX_NOTHING"), None);
        let sources = environment.felix();
        assert_eq!((sources.len(), sources[0].origin.as_str()), (2, "environment"));
        assert!(sources[0].values.contains(&("EtcdAddr".to_owned(), "env:1".to_owned())), "{sources:?}");
        assert_eq!(sources[1].values.len(), 3);
        assert!(environment.read_felix_file(folder.path()).is_err(), "a folder is no file");
    }
}
