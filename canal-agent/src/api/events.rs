//! What travels for `canalctl events`: dropped packets, and new flows that met a Log rule.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::wire::RuleName;

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The oldest first: a sample, not all.
    pub events: Vec<Event>,
    /// Ask for what comes after this number to go on.
    pub last: u64,
    /// Events after the number that was asked for that are forgotten already.
    pub forgotten: u64,
    /// Drops without a rule that the kernel did not tell of (over its limit, or the ring was full), since the tables were
    /// made. Those with one are counted with the events of their rules, and in [`super::wire::RuleStatus::lost`].
    pub lost: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counted from 1 at the start of the agent.
    pub number: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
    /// `dropped`, `logged-allowed` or `logged-denied`.
    pub kind: String,
    /// The program that saw it.
    pub hook: String,
    /// Why it was dropped.
    pub reason: Option<String>,
    /// The same for people.
    pub sentence: Option<String>,
    /// IP protocol number; 0 for what is not IPv4.
    pub protocol: u8,
    pub src: EventEnd,
    pub dst: EventEnd,
    pub interface: Option<String>,
    pub bytes: u32,
    /// Of the policy that was asked: `ingress` or `egress`.
    pub direction: Option<String>,
    /// `allow` or `deny` by policy, `drop` by anything else.
    pub verdict: String,
    /// The rule that decided, if one did.
    pub rule: Option<RuleName>,
    /// The Log rules before it.
    pub logs: Vec<RuleName>,
    /// Events of the same rules that the kernel did not tell of, up to this one.
    pub lost: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEnd {
    pub address: Ipv4Addr,
    /// 0 where the protocol has none.
    pub port: u16,
    /// `namespace/name` of its WorkloadEndpoint, if it is known.
    pub endpoint: Option<String>,
    /// `namespace/pod`: its shorter name, with the container id where there is no other.
    pub pod: Option<String>,
}

impl Event {
    pub fn is_drop(&self) -> bool {
        self.reason.is_some()
    }
}
