//! `canalctl explain`: what policy says, what the kernel answers, and a difference between the two.

use std::net::Ipv4Addr;

use aya::maps::{HashMap, Map, MapData};
use bpf_tests::{Host, Node, Pod, World, pod::container_id, policy};
use canal_agent::dataplane::{judge, pins::Pins};
use canal_common::{
    Ip4, LAYOUT,
    endpoint::{Endpoint, EndpointPolicy},
    names,
    policy::key,
    question::Question,
};
use serde_json::{Value, json};

use crate::{ctl::canalctl, soon};

/// Exit status and answer.
fn explain(node: &Node, from: &str, to: &str, what: &str) -> (Option<i32>, Value) {
    let said = canalctl(node, &format!("explain --from {from} --to {to} {what} -o json"));
    let answer = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    (said.status.code(), answer)
}

/// How a connection to TCP `port` is decided at one end: verdict, by what, and the rule. Both sides must agree.
#[track_caller]
fn decided(node: &Node, pods: (&Pod, &Pod), port: u16, direction: &str) -> (bool, String, String) {
    let (from, to) = (pods.0.ip().to_string(), pods.1.ip().to_string());
    let (status, answer) = explain(node, &from, &to, &format!("--proto tcp --port {port}"));
    assert_eq!((status, &answer["differs"]), (Some(0), &json!(false)), "{answer:#}");
    let judgements = answer["judgements"].as_array().unwrap();
    let judgement = judgements.iter().find(|j| j["direction"] == direction).unwrap();
    let (policy, kernel) = (&judgement["policy"], &judgement["kernel"]);
    assert_eq!((&policy["allow"], &policy["rule"]), (&kernel["allow"], &kernel["rule"]), "{judgement:#}");
    let rule = &policy["rule"];
    let rule = if rule.is_null() { String::new() } else { format!("{} {}", rule["name"], rule["index"]) };
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    (policy["allow"].as_bool().unwrap(), word(&policy["decided_by"]), rule.replace('"', ""))
}

#[test]
fn policy_and_kernel_agree_and_packets_do_as_they_say() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let (etcd, node) = (world.etcd(), world.node(1));
    let web = node.add_pod("web", &[("app", "web")]).unwrap();
    let db = node.add_pod("db", &[("app", "db")]).unwrap();
    let far = world.node(2).add_pod("far", &[("app", "far")]).unwrap();
    let _servers = [80, 5432, 8080].map(|port| db.serve_tcp(port).unwrap());
    let is = |allow: bool, by: &str, rule: &str| (allow, by.to_owned(), rule.to_owned());

    assert!(soon(|| web.reaches(db.ip(), 80)));
    assert_eq!(decided(node, (&web, &db), 80, "egress"), is(true, "profile-rule", "canal 0"));
    assert_eq!(decided(node, (&web, &db), 80, "ingress"), is(true, "profile-rule", "canal 0"));

    etcd.put_resource("tiers", "Tier", None, "default", json!({"order": 1_000_000, "defaultAction": "Deny"}))
        .unwrap();
    etcd.put_resource("tiers", "Tier", None, "edge", json!({"order": 1, "defaultAction": "Pass"})).unwrap();
    let edge = json!({
        "tier": "edge", "selector": "app == 'db'", "types": ["Ingress"],
        "ingress": [{"action": "Log"}, {"action": "Pass", "protocol": "TCP", "destination": {"ports": ["1:8079"]}}],
    });
    etcd.put_global_policy("edge.log", edge).unwrap();
    let rules = json!([
        {"action": "Deny", "source": {"selector": "app == 'far'"}},
        {"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'web'"}, "destination": {"ports": [5432, 8080]}},
    ]);
    etcd.put_global_policy("default.db", policy::ingress(1, "app == 'db'", rules)).unwrap();
    assert!(soon(|| !web.reaches(db.ip(), 80)), "the policy is in force");
    assert_eq!(decided(node, (&web, &db), 5432, "ingress"), is(true, "rule", "db 1"));
    assert_eq!(decided(node, (&web, &db), 8080, "ingress"), is(true, "rule", "db 1"));
    assert_eq!(decided(node, (&web, &db), 80, "ingress"), is(false, "tier-default", ""));
    assert_eq!(decided(node, (&far, &db), 5432, "ingress"), is(false, "rule", "db 0"));
    assert!(web.reaches(db.ip(), 5432) && web.reaches(db.ip(), 8080));
    assert!(!web.reaches(db.ip(), 80) && !far.reaches(db.ip(), 5432));

    let line =
        format!("explain --from {} --to {} --proto tcp --port 5432", &container_id("web")[..10], db.ip());
    let said = canalctl(node, &line);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    for part in [
        "EGRESS of default/node1-cni-",
        "tier edge\n",
        "GlobalNetworkPolicy edge.log: rule 0 matches: Log, rule 1 matches: Pass",
        "tier default\n",
        "GlobalNetworkPolicy db: rule 1 matches: Allow",
        "stored as",
        "kernel: allow, GlobalNetworkPolicy db (tier default) ingress rule 1",
        "\nALLOWED\n",
    ] {
        assert!(said.stdout.contains(part), "{part:?} is not in:\n{}", said.stdout);
    }

    etcd.delete_profile("canal").unwrap();
    assert!(soon(|| !db.reaches(web.ip(), 80)));
    assert_eq!(decided(node, (&db, &web), 80, "egress"), is(false, "missing-profile", ""));
    assert_eq!(decided(node, (&web, &db), 5432, "ingress"), is(true, "rule", "db 1"));
}

