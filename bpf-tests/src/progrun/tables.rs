//! Typed access to the tables of a loaded object, for arranging a test and for looking at its traces.

#![expect(clippy::unwrap_used, reason = "the tables of a test are there and writable, or the test fails")]

use std::{borrow::BorrowMut, net::Ipv4Addr};

use aya::{
    Pod,
    maps::{
        Array, ArrayOfMaps, HashMap as Hash, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues,
        RingBuf, lpm_trie::Key,
    },
    util::nr_cpus,
};
use canal_common::{
    Ip4,
    endpoint::{Endpoint, EndpointPolicy, Generation},
    event::{Event, EventBudget},
    flow::{Flow, FlowKey, FragKey, FragPorts},
    host::LocalIp,
    icmp, names,
    node::{Node, NodeRef},
    policy::{Class, Hits, MAX_RULES, Row, RowRef, hits_index},
    reason::{Counter, Hook, REASONS, Reason},
    wire::PROTO_ICMP,
};
use ipnet::Ipv4Net;

use super::Lab;

/// `BPF_F_INNER_MAP`.
const INNER_MAP: u32 = 1 << 12;

/// So that few sets change their size from test to test.
const MIN_COLUMNS: u32 = 4;

impl Lab {
    fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(&'a mut self, name: &str) -> T {
        let map = self.object.ebpf.map_mut(name).unwrap_or_else(|| panic!("the object has the table {name}"));
        T::try_from(map).unwrap_or_else(|e| panic!("the type of table {name}: {e}"))
    }

    pub fn put_endpoint(&mut self, addr: Ipv4Addr, endpoint: Endpoint) {
        self.map::<Hash<_, Ip4, Endpoint>>(names::ENDPOINTS).insert(Ip4::from(addr), endpoint, 0).unwrap();
    }

    pub fn delete_endpoint(&mut self, addr: Ipv4Addr) {
        self.map::<Hash<_, Ip4, Endpoint>>(names::ENDPOINTS).remove(&addr.into()).unwrap();
    }

    /// Gives this node an address.
    pub fn put_local_ip(&mut self, addr: Ipv4Addr) {
        self.map::<Hash<_, Ip4, LocalIp>>(names::LOCAL_IPS)
            .insert(Ip4::from(addr), LocalIp::default(), 0)
            .unwrap();
    }

    pub fn put_policy(&mut self, endpoint: u32, policy: EndpointPolicy) {
        self.map::<Hash<_, u32, EndpointPolicy>>(names::POLICY).insert(endpoint, policy, 0).unwrap();
    }

    pub fn policy(&mut self, endpoint: u32) -> Option<EndpointPolicy> {
        self.map::<Hash<_, u32, EndpointPolicy>>(names::POLICY).get(&endpoint, 0).ok()
    }

    pub fn delete_policy(&mut self, endpoint: u32) {
        self.map::<Hash<_, u32, EndpointPolicy>>(names::POLICY).remove(&endpoint).unwrap();
    }

    /// Has every flow of the endpoint judged again.
    pub fn bump(&mut self, endpoint: u32) {
        let mut generations: Array<_, Generation> = self.map(names::GENERATIONS);
        let Generation { generation } = generations.get(&endpoint, 0).unwrap();
        generations.set(endpoint, Generation { generation: generation + 1 }, 0).unwrap();
    }

    /// A set whose columns (class → row) are these. Known sets are rewritten in place: the kernel takes milliseconds
    /// to exchange an array of an array of maps.
    pub fn put_set(&mut self, set: u32, columns: &[u32]) {
        let wanted = u32::try_from(columns.len()).expect("a small set").max(MIN_COLUMNS);
        let mut inner = match self.sets.remove(&set) {
            Some(inner) if inner.len() == wanted => inner,
            _ => {
                let inner = Array::<MapData, RowRef>::create(wanted, INNER_MAP).unwrap();
                self.map::<ArrayOfMaps<_, Array<MapData, RowRef>>>(names::SETS).set(set, &inner, 0).unwrap();
                inner
            }
        };
        for (class, row) in (0..wanted).zip(columns.iter().copied().chain(std::iter::repeat(0))) {
            inner.set(class, RowRef { row }, 0).unwrap();
        }
        self.sets.insert(set, inner);
    }

