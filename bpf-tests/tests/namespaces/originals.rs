//! The same policies on a node of Canal's and on one of the real flanneld, Felix and Calico plugin, written and read by
//! the real calicoctl, where the PATH has them all; else these are reported as skipped.
//!
//! ```text
//!   node 1, Canal: a web, b db        node 2, the real ones: c web, d db
//! ```
//!
//! Whatever a policy says of web and db must come true four times: on each node, and between them both ways, where
//! each side judges half of it.

use std::{collections::BTreeMap, env, net::Ipv4Addr, path::Path, thread, time::Duration};

use bpf_tests::{
    At, Cmd, Host, Netns, Node, Proc, World, dice::Dice, pod::container_id, policy::RESOURCES, until,
};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::{flanneld::Flanneld, soon};

const CALICO: [(&str, &str); 2] =
    [("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", bpf_tests::etcd::ENDPOINT)];
/// Policies that are tried, unless `CANAL_CASES` says otherwise.
const CASES: usize = 12;
/// Felix programs within a second or so, and the machine does other things.
const PROGRAMMED: Duration = Duration::from_secs(20);
/// What tells which state of the policies is in force.
const MARKER: u16 = 10_000;

fn with_store(command: Cmd) -> Cmd {
    CALICO.iter().fold(command, |command, (name, value)| command.env(name, *value))
}

/// What it printed, or what it complained of.
fn calicoctl(node: &Node, line: &str, stdin: &str) -> Result<String, String> {
    let command = node.netns().cmd(&format!("calicoctl {line}")).stdin(stdin.to_owned());
    let output = with_store(command).output().unwrap();
    if output.ok() { Ok(output.stdout) } else { Err(output.stdout + &output.stderr) }
}

/// Runs until it is dropped.
fn felix(node: &Node) -> Proc {
    let log = node.folder().join("felix.log");
    let mut command = with_store(node.netns().cmd("calico-felix"));
    for (name, value) in [
        ("DATASTORETYPE", CALICO[0].1),
        ("ETCDENDPOINTS", CALICO[1].1),
        ("FELIXHOSTNAME", &node.name()),
        // Where iptables would want a module that the kernel may not have.
        ("IPTABLESBACKEND", "NFT"),
        ("IPV6SUPPORT", "false"),
        ("LOGFILEPATH", "none"),
        ("LOGSEVERITYFILE", "none"),
        ("LOGSEVERITYSYS", "none"),
        ("LOGSEVERITYSCREEN", "info"),
        ("HEALTHENABLED", "true"),
        ("XDPENABLED", "false"),
        ("DEFAULTENDPOINTTOHOSTACTION", "Accept"),
    ] {
        command = command.env(&format!("FELIX_{name}"), value);
    }
    let process = command.start(&log).unwrap();
    let asked = || node.netns().cmd("curl -sf http://localhost:9099/readiness").output().unwrap().ok();
    assert!(until(PROGRAMMED, asked), "Felix is not ready: {}", tail(&log));
    process
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A pod, whoever made it.
struct Member {
    netns: Netns,
    ip: Ipv4Addr,
    endpoint: String,
}

impl Member {
    fn at(&self) -> At<'_> {
        At { netns: &self.netns, ip: self.ip }
    }
}

/// By Calico's plugin, or by ours under its name.
fn add(world: &World, node: &Node, name: &str, plugin: &Path, subnet: Ipv4Net) -> Member {
    let netns = Netns::create(&format!("{}pod-{name}", world.prefix())).unwrap();
    let ipam = json!({"type": "host-local", "subnet": subnet, "dataDir": node.folder().join("ipam")});
    let config = json!({
        "name": "canal", "cniVersion": "1.0.0", "type": "calico", "nodename": node.name(), "mtu": 1450,
        "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "ipam": ipam,
        "socket": node.agent().socket(), "subnetFile": node.agent().subnet_file(),
    });
    let id = container_id(name);
    let command = node.netns().cmd(&plugin.display().to_string()).stdin(config.to_string());
    let result = command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &id)
        .env("CNI_NETNS", netns.path().display().to_string())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni:/opt/cni/bin")
        .run()
        .unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    let address = result["ips"][0]["address"].as_str().unwrap();
    let ip = address.split('/').next().unwrap().parse().unwrap();
    Member {
        netns,
        ip,
        endpoint: format!("{RESOURCES}workloadendpoints/default/{}-cni-{id}-eth0", node.name()),
    }
}

/// As what keeps labels up to date does.
fn label(world: &World, member: &Member, labels: &Value, ports: &Value) {
    assert!(soon(|| world.etcd().get(&member.endpoint).unwrap().is_some()), "{}", member.endpoint);
    let mut endpoint: Value =
        serde_json::from_str(&world.etcd().get(&member.endpoint).unwrap().unwrap()).unwrap();
    let all = endpoint["metadata"]["labels"].as_object_mut().unwrap();
    all.extend(labels.as_object().unwrap().clone());
    endpoint["spec"]["ports"] = ports.clone();
    world.etcd().put(&member.endpoint, &endpoint.to_string()).unwrap();
}

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
    dice.maybe(10, &mut entity, "namespaceSelector", |dice| dice.text(&["all()", "global()", "has(x)"]));
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

