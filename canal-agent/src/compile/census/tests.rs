use serde_json::json;

use super::*;
use crate::{
    compile::tests::{World, address},
    model::{Selector, resource::Kind},
};

fn net(text: &str) -> Predicate {
    Predicate::Net(text.parse().unwrap())
}

fn selector(text: &str) -> Predicate {
    Predicate::Selector(Selector::parse(text).unwrap())
}

/// A census that is asked exactly this.
fn asked(world: &World, predicates: &[Predicate]) -> Census {
    let mut compiler = crate::compile::Compiler::of(&world.cluster, "nowhere");
    let mut census = std::mem::take(compiler.census());
    let mut fresh = Vec::new();
    census.acquire(predicates, &mut fresh);
    census.change_asks(&fresh, &[]);
    census
}

#[test]
fn a_nested_cidr_carries_what_is_around_it_and_an_exact_address_carries_all() {
    let mut world = World::default();
    world.pod("web", "10.0.0.1", "a=x", &[]);
    let role = json!({ "labels": { "a": "x" } });
    let set = json!({ "metadata": role, "spec": { "nets": ["10.0.0.0/24"] } });
    world.put(Kind::GlobalNetworkSet, "", "s", &set);
    let (is_x, is_y) = (selector("a == 'x'"), selector("a == 'y'"));
    let predicates = [net("10.0.0.0/8"), net("10.0.0.1/32"), net("10.0.0.128/25"), is_x.clone(), is_y];
    let census = asked(&world, &predicates);
    let of = |text: &str| census.class_of(Place::Peer(address(text))).predicates().to_vec();
    assert_eq!(of("10.9.9.9"), [net("10.0.0.0/8")]);
    assert_eq!(of("10.0.0.9"), [net("10.0.0.0/8"), is_x.clone()]);
    assert_eq!(of("10.0.0.200"), [net("10.0.0.0/8"), net("10.0.0.128/25"), is_x.clone()]);
    assert_eq!(of("10.0.0.1"), [net("10.0.0.0/8"), net("10.0.0.1/32"), is_x], "the exact hit is complete");
    assert_eq!(of("11.0.0.1"), []);
    let places: Vec<Place> = census.places().map(|(place, _)| place).collect();
    assert_eq!(places.iter().filter(|place| matches!(place, Place::Peer(_))).count(), 1);
    assert!(places.contains(&Place::Peer(address("10.0.0.1"))));
    assert!(census.places().all(|(_, class)| !class.is_empty()));
    assert_eq!((census.peers(), census.peers() + census.prefixes()), (1, places.len()));
}

#[test]
fn when_the_same_becomes_true_of_a_whole_class_nobody_moves() {
    let mut world = World::default();
    for n in 1..=9 {
        world.pod(&format!("p{n}"), &format!("10.0.0.{n}"), &format!("n={n} a=x"), &[]);
    }
    let mut census = asked(&world, &[selector("a == 'x'")]);
    assert_eq!(census.take_delta().moved.len(), 9);
    let mut fresh = Vec::new();
    census.acquire(&[selector("has(n)")], &mut fresh);
    census.change_asks(&fresh, &[]);
    let Delta { moved, renamed, .. } = census.take_delta();
    let after = census.class_of(Place::Peer(address("10.0.0.1")));
    assert_eq!((moved.len(), renamed.len()), (0, 1));
    assert_eq!(renamed[0].1, after);
    // Of a part of it: that part moves.
    let mut fresh = Vec::new();
    census.acquire(&[selector("n == '3'")], &mut fresh);
    census.change_asks(&fresh, &[]);
    let Delta { moved, renamed, .. } = census.take_delta();
    assert_eq!((moved, renamed.len()), (BTreeSet::from([Place::Peer(address("10.0.0.3"))]), 0));
}

#[test]
fn what_nobody_asks_any_more_leaves_nothing_behind() {
    let mut world = World::default();
    world.pod("web", "10.0.0.1", "a=x", &[]);
    let mut census = asked(&world, &[]);
    for _ in 0..3 {
        let mut fresh = Vec::new();
        let asks = census.acquire(&[selector("a == 'x'"), net("10.0.0.0/8"), net("10.0.0.0/30")], &mut fresh);
        census.change_asks(&fresh, &[]);
        assert_eq!((census.peers(), census.prefixes()), (1, 2));
        let gone: Vec<Ask> = asks.iter().copied().filter(|ask| census.asks.release(*ask)).collect();
        assert_eq!(gone.len(), 3);
        census.change_asks(&[], &gone);
        assert_eq!((census.peers(), census.prefixes(), census.nets.len()), (0, 0, 0));
        assert_eq!(census.places().count(), 0);
        assert!(!census.groups.held_by_net(asks[0]));
    }
}
