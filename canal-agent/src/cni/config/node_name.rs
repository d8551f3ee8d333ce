//! What the configuration says this node is called.

use std::{fs, io, path::PathBuf};

use super::{
    super::error::{CniError, Code},
    fields::Fields,
};

/// Calico's own default.
const FILE: &str = "/var/lib/calico/nodename";

/// Where the node's name comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeName {
    /// The agent's name for itself, as the configuration says nothing.
    #[default]
    Agents,
    Said(String),
    File {
        path: PathBuf,
        /// The file need not be there.
        optional: bool,
        /// The name where it is not.
        otherwise: Option<String>,
    },
}

impl NodeName {
    /// Calico's order: `nodename`, the file, `hostname`.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, CniError> {
        let name = fields.text("nodename")?;
        let file = fields.text("nodename_file")?;
        let optional = fields.flag("nodename_file_optional")?.unwrap_or_default();
        let host = fields.text("hostname")?;
        for (key, name) in [("nodename", &name), ("hostname", &host)] {
            if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
                return Err(fields.invalid(key, name, RULE));
            }
        }
        if let Some(name) = name {
            return Ok(Self::Said(name.trim().to_owned()));
        }
        Ok(match (file, host) {
            (None, None) => Self::Agents,
            (None, Some(host)) => Self::File { path: FILE.into(), optional: true, otherwise: Some(host) },
            (Some(path), host) => Self::File { path: path.into(), optional, otherwise: host },
        })
    }

    /// `None`: the agent's own.
    pub fn resolve(&self) -> Result<Option<String>, CniError> {
        let (path, optional, otherwise) = match self {
            Self::Agents => return Ok(None),
            Self::Said(name) => return Ok(Some(name.clone())),
            Self::File { path, optional, otherwise } => (path, *optional, otherwise),
        };
        let wrong = |code, problem: String| {
            let msg = format!("cannot learn this node's name from `nodename_file` {}", path.display());
            CniError::new(code, msg, problem)
        };
        match fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Ok(otherwise.clone()),
            Ok(text) if is_name(&text) => Ok(Some(text.trim().to_owned())),
            Ok(_) => Err(wrong(Code::InvalidConfig, format!("what it says is no name: {RULE}"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound && optional => Ok(otherwise.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let hint = "it does not exist: the agent writes it when it starts; is it running, and is this its \
                            --nodename-file? Without `nodename_file`, the agent's own name counts";
                Err(wrong(Code::TryAgain, hint.to_owned()))
            }
            Err(e) => Err(wrong(Code::InvalidConfig, e.to_string())),
        }
    }
}

const RULE: &str = "want at most 253 letters, digits, `.`, `_` and `-`, with a letter or digit at both ends";

fn is_name(text: &str) -> bool {
    let text = text.trim();
    text.len() <= 253
        && super::super::request::is_identifier(text)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}
