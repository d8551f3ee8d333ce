//! Everything that is not from pod to pod: nodes and their pods, and the world behind the nodes.

use std::net::Ipv4Addr;

use bpf_tests::{At, Capture, Host, Netns, World};

use crate::{SOON, soon};

/// A host behind the uplink that knows nothing of pods.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Another address of it, which pods reach with their own.
const EXEMPT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 129);

/// The underlay's bridge becomes a router to the outside; every node gets a route there, and no default route.
pub(crate) fn add_outside(world: &World) -> &Netns {
    let wire = world.wire().unwrap();
    for line in ["addr add 192.168.50.100/24 dev br0", "addr add 203.0.113.1/32 dev lo"] {
        wire.ip(line).unwrap();
    }
    for node in world.nodes() {
        node.netns().ip("route add 203.0.113.0/24 via 192.168.50.100 dev up0").unwrap();
    }
    wire
}

#[test]
fn nodes_and_pods_reach_each_other_near_and_far() {
    let world = World::builder().nodes(3).build().unwrap();
    world.start_agents().unwrap();
    let pods: Vec<_> =
        world.nodes().iter().map(|n| n.add_pod(&format!("p{}", n.number()), &[]).unwrap()).collect();
    let servers: Vec<_> = pods.iter().map(|p| p.serve_tcp(8080).unwrap()).collect();
    let on_nodes: Vec<_> = world.nodes().iter().map(|n| n.serve_tcp(8081).unwrap()).collect();
    for (from, node) in pods.iter().zip(world.nodes()) {
        assert!(soon(|| node.pings(from.ip())), "{} to its own pod", node.name());
        assert!(node.reaches(from.ip(), 8080), "{} to its own pod, TCP", node.name());
        for (to, other) in pods.iter().zip(world.nodes()) {
            let what = format!("{} to {} of {}", from.name(), to.name(), other.name());
            assert!(soon(|| from.pings(to.ip())), "{what}");
            assert!(from.pings(other.public_ip()) && from.reaches(other.public_ip(), 8081), "{what}'s node");
            if other.number() != node.number() {
                // The network's profile lets in only what is known, and a host has no endpoint.
                assert!(!node.reaches(to.ip(), 8080), "{} is no pod of the network", node.name());
            }
        }
    }
    world.etcd().put_global_policy("open", bpf_tests::policy::allow_all()).unwrap();
    for node in world.nodes() {
        for to in &pods {
            assert!(soon(|| node.reaches(to.ip(), 8080)), "{} to {}, once allowed", node.name(), to.name());
        }
    }
    drop((servers, on_nodes));
}

