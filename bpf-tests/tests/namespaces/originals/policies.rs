//! Random policies, which must mean the same on both nodes and between them.
//!
//! Whatever a policy says of web and db must come true four times: on each node, and between them both ways, where each
//! side judges half of it.

use std::{collections::BTreeMap, env, thread};

use bpf_tests::{Host, dice::Dice, until};
use serde_json::{Value, json};

use super::{Member, PROGRAMMED, Theirs, apply, calicoctl, members, world};

/// Stores that are tried, unless `CANAL_CASES` says otherwise.
const CASES: usize = 12;
/// What tells which state of the policies is in force.
const MARKER: u16 = 10_000;

/// Who asks whom for what.
type Question = (&'static str, &'static str, &'static str);

fn ask(from: &Member, to: &Member, what: &str) -> bool {
    let (from, to) = (from.at(), to.ip);
    match what {
        "ping" => from.ping(to, 1).is_ok_and(|stats| stats.lost == 0),
        "udp 53" => from.udp_echoes(to, 53, 1).is_ok_and(|answers| answers == 1),
        port => from.reaches(to, port.trim_start_matches("tcp ").parse().unwrap()),
    }
}

/// All at once: what is denied takes a while to be so.
fn answers(pairs: &[(&'static str, &Member, &Member)]) -> BTreeMap<Question, bool> {
    let what = ["tcp 80", "tcp 8080", "udp 53", "ping"];
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (place, web, db) in pairs {
            for (way, from, to) in [("web to db", web, db), ("db to web", db, web)] {
                for what in what {
                    threads.push(((*place, way, what), scope.spawn(move || ask(from, to, what))));
                }
            }
        }
        threads.into_iter().map(|(question, thread)| (question, thread.join().unwrap())).collect()
    })
}

fn entity(dice: &mut Dice, nets: &[Value], ports: bool) -> Value {
    const SELECTORS: &[&str] = &[
        "app == 'web'",
        "app != 'web'",
        "app in {'db', 'x'}",
        "has(tier) && tier starts with 'fr'",
        "!has(tier)",
        "app not in {'web'} || tier == 'front'",
        "set == 'webs'",
        "has(canal)",
        "all()",
        "nothing == 'here'",
    ];
    let mut entity = json!({});
    dice.maybe(45, &mut entity, "selector", |dice| dice.text(SELECTORS));
    dice.maybe(15, &mut entity, "notSelector", |dice| dice.text(SELECTORS));
    dice.maybe(20, &mut entity, "nets", |dice| dice.value(nets));
    dice.maybe(15, &mut entity, "notNets", |dice| dice.value(nets));
    dice.maybe(15, &mut entity, "namespaceSelector", |dice| {
        dice.text(&[
            "all()",
            "global()",
            "has(x)",
            "team == 'blue'",
            "team != 'blue'",
            "projectcalico.org/name == 'default'",
        ])
    });
    dice.maybe(15, &mut entity, "serviceAccounts", |dice| {
        dice.value(&[
            json!({"names": ["robot"]}),
            json!({"names": ["robot", "human"]}),
            json!({"selector": "role == 'worker'"}),
            json!({"names": ["human"], "selector": "has(role)"}),
        ])
    });
    if ports {
        let port = |dice: &mut Dice| {
            dice.value(&[json!(80), json!(8080), json!(53), json!("50:90"), json!("http"), json!("dns")])
        };
        dice.maybe(50, &mut entity, "ports", |dice| dice.list(2, port));
        dice.maybe(15, &mut entity, "notPorts", |dice| dice.list(2, port));
    }
    entity
}

fn rule(dice: &mut Dice, nets: &[Value]) -> Value {
    let mut rule = json!({"action": dice.pick(&["Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"])});
    let protocol = dice.pick(&["", "", "TCP", "TCP", "UDP", "ICMP", "6"]);
    match protocol {
        "" => dice.maybe(30, &mut rule, "notProtocol", |dice| {
            dice.value(&[json!("TCP"), json!("UDP"), json!("ICMP"), json!(17)])
        }),
        "6" => rule["protocol"] = json!(6),
        name => rule["protocol"] = json!(name),
    }
    if protocol == "ICMP" {
        dice.maybe(40, &mut rule, "icmp", |dice| {
            dice.value(&[json!({"type": 8}), json!({"type": 8, "code": 0}), json!({"type": 3})])
        });
        dice.maybe(20, &mut rule, "notICMP", |dice| dice.value(&[json!({"type": 8}), json!({"type": 0})]));
    }
    let has_ports = ["TCP", "UDP", "6"].contains(&protocol);
    dice.maybe(60, &mut rule, "source", |dice| entity(dice, nets, false));
    dice.maybe(60, &mut rule, "destination", |dice| entity(dice, nets, has_ports));
    rule
}

fn policy(dice: &mut Dice, number: u8, nets: &[Value]) -> Value {
    let selectors = ["all()", "all()", "app == 'web'", "app == 'db'", "has(tier)", "!(app == 'web')", ""];
    let mut spec = json!({"selector": dice.text(&selectors)});
    // Among policies of one order Calico before 3.32 goes by other names than after, and than Canal.
    dice.maybe(80, &mut spec, "order", |dice| json!(dice.pick(&[1.0, 10.5, 1000.0]) + f64::from(number)));
    if number > 0 && spec["order"].is_null() {
        spec["order"] = json!(2000.0 + f64::from(number));
    }
    dice.maybe(70, &mut spec, "ingress", |dice| dice.list(3, |dice| rule(dice, nets)));
    dice.maybe(60, &mut spec, "egress", |dice| dice.list(3, |dice| rule(dice, nets)));
    dice.maybe(20, &mut spec, "types", |dice| {
        dice.value(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])])
    });
    dice.maybe(10, &mut spec, "serviceAccountSelector", |dice| {
        dice.text(&["role == 'worker'", "!has(role)"])
    });
    let (kind, metadata) = if dice.chance(60) {
        dice.maybe(15, &mut spec, "namespaceSelector", |dice| {
            dice.text(&["team == 'blue'", "team == 'red'", "all()"])
        });
        ("GlobalNetworkPolicy", json!({"name": format!("p{number}")}))
    } else {
        ("NetworkPolicy", json!({"name": format!("p{number}"), "namespace": "default"}))
    };
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
}

