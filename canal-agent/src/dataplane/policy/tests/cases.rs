//! Situations that chance meets too rarely.

use serde_json::{Value, json};

use super::*;
use crate::{
    compile::tests::World,
    model::resource::{Kind, Resource},
};

struct Node {
    world: World,
    compiler: Compiler,
    fake: Fake,
    tables: PolicyTables<Fake>,
}

impl Node {
    /// Pod `web` (a=web) at 10.0.0.1; peers 10.0.0.2 (a=x) and 10.0.0.3 (a=y) are elsewhere.
    fn new(limits: Limits) -> Self {
        let fake = Fake::default();
        let tables = PolicyTables::new(fake.clone(), Leftovers::default(), limits);
        let mut node = Self { world: World::default(), compiler: Compiler::new(NODE), fake, tables };
        node.world.pod("web", "10.0.0.1", "a=web", &[]);
        node.peer(2, "x").peer(3, "y");
        node
    }

    fn peer(&mut self, n: u8, label: &str) -> &mut Self {
        let spec = json!({ "ipNetworks": [format!("10.0.0.{n}/32")], "profiles": [] });
        let value = json!({ "metadata": { "labels": { "a": label } }, "spec": spec });
        self.world.put(Kind::WorkloadEndpoint, "shop", &format!("n2-cni-p{n}-eth0"), &value);
        self
    }

    /// A pod of this node goes.
    fn remove(&mut self, name: &str) {
        let key = Resource::new(Kind::WorkloadEndpoint, "shop", &format!("{NODE}-cni-{name}-eth0")).key();
        self.world.cluster.apply(&key, None);
    }

    /// Lets in those with this label.
    fn allow(&mut self, label: &str) -> &mut Self {
        self.ingress(&json!([{ "action": "Allow", "source": { "selector": format!("a == '{label}'") } }]))
    }

    fn ingress(&mut self, rules: &Value) -> &mut Self {
        self.world.global("p", &json!({ "selector": "a == 'web'", "types": ["Ingress"], "ingress": rules }));
        self
    }

    /// Brings the tables up to date.
    fn apply(&mut self) -> Problems {
        let changed = self.world.cluster.take_changes();
        self.compiler.update(&self.world.cluster, &changed);
        let desired = desired(&self.compiler);
        self.tables.apply(self.compiler.census(), &desired).unwrap()
    }

    /// Brings the tables up to date, write by write as it should be.
    fn update(&mut self) -> (Problems, Vec<Write>) {
        let before = self.fake.state().clone();
        let problems = self.apply();
        let log = self.fake.take_log();
        let (old, mut new) = (Judge::default().all(&before), by_rows(&self.world.cluster));
        for (endpoint, problem) in &problems {
            new.retain(|(other, ..), _| other != endpoint);
            if problem.keeps_last {
                new.extend(old.iter().filter(|((other, ..), _)| other == endpoint));
            }
        }
        check(&before, &log, &old, &new, true, &mut BTreeSet::new()).unwrap();
        check_books(&self.tables).unwrap();
        (problems, log)
    }

    fn lets_in(&self, peer: u8) -> bool {
        let (endpoint, peer) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, peer));
        let state = self.fake.state();
        let root = state.root(endpoint, Direction::Ingress, peer);
        state.allows(root, &packet_of(Direction::Ingress, endpoint, peer, FLOWS[0]))
    }
}

fn bumps(log: &[Write]) -> usize {
    log.iter().filter(|write| matches!(write, Write::Bump(_))).count()
}

#[test]
fn new_labels_and_a_new_policy_at_once_never_meet_the_old_policy() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    assert!(node.lets_in(2) && !node.lets_in(3));
    // Under the old policy the new labels would let 10.0.0.3 in, under neither cluster as a whole.
    node.peer(3, "x").allow("z").update();
    assert!(!node.lets_in(2) && !node.lets_in(3));
}

/// A program that looked the endpoint's set up before the flip may still use it, and new classes get no column there.
#[test]
fn an_update_waits_for_programs_that_may_use_what_the_last_one_gave_up() {
    const NONE: [usize; 0] = [];
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    assert_eq!(node.fake.take_waits(), [0], "what an earlier process gave up is not known");
    node.allow("y").update();
    assert_eq!(node.fake.take_waits(), NONE, "the first update added only");
    node.peer(4, "w").allow("w").update();
    assert_eq!(node.fake.take_waits(), [0], "before anything is written");
    node.update();
    assert_eq!(node.fake.take_waits(), [0]);
    node.update();
    assert_eq!(node.fake.take_waits(), NONE, "an update without a change gives nothing up");
}

