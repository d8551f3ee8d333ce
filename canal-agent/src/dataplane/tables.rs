//! The policy tables in the kernel, one small write each: what [`super::policy`] decides is done here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use super::{batch, grace::Grace, hits};
use aya::{
    Ebpf,
    maps::{
        Array, ArrayOfMaps, HashMap as BpfHashMap, IterableMap as _, LpmTrie, Map, MapData, MapError,
        lpm_trie::Key,
    },
};
use canal_common::{
    Ip4,
    endpoint::{Endpoint, EndpointPolicy, Generation},
    names,
    policy::{Class, Hits, MAX_ROWS, MAX_SETS, Row, RowRef, Verdict},
};
use ipnet::Ipv4Net;

use crate::pulse::Pulse;

/// `BPF_F_INNER_MAP`: sets differ in size (Linux 5.10).
pub(super) const INNER_MAP: u32 = 1 << 12;

/// Takes a table out of the loaded object, as its type.
pub fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, MapError> {
    let map = ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })?;
    T::try_from(map)
}

/// One write is one flip; the order is the caller's business. Deleting what is absent is a success.
pub trait Tables {
    type Error: std::error::Error + Send + Sync + 'static;

    fn write_row(&mut self, row: u32, page: &Row) -> Result<(), Self::Error>;
    /// Puts sets with these columns (class → row) in place, each as a whole.
    fn write_sets(&mut self, sets: &[(u32, Vec<u32>)]) -> Result<(), Self::Error>;
    /// Columns of a set, (class, row) each; every one flips on its own, in this order. With an error comes how many have.
    fn write_columns(&mut self, set: u32, columns: &[(u32, u32)]) -> Result<(), (usize, Self::Error)>;
    fn delete_set(&mut self, set: u32) -> Result<(), Self::Error>;
    fn write_peer(&mut self, addr: Ipv4Addr, class: u32) -> Result<(), Self::Error>;
    fn delete_peer(&mut self, addr: Ipv4Addr) -> Result<(), Self::Error>;
    fn write_net(&mut self, net: Ipv4Net, class: u32) -> Result<(), Self::Error>;
    fn delete_net(&mut self, net: Ipv4Net) -> Result<(), Self::Error>;
    fn write_policy(&mut self, endpoint: u32, policy: EndpointPolicy) -> Result<(), Self::Error>;
    fn delete_policy(&mut self, endpoint: u32) -> Result<(), Self::Error>;
    /// Counts begin anew: the decision's id means something else from now on.
    fn clear_hits(&mut self, decision: u32) -> Result<(), Self::Error>;
    /// Makes every flow of the endpoint be judged again.
    fn bump_generation(&mut self, endpoint: u32) -> Result<(), Self::Error>;
    fn write_endpoint(&mut self, addr: Ipv4Addr, endpoint: Endpoint) -> Result<(), Self::Error>;
    fn delete_endpoint(&mut self, addr: Ipv4Addr) -> Result<(), Self::Error>;
    /// Looks at which programs run, for [`Tables::wait_for_programs`].
    fn note_programs(&mut self) -> Result<(), Self::Error>;
    /// Waits until the programs that ran when they were noted have ended, or, if they were not, those that run now.
    fn wait_for_programs(&mut self) -> Result<(), Self::Error>;
}

/// What an earlier process left in the policy tables.
#[derive(Debug, Default, Clone)]
pub struct Leftovers {
    pub peers: BTreeMap<Ipv4Addr, u32>,
    pub nets: BTreeMap<Ipv4Net, u32>,
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    pub policies: BTreeMap<u32, EndpointPolicy>,
    /// Set → its columns (class → row).
    pub sets: BTreeMap<u32, Vec<u32>>,
    /// Rows that the sets reach.
    pub rows: Vec<u32>,
}

pub struct KernelTables {
    rows: Array<MapData, Row>,
    sets: ArrayOfMaps<MapData, Array<MapData, RowRef>>,
    /// `sets` again, for writes of many at once.
    sets_fd: OwnedFd,
    /// The inner arrays of the sets.
    columns: BTreeMap<u32, Array<MapData, RowRef>>,
    peers: BpfHashMap<MapData, Ip4, Class>,
    nets: LpmTrie<MapData, Ip4, Class>,
    policy: BpfHashMap<MapData, u32, EndpointPolicy>,
    generations: Array<MapData, Generation>,
    endpoints: BpfHashMap<MapData, Ip4, Endpoint>,
    hits: Array<MapData, Hits>,
    grace: Grace,
    pulse: Pulse,
}

