//! The pod of a container, as the API of Kubernetes knows it: asked once for each ADD, by a client that needs no runtime.
//!
//! Owns: who to ask and with which credentials, and what of the answer matters for an endpoint.
//! Does not: keep anything, watch anything, or write to Kubernetes.

mod annotations;
mod client;
mod kubeconfig;
mod pod;

#[cfg(test)]
mod tests;

use std::time::Duration;

use self::kubeconfig::Connection;
pub use self::pod::{PodFacts, Port, PortProtocol};
use super::{
    config::Access,
    error::{CniError, Code},
    request::PodName,
};

/// For the whole question, from the name of the server to the last byte of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl PodFacts {
    /// Asks for the pod.
    pub fn ask(access: &Access, pod: &PodName) -> Result<Self, CniError> {
        Self::ask_within(PATIENCE, access, pod)
    }

    fn ask_within(patience: Duration, access: &Access, pod: &PodName) -> Result<Self, CniError> {
        let connection = Connection::read(access)?;
        let answer = client::get(&connection, pod, patience)?;
        Self::read(&answer, pod)
    }
}

/// Whether there is what it takes to ask.
pub(super) fn check(access: &Access) -> Result<(), CniError> {
    Connection::read(access).map(drop)
}

fn failed(pod: &PodName, code: Code, details: impl Into<String>) -> CniError {
    let msg = format!("cannot learn about pod {}/{} from Kubernetes", pod.namespace, pod.name);
    CniError::new(code, msg, details)
}
