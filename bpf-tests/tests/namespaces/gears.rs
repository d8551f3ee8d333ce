//! What takes the envelope off, and who makes it: the same packets and the same policy whoever does.

use std::time::Duration;

use bpf_tests::{
    Capture, Host, Node, Pod, World,
    load::{self, Congestion, Path},
    policy,
    probe::{Connect, Pinger},
};
use serde_json::json;

use crate::{BULK, soon, two_nodes};

fn has_program(node: &Node, name: &str) -> bool {
    let status = node.agent().status().unwrap();
    status["programs"].as_array().unwrap().iter().any(|program| program["program"] == name)
}

/// As a network card: checksums are there when a frame comes.
fn as_a_card(node: &Node) {
    node.netns().cmd("ethtool -K up0 tx-checksum-ip-generic off").run().unwrap();
}

fn policy_holds(world: &World, a: &Pod, b: &Pod) {
    let _served = b.serve_tcp(8080).unwrap();
    assert!(soon(|| a.reaches(b.ip(), 8080)));
    world.etcd().put_global_policy("closed", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| a.connect(b.ip(), 8080) == Connect::TimedOut));
    world.etcd().delete_global_policy("closed").unwrap();
    assert!(soon(|| a.reaches(b.ip(), 8080)));
}

#[test]
fn a_driver_that_takes_xdp_strips_known_connections_and_policy_cuts_them_all_the_same() {
    let (world, a, b) = two_nodes();
    let receiver = world.node(2);
    assert!(!has_program(receiver, "xdp_wire"));
    world.nodes().iter().for_each(as_a_card);
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    let change_to = |gear: &str| {
        receiver.agent().set_flag("--decap-gear", gear);
        receiver.agent().terminate().unwrap();
        receiver.agent().start().unwrap();
        assert_eq!(receiver.agent().status().unwrap()["uplink"]["decap_gear"], gear);
    };
    change_to("xdp");
    assert!(soon(|| has_program(receiver, "xdp_wire")));
    let link = receiver.netns().ip("-d link show up0").unwrap();
    assert!(link.contains("prog/xdp"), "in the driver: {link}");

    // Behind the driver's program the uplink sees the pods' own packets.
    let mut uplink = Capture::start(receiver.netns(), "up0", "inbound", world.folder()).unwrap();
    assert!(load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 18);
    uplink.stop().unwrap();
    let plain = uplink.packets(&format!("tcp and src host {}", a.ip())).unwrap().len();
    let enveloped = uplink.packets("udp dst port 8472").unwrap().len();
    assert!(plain > 10 * enveloped, "{plain} taken out of {enveloped} envelopes");
    let _echo = b.serve_udp(5353).unwrap();
    assert_eq!(a.udp_echoes(b.ip(), 5353, 5).unwrap(), 5);
    assert_eq!(a.ping_sized(b.ip(), 2, 4000).unwrap().lost, 0, "fragments go the long way");
    // A veth that gets or loses XDP may empty its queues.
    let undisturbed = |pinger: Pinger| {
        let stats = pinger.stop().unwrap();
        assert!(stats.lost <= 2, "{stats:?}");
    };
    undisturbed(pinger);
    policy_holds(&world, &a, &b);

    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    receiver.agent().crash_and_restart().unwrap();
    assert!(has_program(receiver, "xdp_wire"));
    change_to("tc");
    assert!(soon(|| !has_program(receiver, "xdp_wire")), "and off again");
    let link = receiver.netns().ip("-d link show up0").unwrap();
    assert!(!link.contains("prog/xdp"), "{link}");
    undisturbed(pinger);
}

#[test]
fn where_the_driver_takes_no_xdp_the_agent_says_so_and_goes_on_one_layer_above() {
    let world = World::builder().nodes(2).build().unwrap();
    let bridged = world.node(1);
    for line in [
        "link add bond0 type bridge",
        "link set up0 master bond0",
        "addr del 192.168.50.1/24 dev up0",
        "addr add 192.168.50.1/24 dev bond0",
        "link set bond0 up",
    ] {
        bridged.netns().ip(line).unwrap();
    }
    bridged.agent().set_flag("--decap-gear", "xdp");
    bridged.agent().set_flag("--iface", "bond0");
    world.start_agents().unwrap();
    let a = bridged.add_pod("a", &[("app", "a")]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    assert!(soon(|| a.pings(b.ip())) && b.pings(a.ip()));
    let status = bridged.agent().status().unwrap();
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("cannot attach xdp_wire to bond0") && problem.contains("one layer above"),
        "{problem}"
    );
    policy_holds(&world, &a, &b);
}

#[test]
fn envelopes_carry_a_right_checksum_where_the_operator_asks_for_one() {
    let world = World::builder().nodes(2).build().unwrap();
    let (careful, plain) = (world.node(1), world.node(2));
    careful.agent().add_switch("--outer-udp-checksum");
    world.start_agents().unwrap();
    world.nodes().iter().for_each(as_a_card);
    let a = careful.add_pod("a", &[("app", "a")]).unwrap();
    let b = plain.add_pod("b", &[("app", "b")]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let mut wire = Capture::start_whole(plain.netns(), "up0", "udp dst port 8472", world.folder()).unwrap();
    let _echo = b.serve_udp(5353).unwrap();
    assert_eq!(a.udp_echoes(b.ip(), 5353, 3).unwrap(), 3);
    assert!(
        soon(|| wire.packets("src host 192.168.50.2").unwrap().len() >= 3),
        "all of them are in the file"
    );
    wire.stop().unwrap();
    let sums = |from: &Node| {
        let lines = wire.packets_in_full(&format!("src host {}", from.public_ip())).unwrap();
        lines.into_iter().filter(|line| line.contains(".8472: ")).collect::<Vec<_>>()
    };
    let (with, without) = (sums(careful), sums(plain));
    assert!(!with.is_empty() && with.iter().all(|line| line.contains("[udp sum ok]")), "{with:?}");
    assert!(!without.is_empty() && without.iter().all(|line| line.contains("[no cksum]")), "{without:?}");
    assert!(load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 20);
    policy_holds(&world, &a, &b);
    assert!(careful.agent().count("from_pod", "fallback").unwrap() > 0);
}