/// In force where it is: before all others, and each time the other way round.
fn marker(even: bool) -> Value {
    let action = if even { "Allow" } else { "Deny" };
    let rule = json!({"action": action, "protocol": "TCP", "destination": {"ports": [MARKER]}});
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "marker"},
           "spec": {"order": 0, "selector": "all()", "ingress": [rule], "egress": [rule]}})
}

/// What becomes of all that no other policy matches.
fn rest(action: &str) -> Value {
    let rule = json!({"action": action});
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "rest"},
           "spec": {"order": 100_000, "selector": "all()", "ingress": [rule], "egress": [rule]}})
}

#[test]
#[cfg_attr(not(has_felix), ignore = "the PATH has not all of flanneld, calico-felix, calicoctl and calico")]
fn policies_mean_on_our_nodes_what_they_mean_on_felixs_and_between_them() {
    let world = world();
    world.node(1).agent().start().unwrap();
    let _theirs = Theirs::start(&world);
    let members = members(&world);
    let [a, b, c, d] = &members;
    let listed = calicoctl(&world, "get wep -a -o wide", "").unwrap();
    for member in &members {
        assert!(listed.contains(&member.ip.to_string()), "{listed}");
    }
    let serve = |member: &Member| {
        let tcp = [80, 8080, MARKER].map(|port| member.at().serve_tcp(port).unwrap());
        (tcp, member.at().serve_udp(53).unwrap())
    };
    let _servers = members.each_ref().map(serve);
    let pairs = [("ours", a, b), ("theirs", c, d), ("ours, theirs", a, d), ("theirs, ours", c, b)];
    // With the pods of both nodes in each, so that it means the same everywhere.
    let [webs, dbs] = [[a, c], [b, d]].map(|both| json!(both.map(|member| format!("{}/32", member.ip))));
    let sets = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
                      "metadata": {"name": "webs", "labels": {"set": "webs"}}, "spec": {"nets": webs}});
    apply(&world, &sets).unwrap();
    let nets = [webs, dbs, json!(["10.100.0.0/16"]), json!(["192.0.2.0/24", "0.0.0.0/1"])];

    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CANAL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let cases = number("CANAL_CASES").map_or(CASES, |cases| usize::try_from(cases).unwrap());
    println!("CANAL_SEED={seed} CANAL_CASES={cases}");
    let mut dice = Dice(seed);
    let (mut denied, mut refused) = (0, 0);
    for case in 0..cases {
        let count = dice.pick(&[1, 2, 3]);
        let mut policies: Vec<_> = (0..count).map(|number| policy(&mut dice, number, &nets)).collect();
        policies.push(rest(dice.pick(&["Allow", "Allow", "Pass", "Deny"])));
        // What calicoctl refuses is not one that anybody has.
        let given = policies.len();
        policies.retain(|policy| apply(&world, policy).is_ok());
        refused += given - policies.len();
        let open = case % 2 == 1;
        apply(&world, &marker(open)).unwrap();
        for (place, from, to) in pairs {
            let is_there = || from.at().reaches(to.ip, MARKER) == open;
            assert!(until(PROGRAMMED, is_there), "{place}, case {case}: not in force: {}", json!(policies));
        }
        let got = answers(&pairs);
        let is_other =
            |((_, way, what), answer): &(&Question, &bool)| got[&("ours", *way, *what)] != **answer;
        let differ: Vec<_> = got.iter().filter(is_other).collect();
        assert!(
            differ.is_empty(),
            "CANAL_SEED={seed}, case {case}: unlike ours: {differ:?}: {}",
            json!(policies)
        );
        denied += got.values().filter(|answer| !**answer).count();
        for policy in &policies {
            calicoctl(&world, "delete -f -", &policy.to_string()).unwrap();
        }
    }
    let all = cases * 32;
    println!("{cases} stores, {refused} policies refused by calicoctl, {denied} answers of {all} were no");
    assert!(denied > 0 && denied < all, "all was one answer: nothing was tried");
}
