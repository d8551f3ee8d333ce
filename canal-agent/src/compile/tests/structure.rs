//! Sharing, classes, pages, and cost.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use canal_common::policy::{FANOUT, Verdict, key};
use ipnet::Ipv4Net;
use serde_json::json;

use super::{NODE, World, address, census_of};
use crate::{
    compile::{
        Compiler, Decision, Final, OverBudget, Row,
        pages::{self, MAX_BOUNDS, Slot},
    },
    model::resource::Kind,
};

#[test]
fn endpoints_with_the_same_policy_share_their_sets() {
    let mut world = World::default();
    for n in 1..50 {
        world.pod(&format!("p{n}"), &format!("10.0.0.{n}"), &format!("n={n} a=x"), &["net"]);
    }
    world.global("p", &json!({ "selector": "a == 'x'", "ingress": [{ "action": "Allow" }] }));
    assert_eq!(Compiler::of(&world.cluster, NODE).sets().len(), 2);
}

#[test]
fn profiles_that_nothing_reaches_do_not_make_sets_differ() {
    let mut world = World::default();
    world.pod("a", "10.0.0.1", "", &["one"]);
    world.pod("b", "10.0.0.2", "", &["two"]);
    world.global("p", &json!({ "ingress": [{ "action": "Allow" }] }));
    let compiled = Compiler::of(&world.cluster, NODE);
    assert_eq!(compiled.sets().len(), 2);
    assert_eq!(compiled.sets()[0].policies(), ["GlobalNetworkPolicy p"]);
}

#[test]
fn sets_of_two_compilations_are_equal_if_and_only_if_their_content_is() {
    let mut world = World::default();
    world.pod("a", "10.0.0.1", "", &[]);
    world.global("p", &json!({ "ingress": [{ "action": "Allow", "protocol": "TCP" }] }));
    let first = Compiler::of(&world.cluster, NODE);
    world.global("unrelated", &json!({ "selector": "has(nothing)" }));
    assert_eq!(Compiler::of(&world.cluster, NODE).endpoints(), first.endpoints());
    world.global("p", &json!({ "ingress": [{ "action": "Allow", "protocol": "UDP" }] }));
    assert_ne!(Compiler::of(&world.cluster, NODE).endpoints(), first.endpoints());
}

#[test]
fn only_the_endpoints_of_the_node_are_compiled_and_the_local_overlay_counts() {
    let mut world = World::default();
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    assert_eq!(Compiler::of(&world.cluster, "n2").endpoints().len(), 0);
    let mut local = world.cluster.endpoint(&pod).unwrap().clone();
    local.addresses = vec![address("10.0.0.7"), address("10.0.0.8")];
    world.cluster.set_local_endpoint(pod.clone(), Some(local));
    let at: Vec<Ipv4Addr> =
        Compiler::of(&world.cluster, NODE).endpoints().keys().map(|(_, at)| *at).collect();
    assert_eq!(at, [address("10.0.0.7"), address("10.0.0.8")]);
    world.cluster.set_local_endpoint(pod, None);
    assert_eq!(Compiler::of(&world.cluster, NODE).endpoints().len(), 1);
}

/// Alternating verdicts at every `step` keys.
fn striped(bounds: u32, step: u32) -> Row {
    let verdict = |n| Decision::Final(Final { allow: n % 2 == 1, rule: None, logs: Vec::new() });
    Row((0..bounds).map(|n| (n * step, verdict(n))).collect())
}

#[test]
fn rows_of_any_size_up_to_the_limit_answer_alike_as_pages() {
    for bounds in [1, 2, 15, 16, 17, 255, 256, 257, 4097, 65536] {
        let row = striped(bounds, 7);
        let tree = pages::encode(&row, &mut |_| 0).unwrap();
        let end = u64::from(bounds) * 7 + 20;
        for key in (0..end).step_by(3) {
            let (proto, port) = (u8::try_from(key >> 16).unwrap(), u16::try_from(key & 0xffff).unwrap());
            let allow = tree.lookup(proto, 9, port).kind() == Verdict::ALLOW;
            assert_eq!(allow, row.lookup(proto, 9, port).allow, "{bounds} bounds, key {key}");
        }
        let (mut depth, mut page) = (1, &tree.pages[tree.root]);
        while let Slot::Page(next) = page.slots[0] {
            (depth, page) = (depth + 1, &tree.pages[next]);
        }
        assert!(depth <= 4);
    }
}

#[test]
fn a_row_over_the_limit_is_an_error_that_says_so() {
    let too_big = u32::try_from(MAX_BOUNDS + 1).unwrap();
    let error = pages::encode(&striped(too_big, 1), &mut |_| 0).unwrap_err();
    assert_eq!((error.bounds, error.by), (MAX_BOUNDS + 1, "destination"));
}

