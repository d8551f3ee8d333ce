//! The policy tables without a kernel: every write is recorded, and a packet is judged as the kernel programs do it.

use std::{
    cell::{Ref, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    rc::Rc,
};

use canal_common::{
    endpoint::{Endpoint, EndpointPolicy},
    policy::{MAX_DEPTH, Row, Verdict, key},
};
use ipnet::Ipv4Net;

use crate::{
    compile::{reference::Packet, tests::port_of},
    dataplane::tables::{Leftovers, Tables},
    model::rule::Direction,
};

#[derive(Debug, Clone)]
pub(super) enum Write {
    Row(u32, Box<Row>),
    Set(u32, Vec<u32>),
    Column(u32, u32, u32),
    DeleteSet(u32),
    Peer(Ipv4Addr, u32),
    DeletePeer(Ipv4Addr),
    Net(Ipv4Net, u32),
    DeleteNet(Ipv4Net),
    Policy(u32, EndpointPolicy),
    DeletePolicy(u32),
    Bump(u32),
    Endpoint(Ipv4Addr, Endpoint),
    DeleteEndpoint(Ipv4Addr),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    pub(super) rows: BTreeMap<u32, Row>,
    pub(super) sets: BTreeMap<u32, Vec<u32>>,
    pub(super) peers: BTreeMap<Ipv4Addr, u32>,
    pub(super) nets: BTreeMap<Ipv4Net, u32>,
    pub(super) policy: BTreeMap<u32, EndpointPolicy>,
    pub(super) generations: BTreeMap<u32, u32>,
    pub(super) endpoints: BTreeMap<Ipv4Addr, Endpoint>,
}

impl State {
    pub(super) fn apply(&mut self, write: &Write) {
        match write.clone() {
            Write::Row(row, page) => drop(self.rows.insert(row, *page)),
            Write::Set(set, columns) => drop(self.sets.insert(set, columns)),
            Write::Column(set, class, row) => {
                let columns = self.sets.get_mut(&set).expect("a column is written to a set that is there");
                columns[class as usize] = row;
            }
            Write::DeleteSet(set) => drop(self.sets.remove(&set)),
            Write::Peer(addr, class) => drop(self.peers.insert(addr, class)),
            Write::DeletePeer(addr) => drop(self.peers.remove(&addr)),
            Write::Net(net, class) => drop(self.nets.insert(net, class)),
            Write::DeleteNet(net) => drop(self.nets.remove(&net)),
            Write::Policy(id, policy) => drop(self.policy.insert(id, policy)),
            Write::DeletePolicy(id) => drop(self.policy.remove(&id)),
            Write::Bump(id) => *self.generations.entry(id).or_default() += 1,
            Write::Endpoint(addr, endpoint) => drop(self.endpoints.insert(addr, endpoint)),
            Write::DeleteEndpoint(addr) => drop(self.endpoints.remove(&addr)),
        }
    }

    fn class_of(&self, peer: Ipv4Addr, uses_nets: bool) -> u32 {
        if let Some(class) = self.peers.get(&peer) {
            return *class;
        }
        let around = |bits| self.nets.get(&Ipv4Net::new(peer, bits).unwrap().trunc());
        if uses_nets { (0..=32).rev().find_map(around).copied().unwrap_or(0) } else { 0 }
    }

    /// Where the search for a verdict begins; row 0 denies.
    pub(super) fn root(&self, endpoint: Ipv4Addr, direction: Direction, peer: Ipv4Addr) -> u32 {
        let found = || {
            let policy = self.policy.get(&self.endpoints.get(&endpoint)?.id)?;
            let set = if direction == Direction::Ingress { policy.ingress_set } else { policy.egress_set };
            let class = self.class_of(peer, policy.flags & EndpointPolicy::USES_NETS != 0);
            self.sets.get(&set)?.get(class as usize).copied()
        };
        found().unwrap_or(0)
    }

    pub(super) fn allows(&self, root: u32, packet: &Packet) -> bool {
        let (mut row, mut wanted) = (root, key(packet.protocol, port_of(packet)));
        for _ in 0..MAX_DEPTH {
            let page = self.rows.get(&row).unwrap_or(&Row::DENY_ALL);
            let verdict = page.verdicts[page.slot(wanted)];
            match verdict.kind() {
                Verdict::PAGE => row = verdict.id(),
                Verdict::BY_SRC_PORT => (row, wanted) = (verdict.id(), key(packet.protocol, packet.src_port)),
                kind => return kind == Verdict::ALLOW,
            }
        }
        false
    }

    /// Sets that some endpoint has.
    pub(super) fn used_sets(&self) -> BTreeSet<u32> {
        self.policy.values().flat_map(|policy| [policy.ingress_set, policy.egress_set]).collect()
    }

    /// Rows that some address can lead to, and what is below them.
    pub(super) fn reachable(&self) -> BTreeSet<u32> {
        let classes: BTreeSet<u32> =
            self.peers.values().chain(self.nets.values()).copied().chain([0]).collect();
        let used = self.used_sets();
        let sets = used.iter().filter_map(|set| self.sets.get(set));
        let columns = sets.flat_map(|set| classes.iter().filter_map(|class| set.get(*class as usize)));
        self.below(columns.copied())
    }

    fn below(&self, rows: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let mut open: Vec<u32> = rows.filter(|row| *row != 0).collect();
        let mut seen = BTreeSet::new();
        while let Some(row) = open.pop() {
            if seen.insert(row) {
                let pages = self.rows.get(&row).into_iter().flat_map(|page| page.verdicts);
                open.extend(
                    pages
                        .filter(|v| matches!(v.kind(), Verdict::PAGE | Verdict::BY_SRC_PORT))
                        .map(Verdict::id),
                );
            }
        }
        seen
    }

    /// What a fresh process finds.
    pub(super) fn leftovers(&self) -> Leftovers {
        Leftovers {
            peers: self.peers.clone(),
            nets: self.nets.clone(),
            endpoints: self.endpoints.clone(),
            policies: self.policy.clone(),
            sets: self.sets.clone(),
            rows: {
                let used = self.used_sets();
                let sets = used.iter().filter_map(|set| self.sets.get(set));
                self.below(sets.flatten().copied()).into_iter().collect()
            },
        }
    }
}

/// Clones are the same tables.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: State,
    log: Vec<Write>,
    /// Decisions whose counts began anew.
    cleared: Vec<u32>,
    /// Writes until one fails.
    budget: Option<usize>,
    /// For programs that use what an update left behind, and the writes before each wait.
    waits: Vec<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error("on purpose")]
