//! What travels over the local socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
};

use canal_common::Mac;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::model::Pod;

/// The container's interface that is meant, as runtimes name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    pub container_id: String,
    pub interface: String,
}

impl AttachmentId {
    pub fn new(container_id: &str, interface: &str) -> Self {
        Self { container_id: container_id.to_owned(), interface: interface.to_owned() }
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container_id)
    }
}

/// A pod's interface: announced before it is made, handed to the agent once it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddEndpoint {
    pub container_id: String,
    /// Interface name inside the pod.
    pub interface: String,
    /// Interface name on the host: the other end of the veth pair.
    pub host_interface: String,
    /// MAC of the pod's end; absent before there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
    /// Name of the CNI network, and of the endpoint's profile unless `profiles` says otherwise.
    pub network: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Absent: the container is no pod of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The name that this node has in the endpoint's; absent: the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Resolver settings that ADD answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<serde_json::Value>,
    /// Chosen for each ADD: only what was announced is taken.
    #[serde(default)]
    pub attempt: u64,
    /// `host-local`'s folder for the network, to give the address back when nobody else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<PathBuf>,
}

impl AddEndpoint {
    pub fn id(&self) -> AttachmentId {
        AttachmentId::new(&self.container_id, &self.interface)
    }

    /// The profile that is made for the network, if the endpoint has that one.
    pub fn own_profile(&self) -> Option<&str> {
        self.profiles.is_empty().then_some(self.network.as_str())
    }
}

/// The end of a pod, with what is needed for one that the agent has no record of: Calico's plugin may have made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    pub network: String,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default)]
    pub leases: Option<PathBuf>,
}

/// How one attachment stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    pub endpoint: AddEndpoint,
    pub standing: Standing,
    /// Why it is not ready.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its policy is enforced.
    Ready,
    /// Nothing passes.
    Closed,
    /// The node has trouble that is not this endpoint's.
    Unsettled,
    /// Its ADD has not ended.
    Begun,
    /// It was deleted.
    Leaving,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Closed => "closed",
            Self::Unsettled => "unsettled",
            Self::Begun => "begun",
            Self::Leaving => "leaving",
        })
    }
}

/// Whether new pods can be attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Why not; absent: they can.
    pub reason: Option<String>,
    /// Pods that exist may be cut off from a part of the network as well.
    pub limited: bool,
}

/// A runtime's whole list of a network: everything else of that network goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    pub network: String,
    pub valid: BTreeSet<AttachmentId>,
    /// Who has addresses of the network and is not on the list: pods that Calico's plugin made are known by that.
    pub stale: BTreeSet<AttachmentId>,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default)]
    pub leases: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// What went, one line each.
    pub removed: Vec<String>,
    /// What is being made, and on no list yet: nothing of it may go.
    #[serde(default)]
    pub kept: BTreeSet<AttachmentId>,
    /// What could not.
    pub problems: Vec<String>,
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
