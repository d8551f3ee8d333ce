//! However the store's content came about, in whatever order, pieces and repetitions, and whoever had to begin anew
//! meanwhile: the tables end with the same content.

use canal_common::policy::{Row, Verdict};
use ipnet::Ipv4Net;
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use serde_json::Value;

use super::*;
use crate::compile::{
    Class, Final,
    tests::random::{cluster_entries, endpoint, other_objects, policy},
};

/// Key → value.
type Content = BTreeMap<String, Value>;

#[derive(Debug, Clone)]
enum Event {
    /// A key gets a value; perhaps not its last.
    Put(String, Value),
    /// A key that is there goes; perhaps not for good.
    Delete(Index),
    /// A key that is there is told of once more.
    Again(Index),
    Then(Step),
}

/// What may happen between any two events.
#[derive(Debug, Clone, Copy)]
enum Step {
    Nothing,
    /// What has come so far goes into the tables.
    Update,
    /// The store is listed anew.
    Snapshot,
    /// A fresh process takes the tables over, and lists the store.
    Restart,
}

/// How a key comes to its last value.
#[derive(Debug, Clone, Copy)]
enum Way {
    Once,
    Twice,
    /// Gone in between.
    Anew,
}

#[derive(Debug, Clone)]
struct History {
    /// On the way.
    events: Vec<Event>,
    /// The keys in a random order, by these numbers in turn, each with its way, and what comes behind it.
    last: Vec<(u32, Way, Step)>,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Nothing),
        4 => Just(Step::Update),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Restart),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let other = (other_objects(), any::<Index>()).prop_map(|(objects, at)| at.get(&objects).clone());
    prop_oneof![
        6 => prop_oneof![policy(), endpoint(), other].prop_map(|(key, value)| Event::Put(key, value)),
        2 => any::<Index>().prop_map(Event::Delete),
        1 => any::<Index>().prop_map(Event::Again),
        4 => step().prop_map(Event::Then),
    ]
}

fn history() -> impl Strategy<Value = History> {
    let way = prop_oneof![4 => Just(Way::Once), 1 => Just(Way::Twice), 2 => Just(Way::Anew)];
    let last = prop::collection::vec((any::<u32>(), way, step()), 1..24);
    (prop::collection::vec(event(), 0..30), last).prop_map(|(events, last)| History { events, last })
}

/// A node that follows the store.
struct Follower {
    store: Content,
    cluster: Cluster,
    compiler: Compiler,
    fake: Fake,
    tables: PolicyTables<Fake>,
}

impl Follower {
    fn new() -> Self {
        let fake = Fake::default();
        let tables = PolicyTables::new(fake.clone(), Leftovers::default(), Limits::default());
        let (cluster, compiler) = (Cluster::default(), Compiler::new(NODE));
        Self { store: Content::new(), cluster, compiler, fake, tables }
    }

    fn put(&mut self, key: &str, value: &Value) {
        self.cluster.apply(key, Some(value.to_string().as_bytes()));
        self.store.insert(key.to_owned(), value.clone());
    }

    fn delete(&mut self, key: &str) {
        self.cluster.apply(key, None);
        self.store.remove(key);
    }

