//! Limits on pods' interfaces: by the real `bandwidth` plugin behind ours, and by whatever somebody puts there by hand.

use bpf_tests::{
    Host, Node, Pod, World,
    load::{self, Congestion, Path},
    pod::container_id,
    policy,
    probe::{Connect, LiveConnection},
};
use serde_json::json;

use crate::{BULK, outside::add_outside, soon, two_nodes};

const BANDWIDTH: &str = "/usr/lib/cni/bandwidth";
/// Bits a second, each way.
const RATE: u64 = 20_000_000;
/// Bits, too.
const BURST: u64 = 2_000_000;

/// As a runtime calls the second plugin of a list.
fn limit(node: &Node, pod: &Pod, verb: &str) {
    let rates = json!({
        "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
    });
    let config = json!({
        "cniVersion": "1.0.0", "name": "canal", "type": "bandwidth",
        "runtimeConfig": { "bandwidth": rates },
        "prevResult": pod.result(),
    });
    let command = node.netns().cmd(BANDWIDTH).env("CNI_COMMAND", verb);
    let command = command.env("CNI_CONTAINERID", container_id(pod.name())).env("CNI_IFNAME", "eth0");
    let command = command.env("CNI_NETNS", pod.netns().path().display().to_string());
    let path = "/usr/lib/cni:/opt/cni/bin";
    command.env("CNI_PATH", path).stdin(config.to_string()).run().unwrap();
}

