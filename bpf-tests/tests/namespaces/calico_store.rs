//! Endpoints and policies exactly as a real calicoctl and a real Calico CNI plugin wrote them.
//!
//! The fixture is what they left in an etcd, with the test cluster's addresses in the policy's nets, a label on one
//! endpoint, and the pods' true MACs where the plugin would have written them.

use std::net::Ipv4Addr;

use bpf_tests::{Cmd, Host, Netns, Node, World};

use crate::soon;

const DUMP: &str = include_str!("../fixtures/store-dump.txt");

/// A pod that somebody else's plugin made.
struct Foreign {
    netns: Netns,
    ip: Ipv4Addr,
}

impl Host for Foreign {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

/// As the Calico plugin leaves it: the pair up, and the host's route to the pod.
fn plug(node: &Node, world: &World, interface: &str, mac: &str, ip: &str) -> Foreign {
    let netns = Netns::create(&format!("{}pod-{interface}", world.prefix())).unwrap();
    Cmd::line(&format!(
        "ip -n {} link add {interface} type veth peer name eth0 address {mac}",
        node.netns().name()
    ))
    .args(["netns", netns.name()])
    .run()
    .unwrap();
    for line in [
        format!("link set {interface} address ee:ee:ee:ee:ee:ee mtu 1450 up"),
        format!("route add {ip}/32 dev {interface} scope link"),
    ] {
        node.netns().ip(&line).unwrap();
    }
    for line in [
        "link set eth0 mtu 1450 up".to_owned(),
        format!("addr add {ip}/32 dev eth0"),
        "route add 169.254.1.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
    ] {
        netns.ip(&line).unwrap();
    }
    Foreign { netns, ip: ip.parse().unwrap() }
}

#[test]
fn what_calicos_own_tools_wrote_is_enforced_on_what_its_plugin_made() {
    let world = World::builder().nodes(2).config(None).build().unwrap();
    let lines: Vec<_> = DUMP.lines().collect();
    for pair in lines.chunks_exact(2) {
        world.etcd().put(pair[0], pair[1]).unwrap();
    }
    let a = plug(world.node(1), &world, "calica", "96:80:86:ac:b9:8e", "10.100.30.2");
    let b = plug(world.node(2), &world, "calicb", "1e:aa:0c:34:f1:0a", "10.100.56.2");
    world.start_agents().unwrap();

    // The nodes take the leases that are theirs by address, with the MACs that others know.
    for (number, subnet, mac) in
        [(1, "10.100.30.0/24", "82:d2:48:77:ea:cf"), (2, "10.100.56.0/24", "b6:5a:ac:9f:0c:c3")]
    {
        let lease = world.node(number).agent().status().unwrap()["lease"].clone();
        assert_eq!((&lease["subnet"], &lease["vtep_mac"]), (&subnet.into(), &mac.into()), "{lease}");
    }
    let ready = |number: u8, pod: &Foreign| {
        world.node(number).agent().endpoint_state(pod.ip).unwrap().as_deref() == Some("ready")
    };
    assert!(soon(|| ready(1, &a) && ready(2, &b)));
    for number in [1, 2] {
        let status = world.node(number).agent().status().unwrap();
        assert_eq!(status["invalid"], serde_json::json!({}), "every object of Calico's is understood");
        let policies = &status["endpoints"][0];
        for direction in ["ingress", "egress"] {
            let names = policies[direction].to_string();
            let at = |name: &str| names.find(name).unwrap_or_else(|| panic!("{name} in {names}"));
            assert!(at("p0") < at("zz"), "in their order: {names}");
        }
    }

    let ports = [10_000, 10_001, 10_002, 10_003];
    let servers: Vec<_> =
        [&a, &b].iter().flat_map(|p| ports.map(|port| p.serve_tcp(port).unwrap())).collect();
    let _echoes = (a.serve_udp(5353).unwrap(), b.serve_udp(5353).unwrap());
    assert!(soon(|| a.pings(b.ip)) && soon(|| b.pings(a.ip)));
    for (port, in_from_b) in ports.into_iter().zip([false, false, false, true]) {
        assert_eq!(b.reaches(a.ip, port), in_from_b, "b to a:{port}");
        assert!(a.reaches(b.ip, port), "a to b:{port}: a is neither of the nets nor bad");
    }
    assert_eq!(b.udp_echoes(a.ip, 5353, 2).unwrap(), 2, "b's way out to a is not in the denied net");
    assert_eq!(a.udp_echoes(b.ip, 5353, 1).unwrap(), 0, "a's way out to b's subnet by UDP is");
    drop(servers);

    // Nothing of theirs was touched but the leases, which say now whose they are.
    for pair in lines.chunks_exact(2).filter(|pair| !pair[0].contains("/subnets/")) {
        assert_eq!(world.etcd().get(pair[0]).unwrap().as_deref(), Some(pair[1]), "{}", pair[0]);
    }
    // When the plugin deletes the endpoint, the pod is closed at once.
    let key = lines.iter().find(|l| l.ends_with("node2-cni-cb-eth0")).unwrap();
    world.etcd().del(key).unwrap();
    assert!(soon(|| !a.pings(b.ip)));
}