    fn known(&self, at: Index) -> Option<String> {
        let keys: Vec<String> = self.store.keys().cloned().collect();
        (!keys.is_empty()).then(|| at.get(&keys).clone())
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Put(key, value) => self.put(key, value),
            Event::Delete(at) => {
                if let Some(key) = self.known(*at) {
                    self.delete(&key);
                }
            }
            Event::Again(at) => {
                if let Some(key) = self.known(*at) {
                    let value = self.store[&key].clone();
                    self.put(&key, &value);
                }
            }
            Event::Then(step) => self.go(*step),
        }
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Update => self.update(),
            Step::Snapshot => self.list(),
            Step::Restart => {
                let state = self.fake.state().clone();
                self.fake = Fake::from_state(state.clone());
                self.tables = PolicyTables::new(self.fake.clone(), state.leftovers(), Limits::default());
                (self.cluster, self.compiler) = (Cluster::default(), Compiler::new(NODE));
                self.list();
            }
        }
    }

    fn list(&mut self) {
        let entries = self.store.iter().map(|(key, value)| (key.clone(), value.to_string().into_bytes()));
        self.cluster.replace_all(entries.collect::<Vec<_>>().into_iter());
    }

    fn update(&mut self) {
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
        let desired = desired(&self.compiler);
        assert_eq!(self.tables.apply(self.compiler.census(), &desired).unwrap(), Problems::new());
    }

    /// The last of the history: what is not in `content` goes, the rest gets its value.
    fn end_with(&mut self, content: &Content, last: &[(u32, Way, Step)]) {
        let keys: BTreeSet<&String> = self.store.keys().chain(content.keys()).collect();
        let keys: Vec<String> = keys.into_iter().cloned().collect();
        let mut order: Vec<_> = (0u32..)
            .zip(&keys)
            .zip(last.iter().cycle())
            .map(|((at, key), (number, way, step))| (number.rotate_left(at), key, *way, *step))
            .collect();
        order.sort_by_key(|(number, ..)| *number);
        for (_, key, way, step) in order {
            let Some(value) = content.get(key) else {
                self.delete(key);
                self.go(step);
                continue;
            };
            // Whoever knows a good version keeps it when a bad one comes: that is history that counts, and is left out.
            if matches!(way, Way::Anew) || !is_good(key, value) {
                self.delete(key);
            }
            self.put(key, value);
            if matches!(way, Way::Twice) {
                self.put(key, value);
            }
            self.go(step);
        }
        self.update();
    }

    fn meaning(&self) -> Meaning {
        let state = self.fake.state();
        let named = |class: u32| {
            if class == 0 { Class::default() } else { self.tables.classes.content(class).unwrap().clone() }
        };
        let classes: BTreeSet<u32> =
            state.peers.values().chain(state.nets.values()).copied().chain([0]).collect();
        let set = |id: u32| -> BTreeMap<Class, Judged> {
            let columns = &state.sets[&id];
            let judged = |class: u32| self.judged(&state, columns.get(class as usize).copied().unwrap_or(0));
            classes.iter().map(|class| (named(*class), judged(*class))).collect()
        };
        let endpoints = state.endpoints.iter().map(|(addr, endpoint)| {
            let policy = state.policy[&endpoint.id];
            let (ingress, egress) = (set(policy.ingress_set), set(policy.egress_set));
            let interface = (endpoint.ifindex, endpoint.pod_mac, endpoint.host_mac);
            (*addr, Seat { interface, flags: policy.flags, ingress, egress })
        });
        Meaning {
            endpoints: endpoints.collect(),
            peers: state.peers.iter().map(|(addr, class)| (*addr, named(*class))).collect(),
            nets: state.nets.iter().map(|(net, class)| (*net, named(*class))).collect(),
            sets: state.used_sets().len(),
            rows: state.reachable().len(),
        }
    }

    /// What a search that begins in this row finds, as a list of bounds.
    fn judged(&self, state: &State, root: u32) -> Judged {
        let mut bounds = Vec::new();
        self.read(state, root, 0, u32::MAX, &mut bounds);
        bounds.dedup_by(|later, earlier| later.1 == earlier.1);
        bounds
    }

    /// The part of a row's bounds from `low` up to and with `high`.
    fn read(&self, state: &State, row: u32, low: u32, high: u32, bounds: &mut Judged) {
        let page = state.rows.get(&row).unwrap_or(&Row::DENY_ALL);
        let first = page.slot(low);
        let last = page.slot(high.min(u32::MAX - 1));
        for at in first..=last {
            let from = page.bounds[at].max(low);
            let to = if at == last { high } else { page.bounds[at + 1] - 1 };
            let verdict = page.verdicts[at];
            match verdict.kind() {
                Verdict::PAGE => self.read(state, verdict.id(), from, to, bounds),
                Verdict::BY_SRC_PORT => {
                    let protocol = from & !0xffff;
                    let mut by_port = Vec::new();
                    self.read(state, verdict.id(), protocol, protocol | 0xffff, &mut by_port);
                    by_port.dedup_by(|later, earlier| later.1 == earlier.1);
                    let by_port = by_port.into_iter().map(|(bound, found)| (bound, found.named())).collect();
                    bounds.push((from, Found::BySrcPort(by_port)));
                }
                kind => {
                    let named = match verdict.id() {
                        0 => Final { allow: kind == Verdict::ALLOW, ..Final::DENY },
                        id => (**self.tables.decided(id).expect("a decision has a name")).clone(),
                    };
                    bounds.push((from, Found::Final(named)));
                }
            }
        }
    }
}

/// What the tables say, without the numbers by which they say it.
#[derive(Debug, PartialEq)]
struct Meaning {
    endpoints: BTreeMap<Ipv4Addr, Seat>,
    peers: BTreeMap<Ipv4Addr, Class>,
    nets: BTreeMap<Ipv4Net, Class>,
    /// Equal ones are shared, so there are equally many.
    sets: usize,
    rows: usize,
}

#[derive(Debug, PartialEq)]
struct Seat {
    interface: (u32, Mac, Mac),
    flags: u32,
    ingress: BTreeMap<Class, Judged>,
    egress: BTreeMap<Class, Judged>,
}

/// Ascending bounds, equal neighbours joined.
type Judged = Vec<(u32, Found)>;

#[derive(Debug, Clone, PartialEq)]
enum Found {
    Final(Final),
    BySrcPort(Vec<(u32, Final)>),
}

impl Found {
    fn named(self) -> Final {
        match self {
            Self::Final(named) => named,
            Self::BySrcPort(_) => panic!("source ports lead to no other source ports"),
        }
    }
}

/// Nothing of it is refused.
fn is_good(key: &str, value: &Value) -> bool {
    let mut cluster = Cluster::default();
    cluster.apply(key, Some(value.to_string().as_bytes()));
    cluster.invalid().is_empty()
}

/// By one list, into empty tables.
fn at_once(content: &Content) -> Follower {
    let mut follower = Follower::new();
    follower.store = content.clone();
    follower.list();
    follower.update();
    follower
}

const HISTORIES: u32 = 300;

#[test]
fn however_the_content_came_about_the_tables_end_with_the_same() {
    let mut runner = TestRunner::new(Config { max_shrink_iters: 3000, ..Config::with_cases(HISTORIES) });
    let seen = std::cell::Cell::new((0, 0));
    let outcome = runner.run(&(cluster_entries(), cluster_entries(), history()), |(one, other, history)| {
        let content: Content = [one, other].concat().into_iter().collect();
        let mut follower = Follower::new();
        for event in &history.events {
            follower.take(event);
        }
        follower.end_with(&content, &history.last);
        prop_assert_eq!(&follower.store, &content);
        check_books(&follower.tables).map_err(TestCaseError::fail)?;
        let (found, wanted) = (follower.meaning(), at_once(&content).meaning());
        let (endpoints, rows) = seen.get();
        seen.set((endpoints + wanted.endpoints.len(), rows + wanted.rows));
        prop_assert_eq!(found, wanted);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    let (endpoints, rows) = seen.get();
    assert!(endpoints > 500 && rows > 500, "{endpoints} endpoints, {rows} rows: the cases say too little");
}
