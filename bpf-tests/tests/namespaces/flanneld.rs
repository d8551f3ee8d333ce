//! The real flanneld on a node of its own, where the PATH has one; else these are reported as skipped.

use std::net::Ipv4Addr;

use bpf_tests::{FlannelPod, Host, Node, Pod, Proc, World, policy};

use crate::soon;

/// A node whose flanneld runs until this is dropped.
pub(super) struct Flanneld<'a> {
    node: &'a Node,
    _process: Proc,
}

impl<'a> Flanneld<'a> {
    pub(super) fn start(world: &'a World, number: u8) -> Self {
        let node = world.node(number);
        let log = node.folder().join("flanneld.log");
        let command = node.netns().cmd("flanneld -etcd-endpoints http://192.168.60.254:2379 -iface up0");
        let process = command.args(["-subnet-file", &subnet_file(node)]).start(&log).unwrap();
        let flanneld = Self { node, _process: process };
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(soon(|| flanneld.subnet().is_some()), "flanneld takes no subnet: {}", said());
        flanneld
    }

    pub(super) fn subnet(&self) -> Option<Ipv4Addr> {
        let env = std::fs::read_to_string(subnet_file(self.node)).ok()?;
        env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")?.split('/').next()?.parse().ok())
    }

    fn add_pod(&self, name: &str, mtu: u16) -> FlannelPod {
        let [a, b, c, _] = self.subnet().unwrap().octets();
        FlannelPod::create(self.node, name, Ipv4Addr::new(a, b, c, 9), mtu).unwrap()
    }
}

fn subnet_file(node: &Node) -> String {
    node.folder().join("flanneld.env").display().to_string()
}

fn world(backend: &str) -> World {
    // With nftables, where iptables would want a module that the kernel may not have.
    let config = format!(r#"{{"Network":"10.100.0.0/16","EnableNFTables":true,"Backend":{backend}}}"#);
    let world = World::builder().nodes(3).config(Some(&config)).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    world
}

fn talk(a: &Pod, b: &FlannelPod, what: &str) {
    assert!(soon(|| a.pings(b.ip())), "{what}: out");
    assert!(soon(|| b.pings(a.ip())), "{what}: in");
    let (_a, _b) = (a.serve_tcp(8080).unwrap(), b.serve_tcp(8080).unwrap());
    assert!(a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080), "{what}: TCP");
    assert_eq!(a.ping_sized(b.ip(), 2, 4000).unwrap().lost, 0, "{what}: in fragments");
}

#[test]
#[cfg_attr(not(has_flanneld), ignore = "there is no flanneld on the PATH")]
fn pods_of_a_real_flanneld_and_of_canal_talk_whoever_came_first_and_over_every_backend() {
    for (backend, mtu) in [
        (r#"{"Type":"vxlan"}"#, 1450),
        (r#"{"Type":"vxlan","DirectRouting":true}"#, 1450),
        (r#"{"Type":"host-gw"}"#, 1500),
    ] {
        let world = world(backend);
        let early = Flanneld::start(&world, 2);
        world.node(1).agent().start().unwrap();
        let late = Flanneld::start(&world, 3);
        let a = world.node(1).add_pod("a", &[]).unwrap();
        for (name, flanneld) in [("early", &early), ("late", &late)] {
            talk(&a, &flanneld.add_pod(name, mtu), &format!("{backend}, {name}"));
        }
    }
}

#[test]
#[cfg_attr(not(has_flanneld), ignore = "there is no flanneld on the PATH")]
fn a_node_of_a_real_flanneld_is_taken_over_and_given_back() {
    let world = world(r#"{"Type":"vxlan"}"#);
    let first = Flanneld::start(&world, 1);
    let (subnet, own) = (first.subnet().unwrap(), world.node(1));
    let other = Flanneld::start(&world, 2);
    let (a, b) = (first.add_pod("a", 1450), other.add_pod("b", 1450));
    assert!(soon(|| a.pings(b.ip())), "flannel to flannel");
    let mac = |device: &str| own.netns().ip(&format!("-br link show {device}")).unwrap();
    let before = mac("flannel.1").split_whitespace().nth(2).unwrap().to_owned();

    drop(first);
    own.agent().start().unwrap();
    let lease = own.agent().status().unwrap()["lease"].clone();
    let whole = ipnet::Ipv4Net::new(subnet, 24).unwrap().trunc();
    assert_eq!(lease["subnet"], whole.to_string());
    assert_eq!(lease["vtep_mac"], before.as_str());
    let c = own.add_pod("c", &[]).unwrap();
    talk(&c, &b, "taken over");

    own.agent().terminate().unwrap();
    let said = own.agent().hand_over_to_flannel().unwrap();
    assert!(said.contains("flannel.1"), "{said}");
    let again = Flanneld::start(&world, 1);
    assert_eq!(again.subnet(), Some(subnet), "the same subnet");
    assert_eq!(mac("flannel.1").split_whitespace().nth(2), Some(before.as_str()), "and the same MAC");
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
}
