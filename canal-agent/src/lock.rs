//! One agent per node: a name that the network namespace can give out only once, and takes back from a dead process.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener, UnixStream},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::warn;

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
    _listener: Option<UnixListener>,
}

impl AgentLock {
    pub(crate) fn take() -> Result<Self, LockError> {
        let name = SocketAddr::from_abstract_name(b"canal-agent").map_err(LockError::Io)?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self { _listener: Some(listener) }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => match holder(&name) {
                // Anybody may take such a name; only root can be an agent, and only root may stop one.
                Some(uid) if uid != 0 => {
                    warn!(uid, "a process without privileges holds the agent's lock; going on without it");
                    Ok(Self { _listener: None })
                }
                None => {
                    warn!("something that is no agent holds the agent's lock; going on without it");
                    Ok(Self { _listener: None })
                }
                Some(_) => Err(LockError::Taken),
            },
            Err(error) => Err(LockError::Io(error)),
        }
    }
}

/// Who listens under the name; an agent always does.
fn holder(name: &SocketAddr) -> Option<u32> {
    let peer = UnixStream::connect_addr(name).ok()?;
    getsockopt(&peer, PeerCredentials).ok().map(|credentials| credentials.uid())
}