impl KernelTables {
    /// Each write is a sign of life: there may be many in one update.
    #[must_use]
    pub fn beating(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    pub fn adopt(ebpf: &mut Ebpf) -> Result<(Self, Leftovers), MapError> {
        let sets =
            ebpf.map(names::SETS).ok_or_else(|| MapError::InvalidName { name: names::SETS.to_owned() })?;
        let Map::ArrayOfMaps(data) = sets else { return Err(MapError::InvalidMapType { map_type: 0 }) };
        let sets_fd = data.fd().as_fd().try_clone_to_owned()?;
        let grace = Grace::new(sets_fd.try_clone()?)?;
        let mut tables = Self {
            sets_fd,
            grace,
            pulse: Pulse::new(),
            rows: take(ebpf, names::ROWS)?,
            sets: take(ebpf, names::SETS)?,
            columns: BTreeMap::new(),
            peers: take(ebpf, names::PEERS)?,
            nets: take(ebpf, names::NETS)?,
            policy: take(ebpf, names::POLICY)?,
            generations: take(ebpf, names::GENERATIONS)?,
            endpoints: take(ebpf, names::ENDPOINTS)?,
            hits: take(ebpf, names::RULE_HITS)?,
        };
        let leftovers = tables.read_back()?;
        Ok((tables, leftovers))
    }

    fn read_back(&mut self) -> Result<Leftovers, MapError> {
        let mut left = Leftovers::default();
        for entry in &self.peers {
            let (addr, class) = entry?;
            left.peers.insert(addr.into(), class.class);
        }
        for entry in &self.nets {
            let (key, class) = entry?;
            let bits = u8::try_from(key.prefix_len()).unwrap_or(32);
            if let Ok(net) = Ipv4Net::new(key.data().into(), bits) {
                left.nets.insert(net, class.class);
            }
        }
        for entry in &self.endpoints {
            let (addr, endpoint) = entry?;
            left.endpoints.insert(addr.into(), endpoint);
        }
        for entry in &self.policy {
            let (id, policy) = entry?;
            left.policies.insert(id, policy);
        }
        for set in 1..MAX_SETS {
            let columns = match self.sets.get(&set, 0) {
                Ok(columns) => columns,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            if columns.len() == 1 && columns.get(&0, 0)?.row == 0 {
                continue; // deleted
            }
            let rows =
                columns.iter().map(|column| Ok(column?.row)).collect::<Result<Vec<u32>, MapError>>()?;
            left.sets.insert(set, rows);
            self.columns.insert(set, columns);
        }
        let roots: BTreeSet<u32> = left.sets.values().flatten().copied().filter(|row| *row != 0).collect();
        left.rows = self.reach(roots)?.into_iter().collect();
        Ok(left)
    }

    /// The rows and the pages below them.
    fn reach(&self, roots: BTreeSet<u32>) -> Result<BTreeSet<u32>, MapError> {
        let mut open: Vec<u32> = roots.into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(row) = open.pop() {
            if row < MAX_ROWS && seen.insert(row) {
                let page = self.rows.get(&row, 0)?;
                let below =
                    page.verdicts.iter().filter(|v| matches!(v.kind(), Verdict::PAGE | Verdict::BY_SRC_PORT));
                open.extend(below.map(|v| v.id()));
            }
        }
        Ok(seen)
    }
}

impl Tables for KernelTables {
    type Error = MapError;

    fn write_row(&mut self, row: u32, page: &Row) -> Result<(), MapError> {
        self.pulse.beat();
        self.rows.set(row, page, 0)
    }

    fn write_sets(&mut self, sets: &[(u32, Vec<u32>)]) -> Result<(), MapError> {
        // All that may fail comes before the arrays are in their places.
        let mut arrays: Vec<Array<MapData, RowRef>> = Vec::with_capacity(sets.len());
        let mut descriptors: Vec<u32> = Vec::with_capacity(sets.len());
        for (_, columns) in sets {
            self.pulse.beat();
            let size = u32::try_from(columns.len()).unwrap_or(u32::MAX).max(1);
            let array = batch::create_array(size, INNER_MAP)?;
            let classes: Vec<u32> = (0..size).collect();
            batch::update_array(&array, &classes[..columns.len()], columns).map_err(|e| e.error)?;
            descriptors.push(batch::descriptor(&array));
            arrays.push(Array::try_from(Map::Array(MapData::from_fd(array)?))?);
        }
        let ids: Vec<u32> = sets.iter().map(|(set, _)| *set).collect();
        batch::update_array(&self.sets_fd, &ids, &descriptors).map_err(|e| e.error)?;
        self.columns.extend(ids.into_iter().zip(arrays));
        Ok(())
    }

    fn write_columns(&mut self, set: u32, columns: &[(u32, u32)]) -> Result<(), (usize, MapError)> {
        self.pulse.beat();
        let array = self.columns.get(&set).ok_or((0, MapError::KeyNotFound))?;
        let (classes, rows): (Vec<u32>, Vec<u32>) = columns.iter().copied().unzip();
        batch::update_array(array.map().fd(), &classes, &rows)
            .map_err(|interrupted| (interrupted.written, interrupted.error.into()))
    }

    fn delete_set(&mut self, set: u32) -> Result<(), MapError> {
        // aya cannot delete an element of an array of maps: the slot gets a set that denies.
        self.sets.set(set, &Array::<MapData, RowRef>::create(1, INNER_MAP)?, 0)?;
        self.columns.remove(&set);
        Ok(())
    }

    fn write_peer(&mut self, addr: Ipv4Addr, class: u32) -> Result<(), MapError> {
        self.pulse.beat();
        self.peers.insert(Ip4::from(addr), Class { class }, 0)
    }

    fn delete_peer(&mut self, addr: Ipv4Addr) -> Result<(), MapError> {
        self.pulse.beat();
        absent_is_fine(self.peers.remove(&addr.into()))
    }

    fn write_net(&mut self, net: Ipv4Net, class: u32) -> Result<(), MapError> {
        self.pulse.beat();
        self.nets.insert(&prefix(net), Class { class }, 0)
    }

    fn delete_net(&mut self, net: Ipv4Net) -> Result<(), MapError> {
        self.pulse.beat();
        absent_is_fine(self.nets.remove(&prefix(net)))
    }

    fn write_policy(&mut self, endpoint: u32, policy: EndpointPolicy) -> Result<(), MapError> {
        self.pulse.beat();
        self.policy.insert(endpoint, policy, 0)
    }

    fn delete_policy(&mut self, endpoint: u32) -> Result<(), MapError> {
        absent_is_fine(self.policy.remove(&endpoint))
    }

    fn clear_hits(&mut self, decision: u32) -> Result<(), MapError> {
        let indices: Vec<u32> = hits::indices(self.hits.len(), decision).collect();
        let nothing = vec![Hits::default(); indices.len()];
        Ok(batch::update(self.hits.map().fd(), &indices, &nothing)
            .map_err(|interrupted| interrupted.error)?)
    }

    fn bump_generation(&mut self, endpoint: u32) -> Result<(), MapError> {
        let generation = match self.generations.get(&endpoint, 0)?.generation {
            // Flows outlive a table that was replaced by an empty one, and must not find here what they found there.
            0 => rand::random_range(1..=u32::MAX),
            last => last.wrapping_add(1),
        };
        self.generations.set(endpoint, Generation { generation }, 0)
    }

    fn write_endpoint(&mut self, addr: Ipv4Addr, endpoint: Endpoint) -> Result<(), MapError> {
        self.pulse.beat();
        self.endpoints.insert(Ip4::from(addr), endpoint, 0)
    }

    fn delete_endpoint(&mut self, addr: Ipv4Addr) -> Result<(), MapError> {
        absent_is_fine(self.endpoints.remove(&addr.into()))
    }

    fn note_programs(&mut self) -> Result<(), MapError> {
        Ok(self.grace.begin()?)
    }

    fn wait_for_programs(&mut self) -> Result<(), MapError> {
        Ok(self.grace.pass()?)
    }
}

fn prefix(net: Ipv4Net) -> Key<Ip4> {
    Key::new(u32::from(net.prefix_len()), net.network().into())
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(e) => e.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}
