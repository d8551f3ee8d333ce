//! Random content of the store: everything that may be said about policy, the useless and the odd included.
//!
//! The same few names, labels, ports and addresses all over, so that objects concern each other.

use std::{collections::BTreeMap, net::Ipv4Addr};

use bpf_tests::dice::Dice;
use canal_agent::model::resource::{Kind, Resource};
use serde_json::{Value, json};

use super::super::pod;

pub(super) const HERE: &str = "n1";
/// The first three are pods of this node, the others of the next one.
pub(super) const PODS: usize = 6;
pub(super) const LOCAL_PODS: usize = 3;

pub(super) fn pod_address(n: usize) -> Ipv4Addr {
    if n < LOCAL_PODS { pod(n).ip } else { Ipv4Addr::new(10, 244, 2, n as u8) }
}

/// Key → value.
pub(super) type Content = BTreeMap<String, Value>;
/// Keys with their new values; `None` for those that are gone.
pub(super) type Changes = Vec<(String, Option<Value>)>;

const NAMESPACES: [&str; 2] = ["shop", "bank"];
const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.1.8/29",
    "10.244.1.10/31",
    "10.244.1.11",
    "10.244.2.0/24",
    "10.244.2.4/32",
    "203.0.113.0/24",
    "203.0.113.0/29",
    "203.0.113.7/32",
    "8.0.0.0/5",
    "2001:db8::/32",
];

/// So many changes, of which so many in a hundred take something away.
pub(super) fn advance(dice: &mut Dice, content: &mut Content, changes: usize, removals: usize) -> Changes {
    let mut changed = Vec::new();
    for _ in 0..changes {
        let (key, value) = match dice.below(20) {
            0..8 => policy(dice),
            8..14 => endpoint(dice),
            14..16 => profile(dice),
            16..18 => set(dice),
            18 => tier(dice),
            _ => other(dice),
        };
        // With few policies, profiles decide.
        let removals = if key.contains("policies/") { removals } else { 15 };
        if dice.chance(removals) {
            content.remove(&key);
            changed.push((key, None));
        } else {
            content.insert(key.clone(), value.clone());
            changed.push((key, Some(value)));
        }
    }
    changed
}

fn key(kind: Kind, namespace: &str, name: &str) -> String {
    Resource::new(kind, namespace, name).key()
}

fn selector(dice: &mut Dice) -> Value {
    dice.text(&[
        "all()",
        "app == 'web'",
        "app != 'web'",
        "has(tier)",
        "!has(tier)",
        "app in {'web','db'}",
        "app not in {'db'} && has(app)",
        "set == 'x'",
        "app starts with 'd' || tier contains 'x'",
        "projectcalico.org/namespace == 'shop'",
        "pcns.env == 'prod'",
        "projectcalico.org/serviceaccount == 'sa1'",
        "app ==",
    ])
}

fn port(dice: &mut Dice) -> Value {
    let all = [
        json!(80),
        json!("443"),
        json!("80:90"),
        json!("1000:65535"),
        json!("0:65535"),
        json!(0),
        json!("http"),
        json!("dns"),
        json!("sig"),
        json!("nobodys"),
    ];
    dice.value(&all)
}

/// Those that have ports come first.
fn protocol(dice: &mut Dice, with_ports: bool) -> Value {
    let all = [
        json!("TCP"),
        json!("tcp"),
        json!(6),
        json!("UDP"),
        json!("SCTP"),
        json!("ICMP"),
        json!("ICMP"),
        json!("UDPLite"),
        json!(47),
        json!("ICMPv6"),
        json!(58),
        json!(0),
    ];
    dice.value(&all[..if with_ports { 5 } else { all.len() }])
}

fn icmp(dice: &mut Dice) -> Value {
    let all = [
        json!({ "type": 8 }),
        json!({ "type": 8, "code": 0 }),
        json!({ "type": 3, "code": 1 }),
        json!({ "type": 42, "code": 255 }),
        json!({ "type": 255 }),
    ];
    dice.value(&all)
}

