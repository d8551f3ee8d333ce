mod cases;
mod events;
mod fake;
mod random;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use canal_common::Mac;

use self::fake::{Fake, State, Write};
use super::{Desired, Limits, PolicyTables, Problems};
use crate::{
    compile::{
        Compiler, Row,
        reference::{Packet, Reference},
        tests::{NODE, census_of, class_of, random::packet_of},
    },
    dataplane::tables::Leftovers,
    model::{Cluster, EndpointKey, rule::Direction},
};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Protocol, source port, destination port, ICMP type and code.
const FLOWS: [(u8, u16, u16, u8, u8); 10] = [
    (6, 40000, 80, 0, 0),
    (6, 999, 443, 0, 0),
    (6, 80, 81, 0, 0),
    (17, 40000, 53, 0, 0),
    (17, 53, 1000, 0, 0),
    (132, 40000, 80, 0, 0),
    (1, 0, 0, 8, 0),
    (1, 0, 0, 3, 1),
    (47, 0, 0, 0, 0),
    (58, 0, 0, 0, 0),
];

/// Who may be at the other end.
fn peers() -> impl Iterator<Item = Ipv4Addr> {
    let pods = (0..11).map(|n| [10, 0, 0, n]);
    pods.chain([0, 7, 127, 128, 255].map(|n| [192, 0, 2, n])).chain([[8, 8, 8, 8]]).map(Ipv4Addr::from)
}

/// (Endpoint, direction, peer) → one bit for each of [`FLOWS`].
type Verdicts = BTreeMap<(Ipv4Addr, Direction, Ipv4Addr), u32>;

/// Which address is whose, as the node decides it: the lower key has it.
fn owners(compiled: &Compiler) -> BTreeMap<Ipv4Addr, EndpointKey> {
    let mut owners = BTreeMap::new();
    for (key, addr) in compiled.endpoints().keys() {
        owners.entry(*addr).or_insert_with(|| key.clone());
    }
    owners
}

fn desired(compiled: &Compiler) -> BTreeMap<Ipv4Addr, Desired> {
    let of = |(addr, key): (Ipv4Addr, EndpointKey)| {
        let judgement = &compiled.endpoints()[&(key.clone(), addr)];
        let number = key.to_string().bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let mac = |first| {
            let [a, b, c, d] = number.to_be_bytes();
            Mac::new([first, 0, a, b, c, d])
        };
        let (ingress, egress) = (judgement.ingress.clone(), judgement.egress.clone());
        (addr, Desired { ifindex: number, pod_mac: mac(2), host_mac: mac(6), shaped: false, ingress, egress })
    };
    owners(compiled).into_iter().map(of).collect()
}

fn masks(
    endpoints: impl IntoIterator<Item = Ipv4Addr>,
    mut allows: impl FnMut(Ipv4Addr, Direction, &Packet) -> bool,
) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for endpoint in endpoints {
        for direction in DIRECTIONS {
            for peer in peers() {
                let bit = |flow| {
                    u32::from(allows(endpoint, direction, &packet_of(direction, endpoint, peer, flow)))
                };
                let mask = FLOWS.map(bit).into_iter().rev().fold(0, |mask, bit| mask << 1 | bit);
                verdicts.insert((endpoint, direction, peer), mask);
            }
        }
    }
    verdicts
}

/// What the definition says.
fn by_reference(cluster: &Cluster) -> Verdicts {
    let owners = owners(&Compiler::of(cluster, NODE));
    let reference = Reference::new(cluster);
    masks(owners.keys().copied(), |addr, direction, packet| {
        reference.judge(&owners[&addr], direction, packet).allow
    })
}

/// What the compiler says, which is quicker and which its own tests compare with the definition.
fn by_rows(cluster: &Cluster) -> Verdicts {
    let mut compiled = Compiler::of(cluster, NODE);
    let owners = owners(&compiled);
    let judgements = compiled.endpoints().clone();
    let census = census_of(&mut compiled);
    let mut rows = HashMap::new();
    masks(owners.keys().copied(), |addr, direction, packet| {
        let judgement = &judgements[&(owners[&addr].clone(), addr)];
        let (set, peer) = match direction {
            Direction::Ingress => (&judgement.ingress, packet.source),
            Direction::Egress => (&judgement.egress, packet.destination),
        };
        let row = rows.entry((set.clone(), peer)).or_insert_with(|| {
            // What is over the budget is refused: the tests look at such an endpoint by itself.
            set.row(&class_of(census, peer)).unwrap_or_else(|_| Row::deny_all())
        });
        row.lookup(packet.protocol, packet.src_port, crate::compile::tests::port_of(packet)).allow
    })
}

/// Judges by the tables, remembering what a row says.
#[derive(Default)]
struct Judge {
    rows: HashMap<u32, u32>,
}

impl Judge {
    /// A row or a page below it was written.
    fn forget(&mut self) {
        self.rows.clear();
    }

    fn mask(&mut self, state: &State, endpoint: Ipv4Addr, direction: Direction, peer: Ipv4Addr) -> u32 {
        let root = state.root(endpoint, direction, peer);
        *self.rows.entry(root).or_insert_with(|| {
            let allows = |flow| u32::from(state.allows(root, &packet_of(direction, endpoint, peer, flow)));
            FLOWS.map(allows).into_iter().rev().fold(0, |mask, bit| mask << 1 | bit)
        })
    }

