//! Why a request to the kernel failed.

use std::{fmt, io, path::PathBuf};

/// One failed request: what was asked for, on what, why, and what to do about the usual causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel answered with an error number.
    #[error("cannot {operation} {object}: {}", Refusal { source, explanation, hint: *hint })]
    Refused {
        operation: &'static str,
        object: String,
        /// The kernel's own sentence (extended acknowledgement), where it gave one.
        explanation: Option<String>,
        hint: Option<&'static str>,
        source: io::Error,
    },
    /// The request did not reach the kernel, or its answer did not reach us.
    #[error("cannot {operation} {object}: {source}")]
    Transport { operation: &'static str, object: String, source: io::Error },
    /// The kernel's answer is not what the protocol allows.
    #[error("cannot {operation} {object}: unexpected answer from the kernel: {what}")]
    Protocol { operation: &'static str, object: String, what: String },
    /// A name, path or value that no kernel would take; nothing was sent.
    #[error("cannot {operation} {object}: {why}")]
    Invalid { operation: &'static str, object: String, why: &'static str },
    /// A file below `/proc/sys`.
    #[error("cannot {operation} {path}: {source}", path = .path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Transport { source, .. } | Self::File { source, .. } => {
                source.raw_os_error()
            }
            Self::Protocol { .. } | Self::Invalid { .. } => None,
        }
    }

    /// The object of the request (or what it names) does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }

    /// The object to be made exists already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    pub(super) fn refused(
        operation: &'static str,
        object: String,
        errno: i32,
        explanation: Option<String>,
    ) -> Self {
        let hint = match errno {
            libc::EPERM | libc::EACCES => Some("CAP_NET_ADMIN in this network namespace is needed"),
            libc::EADDRINUSE => Some("another device or socket holds the port"),
            libc::EOPNOTSUPP => Some("the kernel, or the module it would load, does not support this"),
            _ => None,
        };
        let source = io::Error::from_raw_os_error(errno);
        Self::Refused { operation, object, explanation, hint, source }
    }
}

/// The tail of a refusal: error, the kernel's explanation, our hint.
struct Refusal<'a> {
    source: &'a io::Error,
    explanation: &'a Option<String>,
    hint: Option<&'static str>,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(explanation) = self.explanation {
            write!(f, ": {explanation}")?;
        }
        if let Some(hint) = self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}