#[test]
fn ends_are_found_by_their_names_and_what_is_not_judged_here_is_told() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let node = world.node(1);
    let a = node.add_pod("a", &[]).unwrap();
    let far = world.node(2).add_pod("far", &[]).unwrap();
    let name = format!("default/node1-cni-{}-eth0", container_id("a"));
    let tcp = "--proto tcp --port 80";
    assert!(soon(|| canalctl(
        node,
        &format!("explain --from {name} --to {} {tcp}", &container_id("far")[..12])
    )
    .ok()));

    let (_, answer) = explain(node, &name, &far.ip().to_string(), tcp);
    assert_eq!(answer["from"]["address"], a.ip().to_string().as_str());
    assert_eq!((&answer["to"]["place"], &answer["to"]["node"]), (&json!("remote-pod"), &json!("node2")));
    assert_eq!(
        answer["judgements"].as_array().unwrap().len(),
        1,
        "the other end is judged there: {answer:#}"
    );

    let (_, answer) = explain(node, "192.168.50.1", &name, tcp);
    assert_eq!((&answer["from"]["place"], &answer["allow"]), (&json!("this-host"), &json!(true)));
    assert!(answer["before_policy"]["reason"].as_str().unwrap().contains("never policed"), "{answer:#}");
    let (_, answer) = explain(node, &name, "192.168.50.2", "--proto icmp");
    assert_eq!((&answer["to"]["place"], &answer["packet"]["icmp_type"]), (&json!("other-node"), &json!(8)));
    let (_, answer) = explain(node, &name, "192.168.50.2", "--proto udp --port 8472");
    assert_eq!(answer["allow"], false, "{answer:#}");

    for (line, said) in [
        (format!("--from nobody --to {name} {tcp}"), "from: no WorkloadEndpoint is called"),
        (format!("--from {name} --to {name} {tcp}"), "never leaves it"),
        (format!("--from 8.8.8.8 --to {} {tcp}", far.ip()), "neither is a pod of this node, node1"),
        (format!("--from {name} --to 8.8.8.8 --proto tcp"), "needs a destination port"),
        (format!("--from {name} --to 8.8.8.8 --proto icmp --port 80"), "ICMP has no ports"),
        (format!("--from {name} --to ::1 {tcp}"), "IPv6"),
    ] {
        let answer = canalctl(node, &format!("explain {line}"));
        assert_eq!(answer.status.code(), Some(2), "{line}: {answer:?}");
        assert!(answer.stderr.contains(said) && answer.stderr.lines().count() == 1, "{line}: {answer:?}");
    }
    node.agent().terminate().unwrap();
    let answer = canalctl(node, &format!("explain --from {name} --to 8.8.8.8 {tcp}"));
    assert!(
        answer.status.code() == Some(2) && answer.stderr.contains("no canal-agent listens"),
        "{answer:?}"
    );
}