fn policy(dice: &mut Dice, number: usize, nets: &[Value]) -> Value {
    let selectors = ["all()", "all()", "app == 'web'", "app == 'db'", "has(tier)", "!(app == 'web')", ""];
    let mut spec = json!({"selector": dice.text(&selectors)});
    dice.maybe(80, &mut spec, "order", |dice| dice.value(&[json!(1), json!(10), json!(10.5), json!(1000)]));
    dice.maybe(70, &mut spec, "ingress", |dice| dice.list(3, |dice| rule(dice, nets)));
    dice.maybe(60, &mut spec, "egress", |dice| dice.list(3, |dice| rule(dice, nets)));
    dice.maybe(20, &mut spec, "types", |dice| {
        dice.value(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])])
    });
    let (kind, metadata) = if dice.chance(60) {
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
    let config = r#"{"Network":"10.100.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let world = World::builder().nodes(2).config(Some(config)).build().unwrap();
    let (one, two) = (world.node(1), world.node(2));
    let spec = json!({"clusterGUID": "4df4343587ba4d6f9eccef4b64df6c7f", "datastoreReady": true});
    world.etcd().put_resource("clusterinformations", "ClusterInformation", None, "default", spec).unwrap();
    one.agent().start().unwrap();
    // Calico's pods find their gateway by proxy ARP, which the kernel does for what it has a route to.
    two.netns().ip("route add default via 192.168.60.254").unwrap();
    let (flanneld, _felix) = (Flanneld::start(&world, 2), felix(two));

    let ours = one.folder().join("calico");
    std::fs::create_dir_all(&ours).unwrap();
    let ours = ours.join("plugin");
    std::os::unix::fs::symlink(bpf_tests::agent::binary("canal-cni").unwrap(), &ours).unwrap();
    let subnet: Ipv4Net = one.agent().status().unwrap()["lease"]["subnet"].as_str().unwrap().parse().unwrap();
    let theirs = Ipv4Net::new(flanneld.subnet().unwrap(), 24).unwrap().trunc();
    let [a, b] = ["a", "b"].map(|name| add(&world, one, name, &ours, subnet));
    let [c, d] = ["c", "d"].map(|name| add(&world, two, name, Path::new("calico"), theirs));
    let ports = json!([{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "dns", "protocol": "UDP", "port": 53}]);
    for web in [&a, &c] {
        label(&world, web, &json!({"app": "web", "tier": "front"}), &ports);
    }
    for db in [&b, &d] {
        label(&world, db, &json!({"app": "db"}), &ports);
    }
    let listed = calicoctl(one, "get wep -a -o wide", "").unwrap();
    for member in [&a, &b, &c, &d] {
        assert!(listed.contains(&member.ip.to_string()), "{listed}");
    }
    let _servers: Vec<_> = [&a, &b, &c, &d]
        .into_iter()
        .map(|member| {
            let tcp: Vec<_> =
                [80, 8080, MARKER].into_iter().map(|port| member.at().serve_tcp(port).unwrap()).collect();
            (tcp, member.at().serve_udp(53).unwrap())
        })
        .collect();
    let pairs = [("ours", &a, &b), ("theirs", &c, &d), ("ours, theirs", &a, &d), ("theirs, ours", &c, &b)];
    let apply = |resource: &Value| calicoctl(one, "apply -f -", &resource.to_string());
    let nets = |members: [&Member; 2]| members.map(|m| m.ip).map(|ip| json!(format!("{ip}/32")));
    let sets = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
                      "metadata": {"name": "webs", "labels": {"set": "webs"}}, "spec": {"nets": nets([&a, &c])}});
    apply(&sets).unwrap();
    // With the pods of both nodes in each, so that it means the same everywhere.
    let (webs, dbs) = (nets([&a, &c]), nets([&b, &d]));
    let nets = [json!(webs), json!(dbs), json!(["10.100.0.0/16"]), json!(["192.0.2.0/24", "0.0.0.0/1"])];
    let seed = env::var("CANAL_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    let cases = env::var("CANAL_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(CASES);
    let mut dice = Dice(seed);
    println!("CANAL_SEED={seed} CANAL_CASES={cases}");
    let (mut even, mut tried, mut refused) = (true, 0, 0);
    let mut denied = 0;
    while tried < cases {
        let count = 1 + dice.below(3);
        let mut policies: Vec<_> = (0..count).map(|number| policy(&mut dice, number, &nets)).collect();
        // The marker selects all, so that whatever no policy allows is denied.
        policies.extend(Some(dice.pick(&["Allow", "Allow", "Pass", "Deny"])).map(rest));
        let mut applied = Vec::new();
        for policy in &policies {
            match apply(policy) {
                Ok(_) => applied.push(policy),
                // Not one that anybody could have.
                Err(_) => refused += 1,
            }
        }
        if !applied.is_empty() {
            even = !even;
            apply(&marker(even)).unwrap();
            for (place, from, to) in pairs {
                let is_there = || from.at().reaches(to.ip, MARKER) == even;
                assert!(until(PROGRAMMED, is_there), "{place}: the policies come into force: {applied:#?}");
            }
            let got = answers(&pairs);
            let (ours, others): (Vec<_>, Vec<_>) = got.iter().partition(|((place, ..), _)| *place == "ours");
            denied += ours.iter().filter(|(_, ok)| !**ok).count();
            let ours: BTreeMap<_, _> =
                ours.into_iter().map(|((_, way, what), ok)| ((way, what), ok)).collect();
            let differ: Vec<_> =
                others.into_iter().filter(|((_, way, what), ok)| ours[&(way, what)] != *ok).collect();
            assert!(
                differ.is_empty(),
                "CANAL_SEED={seed}, case {tried}: {differ:?} against {ours:?}: {}",
                json!(applied)
            );
            tried += 1;
        }
        for policy in applied {
            apply_deletion(one, policy);
        }
    }
    println!(
        "{tried} cases, {refused} policies refused by calicoctl, {denied} answers of {} were no",
        tried * 8
    );
    assert!(denied > 0 && denied < tried * 8, "all or nothing was denied: nothing was tried");
}

fn apply_deletion(node: &Node, policy: &Value) {
    calicoctl(node, "delete -f -", &policy.to_string()).unwrap();
}
