//! Random sequences of updates: after every single write, each packet is judged by the old policy or by the new one.

use std::{collections::BTreeMap, env};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::Value;

use super::*;
use crate::compile::tests::random::{Entries, cluster_entries, cluster_of, endpoint, other_objects, policy};

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
    entries: BTreeMap<String, Value>,
    fake: Fake,
    tables: PolicyTables<Fake>,
    /// Across updates, errors and deaths.
    stale: BTreeSet<u32>,
}

impl Story {
    fn new(entries: Entries) -> Self {
        let fake = Fake::default();
        let tables = PolicyTables::new(fake.clone(), Leftovers::default());
        Self { entries: entries.into_iter().collect(), fake, tables, stale: BTreeSet::new() }
    }

    fn cluster(&self) -> Cluster {
        cluster_of(&self.entries.clone().into_iter().collect())
    }

    /// One update, checked write by write.
    fn advance(&mut self, update: &Update) -> Result<usize, String> {
        for (key, value) in &update.changes {
            match value {
                Some(value) => drop(self.entries.insert(key.clone(), value.clone())),
                None => drop(self.entries.remove(key)),
            }
        }
        let compiled = compile(&self.cluster(), NODE);
        let new = by_rows(&compiled);
        let before = self.fake.state().clone();
        let old = Judge::default().all(&before);
        let budget = match update.trouble {
            Trouble::Error(writes) | Trouble::Death(writes) => Some(writes),
            Trouble::None | Trouble::Restart => None,
        };
        self.fake.fail_after(budget);
        let outcome = self.tables.apply(&compiled, &desired(&compiled));
        self.fake.fail_after(None);
        let log = self.fake.take_log();
        LAST.with(|l| *l.borrow_mut() = log.clone());
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
            self.tables = PolicyTables::new(self.fake.clone(), state.leftovers());
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
            let mut story = Story::new(entries);
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
    let mut story = Story::new(entries);
    let mut highest_class = 0;
    for at in 0..1000 {
        let update = quiet.new_tree(&mut runner).unwrap().current();
        for (key, value) in update.changes {
            match value {
                Some(value) => drop(story.entries.insert(key, value)),
                None => drop(story.entries.remove(&key)),
            }
        }
        let cluster = story.cluster();
        let compiled = compile(&cluster, NODE);
        let problems = story.tables.apply(&compiled, &desired(&compiled)).unwrap();
        assert_eq!(problems, Problems::new());
        check_books(&story.tables).unwrap_or_else(|e| panic!("update {at}: {e}"));
        let state = story.fake.state();
        highest_class =
            state.peers.values().chain(state.nets.values()).copied().fold(highest_class, u32::max);
        assert!(state.sets.values().all(|columns| columns.len() == 64), "update {at}: sets grow");
        if at % 50 == 0 {
            assert_eq!(Judge::default().all(&state), by_reference(&cluster), "update {at}");
        }
    }
    assert!(highest_class < 64, "classes up to {highest_class} for about twenty addresses");
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..30 {
        let mut story = Story::new(cluster_entries().new_tree(&mut runner).unwrap().current());
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

#[test]
fn hunt() {
    let mut runner = TestRunner::deterministic();
    let strategy = (cluster_entries(), prop::collection::vec(update(), UPDATES));
    for case in 0..1500 {
        let (entries, updates) = strategy.new_tree(&mut runner).unwrap().current();
        let mut story = Story::new(entries);
        let mut text = Vec::new();
        for (at, update) in updates.iter().enumerate() {
            let before = story.fake.state().clone();
            let outcome = story.advance(update);
            text.push(format!("--- {case}/{at} trouble {:?}\n endpoints {:?}\n policy {:?}\n peers {:?}\n nets {:?}\n sets {:?}\n => {outcome:?}\nlog {:#?}", update.trouble, before.endpoints, before.policy, before.peers, before.nets,
                before.sets.iter().map(|(id, c)| (*id, c.iter().enumerate().filter(|(_, r)| **r != 0).collect::<Vec<_>>())).collect::<Vec<_>>(), LAST.with(|l| l.borrow().iter().filter(|w| !matches!(w, Write::Row(..))).map(|w| format!("{w:?}").chars().take(150).collect::<String>()).collect::<Vec<_>>())));
            if let Err(e) = outcome {
                for t in text.iter().rev().take(3).rev() {
                    println!("{t}");
                }
                panic!("{e}");
            }
        }
    }
}
thread_local! { static LAST: std::cell::RefCell<Vec<Write>> = const { std::cell::RefCell::new(Vec::new()) }; }