    pub fn put_row(&mut self, row: u32, page: &Row) {
        self.map::<Array<_, Row>>(names::ROWS).set(row, page, 0).unwrap();
    }

    pub fn put_peer(&mut self, addr: Ipv4Addr, class: u32) {
        self.map::<Hash<_, Ip4, Class>>(names::PEERS).insert(Ip4::from(addr), Class { class }, 0).unwrap();
    }

    pub fn put_net(&mut self, net: &str, class: u32) {
        self.map::<LpmTrie<_, Ip4, Class>>(names::NETS).insert(&prefix(net), Class { class }, 0).unwrap();
    }

    pub fn put_node(&mut self, index: u32, subnet: &str, node: Node) {
        self.map::<Array<_, Node>>(names::NODES).set(index, node, 0).unwrap();
        let (addr, entry) = (node.ip, NodeRef { node: index });
        self.map::<Hash<_, Ip4, NodeRef>>(names::NODE_IPS).insert(addr, entry, 0).unwrap();
        self.map::<LpmTrie<_, Ip4, NodeRef>>(names::ROUTES).insert(&prefix(subnet), entry, 0).unwrap();
    }

    /// Changes the entry only, as the agent does when a lease ends.
    pub fn set_node(&mut self, index: u32, node: Node) {
        self.map::<Array<_, Node>>(names::NODES).set(index, node, 0).unwrap();
    }

    pub fn delete_route(&mut self, subnet: &str) {
        self.map::<LpmTrie<_, Ip4, NodeRef>>(names::ROUTES).remove(&prefix(subnet)).unwrap();
    }

    /// Flows that both sides have spoken in.
    pub fn flows(&mut self) -> Vec<(FlowKey, Flow)> {
        self.map::<Hash<_, FlowKey, Flow>>(names::FLOWS).iter().map(Result::unwrap).collect()
    }

    /// Flows that have not been answered yet.
    pub fn new_flows(&mut self) -> Vec<(FlowKey, Flow)> {
        self.map::<Hash<_, FlowKey, Flow>>(names::FLOWS_NEW).iter().map(Result::unwrap).collect()
    }

    /// Makes every flow and fragment look as if last seen this many ticks ago.
    pub fn age(&mut self, ticks: u32) {
        for name in [names::FLOWS, names::FLOWS_NEW] {
            let mut table: Hash<_, FlowKey, Flow> = self.map(name);
            let entries: Vec<_> = table.iter().map(Result::unwrap).collect();
            for (key, flow) in entries {
                let older = Flow { last_seen: flow.last_seen.wrapping_sub(ticks), ..flow };
                table.insert(key, older, 0).unwrap();
            }
        }
        let mut table: Hash<_, FragKey, FragPorts> = self.map(names::FRAGS);
        let entries: Vec<_> = table.iter().map(Result::unwrap).collect();
        for (key, ports) in entries {
            table.insert(key, FragPorts { seen: ports.seen.wrapping_sub(ticks), ..ports }, 0).unwrap();
        }
    }

    /// Has the next packet of this flow judged like the first one.
    pub fn forget_flow(&mut self, key: &FlowKey) {
        // For ICMP whatever either side may have asked with this identifier.
        let queries: &[u8] = if key.proto == PROTO_ICMP {
            &[icmp::ECHO, icmp::TIMESTAMP, icmp::INFORMATION, icmp::MASK]
        } else {
            &[0]
        };
        for name in [names::FLOWS, names::FLOWS_NEW] {
            let mut table: Hash<_, FlowKey, Flow> = self.map(name);
            for (query, asked_by_hi) in queries.iter().flat_map(|query| [(*query, 0), (*query, 1)]) {
                // Most packets leave an entry in at most one of the two.
                table.remove(&FlowKey { query, asked_by_hi, ..*key }).ok();
            }
        }
    }

    pub fn forget_flows(&mut self) {
        clear::<_, FlowKey, Flow>(&mut self.map(names::FLOWS));
        clear::<_, FlowKey, Flow>(&mut self.map(names::FLOWS_NEW));
        clear::<_, FragKey, FragPorts>(&mut self.map(names::FRAGS));
    }

    /// How many new flows were judged so.
    pub fn hits(&mut self, decision: u32) -> u64 {
        self.hits_by_cpu(decision).iter().map(|cpu| cpu.flows).sum()
    }

