//! How packets get from node to node: without an envelope, in one, or by others' hands; and nodes that are to be reached in
//! none of these ways.

use std::{net::Ipv4Addr, time::Duration};

use bpf_tests::{
    Capture, FlannelBackend, Host, Pod, World,
    load::{self, Congestion, Path},
    policy,
    probe::{Connect, Pinger},
};
use serde_json::json;

use crate::{BULK, SOON, soon};

/// Where envelopes go.
const TUNNEL: &str = "udp port 8472";
const LEASES: &str = "/coreos.com/network/subnets/";
const CONFIG: &str = "/coreos.com/network/config";

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.100.0.0/16","Backend":{backend}}}"#)
}

fn world(nodes: u8, backend: &str) -> World {
    World::builder().nodes(nodes).config(Some(&config(backend))).build().unwrap()
}

/// The subnet of a Canal node, as `10.100.7.0/24`, and its key.
fn lease(world: &World, number: u8) -> (String, String) {
    let status = world.node(number).agent().status().unwrap();
    let subnet = status["lease"]["subnet"].as_str().unwrap().to_owned();
    let key = format!("{LEASES}{}", subnet.replace('/', "-"));
    (subnet, key)
}

/// The way to each peer, and why there is none.
fn ways(world: &World, number: u8) -> Vec<String> {
    let status = world.node(number).agent().status().unwrap();
    let peers = status["peers"].as_array().unwrap();
    let shown = peers.iter().map(|peer| {
        format!("{} {}", peer["way"].as_str().unwrap(), peer["reason"].as_str().unwrap_or_default())
    });
    shown.map(|way| way.trim().to_owned()).collect()
}

fn both_ways(a: &impl Host, b: &impl Host, what: &str) {
    assert!(soon(|| a.pings(b.ip())), "{what}: out");
    assert!(b.pings(a.ip()), "{what}: in");
    let (_a, _b) = (a.serve_tcp(8080).unwrap(), b.serve_tcp(8080).unwrap());
    assert!(a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080), "{what}: TCP");
    for size in [1400, 4000] {
        assert_eq!(a.ping_sized(b.ip(), 2, size).unwrap().lost, 0, "{what}: {size} bytes");
    }
}

fn hops_are_counted(a: &Pod, b: &impl Host) {
    let ping = |line: &str| a.netns().cmd(&format!("ping -n -c 1 -W 1 {line}")).output().unwrap().stdout;
    assert!(ping(&b.ip().to_string()).contains("ttl=62"), "two nodes on the way");
    for hops in [1, 2] {
        let said = ping(&format!("-t {hops} {}", b.ip()));
        assert!(said.contains("Time to live exceeded"), "{hops} hops: {said}");
    }
}

