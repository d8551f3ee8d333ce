//! Policies that came from etcd, on packets.

use std::time::Duration;

use bpf_tests::{Connect, Host, LiveConnection, Pod, World, policy};
use serde_json::{Value, json};

use crate::{SOON, soon, two_nodes};

/// Who asks whom on which port, and whether it shall get through.
type Expectation<'a> = (&'a Pod, &'a Pod, u16, bool);

const TCP: [u16; 3] = [80, 8080, 9090];

/// Puts a policy, waits until the last expectation holds, then checks that all do.
fn check(world: &World, what: &str, spec: Value, expected: &[Expectation<'_>]) {
    world.etcd().put_global_policy("t", spec).unwrap();
    // An opening shows by itself; so does a closing, after the refused attempts.
    for (from, to, port, allowed) in expected {
        let holds = soon(|| (from.connect(to.ip(), *port) == Connect::Ok) == *allowed);
        assert!(holds, "{what}: {} to {}:{port} should {}", from.name(), to.name(), word(*allowed));
    }
    for (from, to, port, allowed) in expected.iter().filter(|e| e.3) {
        assert!(from.reaches(to.ip(), *port) == *allowed, "{what}: {} to {}:{port}", from.name(), to.name());
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "pass" } else { "be dropped" }
}

#[test]
fn rules_decide_by_direction_selector_port_net_and_order() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let web = world.node(1).add_pod("web", &[("app", "web"), ("tier", "front")]).unwrap();
    let near = world.node(1).add_pod("near", &[("app", "client"), ("tier", "back")]).unwrap();
    let far = world.node(2).add_pod("far", &[("app", "client"), ("tier", "front")]).unwrap();
    let _servers: Vec<_> =
        [&web, &near, &far].iter().flat_map(|pod| TCP.map(|port| pod.serve_tcp(port).unwrap())).collect();
    let web_net = format!("{}/32", web.ip());
    let far_net = format!("{}/32", far.ip());
    let all = |allowed| [(&near, &web, 80, allowed), (&far, &web, 80, allowed)];

    for expectation in all(true) {
        assert!(soon(|| expectation.0.reaches(web.ip(), 80)), "no policy: the profile lets pods talk");
    }
    check(&world, "deny in", policy::ingress(1, "app == 'web'", json!([{"action": "Deny"}])), &all(false));
    assert!(web.reaches(near.ip(), 80) && web.reaches(far.ip(), 80), "the other direction is not concerned");
    check(&world, "allow in", policy::ingress(1, "app == 'web'", json!([{"action": "Allow"}])), &all(true));
    check(&world, "default deny", policy::ingress(1, "app == 'web'", json!([])), &all(false));
    check(
        &world,
        "a source selector",
        policy::ingress(
            1,
            "app == 'web'",
            json!([{"action": "Allow", "source": {"selector": "tier == 'front'"}}]),
        ),
        &[(&near, &web, 80, false), (&far, &web, 80, true)],
    );
    check(
        &world,
        "ports and ranges",
        policy::ingress(
            1,
            "app == 'web'",
            json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, "9000:9100"]}}]),
        ),
        &[
            (&near, &web, 80, true),
            (&near, &web, 8080, false),
            (&far, &web, 9090, true),
            (&far, &web, 8080, false),
        ],
    );
    check(
        &world,
        "a net, and not another",
        policy::ingress(1, "app == 'web'", json!([{"action": "Allow", "source": {"nets": [far_net]}}])),
        &[(&near, &web, 80, false), (&far, &web, 80, true)],
    );
    check(
        &world,
        "deny out",
        policy::egress(
            1,
            "app == 'client'",
            json!([{"action": "Deny", "destination": {"nets": [web_net]}}, {"action": "Allow"}]),
        ),
        &[(&near, &web, 80, false), (&far, &web, 80, false), (&near, &far, 80, true)],
    );
    check(
        &world,
        "a destination selector",
        policy::egress(
            1,
            "has(app)",
            json!([{"action": "Allow", "destination": {"selector": "app in {'web', 'other'}"}}]),
        ),
        &[(&near, &web, 80, true), (&near, &far, 80, false), (&web, &far, 80, false)],
    );
    check(
        &world,
        "selectors with and, or, not",
        policy::ingress(1, "(app == 'web' || app == 'client') && !(tier == 'front')", json!([])),
        &[(&far, &near, 80, false), (&near, &web, 80, true), (&near, &far, 80, true)],
    );
    // Order: the lower number speaks first, whichever came first.
    world
        .etcd()
        .put_global_policy("later", policy::ingress(20, "all()", json!([{"action": "Deny"}])))
        .unwrap();
    assert!(soon(|| !near.reaches(web.ip(), 80)), "it denies");
    check(&world, "first", policy::ingress(10, "all()", json!([{"action": "Allow"}])), &all(true));
    check(&world, "second", policy::ingress(30, "all()", json!([{"action": "Allow"}])), &all(false));
    world.etcd().delete_global_policy("later").unwrap();
    assert!(soon(|| near.reaches(web.ip(), 80)), "the denying one is gone");
    world.etcd().delete_global_policy("t").unwrap();
    assert!(soon(|| far.reaches(web.ip(), 9090)), "none is left");
}