fn entity(dice: &mut Dice, ports: bool) -> Value {
    let mut entity = json!({});
    dice.maybe(25, &mut entity, "selector", selector);
    dice.maybe(10, &mut entity, "notSelector", selector);
    dice.maybe(15, &mut entity, "namespaceSelector", |dice| {
        dice.text(&["all()", "global()", "env == 'prod'", "env != 'prod'", "has(env)"])
    });
    dice.maybe(8, &mut entity, "serviceAccounts", |dice| {
        let mut accounts = json!({});
        dice.maybe(70, &mut accounts, "names", |dice| dice.list(2, |dice| dice.text(&["sa1", "sa2"])));
        dice.maybe(40, &mut accounts, "selector", |dice| dice.text(&["grade == 'gold'", "all()"]));
        accounts
    });
    dice.maybe(20, &mut entity, "nets", |dice| dice.list(3, |dice| dice.text(&NETS)));
    dice.maybe(10, &mut entity, "notNets", |dice| dice.list(2, |dice| dice.text(&NETS[1..])));
    if ports {
        dice.maybe(60, &mut entity, "ports", |dice| dice.list(3, port));
        dice.maybe(25, &mut entity, "notPorts", |dice| dice.list(2, port));
    }
    dice.maybe(2, &mut entity, "services", |_| json!({ "name": "web", "namespace": "shop" }));
    entity
}

fn rule(dice: &mut Dice) -> Value {
    let action = dice
        .text(&["Allow", "Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log", "Log", "allow", "Drop"]);
    let mut rule = json!({ "action": action });
    // Most rules make sense: ports go with protocols that have some, types with ICMP. Some do not.
    let (ports, types) = (dice.chance(45), dice.chance(12));
    if types && dice.chance(90) {
        rule["protocol"] = "ICMP".into();
    } else {
        let percent = if ports { 90 } else { 45 };
        dice.maybe(percent, &mut rule, "protocol", |dice| {
            let sensible = ports && dice.chance(90);
            protocol(dice, sensible)
        });
    }
    dice.maybe(10, &mut rule, "notProtocol", |dice| protocol(dice, false));
    dice.maybe(10, &mut rule, "ipVersion", |dice| dice.pick(&[4, 4, 6]).into());
    if types {
        let field = dice.pick(&["icmp", "notICMP"]);
        rule[field] = icmp(dice);
        dice.maybe(20, &mut rule, "notICMP", icmp);
    }
    dice.maybe(2, &mut rule, "http", |_| json!({ "methods": ["GET"] }));
    dice.maybe(50, &mut rule, "source", |dice| {
        let ports = ports && dice.chance(40);
        entity(dice, ports)
    });
    dice.maybe(if ports { 80 } else { 40 }, &mut rule, "destination", |dice| entity(dice, ports));
    rule
}

fn rules(dice: &mut Dice) -> Value {
    dice.list(4, rule)
}

fn policy(dice: &mut Dice) -> (String, Value) {
    let mut spec = json!({});
    dice.maybe(70, &mut spec, "selector", selector);
    dice.maybe(10, &mut spec, "namespaceSelector", |dice| dice.text(&["all()", "env == 'prod'"]));
    dice.maybe(8, &mut spec, "serviceAccountSelector", |dice| dice.text(&["all()", "grade == 'gold'"]));
    dice.maybe(60, &mut spec, "order", |dice| {
        dice.value(&[json!(0), json!(-0.0), json!(1), json!(1.5), json!(-3), json!(null)])
    });
    dice.maybe(70, &mut spec, "tier", |dice| dice.text(&["default", "first", "last", "absent"]));
    dice.maybe(80, &mut spec, "types", |dice| {
        dice.value(&[json!(["Ingress"]), json!(["egress"]), json!(["Ingress", "Egress"]), json!([])])
    });
    dice.maybe(85, &mut spec, "ingress", rules);
    dice.maybe(85, &mut spec, "egress", rules);
    for hosts in ["doNotTrack", "preDNAT", "applyOnForward"] {
        dice.maybe(2, &mut spec, hosts, |_| true.into());
    }
    let name = dice.pick(&["p", "default.p", "p-1", "q"]);
    let key = match dice.below(5) {
        0..3 => key(Kind::GlobalNetworkPolicy, "", name),
        at => key(Kind::NetworkPolicy, NAMESPACES[at - 3], name),
    };
    (key, json!({ "spec": spec }))
}