#[test]
fn with_host_gw_pods_talk_in_plain_packets_with_canal_and_flannel_nodes_and_policy_holds() {
    let world = world(3, r#"{"Type":"host-gw"}"#);
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let flannel = world.flannel_node_with(3, FlannelBackend::HostGw).unwrap();
    for number in [1, 2] {
        world.node(number).agent().start().unwrap();
    }
    assert!(soon(|| flannel.learn_peers().unwrap() == 2), "flannel knows both others");
    let (subnet, key) = lease(&world, 1);
    let value = world.etcd().get(&key).unwrap().unwrap();
    let flannels = r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"host-gw","Canal":"#;
    assert!(value.starts_with(flannels), "{value}");
    let env = std::fs::read_to_string(world.node(1).agent().subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_MTU=1500\n") && env.contains(&subnet.replace(".0/", ".1/")), "{env}");

    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    let c = flannel.add_pod("c").unwrap();
    assert!(soon(|| ways(&world, 1) == ["direct", "direct"]), "{:?}", ways(&world, 1));
    let mut wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();
    both_ways(&a, &b, "Canal");
    both_ways(&a, &c, "flannel");
    hops_are_counted(&a, &b);
    load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap();
    // Full packets of the uplink, and nothing larger.
    let ping = |size: u32| a.netns().cmd(&format!("ping -n -c 1 -W 1 -M do -s {size} {}", b.ip())).output();
    assert!(ping(1472).unwrap().ok() && !ping(1473).unwrap().ok());
    wire.stop().unwrap();
    assert_eq!(wire.packets(TUNNEL).unwrap(), Vec::<String>::new(), "nothing in an envelope");
    assert!(!wire.packets("tcp and net 10.100.0.0/16").unwrap().is_empty());
    let agent = world.node(2).agent();
    assert!(
        agent.count("from_wire", "delivered").unwrap() > 0 && agent.count("from_pod", "routed").unwrap() > 0
    );

    // The stack knows the way, too: the node itself, and what the programs leave to it.
    assert!(world.node(1).pings(b.ip()) && world.node(1).pings(c.ip()));
    let links = world.node(1).netns().ip("-br link").unwrap();
    assert!(!links.contains("canal."), "{links}");

    // Policy, for what comes by either way.
    let _served = b.serve_tcp(8080).unwrap();
    world.etcd().put_global_policy("open", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    for from in [&a as &dyn Host, &c, world.node(1)] {
        assert!(soon(|| from.connect(b.ip(), 8080) == Connect::TimedOut), "{}", from.ip());
    }
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    assert!(soon(|| a.reaches(b.ip(), 8080)));

    // Agents may go.
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    for number in [1, 2] {
        world.node(number).agent().crash_and_restart().unwrap();
    }
    let stats = pinger.stop().unwrap();
    assert_eq!(stats.lost, 0, "{stats:?}");

    // Back to flannel: what carries the packets stays, without policy.
    world.node(1).agent().terminate().unwrap();
    let said = world.node(1).agent().hand_over_to_flannel().unwrap();
    assert!(said.matches(" via 192.168.50.").count() == 2 && c.pings(a.ip()) && a.pings(b.ip()), "{said}");
    world.node(1).agent().start().unwrap();
    assert!(soon(|| ways(&world, 1) == ["direct", "direct"]), "{:?}", ways(&world, 1));
    let boot = world.node(1).netns().ip("route show proto boot").unwrap();
    assert!(!boot.contains("via 192.168.50"), "{boot}");

    // A peer that leaves takes its route along.
    let route = || world.node(1).netns().ip("route show proto 202").unwrap();
    assert!(route().contains("via 192.168.50.3 dev up0"), "{}", route());
    world.etcd().del(&flannel.lease_key()).unwrap();
    assert!(soon(|| !route().contains("192.168.50.3")), "{}", route());
}

#[test]
fn with_direct_routing_neighbours_get_plain_packets_and_the_others_envelopes() {
    let backend = |direct: bool| format!(r#"{{"Type":"vxlan","DirectRouting":{direct}}}"#);
    let world = world(3, &backend(true));
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let flannel =
        world.flannel_node_with(3, FlannelBackend::Vxlan { checksums: true, direct: true }).unwrap();
    for number in [1, 2] {
        world.node(number).agent().start().unwrap();
        world.node(number).netns().ip("route add 192.168.77.0/24 via 192.168.50.100 dev up0").unwrap();
    }
    assert!(soon(|| flannel.learn_peers().unwrap() == 2), "flannel knows both others");
    // Behind a router.
    let far = r#"{"PublicIP":"192.168.77.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:77"}}"#;
    world.etcd().put(&format!("{LEASES}10.100.177.0-24"), far).unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    let c = flannel.add_pod("c").unwrap();
    let sorted = |number| {
        let mut ways = ways(&world, number);
        ways.sort();
        ways
    };
    assert!(soon(|| sorted(1) == ["direct", "direct", "vxlan"]), "{:?}", sorted(1));
    let wire = |direct: bool, what: &str, traffic: &dyn Fn()| {
        let mut wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();
        traffic();
        wire.stop().unwrap();
        let enveloped = wire.packets(&format!("{TUNNEL} and host {}", world.node(2).public_ip())).unwrap();
        let plain = wire.packets("net 10.100.0.0/16").unwrap();
        assert_eq!((enveloped.is_empty(), plain.is_empty()), (direct, !direct), "{what}");
    };
    wire(true, "on the link", &|| {
        both_ways(&a, &b, "Canal");
        both_ways(&a, &c, "flannel");
        hops_are_counted(&a, &b);
    });
    assert!(world.node(1).pings(b.ip()), "and the node itself");

    // Switched off and on again, while everything runs. Until both ends have followed, one sends what the other does not
    // take yet.
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    for direct in [false, true] {
        world.etcd().put(CONFIG, &config(&backend(direct))).unwrap();
        let way = if direct { "direct" } else { "vxlan" };
        let all = |number| ways(&world, number).iter().filter(|w| *w == way).count() >= 2;
        assert!(soon(|| all(1) && all(2)), "{way}: {:?}", ways(&world, 1));
        wire(direct, way, &|| assert!(a.pings(b.ip())));
    }
    let stats = pinger.stop().unwrap();
    assert!(stats.lost < 200, "two seconds in two changes: {stats:?}");
}

#[test]
fn with_alloc_a_node_has_its_subnet_and_others_carry_the_packets() {
    let world = world(2, r#"{"Type":"alloc"}"#);
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let near = world.node(1).add_pod("near", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    let (subnets, keys): (Vec<_>, Vec<_>) = [1, 2].map(|number| lease(&world, number)).into_iter().unzip();
    let value = world.etcd().get(&keys[0]).unwrap().unwrap();
    assert!(value.starts_with(r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"Canal":"#), "{value}");
    assert_eq!(ways(&world, 1), ["none"]);
    both_ways(&a, &near, "on one node");
    assert!(!a.pings(b.ip()), "nobody carries it yet");
    for (number, other) in [(1, 2), (2, 1)] {
        let route = format!("route add {} via 192.168.50.{other} dev up0", subnets[other - 1]);
        world.node(number).netns().ip(&route).unwrap();
    }
    both_ways(&a, &b, "between nodes");
    let _served = b.serve_tcp(8080).unwrap();
    world.etcd().put_global_policy("closed", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| a.connect(b.ip(), 8080) == Connect::TimedOut), "policy holds");
    let status = world.node(1).agent().status().unwrap();
    assert_eq!(status["problems"], json!([]));
}

#[test]
fn nodes_of_another_backend_or_vni_are_named_and_nothing_for_them_leaves_the_node() {
    let world = world(2, r#"{"Type":"vxlan"}"#);
    for (subnet, rest) in [
        ("10.100.71.0-24", r#""BackendType":"host-gw""#),
        ("10.100.72.0-24", r#""BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:00:00:00:00:72"}"#),
    ] {
        let ip = subnet.split('.').nth(2).unwrap();
        let value = format!(r#"{{"PublicIP":"192.168.50.{ip}","PublicIPv6":null,{rest}}}"#);
        world.etcd().put(&format!("{LEASES}{subnet}"), &value).unwrap();
    }
    for node in world.nodes() {
        node.netns().ip(&format!("route add default via 192.168.50.{} dev up0", 3 - node.number())).unwrap();
    }
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let mut told = ways(&world, 1);
    told.sort();
    assert_eq!(
        told,
        ["none its VNI is 7, this node's 1", "none its backend is host-gw, this node's vxlan", "vxlan"]
    );
    let status = world.node(1).agent().status().unwrap();
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.starts_with("2 nodes cannot be reached") && problem.contains("10.100.71.0/24"),
        "{problem}"
    );

    let (own, _) = lease(&world, 1);
    let (other, _) = lease(&world, 2);
    let nobody = |subnet: &str| -> Ipv4Addr { subnet.replace(".0/24", ".250").parse().unwrap() };
    let mut wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();
    let says =
        |to: Ipv4Addr| a.netns().cmd(&format!("ping -n -c 2 -i 0.2 -W 1 {to}")).output().unwrap().stdout;
    let here = says(nobody(&own));
    assert!(here.contains("Destination Host Unreachable"), "of this node's subnet: {here}");
    let there = says(nobody(&other));
    assert!(there.contains("Destination Host Unreachable"), "of the other node's: {there}");
    for lost in ["10.100.71.5", "10.100.72.5", "10.100.199.5"] {
        assert!(!a.pings(lost.parse().unwrap()), "{lost}");
    }
    wire.stop().unwrap();
    let bare = wire.packets("net 10.100.0.0/16 or host 192.168.50.71 or host 192.168.50.72").unwrap();
    assert_eq!(bare, Vec::<String>::new(), "nothing by the default route, and no envelope to them");
    let agent = world.node(1).agent();
    assert!(
        agent.count("from_pod", "no-pod").unwrap() > 0 && agent.count("to_overlay", "no-route").unwrap() > 0
    );

    // A bridge that owns the subnet, as Docker's with FLANNEL_SUBNET, wins over the refusal.
    let netns = world.node(1).netns();
    netns.ip("link add docker0 type bridge").unwrap();
    netns.ip("link set docker0 up").unwrap();
    netns.ip(&format!("addr add {} dev docker0", own.replace(".0/", ".1/"))).unwrap();
    let way = netns.ip(&format!("route get {}", nobody(&own))).unwrap();
    assert!(way.contains("dev docker0"), "{way}");
    assert!(a.pings(nobody(&own).to_string().replace(".250", ".1").parse().unwrap()), "the bridge answers");
}

#[test]
fn host_gw_behind_a_translated_address_is_refused_in_one_line() {
    let world = world(1, r#"{"Type":"host-gw"}"#);
    let agent = world.node(1).agent();
    agent.set_flag("--public-ip", "203.0.113.9");
    agent.set_flag("--iface", "up0");
    agent.spawn().unwrap();
    assert!(
        agent.says(&["--public-ip 203.0.113.9 is translated", "use the backend vxlan"], SOON),
        "{}",
        agent.log()
    );
}