    fn all(&mut self, state: &State) -> Verdicts {
        let endpoints: Vec<Ipv4Addr> = state.endpoints.keys().copied().collect();
        let mut verdicts = Verdicts::new();
        for endpoint in endpoints {
            for direction in DIRECTIONS {
                for peer in peers() {
                    verdicts.insert((endpoint, direction, peer), self.mask(state, endpoint, direction, peer));
                }
            }
        }
        verdicts
    }
}

/// Goes through the writes of an update one by one. `settled`: the update came to its end. `stale`: endpoints whose
/// verdicts have changed since their generation was bumped, and their ids.
fn check(
    before: &State,
    log: &[Write],
    old: &Verdicts,
    new: &Verdicts,
    settled: bool,
    stale: &mut BTreeSet<u32>,
) -> Result<(), String> {
    let (mut state, mut judge) = (before.clone(), Judge::default());
    let universe: Vec<_> =
        old.keys().chain(new.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect();
    let mut seen = old.clone();
    let mut held = before.reachable();
    let used_before = before.used_sets();
    let mut deleted_endpoints = BTreeSet::new();
    for (at, write) in log.iter().enumerate() {
        let used = state.used_sets();
        match write {
            Write::Row(row, _) => {
                if held.contains(row) {
                    return Err(format!("write {at} {write:?}: the row is read, or was a moment ago"));
                }
                judge.forget();
            }
            Write::Set(set, _) | Write::Column(set, ..)
                if !used.contains(set) && used_before.contains(set) =>
            {
                return Err(format!("set {set} is used again at once"));
            }
            Write::Policy(id, _) if deleted_endpoints.contains(id) => {
                return Err(format!("endpoint id {id} is used again at once"));
            }
            Write::DeletePolicy(id) => drop(deleted_endpoints.insert(*id)),
            Write::Bump(id) => {
                stale.remove(id);
            }
            _ => {}
        }
        state.apply(write);
        if matches!(write, Write::Set(..) | Write::Column(..) | Write::Policy(..)) {
            held.extend(state.reachable());
        }
        for key @ (endpoint, direction, peer) in universe.iter().copied() {
            let found = judge.mask(&state, endpoint, direction, peer);
            let [old, new] = [old, new].map(|verdicts| verdicts.get(&key).copied().unwrap_or(0));
            if (found ^ old) & (found ^ new) != 0 {
                return Err(format!(
                    "after write {at} of {} ({write:?}): {direction} of {endpoint} with {peer}: \
                     {found:010b}, old {old:010b}, new {new:010b}",
                    log.len()
                ));
            }
            if seen.insert(key, found).unwrap_or(0) != found
                && let Some(known) = before.endpoints.get(&endpoint)
            {
                stale.insert(known.id);
            }
        }
    }
    if settled {
        for (key, wanted) in new {
            let found = judge.mask(&state, key.0, key.1, key.2);
            if found != *wanted {
                return Err(format!("in the end {key:?}: {found:010b}, should be {wanted:010b}"));
            }
        }
        if !state.endpoints.keys().eq(new.keys().map(|key| &key.0).collect::<BTreeSet<_>>()) {
            return Err(format!("in the end there are the endpoints {:?}", state.endpoints.keys()));
        }
        if !stale.is_empty() {
            return Err(format!("not bumped behind the last change: {stale:?}"));
        }
    }
    Ok(())
}

/// Nothing is held that nothing uses, and what is used is held.
fn check_books(policy: &PolicyTables<Fake>) -> Result<(), String> {
    let state = policy.tables().state();
    let (used, held) = (state.used_sets(), policy.sets.ids());
    if used != held {
        return Err(format!("sets {held:?} held, {used:?} used"));
    }
    let ids: BTreeSet<u32> = state.endpoints.values().map(|e| e.id).collect();
    if ids.len() != state.endpoints.len() || !state.policy.keys().eq(&ids) {
        return Err(format!("endpoints {:?}, policies {:?}", state.endpoints, state.policy));
    }
    let (reachable, roots) = (state.reachable(), policy.sets.roots());
    let below = |root: &u32| state.leftovers().rows.contains(root);
    if policy.sets.rows().len() != reachable.len() || !roots.iter().all(|root| *root == 0 || below(root)) {
        return Err(format!("{} rows held, {} reachable", policy.sets.rows().len(), reachable.len()));
    }
    let classes: BTreeSet<u32> = state.peers.values().chain(state.nets.values()).copied().collect();
    let named: BTreeSet<u32> = policy.classes.iter().map(|(id, _)| id).collect();
    if named != classes || !policy.unnamed.is_empty() {
        return Err(format!("classes {named:?} and {:?}, used {classes:?}", policy.unnamed));
    }
    let rules: BTreeSet<u32> = reachable
        .iter()
        .flat_map(|row| state.rows[row].verdicts)
        .filter(|verdict| verdict.kind() <= 1 && verdict.id() != 0)
        .map(canal_common::policy::Verdict::id)
        .collect();
    if let Some(unknown) = rules.iter().find(|id| policy.decided(**id).is_none()) {
        return Err(format!("decision {unknown} has no name"));
    }
    Ok(())
}