#[test]
fn an_endpoint_that_changes_to_a_set_of_others_never_meets_that_sets_past() {
    let mut node = Node::new(Limits::default());
    node.world.pod("db", "10.0.0.4", "a=db", &[]);
    let rules = json!([{ "action": "Allow", "source": { "selector": "a == 'y'" } }]);
    node.world.global("q", &json!({ "selector": "a == 'db'", "types": ["Ingress"], "ingress": rules }));
    node.allow("x").update();
    // At once: web becomes a db, and 10.0.0.2, which web lets in, becomes a y, which db lets in; 10.0.0.3 is a y no more.
    node.world.pod("web", "10.0.0.1", "a=db", &[]);
    node.peer(2, "y").peer(3, "z").update();
    assert!(node.lets_in(2) && !node.lets_in(3));
}

#[test]
fn a_label_change_alone_is_one_write_and_one_bump() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    let (_, log) = node.peer(3, "x").update();
    assert_eq!((log.len(), bumps(&log)), (2, 1), "{log:?}");
    assert!(node.lets_in(3));
}

#[test]
fn only_those_are_judged_again_whose_verdicts_may_have_changed() {
    let mut node = Node::new(Limits::default());
    node.world.pod("other", "10.0.0.4", "a=other", &[]);
    node.allow("x").update();
    let id = |node: &Node, n| node.fake.state().endpoints[&Ipv4Addr::new(10, 0, 0, n)].id;
    let changes: [fn(&mut Node) -> &mut Node; 2] = [|node| node.peer(3, "x"), |node| node.allow("y")];
    for change in changes {
        change(&mut node);
        let (_, log) = node.update();
        assert!(log.iter().any(|write| matches!(write, Write::Bump(bumped) if *bumped == id(&node, 1))));
        assert!(
            !log.iter().any(|write| matches!(write, Write::Bump(bumped) if *bumped == id(&node, 4))),
            "{log:?}"
        );
    }
    // A peer that no rule asks about is nobody's business.
    let (_, log) = node.peer(5, "q").update();
    assert_eq!(log.len(), 0, "{log:?}");
}

#[test]
fn counts_begin_anew_with_each_decision_and_go_on_with_those_that_stay() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    let first = node.fake.take_cleared();
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(node.tables.decided(first[0]).is_some_and(|decided| decided.allow));
    node.ingress(&json!([
        { "action": "Allow", "source": { "selector": "a == 'x'" } },
        { "action": "Deny", "source": { "selector": "a == 'y'" } },
    ]));
    node.update();
    let second = node.fake.take_cleared();
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(node.tables.decided(second[0]).is_some_and(|decided| !decided.allow) && first != second);
    node.peer(5, "y").update();
    assert!(node.fake.take_cleared().is_empty());
}

#[test]
fn an_endpoint_is_closed_until_its_policy_stands_and_again_when_it_goes() {
    let mut node = Node::new(Limits::default());
    let (_, log) = node.allow("x").update();
    let at = |wanted: fn(&Write) -> bool| log.iter().position(wanted).unwrap();
    let set = at(|write| matches!(write, Write::Set(..)));
    let policy = at(|write| matches!(write, Write::Policy(..)));
    let endpoint = at(|write| matches!(write, Write::Endpoint(..)));
    assert!(set < policy && policy < endpoint, "{log:?}");
    node.remove("web");
    let (_, log) = node.update();
    assert!(
        matches!(log[..3], [Write::DeleteEndpoint(_), Write::Bump(_), Write::DeletePolicy(_)]),
        "{log:?}"
    );
}

#[test]
fn another_pod_behind_the_address_is_written_behind_its_policy_and_bumped() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    node.remove("web");
    node.world.pod("web2", "10.0.0.1", "a=web", &[]);
    let (_, log) = node.update();
    assert!(matches!(log[..], [Write::Endpoint(..), Write::Bump(_)]), "{log:?}");
}

