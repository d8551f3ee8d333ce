//! Which addresses are taken for pods': others may live beside them, and nodes may be of two networks for a while.

use std::net::Ipv4Addr;

use bpf_tests::{At, Host, Node, Pod, World, policy, until};
use serde_json::json;

use crate::{SOON, soon};

const CONFIG: &str = "/coreos.com/network/config";
const LEASES: &str = "/coreos.com/network/subnets/";
/// A host behind the underlay's router.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 70, 1);
const ROUTER: &str = "192.168.50.100";

fn problems(node: &Node) -> String {
    node.agent().status().unwrap()["problems"].to_string()
}

/// Where the host's stack sends what is for `ip`.
fn way(node: &Node, ip: &str) -> String {
    let said = node.netns().cmd(&format!("ip route get {ip}")).output().unwrap();
    format!("{}{}", said.stdout, said.stderr)
}

fn talk(a: &Pod, b: &Pod, when: &str) {
    let (_a, _b) = (a.serve_tcp(8080).unwrap(), b.serve_tcp(8080).unwrap());
    assert!(soon(|| a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080)), "{when}");
}

#[test]
fn nodes_etcd_and_the_world_may_live_in_the_same_network_as_pods() {
    let network = r#"{"Network":"192.168.0.0/16",RANGE"Backend":{"Type":"vxlan"}}"#;
    let world = World::builder().nodes(3).config(Some(&network.replace("RANGE", ""))).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let router = world.wire().unwrap();
    for line in [format!("addr add {ROUTER}/24 dev br0"), format!("addr add {OUTSIDE}/32 dev lo")] {
        router.ip(&line).unwrap();
    }
    for node in world.nodes() {
        let (number, ip) = (node.number(), node.public_ip());
        let reservation = json!({ "PublicIP": ip, "BackendType": "vxlan",
                                  "BackendData": { "VNI": 1, "VtepMAC": format!("0e:00:00:00:00:0{number}") } });
        world.etcd().put(&format!("{LEASES}192.168.20{number}.0-24"), &reservation.to_string()).unwrap();
        node.netns().ip(&format!("route add default via {ROUTER} dev up0")).unwrap();
        router.ip(&format!("route add 192.168.20{number}.0/24 via {ip}")).unwrap();
    }
    world.start_agents().unwrap();
    let [one, two] = [1, 2].map(|number| world.node(number));
    let [a, b] = [(one, "a"), (two, "b")].map(|(node, name)| node.add_pod(name, &[]).unwrap());
    let outside = At { netns: router, ip: OUTSIDE };
    let _server = outside.serve_tcp(8080).unwrap();
    let all_talk = |when: &str| {
        talk(&a, &b, when);
        assert!(
            soon(|| one.pings(b.ip()) && one.pings(OUTSIDE) && one.reaches(OUTSIDE, 8080)),
            "{when}: a host"
        );
        assert!(soon(|| a.pings(OUTSIDE) && a.reaches(OUTSIDE, 8080)), "{when}: a pod to the world");
        let _server = a.serve_tcp(8081).unwrap();
        assert!(
            soon(|| outside.pings(a.ip()) && outside.reaches(a.ip(), 8081)),
            "{when}: the world to a pod"
        );
    };
    all_talk("nothing keeps them apart");
    for node in world.nodes() {
        assert!(problems(node).contains("SubnetMin"), "{}", problems(node));
        assert!(
            way(node, "192.168.140.9").contains(&format!("via {ROUTER}")),
            "nobody's, as far as is known"
        );
    }

    let range = network.replace("RANGE", r#""SubnetMin":"192.168.128.0","SubnetMax":"192.168.223.0","#);
    world.etcd().put(CONFIG, &range).unwrap();
    for node in world.nodes() {
        assert!(soon(|| problems(node) == "[]"), "{}", problems(node));
        let leads = |ip: &str, to: &str| soon(|| way(node, ip).contains(to));
        assert!(leads("192.168.140.9", "dev canal.1"), "{}", way(node, "192.168.140.9"));
        assert!(leads("192.168.230.9", &format!("via {ROUTER}")));
    }
    all_talk("a range keeps them apart");
    one.agent().terminate().unwrap();
    one.agent().start().unwrap();
    all_talk("so it is after a restart");
}

#[test]
fn nodes_of_two_networks_reach_each_other_and_what_cannot_be_reached_is_refused() {
    let world = World::builder().nodes(2).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let [one, two] = [1, 2].map(|number| world.node(number));
    for (node, router) in [(one, "192.168.50.2"), (two, "192.168.50.1")] {
        node.netns().ip(&format!("route add default via {router} dev up0")).unwrap();
    }
    one.agent().start().unwrap();
    let next = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#;
    world.etcd().put(CONFIG, next).unwrap();
    assert!(soon(|| problems(one).contains("10.200.0.0/16")), "it is told: {}", problems(one));
    two.agent().start().unwrap();
    let [a, b] = [(one, "a"), (two, "b")].map(|(node, name)| node.add_pod(name, &[]).unwrap());
    assert_ne!(a.ip().octets()[1], b.ip().octets()[1]);
    talk(&a, &b, "each knows the other's lease");
    for (node, pod) in [(one, &b), (two, &a)] {
        let way = way(node, &pod.ip().to_string());
        assert!(way.contains("dev canal.1") && soon(|| node.pings(pod.ip())), "{way}");
    }

    let elsewhere = json!({ "PublicIP": "192.168.50.9", "BackendType": "vxlan",
                            "BackendData": { "VNI": 9, "VtepMAC": "0e:00:00:00:00:09" } });
    world.etcd().put(&format!("{LEASES}10.201.9.0-24"), &elsewhere.to_string()).unwrap();
    for node in [one, two] {
        let refused = || way(node, "10.201.9.1").contains("No route to host");
        assert!(soon(refused), "not by the default route: {}", way(node, "10.201.9.1"));
    }
    world.etcd().del(&format!("{LEASES}10.201.9.0-24")).unwrap();
    let is_gone = || !one.netns().ip("route show").unwrap().contains("10.201.9.0/24");
    assert!(until(SOON * 3, is_gone), "{}", one.netns().ip("route show").unwrap());
    two.agent().terminate().unwrap();
    two.agent().start().unwrap();
    talk(&a, &b, "so it is after a restart");
}
