//! Every table. The names, keys and values are `canal-common`'s; sizes here are defaults that the agent may raise.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use canal_common::{
    Ip4,
    endpoint::{
        BorrowedSource, Borrower, Endpoint, EndpointPolicy, Generation, MAX_ENDPOINTS, MAX_SPOOFABLE,
    },
    event::{EVENTS_BYTES, Event, EventBudget},
    flow::{Flow, FlowKey, FlowLimits, FragKey, FragPorts},
    host::{LocalIp, MAX_LOCAL_IPS},
    node::{MAX_NODES, Node, NodeRef},
    policy::{Class, Hits, MAX_ROWS, MAX_RULES, MAX_SETS, Row, RowRef, hits_index},
    reason::{COUNTERS as COUNTER_SLOTS, Counter},
    settings::Settings,
};

// Connection tracking; written here, read and swept by the agent.
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, 262_144> = LruHashMap::new();
#[btf_map]
pub static FLOWS_NEW: LruHashMap<FlowKey, Flow, 65_536> = LruHashMap::new();
#[btf_map]
pub static FRAGS: LruHashMap<FragKey, FragPorts, 8192> = LruHashMap::new();

// Local endpoints and the node itself; written by the agent.
#[btf_map]
pub static GENERATIONS: Array<Generation, { MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map]
pub static ENDPOINTS: HashMap<Ip4, Endpoint, { MAX_ENDPOINTS as usize }> = HashMap::new();
#[btf_map]
pub static SPOOFABLE: LpmTrie<BorrowedSource, Borrower, { MAX_SPOOFABLE as usize }> = LpmTrie::new();
#[btf_map]
pub static POLICY: HashMap<u32, EndpointPolicy, { MAX_ENDPOINTS as usize }> = HashMap::new();
#[btf_map]
pub static LOCAL_IPS: HashMap<Ip4, LocalIp, { MAX_LOCAL_IPS as usize }, { NO_PREALLOC }> = HashMap::new();

// Compiled policy; written by the agent.
#[btf_map]
pub static PEERS: HashMap<Ip4, Class, 262_144, { NO_PREALLOC }> = HashMap::new();
#[btf_map]
pub static NETS: LpmTrie<Ip4, Class, 131_072> = LpmTrie::new();
#[btf_map]
pub static SETS: ArrayOfMaps<Columns, { MAX_SETS as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static ROWS: Array<Row, { MAX_ROWS as usize }> = Array::new();

/// Class → row. Sets differ in size, hence the flag (kernel 5.10).
pub type Columns = Array<RowRef, 64, { BPF_F_INNER_MAP as usize }>;

// Other nodes; written by the agent.
#[btf_map]
pub static ROUTES: LpmTrie<Ip4, NodeRef, { MAX_NODES as usize }> = LpmTrie::new();
#[btf_map]
pub static NODE_IPS: HashMap<Ip4, NodeRef, { MAX_NODES as usize }, { NO_PREALLOC }> = HashMap::new();
#[btf_map]
pub static NODES: Array<Node, { MAX_NODES as usize }> = Array::new();

// What happened; written here, read by the agent.
#[btf_map]
pub static COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();
/// By [`hits_index`]; the agent makes it as large as the machine has CPUs, and reads it as memory.
#[btf_map]
pub static RULE_HITS: Array<Hits, { MAX_RULES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// Of this CPU, which nobody else writes to.
#[inline(always)]
pub fn hits_of(decision: u32) -> Option<*mut Hits> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    RULE_HITS.get_ptr_mut(hits_index(cpu, decision)?)
}

const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

/// Constants of this node; the agent fills them in before the programs are loaded.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    node_ip: Ip4::UNSPECIFIED,
    vtep_mac: canal_common::Mac::new([0; 6]),
    vxlan_port: 0,
    vni: 0,
    uplink_ifindex: 0,
    overlay_ifindex: 0,
    pods_first: 0,
    pods_last: 0,
    limits: FlowLimits {
        tcp_established: 0,
        tcp_new: 0,
        closing: 0,
        udp: 0,
        icmp: 0,
        sctp_established: 0,
        sctp_new: 0,
        other: 0,
    },
    events_per_tick: 0,
    flags: 0,
    calico_vxlan_port: 0,
    _pad: [0; 2],
};

/// One field of [`SETTINGS`]. Volatile: the compiler must not use the zeros above.
macro_rules! setting {
    ($($field:ident).+) => {
        // SAFETY: a field of a static is valid to read.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::SETTINGS.$($field).+) }
    };
}
pub(crate) use setting;