#[test]
fn children_come_before_parents_and_equal_pages_are_one() {
    let by_src: Vec<(u32, Final)> = (0..40)
        .map(|n| {
            (if n == 0 { 0 } else { key(6, n) }, Final { allow: n % 2 == 0, rule: None, logs: Vec::new() })
        })
        .collect();
    let cells = (0..100).map(|n| {
        let decision =
            if n % 2 == 0 { Decision::Final(Final::DENY) } else { Decision::BySrcPort(by_src.clone()) };
        (if n == 0 { 0 } else { key(6, n) }, decision)
    });
    let tree = pages::encode(&Row(cells.collect()), &mut |_| 0).unwrap();
    for (at, page) in tree.pages.iter().enumerate() {
        assert!(page.children().all(|child| child < at));
        let kernel = page.resolve(|child| u32::try_from(child).unwrap() + 100);
        assert_eq!(kernel.bounds[0], 0);
    }
    let distinct: std::collections::HashSet<_> = tree.pages.iter().collect();
    assert_eq!(distinct.len(), tree.pages.len());
    // 40 source ports are three pages and their root; 100 cells are seven and theirs.
    assert!(tree.pages.len() <= 12, "{} pages", tree.pages.len());
    assert_eq!(tree.pages[tree.root].bounds.len(), FANOUT);
    assert_eq!(tree.lookup(6, 2, 1).kind(), Verdict::ALLOW);
    assert_eq!(tree.lookup(6, 3, 1).kind(), Verdict::DENY);
    assert_eq!(tree.lookup(6, 2, 2).kind(), Verdict::DENY);
}

#[test]
fn verdicts_bear_the_ids_of_their_rules() {
    let mut world = World::default();
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    world.global("p", &json!({ "ingress": [{ "action": "Allow", "protocol": "TCP" }] }));
    let compiled = Compiler::of(&world.cluster, NODE);
    let set = &compiled.endpoints()[&(pod, address("10.0.0.1"))].ingress;
    let tree = pages::encode(&set.row(&crate::compile::Class::default()).unwrap(), &mut |decided: &Final| {
        decided.rule.as_ref().map_or(0, |rule| 70 + rule.index)
    });
    let tree = tree.unwrap();
    assert_eq!(tree.lookup(6, 1, 1), Verdict::new(Verdict::ALLOW, 70));
    assert_eq!(tree.lookup(17, 1, 1), Verdict::new(Verdict::DENY, 0));
    assert_eq!(tree.lookup(255, 65535, 65535), Verdict::new(Verdict::DENY, 0));
}

/// Work grows with what there is, not with its square: the bound is generous, a quadratic step would miss it by far.
#[test]
fn ten_thousand_rules_and_endpoints_compile_in_seconds() {
    let mut world = World::default();
    let start = Instant::now();
    for n in 0..10_000u32 {
        let node = if n < 50 { NODE } else { "n2" };
        let name = format!("{node}-cni-c{n}-eth0");
        let spec =
            json!({ "ipNetworks": [format!("{}/32", Ipv4Addr::from(0x0a00_0000 + n))], "profiles": ["net"] });
        let labels = json!({ "labels": { "app": format!("app{}", n % 200), "all": "yes" } });
        world.put(Kind::WorkloadEndpoint, "shop", &name, &json!({ "metadata": labels, "spec": spec }));
    }
    for n in 0..1_000u32 {
        let rules: Vec<_> = (0..10u32)
            .map(|i| {
                let lone = Ipv4Net::from(Ipv4Addr::from(0xc612_0000 + n * 10 + i)).to_string();
                let source = if i < 8 { json!({ "nets": [lone] }) } else { json!({ "selector": format!("app == 'app{}'", n % 200) }) };
                json!({ "action": "Deny", "protocol": "TCP", "source": source, "destination": { "ports": [n + i] } })
            })
            .collect();
        world.global(&format!("p{n}"), &json!({ "order": n, "selector": "has(all)", "ingress": rules }));
    }
    let mut compiled = Compiler::of(&world.cluster, NODE);
    assert_eq!(compiled.endpoints().len(), 50);
    assert_eq!(compiled.sets().len(), 2);
    let sets: Vec<_> = compiled.sets().into_iter().cloned().collect();
    let census = census_of(&mut compiled);
    assert_eq!((census.peers(), census.prefixes()), (10_000, 8_000));
    let distinct: BTreeSet<_> = census.places().map(|(_, class)| class).collect();
    let bounds: usize =
        distinct.iter().flat_map(|class| sets.iter().map(|set| set.row(class).unwrap().0.len())).sum();
    assert!(bounds >= distinct.len());
    let took = start.elapsed();
    assert!(took.as_secs() < 40, "{took:?}");
}