/// Gives the pod the policy sets of another one, behind the agent's back.
fn swap_policy(node: &Node, pod: &Pod, other: &Pod) {
    let pin = |table: &str| MapData::from_pin(node.bpffs().join(format!("canal/v{LAYOUT}/{table}"))).unwrap();
    let endpoints = HashMap::<_, Ip4, Endpoint>::try_from(Map::HashMap(pin(names::ENDPOINTS))).unwrap();
    let mut policy = HashMap::<_, u32, EndpointPolicy>::try_from(Map::HashMap(pin(names::POLICY))).unwrap();
    let id = |pod: &Pod| endpoints.get(&pod.ip().into(), 0).unwrap().id;
    let theirs = policy.get(&id(other), 0).unwrap();
    policy.insert(id(pod), theirs, 0).unwrap();
}

/// What the pinned program answers to any process, also while no agent runs.
fn pinned_judge_allows(node: &Node, to: &Pod) -> bool {
    let pins = Pins::open(&node.bpffs()).unwrap();
    let endpoint = judge::endpoint(&pins, to.ip()).unwrap().expect("the pod is programmed").id;
    let peer = Ipv4Addr::new(8, 8, 8, 8).into();
    let question =
        Question { peer, key: key(6, 80), src_port: 40000, direction: Question::INGRESS, _pad: 0, endpoint };
    judge::ask(&judge::open(&pins).unwrap(), &[question]).unwrap()[0].allows()
}

#[test]
fn a_difference_between_policy_and_kernel_is_loud_and_a_restart_mends_it() {
    let world = World::builder().nodes(1).build().unwrap();
    world.start_agents().unwrap();
    let node = world.node(1);
    let pods: Vec<Pod> = ["open", "closed", "other"]
        .iter()
        .map(|name| node.add_pod(name, &[("app", name)]).unwrap())
        .collect();
    let (open, closed, other) = (&pods[0], &pods[1], &pods[2]);
    let policies = [("open", "Allow"), ("closed", "Deny"), ("other", "Allow")];
    for (name, action) in policies {
        let selector = format!("app == '{name}'");
        world
            .etcd()
            .put_global_policy(name, policy::ingress(1, &selector, json!([{"action": action}])))
            .unwrap();
    }
    let ask =
        |to: &Pod| canalctl(node, &format!("explain --from 8.8.8.8 --to {} --proto tcp --port 80", to.ip()));
    let settled = || {
        soon(|| {
            pods.iter().zip(["ALLOWED", "DENIED", "ALLOWED"]).all(|(pod, verdict)| {
                let said = ask(pod);
                said.status.code() == Some(0) && said.stdout.contains(verdict)
            })
        })
    };
    assert!(settled());
    assert!(pinned_judge_allows(node, open) && !pinned_judge_allows(node, closed));

    swap_policy(node, closed, open);
    let said = ask(closed);
    assert_eq!(said.status.code(), Some(3), "{said:?}");
    for part in [
        "policy: deny, GlobalNetworkPolicy closed (tier default) ingress rule 0",
        "kernel: allow, GlobalNetworkPolicy open (tier default) ingress rule 0",
        "DIFFERENCE",
        "DENIED",
    ] {
        assert!(said.stdout.contains(part), "{part:?} is not in:\n{}", said.stdout);
    }
    assert_eq!(ask(open).status.code(), Some(0), "the others are as they should be");
    // The same verdict by another rule is a difference, too.
    swap_policy(node, open, other);
    let (status, answer) = explain(node, "8.8.8.8", &open.ip().to_string(), "--proto tcp --port 80");
    assert_eq!((status, &answer["differs"]), (Some(3), &json!(true)), "{answer:#}");

    node.agent().kill_9();
    assert!(pinned_judge_allows(node, closed), "the program is there without an agent");
    node.agent().start().unwrap();
    assert!(settled(), "a new agent writes its tables anew");
    assert!(pinned_judge_allows(node, open) && !pinned_judge_allows(node, closed));
}

