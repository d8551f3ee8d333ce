//! What travels over the local socket.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use canal_common::Mac;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Hand a freshly made pod interface to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddEndpoint {
    pub container_id: String,
    /// Interface name inside the pod.
    pub interface: String,
    /// Interface name on the host: the other end of the veth pair.
    pub host_interface: String,
    /// MAC of the pod's end.
    pub mac: Mac,
    pub addresses: Vec<Ipv4Addr>,
    /// Name of the CNI network, and of the endpoint's profile.
    pub network: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Why the agent did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// One line: what failed, on what, and what to do.
    pub message: String,
    /// The same request may succeed in a moment.
    #[serde(default)]
    pub try_again: bool,
}

/// A rule, as people and scripts find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// Empty for a profile.
    pub tier: String,
    /// `NetworkPolicy`, `GlobalNetworkPolicy` or `Profile`.
    pub kind: String,
    /// Empty for kinds without namespace.
    pub namespace: String,
    /// As its author knows it; the key's may have the tier in front.
    pub name: String,
    /// Where etcd has it.
    pub key: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Position in the list of that direction, from 0.
    pub index: u32,
}

impl RuleName {
    /// With the namespace, if it has one.
    pub fn qualified_name(&self) -> String {
        let separator = if self.namespace.is_empty() { "" } else { "/" };
        format!("{}{separator}{}", self.namespace, self.name)
    }
}

/// `NetworkPolicy shop/allow-web (tier default) ingress rule 2`, `Profile canal egress rule 0`.
impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.qualified_name())?;
        if !self.tier.is_empty() {
            write!(f, " (tier {})", self.tier)?;
        }
        write!(f, " {} rule {}", self.direction, self.index)
    }
}

/// What `canalctl status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub node: String,
    pub uptime_seconds: u64,
    /// `ok`, or what is wrong in one line each.
    pub problems: Vec<String>,
    pub store: StoreStatus,
    /// Absent until one was found.
    #[serde(default)]
    pub uplink: Option<UplinkStatus>,
    pub lease: Option<LeaseStatus>,
    pub peers: Vec<PeerStatus>,
    pub endpoints: Vec<EndpointStatus>,
    pub programs: Vec<ProgramStatus>,
    pub tables: Vec<TableStatus>,
    /// Policies and other objects that cannot be used, by key, with the reason.
    pub invalid: BTreeMap<String, String>,
    /// What has no effect here, or another than one might think. Nothing is wrong with these.
    #[serde(default)]
    pub notices: Vec<String>,
    pub counters: Vec<CounterStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    pub endpoints: Vec<String>,
    pub connected: bool,
    /// Last revision that was applied.
    pub revision: i64,
    /// Both prefixes were listed completely at least once.
    pub in_sync: bool,
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStatus {
    pub interface: String,
    pub address: Ipv4Addr,
    /// Bytes of the largest packet that it carries.
    pub mtu: u32,
    /// What takes VXLAN off: `tc` or `kernel`.
    pub decap_gear: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    pub network: Ipv4Net,
    pub subnet: Ipv4Net,
    pub public_ip: Ipv4Addr,
    /// `vxlan`, `host-gw` or `alloc`.
    pub backend: String,
    /// These three are vxlan's.
    #[serde(default)]
    pub vtep_mac: Option<Mac>,
    #[serde(default)]
    pub vni: Option<u32>,
    #[serde(default)]
    pub port: Option<u16>,
    /// Of the pods, in bytes.
    pub mtu: u16,
    /// The key has no etcd lease: an administrator reserved it.
    pub reservation: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub subnet: Ipv4Net,
    pub public_ip: Ipv4Addr,
    /// Absent where the node has no VXLAN device.
    pub vtep_mac: Option<Mac>,
    pub node: Option<String>,
    pub way: Way,
    /// Why there is no way, if this node should have one.
    #[serde(default)]
    pub reason: Option<String>,
}

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// In an envelope.
    Vxlan,
    /// As they are, over the uplink's own link.
    Direct,
    /// Not by this node.
    None,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vxlan => "vxlan",
            Self::Direct => "direct",
            Self::None => "none",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// `namespace/name` of the WorkloadEndpoint.
    pub key: String,
    pub address: Ipv4Addr,
    pub host_interface: String,
    pub labels: BTreeMap<String, String>,
    /// `ready`, `waiting` (interface not there yet) or `closed`.
    pub state: String,
    pub reason: Option<String>,
    /// Somebody's queues or filters are on its interface, for what goes to the pod (`in`), comes from it (`out`) or `both`.
    #[serde(default)]
    pub shaped: Option<String>,
    /// Policies that apply, in order of evaluation.
    pub ingress: Vec<String>,
    pub egress: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProgramStatus {
    pub program: String,
    pub interface: String,
    pub id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    pub table: String,
    pub entries: u64,
    pub capacity: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    pub hook: String,
    pub reason: String,
    pub sentence: String,
    pub drop: bool,
    pub packets: u64,
    pub bytes: u64,
}

/// What the rules of this node have decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// How long the agent has been counting. A rule's count begins when it comes into force on this node, and is lost
    /// when it goes out of force.
    pub seconds: u64,
    /// Those with a count, in a fixed order.
    pub rules: Vec<RuleStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// `None`: no rule decided, or what should have decided is missing.
    pub rule: Option<RuleName>,
    /// `Allow` or `Deny` for a rule that decided, `Log` for one that was met on the way.
    pub action: String,
    /// New flows; one that is judged again counts again.
    pub flows: u64,
    /// Events that the kernel did not tell of: over its limits.
    pub lost: u64,
}
