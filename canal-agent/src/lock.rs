//! One agent per node: a name that the network namespace can give out only once, and takes back from a dead process.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener},
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("another canal-agent runs on this node (in this network namespace); stop it first")]
    Taken,
    #[error("cannot take the agent's lock: {0}")]
    Io(std::io::Error),
}

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct AgentLock {
    _listener: UnixListener,
}

impl AgentLock {
    pub(crate) fn take() -> Result<Self, LockError> {
        let name = SocketAddr::from_abstract_name(b"canal-agent").map_err(LockError::Io)?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self { _listener: listener }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(LockError::Taken),
            Err(error) => Err(LockError::Io(error)),
        }
    }
}
