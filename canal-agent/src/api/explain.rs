//! What travels for `canalctl explain`: a connection to be, and who decides about it how.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::wire::RuleName;

/// A connection to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// An address, or a pod: `namespace/name` of its WorkloadEndpoint or `namespace/pod`, the pod's name, or the beginning
    /// of its container id, as long as these mean one pod.
    pub from: String,
    pub to: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Of the destination; needed by TCP, UDP and SCTP, and by nothing else.
    #[serde(default)]
    pub port: Option<u16>,
    /// 49152 unless said.
    #[serde(default)]
    pub src_port: Option<u16>,
    /// An echo request (8, 0) unless said.
    #[serde(default)]
    pub icmp_type: Option<u8>,
    #[serde(default)]
    pub icmp_code: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub node: String,
    pub from: End,
    pub to: End,
    pub packet: Packet,
    /// Assumptions and circumstances, a line each.
    pub notes: Vec<String>,
    /// What decides before policy is asked, if anything does.
    pub before_policy: Option<BeforePolicy>,
    /// By each end that is a pod of this node, the sender's first.
    pub judgements: Vec<Judgement>,
    /// Why what policy allows is dropped all the same, if so.
    pub after_policy: Option<String>,
    /// As far as this node decides; `None` where policy does not.
    pub allow: Option<bool>,
    /// The kernel does not do what policy says.
    pub differs: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub address: Ipv4Addr,
    pub place: Place,
    /// `namespace/name` of its WorkloadEndpoint.
    pub endpoint: Option<String>,
    /// Where it is.
    pub node: Option<String>,
    /// For people: who this is, and what else to ask.
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A pod of this node.
    Pod,
    RemotePod,
    ThisHost,
    OtherNode,
    Elsewhere,
}

/// Ports, type and code are 0 where the protocol has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub icmp_type: u8,
    pub icmp_code: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeforePolicy {
    /// `None`: it depends on what the packet belongs to.
    pub allow: Option<bool>,
    pub reason: String,
}

/// One pod of this node, in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// `namespace/name` of the WorkloadEndpoint.
    pub endpoint: String,
    pub address: Ipv4Addr,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Why nothing passes, whatever policy says.
    pub closed: Option<String>,
    /// Why an earlier policy is in force, if so.
    pub degraded: Option<String>,
    pub policy: Walk,
    pub kernel: Answer,
    /// Same verdict and, where the kernel names one, same rule and same Log rules.
    pub agrees: bool,
}

/// The evaluation as policy is defined, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// Those with policies that apply, up to the one that decided.
    pub tiers: Vec<TierWalk>,
    /// Those that were reached.
    pub profiles: Vec<ProfileWalk>,
    pub allow: bool,
    pub decided_by: DecidedBy,
    /// The rule that decided, if one did.
    pub rule: Option<RuleName>,
    /// For people.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    Rule,
    TierDefault,
    ProfileRule,
    MissingProfile,
    /// The endpoint has none.
    NoProfile,
    /// No rule of any profile matches.
    EndOfProfiles,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierWalk {
    pub tier: String,
    /// One that policies name and that does not exist comes last, and denies.
    pub exists: bool,
    /// `Deny` or `Pass`.
    pub default_action: String,
    /// In order, up to the one that decided or passed.
    pub policies: Vec<PolicyWalk>,
    /// No rule decided, so the default action did.
    pub ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWalk {
    pub kind: String,
    /// Empty for a GlobalNetworkPolicy.
    pub namespace: String,
    /// As its author knows it.
    pub name: String,
    /// Where etcd has it.
    pub key: String,
    /// Why the object as it is stored is not, or not wholly, in force.
    pub problem: Option<String>,
    pub rules: usize,
    pub matched: Vec<MatchedRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileWalk {
    pub name: String,
    pub exists: bool,
    pub problem: Option<String>,
    pub rules: usize,
    pub matched: Vec<MatchedRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchedRule {
    /// From 0.
    pub index: u32,
    /// `Allow`, `Deny`, `Pass` or `Log`.
    pub action: String,
}

/// What the loaded program answers from the loaded tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `None`: it could not be asked.
    pub allow: Option<bool>,
    /// What its decision means, if a rule decided.
    pub rule: Option<RuleName>,
    /// The Log rules that it tells of.
    pub logs: Vec<RuleName>,
    /// Why there is no rule, or no answer.
    pub reason: Option<String>,
}