#[test]
fn pods_reach_the_world_with_their_nodes_address_and_each_other_with_their_own() {
    let world = World::builder().nodes(3).build().unwrap();
    let outside = add_outside(&world);
    for node in world.nodes() {
        node.agent().add_switch("--ip-masq=true");
        node.agent().set_env("CANAL_IP_MASQ_EXEMPT", "198.51.100.0/24,203.0.113.128/25");
    }
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    let env = std::fs::read_to_string(world.node(1).agent().subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true\n"), "{env}");

    let mut seen = Capture::start(outside, "br0", &format!("host {OUTSIDE}"), world.folder()).unwrap();
    let server = At { netns: outside, ip: OUTSIDE }.serve_tcp(8080).unwrap();
    assert!(soon(|| a.pings(OUTSIDE)), "out and back");
    assert!(a.reaches(OUTSIDE, 8080), "by TCP");
    assert_eq!(a.ping_sized(OUTSIDE, 2, 4000).unwrap().lost, 0, "and in fragments");
    seen.stop().unwrap();
    assert!(!seen.packets("src host 192.168.50.1").unwrap().is_empty());
    assert_eq!(seen.packets("net 10.100.0.0/16").unwrap(), Vec::<String>::new(), "no pod's address gets out");

    let mut pod = Capture::start(b.netns(), "eth0", "icmp or tcp", world.folder()).unwrap();
    assert!(a.pings(b.ip()));
    pod.stop().unwrap();
    assert!(!pod.packets(&format!("src host {}", a.ip())).unwrap().is_empty());
    assert_eq!(
        pod.packets("net 192.168.50.0/24").unwrap(),
        Vec::<String>::new(),
        "pods see each other's address"
    );

    // Who is exempt sees the pod itself, and so finds it.
    for line in
        [format!("addr add {EXEMPT}/32 dev lo"), "route add 10.100.0.0/16 via 192.168.50.1".to_owned()]
    {
        outside.ip(&line).unwrap();
    }
    let mut seen = Capture::start(outside, "br0", &format!("host {EXEMPT}"), world.folder()).unwrap();
    assert!(a.pings(EXEMPT) && a.reaches(EXEMPT, 8080));
    seen.stop().unwrap();
    assert_eq!(seen.packets("src host 192.168.50.1").unwrap(), Vec::<String>::new());
    assert!(!seen.packets(&format!("src host {}", a.ip())).unwrap().is_empty());

    // Into pods: from the world by a route as it is; from another node with an address of that one's subnet.
    world.etcd().put_global_policy("open", bpf_tests::policy::allow_all()).unwrap();
    let _server = a.serve_tcp(8080).unwrap();
    let from = At { netns: outside, ip: OUTSIDE };
    assert!(soon(|| from.pings(a.ip())) && from.reaches(a.ip(), 8080), "the world to a pod");
    let two = world.node(2);
    let by_its_address = format!("ping -n -c 2 -i 0.2 -W 1 -I {} {}", two.public_ip(), a.ip());
    let mut pod = Capture::start(a.netns(), "eth0", "icmp", world.folder()).unwrap();
    assert!(from.pings(a.ip()) && world.node(1).pings(a.ip()));
    assert!(two.netns().cmd(&by_its_address).output().unwrap().ok(), "a node that insists on its address");
    pod.stop().unwrap();
    let overlay = two.netns().ip("-4 -o addr show canal.1").unwrap();
    let overlay = overlay.split("inet ").nth(1).unwrap().split('/').next().unwrap();
    for (from, is_seen) in [("192.168.50.100", true), ("192.168.50.2", false), (overlay, true)] {
        let packets = pod.packets(&format!("src host {from}")).unwrap();
        assert_eq!(!packets.is_empty(), is_seen, "from {from}: {packets:?}");
    }

    // Whoever takes a rule out of the table gets it back.
    let node = world.node(1).netns();
    let nft = |line: &str| node.cmd(&format!("nft {line}")).run().unwrap();
    let rules = nft("list table ip canal-masq");
    for rule in ["masquerade", "224.0.0.0/4", "10.100.0.0/16", "return", "203.0.113.128/25"] {
        assert!(rules.contains(rule), "{rule}: {rules}");
    }
    let listing = nft("-a list table ip canal-masq");
    let handle = listing.lines().find(|line| line.contains("224.0.0.0/4")).unwrap();
    let handle = handle.rsplit_once("# handle ").unwrap().1;
    nft(&format!("delete rule ip canal-masq postrouting handle {handle}"));
    let back = || nft("list table ip canal-masq") == rules;
    assert!(bpf_tests::until(SOON * 2, back), "{}", nft("list table ip canal-masq"));
    assert!(soon(|| a.pings(OUTSIDE)));
    drop(server);
}

#[test]
fn without_masquerade_pods_keep_their_address_and_nothing_is_installed() {
    let world = World::builder().nodes(3).build().unwrap();
    let outside = add_outside(&world);
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let mut seen = Capture::start(outside, "br0", "icmp", world.folder()).unwrap();
    assert!(!a.pings(OUTSIDE), "nobody out there knows the way back");
    assert!(seen.sees(&format!("src host {} and dst host {OUTSIDE}", a.ip()), SOON));
    seen.stop().unwrap();
    assert_eq!(world.node(1).netns().cmd("nft list ruleset").run().unwrap(), "");
    // With a way back it works.
    outside.ip("route add 10.100.0.0/16 via 192.168.50.1").unwrap();
    assert!(a.pings(OUTSIDE), "{}", a.ip());
}