/// What the agent says of the pod's interface.
fn shaped(node: &Node, pod: &Pod) -> Option<String> {
    let status = node.agent().status().unwrap();
    let address = pod.ip().to_string();
    let endpoints = status["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|endpoint| endpoint["address"] == address.as_str()).unwrap();
    endpoint["shaped"].as_str().map(str::to_owned)
}

fn becomes(node: &Node, pod: &Pod, what: Option<&str>) {
    assert!(soon(|| shaped(node, pod).as_deref() == what), "{what:?}, not {:?}", shaped(node, pod));
}

fn moved(from: &(dyn Host + Sync), to: &(dyn Host + Sync)) -> u64 {
    load::bulk(Path { from, to }, 1, Congestion::Default, BULK).unwrap().bytes
}

/// Five times what the limit lets through in [`BULK`], and far below what moves without one.
const MUCH: u64 = 5_000_000;

fn are_limited(paths: &[(&str, &(dyn Host + Sync), &(dyn Host + Sync))]) {
    for (what, from, to) in paths {
        let bytes = moved(*from, *to);
        assert!(bytes > 0 && bytes < MUCH, "{what}: {bytes} bytes");
    }
}

fn is_unlimited(what: &str, from: &Pod, to: &Pod) {
    let bytes = moved(from, to);
    assert!(bytes > MUCH, "{what}: {bytes} bytes");
}

fn tc(node: &Node, line: &str) -> String {
    node.netns().cmd(&format!("tc {line}")).run().unwrap()
}

/// Packets that have left the root queue of this interface.
fn queued(node: &Node, interface: &str) -> u64 {
    let shown = tc(node, &format!("-s qdisc show dev {interface} root"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "bytes");
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no packets in {shown}"))
}

#[test]
fn a_limited_pod_is_held_to_its_limit_from_and_to_everywhere_and_nobody_else_is() {
    let world = World::builder().nodes(3).build().unwrap();
    let outside = add_outside(&world);
    world.nodes().iter().for_each(|node| node.agent().add_switch("--ip-masq=true"));
    world.start_agents().unwrap();
    let (one, two) = (world.node(1), world.node(2));
    let pod = |node: &Node, name: &str| node.add_pod(name, &[("app", name)]).unwrap();
    let (a, near, other, far) = (pod(one, "a"), pod(one, "near"), pod(one, "other"), pod(two, "far"));
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    // A host that drops what it has seen only half of, as many do.
    for line in [
        "add table ip strict",
        "add chain ip strict f { type filter hook forward priority 0; }",
        "add rule ip strict f ct state invalid counter drop",
    ] {
        one.netns().cmd("nft").arg(line).run().unwrap();
    }
    assert!(soon(|| a.pings(far.ip()) && far.pings(near.ip())));
    for to in [&far, &near] {
        is_unlimited("without a limit", &a, to);
    }
    limit(one, &a, "ADD");
    becomes(one, &a, Some("both"));
    are_limited(&[
        ("to another node", &a, &far),
        ("from another node", &far, &a),
        ("to a pod beside", &a, &near),
        ("from a pod beside", &near, &a),
        ("to its node", &a, one),
        ("from its node", one, &a),
    ]);
    is_unlimited("others, as fast as ever", &near, &far);
    is_unlimited("others, as fast as ever", &near, &other);
    let _echoes = [a.serve_udp(5353).unwrap(), far.serve_udp(5353).unwrap(), near.serve_udp(5353).unwrap()];
    for (from, to) in [(&a, &far), (&far, &a), (&a, &near), (&near, &a)] {
        assert_eq!(from.udp_echoes(to.ip(), 5353, 20).unwrap(), 20);
        assert_eq!(from.ping_sized(to.ip(), 2, 4000).unwrap().lost, 0, "in pieces");
    }
    let outer = bpf_tests::At { netns: outside, ip: "203.0.113.1".parse().unwrap() };
    let _server = outer.serve_tcp(8080).unwrap();
    assert!(a.reaches(outer.ip, 8080) && far.reaches(outer.ip, 8080), "the world, masqueraded");

    // Policy is policy.
    let (_far, _a) = (far.serve_tcp(8080).unwrap(), a.serve_tcp(8080).unwrap());
    let live = LiveConnection::open(far.netns(), a.ip(), 8080).unwrap();
    let deny = policy::ingress(
        1,
        "app == 'a'",
        json!([{ "action": "Deny", "source": { "selector": "app == 'far'" } }, { "action": "Allow" }]),
    );
    world.etcd().put_global_policy("closed", deny).unwrap();
    live.cut_within(crate::SOON).unwrap();
    assert_eq!(far.connect(a.ip(), 8080), Connect::TimedOut);
    assert!(near.reaches(a.ip(), 8080) && a.reaches(far.ip(), 8080));
    world.etcd().delete_global_policy("closed").unwrap();

    // An agent that starts later finds it as it is.
    one.agent().crash_and_restart().unwrap();
    becomes(one, &a, Some("both"));
    are_limited(&[("to another node", &a, &far), ("from another node", &far, &a)]);

    limit(one, &a, "DEL");
    let links = one.netns().ip("-br link show type ifb").unwrap();
    assert_eq!(links, "", "its devices are gone");
    let interface = a.host_interface().to_owned();
    one.del_pod(&a).unwrap();
    let next = pod(one, "a");
    assert_eq!(next.host_interface(), interface, "the next pod on the interface");
    assert_eq!(shaped(one, &next), None);
    assert!(soon(|| next.pings(far.ip()) && far.pings(next.ip())));
    for to in [&far, &near] {
        is_unlimited("after the limit", &next, to);
    }
}

#[test]
fn live_connections_follow_queues_and_filters_that_come_and_go() {
    let (world, a, b) = two_nodes();
    let (one, interface) = (world.node(1), a.host_interface());
    let near = one.add_pod("near", &[]).unwrap();
    let servers = [&a, &b, &near].map(|pod| pod.serve_tcp(8080).unwrap());
    let live = |from: &Pod, to: &Pod| {
        assert!(soon(|| from.reaches(to.ip(), 8080)));
        LiveConnection::open(from.netns(), to.ip(), 8080).unwrap()
    };
    let connections = [live(&a, &b), live(&b, &a), live(&a, &near), live(&near, &a)];
    let flows = |condition: &dyn Fn() -> bool, what: &str| {
        assert!(soon(condition), "{what}");
        assert!(connections.iter().all(LiveConnection::is_alive), "{what}");
    };
    let count = |hook: &str, reason: &str| one.agent().count(hook, reason).unwrap();
    let goes_straight = |what: &str| {
        becomes(one, &a, None);
        let seen = || {
            [
                count("from_pod", "delivered"),
                count("from_pod", "encapsulated"),
                count("from_wire", "delivered"),
            ]
        };
        let before = seen();
        flows(&|| seen().iter().zip(&before).all(|(now, before)| *now > before + 5), what);
    };
    goes_straight("before");

    tc(one, &format!("qdisc add dev {interface} root tbf rate 20mbit burst 256k latency 25ms"));
    becomes(one, &a, Some("in"));
    flows(&|| queued(one, interface) > 50, "through the queue to the pod");
    tc(one, &format!("qdisc del dev {interface} root"));
    goes_straight("without the queue");

    // As everything but the plugin, with a queue of its own for what the pod sends.
    one.netns().ip("link add shaper type ifb").unwrap();
    one.netns().ip("link set shaper up").unwrap();
    tc(one, "qdisc add dev shaper root tbf rate 20mbit burst 256k latency 25ms");
    tc(one, &format!("qdisc add dev {interface} ingress"));
    tc(
        one,
        &format!(
            "filter add dev {interface} ingress protocol all u32 match u32 0 0 action mirred egress redirect dev shaper"
        ),
    );
    becomes(one, &a, Some("out"));
    flows(&|| queued(one, "shaper") > 50, "through the queue from the pod");
    assert_eq!(near.ping(a.ip(), 3).unwrap().lost, 0);
    // While nobody looks.
    one.agent().terminate().unwrap();
    tc(one, &format!("qdisc del dev {interface} ingress"));
    flows(&|| true, "without a filter");
    one.agent().start().unwrap();
    goes_straight("without the filter");

    tc(one, &format!("qdisc add dev {interface} clsact"));
    becomes(one, &a, Some("both"));
    flows(&|| true, "through no filters");
    drop(servers);
}

#[test]
fn limits_hold_with_nodes_without_a_tunnel_and_whoever_takes_the_envelope_off() {
    for backend in [r#"{"Type": "host-gw"}"#, r#"{"Type": "vxlan"}"#] {
        let config = format!(r#"{{"Network":"10.100.0.0/16","Backend":{backend}}}"#);
        let world = World::builder().nodes(2).config(Some(&config)).build().unwrap();
        for node in world.nodes() {
            // As a network card: `xdp` wants checksums that are there.
            node.netns().cmd("ethtool -K up0 tx-checksum-ip-generic off").run().unwrap();
        }
        world.start_agents().unwrap();
        let (one, two) = (world.node(1), world.node(2));
        let (a, far) = (one.add_pod("a", &[]).unwrap(), two.add_pod("far", &[]).unwrap());
        assert!(soon(|| a.pings(far.ip()) && far.pings(a.ip())));
        is_unlimited("without a limit", &a, &far);
        limit(one, &a, "ADD");
        becomes(one, &a, Some("both"));
        let hold = || are_limited(&[("out", &a, &far), ("in", &far, &a)]);
        hold();
        if backend.contains("vxlan") {
            for gear in ["kernel", "xdp"] {
                one.agent().set_flag("--decap-gear", gear);
                one.agent().terminate().unwrap();
                one.agent().start().unwrap();
                hold();
            }
        }
    }
}