    /// What has been told since the last look.
    pub fn events(&mut self) -> Vec<Event> {
        let mut ring: RingBuf<_> = self.map(names::EVENTS);
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            assert_eq!(item.len(), size_of::<Event>());
            // SAFETY: the length was checked, and the record is plain data.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    /// Events about this decision that were not sent.
    pub fn events_lost_of(&mut self, decision: u32) -> u64 {
        self.hits_by_cpu(decision).iter().map(|cpu| cpu.lost).sum()
    }

    fn hits_by_cpu(&mut self, decision: u32) -> Vec<Hits> {
        let hits: Array<_, Hits> = self.map(names::RULE_HITS);
        let cpus = 0..hits.len() / MAX_RULES;
        cpus.map(|cpu| hits.get(&hits_index(cpu, decision).unwrap(), 0).unwrap()).collect()
    }

    /// Events without a decision that were not sent.
    pub fn events_lost(&mut self) -> u64 {
        let budget: PerCpuArray<_, EventBudget> = self.map(names::EVENT_BUDGET);
        budget.get(&0, 0).unwrap().iter().map(|cpu| cpu.lost).sum()
    }

    /// Packets and bytes by hook and reason.
    pub fn counters(&mut self) -> Vec<(Hook, Reason, Counter)> {
        let counters: PerCpuArray<_, Counter> = self.map(names::COUNTERS);
        let pairs = Hook::ALL.iter().flat_map(|hook| Reason::ALL.iter().map(|reason| (*hook, *reason)));
        let read = |(hook, reason)| {
            let cpus = counters.get(&(hook as u32 * REASONS + reason as u32), 0).unwrap();
            let sum = cpus.iter().fold(Counter::default(), |sum, cpu| Counter {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            });
            (hook, reason, sum)
        };
        pairs.map(read).collect()
    }

    /// Empties everything that a test may have written.
    pub(super) fn reset(&mut self) {
        self.forget_flows();
        clear::<_, Ip4, Endpoint>(&mut self.map(names::ENDPOINTS));
        clear::<_, u32, EndpointPolicy>(&mut self.map(names::POLICY));
        clear::<_, Ip4, LocalIp>(&mut self.map(names::LOCAL_IPS));
        clear::<_, Ip4, Class>(&mut self.map(names::PEERS));
        clear::<_, Ip4, NodeRef>(&mut self.map(names::NODE_IPS));
        clear_trie::<_, Class>(&mut self.map(names::NETS));
        clear_trie::<_, NodeRef>(&mut self.map(names::ROUTES));
        for set in self.sets.keys().copied().collect::<Vec<_>>() {
            self.put_set(set, &[]);
        }
        for row in 0..64 {
            self.put_row(row, &Row::DENY_ALL);
        }
        for node in 0..64 {
            self.set_node(node, Node::default());
        }
        let cpus = nr_cpus().expect("the number of CPUs is known");
        let mut hits: Array<_, Hits> = self.map(names::RULE_HITS);
        for decision in 0..64 {
            for cpu in 0..hits.len() / MAX_RULES {
                hits.set(hits_index(cpu, decision).unwrap(), Hits::default(), 0).unwrap();
            }
        }
        let mut budget: PerCpuArray<_, EventBudget> = self.map(names::EVENT_BUDGET);
        budget.set(0, PerCpuValues::try_from(vec![EventBudget::default(); cpus]).unwrap(), 0).unwrap();
        self.events();
    }
}

fn clear<T: BorrowMut<MapData>, K: Pod, V: Pod>(table: &mut Hash<T, K, V>) {
    let keys: Vec<K> = table.keys().map(Result::unwrap).collect();
    for key in keys {
        // An entry of an LRU table may be gone on its own.
        table.remove(&key).ok();
    }
}

fn clear_trie<T: BorrowMut<MapData>, V: Pod>(table: &mut LpmTrie<T, Ip4, V>) {
    let keys: Vec<Key<Ip4>> = table.keys().map(Result::unwrap).collect();
    for key in keys {
        table.remove(&key).unwrap();
    }
}

fn prefix(net: &str) -> Key<Ip4> {
    let net: Ipv4Net = net.parse().expect("a CIDR");
    Key::new(u32::from(net.prefix_len()), net.network().into())
}