/// The rows of the one pod of this world, in and out, for a stranger.
fn rows(world: &World) -> [Result<Row, OverBudget>; 2] {
    let compiled = Compiler::of(&world.cluster, NODE);
    let judgement = compiled.endpoints().values().next().unwrap();
    [&judgement.ingress, &judgement.egress].map(|set| set.row(&crate::compile::Class::default()))
}

fn odd_ports(count: u32) -> Vec<u32> {
    (0..count).map(|n| 2 * n + 1).collect()
}

#[test]
fn ports_times_source_ports_beyond_the_budget_are_refused_before_they_take_memory() {
    let by_source = |count: u32| {
        (0..count)
            .map(|n| json!({ "action": "Allow", "protocol": "TCP", "source": { "ports": [10 * n + 1] } }))
    };
    let many = json!({ "action": "Deny", "protocol": "TCP", "destination": { "ports": odd_ports(32_768) } });
    let few = json!({ "action": "Deny", "protocol": "TCP", "destination": { "ports": odd_ports(200) } });
    for (first, count, fits) in [(&few, 100, true), (&many, 1_000, false)] {
        let mut world = World::default();
        world.pod("a", "10.0.0.1", "", &[]);
        let rules: Vec<_> = [first.clone()].into_iter().chain(by_source(count)).collect();
        world.global("p", &json!({ "ingress": rules }));
        // The other way round as well: then the divided rest is small, and what was decided overlaps.
        let rules: Vec<_> = by_source(count).chain([first.clone()]).collect();
        world.global("q", &json!({ "egress": rules }));
        // Passed on, it meets again in the next tier.
        let mut passing = World::default();
        passing.pod("a", "10.0.0.1", "", &[]);
        let rules: Vec<_> = rules
            .into_iter()
            .map(|mut rule| {
                rule["action"] = json!("Pass");
                rule
            })
            .collect();
        passing.global("p", &json!({ "ingress": rules, "egress": rules }));
        passing.profile("net", &json!({ "ingress": [], "egress": [] }));
        for row in rows(&world).into_iter().chain(rows(&passing)) {
            assert_eq!(row.err(), (!fits).then_some(OverBudget::Row), "{count}");
        }
    }
}

#[test]
fn log_rules_times_ports_beyond_the_budget_are_refused_before_they_take_memory() {
    for (logs, ports, fits) in [(10, 1_000, true), (10_000, 10_000, false), (1, 30_000, true)] {
        let mut world = World::default();
        world.pod("a", "10.0.0.1", "", &[]);
        let log = || (0..logs).map(|_| json!({ "action": "Log" }));
        let allow =
            json!({ "action": "Allow", "protocol": "TCP", "destination": { "ports": odd_ports(ports) } });
        let ingress: Vec<_> = [allow.clone()].into_iter().chain(log()).collect();
        let egress: Vec<_> = log().chain([allow]).collect();
        world.global("p", &json!({ "ingress": ingress, "egress": egress }));
        for row in rows(&world) {
            assert_eq!(row.err(), (!fits).then_some(OverBudget::Row), "{logs} Log rules, {ports} ports");
        }
    }
}

#[test]
fn a_port_name_with_too_many_meanings_refuses_its_policy_until_it_has_fewer() {
    let mut world = World::default();
    let ports = |count: u32| {
        let all = (1..=count).map(|n| json!({ "name": "p", "port": n, "protocol": "TCP" }));
        json!({ "profiles": [], "ports": all.collect::<Vec<_>>() })
    };
    world.pod("a", "10.0.0.1", "", &[]);
    let named = json!({ "ports": ["p"] });
    world.global(
        "p",
        &json!({ "ingress": [
        { "action": "Allow", "protocol": "TCP", "source": named, "destination": named },
    ] }),
    );
    let other = json!({ "action": "Allow", "protocol": "TCP", "destination": { "ports": ["p"] } });
    world.global("other", &json!({ "selector": "has(nothing)", "ingress": [other] }));
    let labels = json!({ "metadata": { "labels": {} } });
    for (count, fits) in [(10, true), (37_000, false), (20, true)] {
        let mut endpoint = labels.clone();
        endpoint["spec"] = ports(count);
        endpoint["spec"]["ipNetworks"] = json!(["10.0.0.2/32"]);
        world.put(Kind::WorkloadEndpoint, "shop", "n2-cni-b-eth0", &endpoint);
        let [ingress, egress] = rows(&world);
        assert!(egress.is_ok(), "the other direction has no such rule");
        let said = ingress.err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(
            said.starts_with("GlobalNetworkPolicy p (tier default) ingress rule 0: "),
            !fits,
            "{said}"
        );
    }
}
