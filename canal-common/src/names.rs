//! THE list of names that are visible in the kernel: at most 15 bytes each, checked at compile time.
//!
//! A map's name is the name of its `static` in `canal-ebpf`; a program's name is the name of its function.

/// Directory below the bpffs mount that holds everything Canal pins.
pub const PIN_DIR: &str = "canal";

macro_rules! names {
    ($(#[$doc:meta])* $list:ident: $($(#[$item_doc:meta])* $id:ident = $name:literal),+ $(,)?) => {
        $($(#[$item_doc])* pub const $id: &str = $name;)+
        $(#[$doc])*
        pub const $list: &[&str] = &[$($name),+];
        const _: () = {
            $(assert!($name.len() <= 15, "the kernel cuts names after 15 bytes");)+
        };
    };
}

names! {
    /// Every table, in the order a packet meets them.
    MAPS:
    /// Flows that both sides have spoken in, and flows cut by a policy change.
    FLOWS = "FLOWS",
    /// Flows that have not been answered yet: a flood of these cannot evict live ones.
    FLOWS_NEW = "FLOWS_NEW",
    /// Ports of fragmented datagrams.
    FRAGS = "FRAGS",
    /// Endpoint id → policy generation: what makes a live flow judged anew.
    GENERATIONS = "GENERATIONS",
    /// Pod address → local endpoint.
    ENDPOINTS = "ENDPOINTS",
    /// Interface and source address that is not the pod's own → local endpoint.
    SPOOFABLE = "SPOOFABLE",
    /// Endpoint id → policy sets.
    POLICY = "POLICY",
    /// Addresses of this node.
    LOCAL_IPS = "LOCAL_IPS",
    /// Exact address → peer class.
    PEERS = "PEERS",
    /// CIDR → peer class.
    NETS = "NETS",
    /// Policy set → (peer class → row).
    SETS = "SETS",
    /// Row → verdicts by protocol and port.
    ROWS = "ROWS",
    /// Pod subnet → node index.
    ROUTES = "ROUTES",
    /// Outer source address → node index.
    NODE_IPS = "NODE_IPS",
    /// Node index → where and how to send.
    NODES = "NODES",
    /// Packets and bytes by hook and reason.
    COUNTERS = "COUNTERS",
    /// New flows by decision, and what user space was told of each.
    RULE_HITS = "RULE_HITS",
    /// Sampled drops, and new flows that met a Log rule.
    EVENTS = "EVENTS",
    /// How many events each CPU has sent in this tick.
    EVENT_BUDGET = "EVENT_BUDGET",
}

/// Read-only globals, filled at load; not pinned.
pub const SETTINGS: &str = "SETTINGS";

names! {
    /// Every program that is attached, named after its hook.
    PROGRAMS:
    FROM_POD = "from_pod",
    TO_POD = "to_pod",
    FROM_WIRE = "from_wire",
    TO_OVERLAY = "to_overlay",
    FROM_OVERLAY = "from_overlay",
}

/// The program on the uplink's driver, where the operator wants one.
pub const XDP_WIRE: &str = "xdp_wire";

/// The program that answers questions about the loaded policy; attached nowhere.
pub const JUDGE: &str = "judge";