#[test]
fn a_policy_too_big_for_the_tables_closes_its_endpoint_alone_and_says_why() {
    let mut node = Node::new(Limits { rows: 20_000, ..Limits::default() });
    node.world.pod("other", "10.0.0.4", "a=other", &[]);
    node.allow("x").update();
    // Every other port, and one of another protocol.
    let ports: Vec<Value> = (0..32_768u32).map(|n| json!(n * 2)).collect();
    let rule = |protocol: &str, ports: &[Value]| json!({ "action": "Allow", "protocol": protocol, "destination": { "ports": ports } });
    let (problems, _) = node.ingress(&json!([rule("TCP", &ports), rule("UDP", &ports[..1])])).update();
    assert_eq!(problems.len(), 1);
    let reason = &problems[&Ipv4Addr::new(10, 0, 0, 1)];
    assert!(reason.reason.contains("GlobalNetworkPolicy") && reason.reason.contains("limit"), "{reason:?}");
    assert!(reason.keeps_last);
    // As long as it is so, it costs nobody anything.
    let (problems, log) = node.update();
    assert_eq!((problems.len(), log.len()), (1, 0), "{log:?}");
    assert_eq!(node.allow("x").update().0, Problems::new());
    assert!(node.lets_in(2));
    // Ports times source ports: refused before it is compiled.
    let by_source = |n: u32| json!({ "action": "Allow", "protocol": "TCP", "source": { "ports": [n * 2] } });
    let rules: Vec<Value> = [rule("TCP", &ports)].into_iter().chain((0..100).map(by_source)).collect();
    let (problems, _) = node.ingress(&json!(rules)).update();
    assert_eq!(problems.len(), 1);
    let reason = &problems[&Ipv4Addr::new(10, 0, 0, 1)];
    assert!(reason.reason.contains("GlobalNetworkPolicy") && reason.reason.contains("pieces"), "{reason:?}");
}

#[test]
fn endpoints_beyond_full_tables_are_closed_and_told_and_come_back() {
    let full = |limits: Limits, what: &str| {
        let mut node = Node::new(limits);
        for n in 4..8 {
            node.world.pod(&format!("c{n}"), &format!("10.0.0.{n}"), &format!("a=c{n}"), &[]);
            let rules = json!([{ "action": "Allow", "protocol": "TCP", "destination": { "ports": [n] } }]);
            let spec = json!({ "selector": format!("a == 'c{n}'"), "types": ["Ingress"], "ingress": rules });
            node.world.global(&format!("p{n}"), &spec);
        }
        let (problems, _) = node.allow("x").update();
        assert!(!problems.is_empty() && problems.len() < 5, "{problems:?}");
        assert!(problems.values().all(|problem| problem.reason.contains(what)), "{problems:?}");
        for n in 4..8 {
            node.remove(&format!("c{n}"));
        }
        node.update();
        assert_eq!(node.update().0, Problems::new(), "{what}");
    };
    full(Limits { sets: 4, ..Limits::default() }, "policy sets");
    full(Limits { rows: 4, ..Limits::default() }, "rows");
    full(Limits { endpoints: 3, ..Limits::default() }, "endpoints");
}

#[test]
fn an_endpoint_that_shares_a_set_in_change_keeps_it_when_its_new_one_finds_no_room() {
    let mut node = Node::new(Limits { rows: 20_000, ..Limits::default() });
    node.world.pod("twin", "10.0.0.4", "a=web role=x", &[]);
    let ports: Vec<Value> = (0..32_768u32).map(|n| json!(n * 2)).collect();
    let huge = |protocol: &str| json!({ "action": "Allow", "protocol": protocol, "destination": { "ports": ports } });
    let spec =
        json!({ "selector": "role == 'y'", "types": ["Ingress"], "ingress": [huge("TCP"), huge("UDP")] });
    node.world.global("huge", &spec);
    node.ingress(&json!([{ "action": "Allow", "source": { "selector": "role == 'x'" } }]));
    assert_eq!(node.apply(), Problems::new());
    // At once: it gets a set that does not fit, and is of another class for the set that it had.
    node.world.pod("twin", "10.0.0.4", "a=web role=y", &[]);
    let problems = node.apply();
    assert_eq!(problems.len(), 1);
    assert!(problems[&Ipv4Addr::new(10, 0, 0, 4)].keeps_last, "{problems:?}");
    assert_eq!(node.fake.state().endpoints.len(), 2);
    assert!(!node.lets_in(4), "it is no x any more, for those that go on");
}