fn endpoint(dice: &mut Dice) -> (String, Value) {
    let n = dice.below(PODS);
    let mut labels = json!({});
    dice.maybe(70, &mut labels, "app", |dice| dice.text(&["web", "db", "other"]));
    dice.maybe(50, &mut labels, "tier", |_| "x".into());
    // An endpoint may not claim what only its namespace may give it.
    dice.maybe(5, &mut labels, "pcns.env", |_| "prod".into());
    let ports = [
        json!([]),
        json!([{ "name": "http", "protocol": "TCP", "port": 80 }, { "name": "dns", "protocol": "UDP", "port": 53 }]),
        json!([{ "name": "http", "protocol": "TCP", "port": 443 }, { "name": "http", "protocol": "UDP", "port": 80 }]),
        json!([{ "name": "sig", "protocol": "SCTP", "port": 1000 }, { "name": "dns", "protocol": "TCP", "port": 53 }]),
        json!([{ "name": "sig", "protocol": "sctp", "port": 80 }, { "name": "sig", "port": 90 }]),
    ];
    let namespace = dice.pick(&NAMESPACES);
    let kns = format!("kns.{namespace}");
    let profiles = [
        json!(["open"]),
        json!(["half"]),
        json!([kns]),
        json!([kns, "ksa.gold"]),
        json!(["half", "open"]),
        json!(["half", "absent"]),
        json!([]),
        json!(["projectcalico-default-allow"]),
    ];
    let mut spec = json!({
        "ipNetworks": [format!("{}/32", pod_address(n))],
        "profiles": dice.value(&profiles),
        "ports": dice.value(&ports),
    });
    dice.maybe(50, &mut spec, "serviceAccountName", |dice| dice.text(&["sa1", "sa2"]));
    // Sometimes a second object has the address, sometimes one of another node.
    let node = if n < LOCAL_PODS && dice.chance(92) { HERE } else { "n2" };
    let name = format!("{node}-cni-c{n}{}-eth0", dice.pick(&["", "", "", "", "b"]));
    (key(Kind::WorkloadEndpoint, namespace, &name), json!({ "metadata": { "labels": labels }, "spec": spec }))
}

fn profile(dice: &mut Dice) -> (String, Value) {
    let name = dice.pick(&["open", "half", "half", "kns.shop", "kns.bank", "ksa.gold"]);
    let allow = json!([{ "action": "Allow" }]);
    let mut spec = match name {
        "open" | "kns.bank" => json!({ "ingress": allow, "egress": allow }),
        "ksa.gold" => json!({ "labelsToApply": { "pcsa.grade": "gold", "app": "web" } }),
        _ => json!({ "ingress": rules(dice), "egress": rules(dice) }),
    };
    if name.starts_with("kns.") {
        dice.maybe(60, &mut spec, "labelsToApply", |_| json!({ "pcns.env": "prod", "tier": "x" }));
    }
    (key(Kind::Profile, "", name), json!({ "spec": spec }))
}

fn set(dice: &mut Dice) -> (String, Value) {
    let mut labels = json!({});
    dice.maybe(70, &mut labels, "set", |dice| dice.text(&["x", "y"]));
    dice.maybe(40, &mut labels, "app", |dice| dice.text(&["web", "db"]));
    let spec = json!({ "nets": dice.list(4, |dice| dice.text(&NETS)) });
    let key = match dice.below(4) {
        0 => key(Kind::GlobalNetworkSet, "", "s"),
        1 => key(Kind::GlobalNetworkSet, "", "t"),
        at => key(Kind::NetworkSet, NAMESPACES[at - 2], "s"),
    };
    (key, json!({ "metadata": { "labels": labels }, "spec": spec }))
}

fn tier(dice: &mut Dice) -> (String, Value) {
    let orders = [json!(-1), json!(1), json!(100), json!(null)];
    let mut spec = json!({ "order": dice.value(&orders) });
    dice.maybe(80, &mut spec, "defaultAction", |dice| dice.text(&["Deny", "Pass"]));
    (key(Kind::Tier, "", dice.pick(&["default", "first", "last"])), json!({ "spec": spec }))
}

/// What counts for nobody, and a host.
fn other(dice: &mut Dice) -> (String, Value) {
    if dice.chance(60) {
        let ports = json!([{ "name": "http", "protocol": "TCP", "port": 80 }]);
        let address = pod_address(dice.below(PODS));
        let spec = json!({ "node": HERE, "interfaceName": "eth0", "expectedIPs": [address, "203.0.113.8"], "ports": ports });
        let labels = json!({ "set": dice.text(&["x", "z"]), "app": "web" });
        return (key(Kind::HostEndpoint, "", "h"), json!({ "metadata": { "labels": labels }, "spec": spec }));
    }
    let staged = key(Kind::GlobalNetworkPolicy, "", "p").replace("globalnetwork", "stagedglobalnetwork");
    (staged, json!({ "spec": { "ingress": [{ "action": "Deny" }], "egress": [{ "action": "Deny" }] } }))
}