#[test]
fn protocols_are_told_apart_and_a_namespaced_policy_binds_its_namespace_only() {
    let (world, a, b) = two_nodes();
    let _server = b.serve_tcp(80).unwrap();
    let _echo = b.serve_udp(80).unwrap();
    let deny = |protocol: &str| {
        policy::ingress(
            1,
            "app == 'b'",
            json!([{"action": "Deny", "protocol": protocol}, {"action": "Allow"}]),
        )
    };
    let udp = || a.udp_echoes(b.ip(), 80, 1).unwrap() == 1;
    for (protocol, tcp, datagrams, ping) in
        [("TCP", false, true, true), ("UDP", true, false, true), ("ICMP", true, true, false)]
    {
        world.etcd().put_global_policy("t", deny(protocol)).unwrap();
        assert!(soon(|| a.reaches(b.ip(), 80) == tcp), "{protocol}: TCP");
        assert!(soon(|| udp() == datagrams), "{protocol}: UDP");
        assert!(soon(|| a.pings(b.ip()) == ping), "{protocol}: ICMP");
    }
    world.etcd().delete_global_policy("t").unwrap();
    assert!(soon(|| a.pings(b.ip())));

    // Endpoints of the CNI plugin are in `default`.
    world.etcd().put_policy("elsewhere", "t", policy::ingress(1, "all()", json!([]))).unwrap();
    world.etcd().put_policy("default", "t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
    world.etcd().delete_policy("default", "t").unwrap();
    assert!(soon(|| a.pings(b.ip())), "the other namespace's policy is not ours");
}

#[test]
fn a_profile_decides_where_no_policy_does() {
    let (world, a, b) = two_nodes();
    let profiles = world.etcd().list(&format!("{}profiles/", policy::RESOURCES)).unwrap();
    let made: Value = serde_json::from_str(profiles.values().next().unwrap()).unwrap();
    assert_eq!(made["metadata"]["name"], "canal");
    assert_eq!(made["spec"]["labelsToApply"], json!({"canal": ""}), "as the Calico plugin makes it");
    world
        .etcd()
        .put_profile("canal", json!({"ingress": [{"action": "Deny"}], "egress": [{"action": "Allow"}]}))
        .unwrap();
    assert!(soon(|| !a.pings(b.ip())), "the profile denies");
    world
        .etcd()
        .put_global_policy("t", policy::ingress(1, "app == 'b'", json!([{"action": "Allow"}])))
        .unwrap();
    assert!(soon(|| a.pings(b.ip())), "a policy that selects the pod comes before its profile");
    assert!(!b.pings(a.ip()), "and the other pod still has its profile");
    world.etcd().delete_global_policy("t").unwrap();
    world.etcd().delete_profile("canal").unwrap();
    // Whether somebody makes it again or not: without one, nothing is allowed.
    assert!(soon(|| !a.pings(b.ip())));
}

#[test]
fn a_revoked_permission_cuts_a_live_connection_and_one_given_back_opens_the_way() {
    let (world, a, b) = two_nodes();
    let near = world.node(2).add_pod("near", &[]).unwrap();
    let _servers = (a.serve_tcp(9000).unwrap(), b.serve_tcp(9000).unwrap());
    let far_in = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    let near_in = LiveConnection::open(near.netns(), b.ip(), 9000).unwrap();
    let out = LiveConnection::open(b.netns(), a.ip(), 9000).unwrap();
    let (etcd, agent) = (world.etcd(), world.node(2).agent());
    let deny = |selector: &str| policy::ingress(1, selector, json!([{"action": "Deny"}]));

    etcd.put_global_policy("cut", deny("app == 'b'")).unwrap();
    far_in.cut_within(SOON).unwrap();
    near_in.cut_within(SOON).unwrap();
    assert!(out.is_alive(), "what the pod itself opened is egress, and stays");
    assert!(
        agent.count("from_wire", "flow-denied").unwrap()
            + agent.count("from_wire", "policy-ingress").unwrap()
            > 0
    );
    assert!(!a.reaches(b.ip(), 9000), "nothing new either");

    etcd.delete_global_policy("cut").unwrap();
    assert!(soon(|| a.reaches(b.ip(), 9000)));
    let again = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    // Cut at the sender's side, too.
    let out_deny = policy::egress(1, "app == 'a'", json!([{"action": "Deny"}]));
    etcd.put_global_policy("cut", out_deny).unwrap();
    again.cut_within(SOON).unwrap();
    assert!(out.is_alive(), "the answering side of another connection goes on");
}

#[test]
fn a_change_of_another_pods_policy_leaves_connections_alone() {
    let (world, a, b) = two_nodes();
    let _server = b.serve_tcp(9000).unwrap();
    let live = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    for round in 0..5 {
        let rules = json!([{"action": "Deny", "protocol": "TCP", "destination": {"ports": [1000 + round]}}, {"action": "Allow"}]);
        world.etcd().put_global_policy("t", policy::ingress(1, "all()", rules)).unwrap();
        let port = 1000 + round;
        let refused = || matches!(a.connect(b.ip(), port), Connect::TimedOut);
        assert!(soon(refused), "round {round} is in force");
        assert!(live.is_alive(), "and the connection lives");
    }
}

#[test]
fn a_new_pod_is_closed_until_its_policy_stands() {
    let (world, a, _) = two_nodes();
    let closed = policy::ingress(1, "app == 'closed'", json!([]));
    world.etcd().put_global_policy("t", closed).unwrap();
    let node = world.node(2);
    let status = || node.agent().status().unwrap();
    let revision = world.etcd().list(policy::RESOURCES).unwrap().len();
    assert!(revision > 0 && soon(|| status()["store"]["connected"] == true));
    // host-local gives the next address, and somebody knocks at it before the pod exists.
    let next = {
        let [x, y, z, last] = node.pods()[0].ip().octets();
        std::net::Ipv4Addr::new(x, y, z, last + 1)
    };
    let log = world.folder().join("knocking.log");
    let near = node.pods()[0].clone();
    let knock = format!("ping -n -O -W 1 -i 0.005 {next}");
    let mut far_knocks = a.netns().cmd(&knock).start(&log).unwrap();
    let mut near_knocks = near.netns().cmd(&knock).start(&log).unwrap();
    let pod = node.add_pod("late", &[("app", "closed")]).unwrap();
    assert_eq!(pod.ip(), next, "host-local hands out in order");
    let denied = || {
        let agent = node.agent();
        let denied =
            |hook| agent.count(hook, "policy-ingress").unwrap() + agent.count(hook, "flow-denied").unwrap();
        denied("from_wire") > 20 && denied("from_pod") > 20
    };
    assert!(soon(denied), "{}", status()["counters"]);
    far_knocks.kill();
    near_knocks.kill();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("bytes from"), "an answer came out of a closed pod: {said}");
    assert!(pod.ping(a.ip(), 1).unwrap().lost <= 1, "its egress is its profile's");
}

