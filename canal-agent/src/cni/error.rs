//! What the plugin answers when it cannot: the specification's error object.

use serde::Serialize;

/// The published codes: the specification's below 100, ours from 100 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration asks for a version of CNI that this plugin does not speak.
    IncompatibleVersion = 1,
    /// A field of the configuration that this plugin does not support.
    UnsupportedField = 2,
    /// The container's network namespace does not exist. Nothing was done; no DEL is needed.
    UnknownContainer = 3,
    /// An environment variable is missing or has an impossible value.
    InvalidEnvironment = 4,
    /// Standard input could not be read, or standard output not written.
    Io = 5,
    /// The configuration is not JSON, or has a field of the wrong type.
    Decode = 6,
    /// The configuration is readable and wrong.
    InvalidConfig = 7,
    /// The agent is not there or not ready: the same call may succeed in a moment.
    TryAgain = 11,
    /// STATUS: an ADD would fail.
    NotAvailable = 50,
    /// STATUS: an ADD would fail, and pods that exist may be cut off from a part of the network.
    Limited = 51,
    /// The agent will not take this endpoint, and will not in a moment either.
    AgentRefused = 100,
    /// The subnet file is missing or unusable: the node has no subnet (yet).
    NoSubnet = 101,
    /// `host-local` (or another plugin that made the pod) is not in any folder of `CNI_PATH`, or cannot be run.
    PluginMissing = 102,
    /// `host-local`, or another plugin that made the pod, failed.
    PluginFailed = 103,
    /// Every address of the node's subnet is in use.
    PoolFull = 104,
    /// The container has an interface of this name already. Nothing was done.
    InterfaceExists = 105,
    /// The kernel refused a link, an address or a route.
    Kernel = 106,
    /// CHECK: something is not as ADD made it; `details` name all of it.
    Drifted = 107,
    /// The address that was asked for is outside the subnet or somebody else's.
    AddressTaken = 108,
    /// GC: something could not be removed; the rest was.
    GarbageLeft = 109,
    /// The container is on a network of Canal already, by another interface.
    SecondNetwork = 110,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    pub code: Code,
    /// One line: what failed, on what.
    pub msg: String,
    /// The cause, and what to do.
    pub details: String,
}

impl CniError {
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// Something that was asked for is wrong or not to be had here; it could be read, though.
    pub(super) fn is_of_content(&self) -> bool {
        matches!(self.code, Code::UnsupportedField | Code::InvalidConfig | Code::InvalidEnvironment)
    }

    /// `cause`: what somebody said of it, or nothing.
    pub(super) fn pool_full(cause: &str) -> Self {
        let hint = format!(
            "every address of this node's subnet is in use; delete pods, or give nodes larger subnets{cause}"
        );
        Self::new(Code::PoolFull, "no free address", hint)
    }

    pub(super) fn kernel(error: &crate::netlink::Error) -> Self {
        Self::new(Code::Kernel, "cannot set up the container's interface", error.to_string())
    }

    /// Adds what could not be undone, so that someone can do it by hand.
    #[must_use]
    pub(super) fn with_leftovers(mut self, leftovers: &[String]) -> Self {
        for leftover in leftovers {
            self.details = format!("{}; and in undoing: {leftover}", self.details);
        }
        self
    }

    /// The answer for standard output.
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let (msg, details) = (&one_line(&self.msg), &one_line(&self.details));
        let answer = Answer { cni_version: version, code: self.code as u32, msg, details };
        serde_json::to_string(&answer).expect("strings and a number are always JSON")
    }
}

/// For logs and terminals, whatever a caller or another program put into it.
pub(super) fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}