#[test]
fn of_two_endpoints_with_one_address_the_one_that_has_it_not_is_told_so() {
    let world = crate::one_node();
    world.start_agents().unwrap();
    let node = world.node(1);
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    let spec = json!({
        "orchestrator": "k8s", "node": "node1", "pod": "late", "endpoint": "eth0", "profiles": ["canal"],
        "ipNetworks": [format!("{}/32", b.ip())], "interfaceName": "calilate", "mac": "0e:00:00:00:00:09",
    });
    let late = "shop/node1-k8s-late-eth0";
    world
        .etcd()
        .put_resource("workloadendpoints", "WorkloadEndpoint", Some("shop"), "node1-k8s-late-eth0", spec)
        .unwrap();
    node.netns().ip("link add calilate type veth peer name late0").unwrap();
    let holder = format!("default/node1-cni-{}-eth0", container_id("b"));
    let asked =
        |to: &str| canalctl(node, &format!("explain --from {} --to {to} --proto tcp --port 80", a.ip()));
    let closed = format!("but the pod is closed, whatever policy says: its address is that of {holder}");
    assert!(soon(|| asked(late).stdout.contains(&closed)), "{:?}", asked(late));
    let said = asked(late);
    assert_eq!(said.status.code(), Some(0), "the kernel does not differ: {said:?}");
    for part in [
        format!("To      {} ({late})", b.ip()),
        "kernel: deny, its address is another endpoint's".to_owned(),
        format!("DENIED by ingress of {late}"),
    ] {
        assert!(said.stdout.contains(&part), "{part:?} is not in:\n{}", said.stdout);
    }
    // The address is the holder's, and the other is nobody's concern there.
    for to in [b.ip().to_string(), holder.clone()] {
        let said = asked(&to);
        assert!(said.status.code() == Some(0) && said.stdout.contains("\nALLOWED\n"), "{to}: {said:?}");
        assert!(
            said.stdout.contains(&format!("({holder})")) && !said.stdout.contains("late"),
            "{to}: {said:?}"
        );
    }
}

#[test]
fn an_endpoint_whose_new_policy_finds_no_room_is_told_to_have_its_earlier_one() {
    let world = crate::one_node();
    let node = world.node(1);
    node.agent().set_flag("--max-nets", "1024");
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[("app", "b")]).unwrap());
    let _servers = [80, 81].map(|port| b.serve_tcp(port).unwrap());
    let put = |rules| world.etcd().put_global_policy("p", policy::ingress(1, "app == 'b'", rules)).unwrap();
    put(json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]));
    assert!(soon(|| a.reaches(b.ip(), 80) && !a.reaches(b.ip(), 81)));
    let nets: Vec<String> = (0..2000).map(|n| format!("172.16.{}.{}/31", n / 128, n % 128 * 2)).collect();
    put(json!([
        {"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}},
        {"action": "Deny", "source": {"nets": nets}},
        {"action": "Allow"},
    ]));
    let asked = |port| {
        canalctl(node, &format!("explain --from {} --to {} --proto tcp --port {port}", a.ip(), b.ip()))
    };
    let earlier = "but an earlier policy is in force: ";
    assert!(soon(|| asked(80).stdout.contains(earlier)), "{:?}", asked(80));
    for (port, policy, kernel) in [
        (80, "policy: deny, GlobalNetworkPolicy p", "kernel: allow, GlobalNetworkPolicy p"),
        (81, "policy: allow, GlobalNetworkPolicy p", "kernel: deny"),
    ] {
        let said = asked(port);
        assert_eq!(said.status.code(), Some(3), "the kernel does not do what policy says: {said:?}");
        for part in [policy, kernel, earlier, "NETS has room for 1024 entries"] {
            assert!(said.stdout.contains(part), "{part:?} is not in:\n{}", said.stdout);
        }
        assert!(!said.stdout.contains("restarting canal-agent"), "which would not help: {said:?}");
        assert_eq!(a.reaches(b.ip(), port), port == 80, "{port}");
    }
    put(json!([{"action": "Allow"}]));
    assert!(soon(|| a.reaches(b.ip(), 81)) && !asked(81).stdout.contains(earlier));
}