pub(super) struct OnPurpose;

impl Fake {
    pub(super) fn from_state(state: State) -> Self {
        Self(Rc::new(RefCell::new(Inner { state, ..Inner::default() })))
    }

    pub(super) fn state(&self) -> Ref<'_, State> {
        Ref::map(self.0.borrow(), |inner| &inner.state)
    }

    pub(super) fn take_log(&self) -> Vec<Write> {
        std::mem::take(&mut self.0.borrow_mut().log)
    }

    pub(super) fn take_waits(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.borrow_mut().waits)
    }

    pub(super) fn take_cleared(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.borrow_mut().cleared)
    }

    /// The write after the next `budget` ones fails.
    pub(super) fn fail_after(&self, budget: Option<usize>) {
        self.0.borrow_mut().budget = budget;
    }

    fn write(&self, write: Write) -> Result<(), OnPurpose> {
        let inner = &mut *self.0.borrow_mut();
        match &mut inner.budget {
            Some(0) => return Err(OnPurpose),
            Some(left) => *left -= 1,
            None => {}
        }
        inner.state.apply(&write);
        inner.log.push(write);
        Ok(())
    }
}

impl Tables for Fake {
    type Error = OnPurpose;

    fn write_row(&mut self, row: u32, page: &Row) -> Result<(), OnPurpose> {
        self.write(Write::Row(row, Box::new(*page)))
    }

    fn write_sets(&mut self, sets: &[(u32, Vec<u32>)]) -> Result<(), OnPurpose> {
        sets.iter().try_for_each(|(set, columns)| self.write(Write::Set(*set, columns.clone())))
    }

    fn write_columns(&mut self, set: u32, columns: &[(u32, u32)]) -> Result<(), (usize, OnPurpose)> {
        let flips = (0..).zip(columns);
        for (written, (class, row)) in flips {
            self.write(Write::Column(set, *class, *row)).map_err(|error| (written, error))?;
        }
        Ok(())
    }

    fn note_programs(&mut self) -> Result<(), OnPurpose> {
        Ok(())
    }

    fn wait_for_programs(&mut self) -> Result<(), OnPurpose> {
        let inner = &mut *self.0.borrow_mut();
        inner.waits.push(inner.log.len());
        Ok(())
    }

    fn delete_set(&mut self, set: u32) -> Result<(), OnPurpose> {
        self.write(Write::DeleteSet(set))
    }

    fn write_peer(&mut self, addr: Ipv4Addr, class: u32) -> Result<(), OnPurpose> {
        self.write(Write::Peer(addr, class))
    }

    fn delete_peer(&mut self, addr: Ipv4Addr) -> Result<(), OnPurpose> {
        self.write(Write::DeletePeer(addr))
    }

    fn write_net(&mut self, net: Ipv4Net, class: u32) -> Result<(), OnPurpose> {
        self.write(Write::Net(net, class))
    }

    fn delete_net(&mut self, net: Ipv4Net) -> Result<(), OnPurpose> {
        self.write(Write::DeleteNet(net))
    }

    fn write_policy(&mut self, endpoint: u32, policy: EndpointPolicy) -> Result<(), OnPurpose> {
        self.write(Write::Policy(endpoint, policy))
    }

    fn delete_policy(&mut self, endpoint: u32) -> Result<(), OnPurpose> {
        self.write(Write::DeletePolicy(endpoint))
    }

    fn clear_hits(&mut self, decision: u32) -> Result<(), OnPurpose> {
        self.0.borrow_mut().cleared.push(decision);
        Ok(())
    }

    fn bump_generation(&mut self, endpoint: u32) -> Result<(), OnPurpose> {
        self.write(Write::Bump(endpoint))
    }

    fn write_endpoint(&mut self, addr: Ipv4Addr, endpoint: Endpoint) -> Result<(), OnPurpose> {
        self.write(Write::Endpoint(addr, endpoint))
    }

    fn delete_endpoint(&mut self, addr: Ipv4Addr) -> Result<(), OnPurpose> {
        self.write(Write::DeleteEndpoint(addr))
    }
}
