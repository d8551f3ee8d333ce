//! Everything that is not from pod to pod: nodes and their pods, and the world behind the nodes.

use std::net::Ipv4Addr;

use bpf_tests::{Capture, Host, Netns, World};

use crate::{SOON, soon};

/// A host behind the uplink that knows nothing of pods.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The underlay's bridge becomes a router to the outside; every node gets a route there, and no default route.
fn add_outside(world: &World) -> &Netns {
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
    }
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    let env = std::fs::read_to_string(world.node(1).agent().subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true\n"), "{env}");

    let mut seen = Capture::start(outside, "br0", &format!("host {OUTSIDE}"), world.folder()).unwrap();
    let server = outside_server(outside);
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

    let rules = world.node(1).netns().cmd("nft list table ip canal-masq").run().unwrap();
    for rule in ["masquerade", "224.0.0.0/4", "10.100.0.0/16", "return"] {
        assert!(rules.contains(rule), "{rule}: {rules}");
    }
    // Whoever flushes the table gets it back.
    world.node(1).netns().cmd("nft delete table ip canal-masq").run().unwrap();
    let back = || world.node(1).netns().cmd("nft list table ip canal-masq").output().unwrap().ok();
    assert!(bpf_tests::until(SOON * 2, back), "the table is made again");
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

fn outside_server(netns: &Netns) -> impl Drop + use<> {
    struct Outside<'a>(&'a Netns);
    impl Host for Outside<'_> {
        fn netns(&self) -> &Netns {
            self.0
        }

        fn ip(&self) -> Ipv4Addr {
            OUTSIDE
        }
    }
    Outside(netns).serve_tcp(8080).unwrap()
}