#[test]
fn deletion_of_a_pod_leaves_nothing_that_a_successor_at_its_address_inherits() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    world
        .etcd()
        .put_global_policy("t", policy::ingress(1, "app == 'open'", json!([{"action": "Allow"}])))
        .unwrap();
    world.etcd().put_global_policy("u", policy::ingress(2, "all()", json!([]))).unwrap();
    let first = node.add_pod("first", &[("app", "open")]).unwrap();
    assert!(soon(|| a.pings(first.ip())) && soon(|| !a.pings(b.ip())));
    let address = first.ip();
    node.del_pod(&first).unwrap();
    assert!(soon(|| node.agent().endpoint_state(address).unwrap().is_none()));
    assert!(
        soon(|| world.etcd().workload_endpoints().unwrap().len() == 2),
        "and its endpoint is gone from etcd"
    );
    // A successor with the very address: whatever was allowed is forgotten.
    let ipam = node.folder().join("ipam/canal/last_reserved_ip.0");
    if let Ok(text) = std::fs::read_to_string(&ipam) {
        let before = std::net::Ipv4Addr::from(u32::from(address) - 1);
        std::fs::write(&ipam, text.replace(text.trim(), &before.to_string())).unwrap();
    }
    let second = node.add_pod("second", &[("app", "shut")]).unwrap();
    assert_eq!(second.ip(), address);
    assert!(!a.pings(address), "the new pod has its own policy");
    assert!(!bpf_tests::until(Duration::from_millis(500), || a.reaches(address, 80)));
}
