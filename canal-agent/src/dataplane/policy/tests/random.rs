//! Random sequences of updates: after every single write, each packet is judged by the old policy or by the new one.

use std::env;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::Value;

use super::*;
use crate::compile::tests::{
    places,
    random::{Entries, cluster_entries, cluster_of, endpoint, other_objects, policy},
};

/// Content by key; `None` removes it.
type Changes = Vec<(String, Option<Value>)>;

fn change() -> impl Strategy<Value = (String, Option<Value>)> {
    let other = (other_objects(), any::<prop::sample::Index>())
        .prop_map(|(objects, index)| index.get(&objects).clone());
    let entry = prop_oneof![4 => policy(), 4 => endpoint(), 2 => other];
    (entry, prop::bool::weighted(0.25)).prop_map(|((key, value), gone)| (key, (!gone).then_some(value)))
}

#[derive(Debug, Clone)]
struct Update {
    changes: Changes,
    /// What happens on the way.
    trouble: Trouble,
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    None,
    /// A write fails, and the next update goes on from there.
    Error(usize),
    /// The process dies after so many writes, and a fresh one goes on from there.
    Death(usize),
    /// The process dies between this update and the next one.
    Restart,
}

fn update() -> impl Strategy<Value = Update> {
    let trouble = prop_oneof![
        8 => Just(Trouble::None),
        2 => (0..60usize).prop_map(Trouble::Error),
        2 => (0..60usize).prop_map(Trouble::Death),
        1 => Just(Trouble::Restart),
    ];
    (prop::collection::vec(change(), 1..4), trouble)
        .prop_map(|(changes, trouble)| Update { changes, trouble })
}

struct Story {
    cluster: Cluster,
    compiler: Compiler,
    fake: Fake,
    tables: PolicyTables<Fake>,
    /// Across updates, errors and deaths.
    stale: BTreeSet<u32>,
}

impl Story {
    fn new(entries: &Entries) -> Self {
        let fake = Fake::default();
        let tables = PolicyTables::new(fake.clone(), Leftovers::default(), Limits::default());
        let (cluster, compiler) = (cluster_of(entries), Compiler::new(NODE));
        Self { cluster, compiler, fake, tables, stale: BTreeSet::new() }
    }

    fn change(&mut self, changes: &Changes) {
        for (key, value) in changes {
            let text = value.as_ref().map(ToString::to_string);
            self.cluster.apply(key, text.as_ref().map(String::as_bytes));
        }
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
    }

    fn apply(&mut self) -> Result<Problems, fake::OnPurpose> {
        let desired = desired(&self.compiler);
        self.tables.apply(self.compiler.census(), &desired)
    }

    /// The step by step update of the compiler ends where a fresh one does.
    fn check_compiler(&mut self) -> Result<(), String> {
        let mut fresh = Compiler::of(&self.cluster, NODE);
        if fresh.endpoints() != self.compiler.endpoints() {
            return Err(format!(
                "compiled step by step {:?}, at once {:?}",
                self.compiler.endpoints(),
                fresh.endpoints()
            ));
        }
        let (found, wanted) = (places(census_of(&mut self.compiler)), places(census_of(&mut fresh)));
        if found == wanted { Ok(()) } else { Err(format!("step by step {found:?}, at once {wanted:?}")) }
    }

    /// One update, checked write by write.
    fn advance(&mut self, update: &Update) -> Result<usize, String> {
        self.change(&update.changes);
        self.check_compiler()?;
        let new = by_rows(&self.cluster);
        let before = self.fake.state().clone();
        let old = Judge::default().all(&before);
        let budget = match update.trouble {
            Trouble::Error(writes) | Trouble::Death(writes) => Some(writes),
            Trouble::None | Trouble::Restart => None,
        };
        self.fake.fail_after(budget);
        let outcome = self.apply();
        self.fake.fail_after(None);
        let log = self.fake.take_log();
        check(&before, &log, &old, &new, outcome.is_ok(), &mut self.stale)?;
        if let Ok(problems) = outcome {
            if !problems.is_empty() {
                return Err(format!("{problems:?}"));
            }
            check_books(&self.tables)?;
        }
        if matches!(update.trouble, Trouble::Death(_) | Trouble::Restart) {
            let state = self.fake.state().clone();
            self.fake = Fake::from_state(state.clone());
            self.tables = PolicyTables::new(self.fake.clone(), state.leftovers(), Limits::default());
            // Sometimes with what is known, sometimes from nothing, as a fresh process does it.
            if log.len().is_multiple_of(2) {
                self.compiler = Compiler::of(&self.cluster, NODE);
            }
        }
        Ok(log.len())
    }
}

const STORIES: u32 = 60;
const UPDATES: usize = 16;

#[test]
fn after_every_write_of_every_update_each_packet_is_judged_by_the_old_policy_or_by_the_new_one() {
    let stories = env::var("CANAL_STORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(STORIES);
    let mut runner = TestRunner::new(Config { max_shrink_iters: 3000, ..Config::with_cases(stories) });
    let writes = std::cell::Cell::new(0);
    let outcome =
        runner.run(&(cluster_entries(), prop::collection::vec(update(), UPDATES)), |(entries, updates)| {
            let mut story = Story::new(&entries);
            for (at, update) in updates.iter().enumerate() {
                let count =
                    story.advance(update).map_err(|e| TestCaseError::fail(format!("update {at}: {e}")))?;
                writes.set(writes.get() + count);
            }
            Ok(())
        });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    assert!(
        writes.get() > 5_000 || stories < STORIES,
        "only {} writes: the stories say too little",
        writes.get()
    );
}

#[test]
fn a_thousand_updates_leak_no_id_and_end_where_the_definition_says() {
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    let quiet = update().prop_map(|update| Update { trouble: Trouble::None, ..update });
    let entries = cluster_entries().new_tree(&mut runner).unwrap().current();
    let mut story = Story::new(&entries);
    let mut highest_class = 0;
    for at in 0..1000 {
        let update = quiet.new_tree(&mut runner).unwrap().current();
        story.change(&update.changes);
        assert_eq!(story.apply().unwrap(), Problems::new());
        check_books(&story.tables).unwrap_or_else(|e| panic!("update {at}: {e}"));
        let state = story.fake.state();
        highest_class =
            state.peers.values().chain(state.nets.values()).copied().fold(highest_class, u32::max);
        assert!(state.sets.values().all(|columns| columns.len() == 64), "update {at}: sets grow");
        if at % 50 == 0 {
            assert_eq!(Judge::default().all(&state), by_reference(&story.cluster), "update {at}");
        }
    }
    assert!(highest_class < 64, "classes up to {highest_class} for about twenty addresses");
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..30 {
        let mut story = Story::new(&cluster_entries().new_tree(&mut runner).unwrap().current());
        let nothing = Update { changes: Vec::new(), trouble: Trouble::None };
        story.advance(&nothing).unwrap();
        assert_eq!(story.advance(&nothing), Ok(0));
        // Nor does a fresh process move an address: it takes over the classes as they are.
        let update = Update { changes: Vec::new(), trouble: Trouble::Restart };
        story.advance(&update).unwrap();
        let before = story.fake.state().clone();
        story.advance(&nothing).unwrap();
        let after = story.fake.state();
        assert_eq!(
            (&before.peers, &before.nets, &before.endpoints),
            (&after.peers, &after.nets, &after.endpoints)
        );
    }
}