#[test]
fn where_addresses_find_no_room_an_endpoint_keeps_its_last_policy_or_is_closed_and_the_others_go_on() {
    let everybody = |rule: &Value| json!([rule]);
    for (limits, rule, table) in [
        (
            Limits { peers: 3, ..Limits::default() },
            json!({ "action": "Allow", "source": { "selector": "has(a)" } }),
            "PEERS",
        ),
        (
            Limits { nets: 1, ..Limits::default() },
            json!({ "action": "Allow", "source": { "nets": ["10.0.0.0/29", "192.0.2.0/24"] } }),
            "NETS",
        ),
    ] {
        let mut node = Node::new(limits);
        node.world.pod("other", "10.0.0.4", "a=other", &[]);
        node.world.global("q", &json!({ "selector": "a == 'other'", "types": ["Ingress"], "ingress": [{ "action": "Allow", "source": { "selector": "a == 'y'" } }] }));
        assert_eq!(node.allow("x").update().0, Problems::new());
        // It has a policy, and keeps it.
        let (problems, _) = node.ingress(&everybody(&rule)).update();
        let problem = &problems[&Ipv4Addr::new(10, 0, 0, 1)];
        assert!(
            problem.keeps_last
                && problem.reason.contains(table)
                && problem.reason.contains("GlobalNetworkPolicy p"),
            "{problem:?}"
        );
        assert_eq!(problems.len(), 1);
        assert!(node.lets_in(2) && !node.lets_in(3));
        // The policy that it keeps follows the labels.
        node.peer(3, "x");
        assert!(node.apply().len() == 1 && node.lets_in(3));
        // One that comes now has none.
        node.world.pod("late", "10.0.0.5", "a=web", &[]);
        let (problems, _) = node.update();
        let late = &problems[&Ipv4Addr::new(10, 0, 0, 5)];
        assert!(!late.keeps_last && late.reason.contains(table), "{late:?}");
        node.remove("late");
        // Once it fits, all is well.
        assert_eq!(node.allow("z").update().0, Problems::new());
        assert!(!node.lets_in(2) && !node.lets_in(3));
    }
}

#[test]
fn an_address_whose_class_finds_no_room_is_closed_whatever_the_policy_says() {
    let mut node = Node::new(Limits { classes: 2, ..Limits::default() });
    // Whoever is not known to be bad may come.
    node.ingress(&json!([
        { "action": "Deny", "source": { "selector": "a == 'x'" } },
        { "action": "Deny", "source": { "selector": "a == 'y'" } },
        { "action": "Allow" },
    ]));
    let mut compiler = Compiler::of(&node.world.cluster, NODE);
    let desired = desired(&compiler);
    node.tables.apply(compiler.census(), &desired).unwrap();
    assert!(!node.lets_in(2) && !node.lets_in(3) && node.lets_in(9));
}

#[test]
fn what_an_earlier_process_left_in_disorder_is_closed_and_cleaned_up() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    let mut state = node.fake.state().clone();
    // A policy without an endpoint, an endpoint without a policy, classes that cannot be, a set nobody uses.
    state.policy.insert(77, *state.policy.values().next().unwrap());
    let endpoint = state.endpoints[&Ipv4Addr::new(10, 0, 0, 1)];
    state
        .endpoints
        .insert(Ipv4Addr::new(10, 0, 0, 9), canal_common::endpoint::Endpoint { id: 78, ..endpoint });
    state.peers.insert(Ipv4Addr::new(10, 0, 0, 8), u32::MAX);
    state.peers.insert(Ipv4Addr::new(10, 0, 0, 7), 1 << 25);
    state.sets.insert(500, vec![1; 64]);
    let leftovers = state.leftovers();
    node.fake = Fake::from_state(state);
    node.tables = PolicyTables::new(node.fake.clone(), leftovers, Limits::default());
    node.compiler = Compiler::of(&node.world.cluster, NODE);
    let (problems, _) = node.update();
    assert_eq!(problems, Problems::new());
    let state = node.fake.state();
    assert_eq!((state.endpoints.len(), state.policy.len(), state.used_sets().len()), (1, 1, 2));
    assert!(node.lets_in(2) && !node.lets_in(3));
}

/// A program reads the endpoint, then its generation: once there is a new one, none may still hold the old endpoint.
#[test]
fn an_endpoint_that_is_shaped_from_now_on_is_judged_again_once_no_program_knows_it_otherwise() {
    let mut node = Node::new(Limits::default());
    node.allow("x").update();
    let mut compiler = Compiler::of(&node.world.cluster, NODE);
    let mut desired = desired(&compiler);
    node.tables.apply(compiler.census(), &desired).unwrap();
    node.fake.take_log();
    for (shaped, flags) in [(true, canal_common::endpoint::Endpoint::SHAPED), (false, 0)] {
        for want in desired.values_mut() {
            want.shaped = shaped;
        }
        node.tables.wait_for_programs().unwrap();
        node.fake.take_waits();
        node.tables.apply(compiler.census(), &desired).unwrap();
        let log = node.fake.take_log();
        assert!(
            matches!(log[..], [Write::Endpoint(_, endpoint), Write::Bump(id)] if endpoint.flags == flags && endpoint.id == id),
            "{log:?}"
        );
        assert_eq!(node.fake.take_waits(), [1], "between the two");
        node.tables.apply(compiler.census(), &desired).unwrap();
        assert!(node.fake.take_log().is_empty(), "it stays so");
    }
}
