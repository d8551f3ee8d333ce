//! Ports of a node that lead to a pod, by the real `portmap` plugin behind ours: who may use them is the pod's policy, which
//! sees the client's own address.

use std::net::Ipv4Addr;

use bpf_tests::{At, Connect, Host, Node, Pod, World, pod::container_id, policy};
use serde_json::json;

use crate::{outside::add_outside, soon};

const PORTMAP: &str = "/usr/lib/cni/portmap";
const HOST_PORT: u16 = 18080;
const POD_PORT: u16 = 8080;

/// As a runtime calls the second plugin of a list.
fn map_port(node: &Node, pod: &Pod, verb: &str) {
    let mapping = json!({ "hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp" });
    let config = json!({
        "cniVersion": "1.0.0", "name": "canal", "type": "portmap", "snat": true,
        "runtimeConfig": { "portMappings": [mapping] },
        "prevResult": pod.result(),
    });
    let command = node.netns().cmd(PORTMAP).env("CNI_COMMAND", verb);
    let command = command.env("CNI_CONTAINERID", container_id(pod.name())).env("CNI_IFNAME", "eth0");
    let command = command.env("CNI_NETNS", pod.netns().path().display().to_string());
    let path = "/usr/lib/cni:/opt/cni/bin";
    command.env("CNI_PATH", path).stdin(config.to_string()).run().unwrap();
}

/// Of a client outside, who has two addresses.
fn reaches(client: At<'_>, node: &Node) -> bool {
    let line = format!("route replace {}/32 dev br0 src {}", node.public_ip(), client.ip);
    client.netns.ip(&line).unwrap();
    client.reaches(node.public_ip(), HOST_PORT)
}

#[test]
fn a_mapped_port_leads_to_the_pod_whose_policy_sees_the_client() {
    let world = World::builder().nodes(3).build().unwrap();
    let outside = add_outside(&world);
    let (one, two) = (world.node(1), world.node(2));
    for node in world.nodes() {
        node.agent().add_switch("--ip-masq=true");
    }
    world.start_agents().unwrap();
    let web = one.add_pod("web", &[("app", "web")]).unwrap();
    let (near, far) = (one.add_pod("near", &[]).unwrap(), two.add_pod("far", &[]).unwrap());
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let _server = web.serve_tcp(POD_PORT).unwrap();
    let [a, b] = ["203.0.113.1", "192.168.50.100"].map(|ip| At { netns: outside, ip: ip.parse().unwrap() });
    let mapped = |from: &dyn Host| from.reaches(one.public_ip(), HOST_PORT);
    assert!(!mapped(two), "no mapping yet");
    map_port(one, &web, "ADD");
    assert!(soon(|| reaches(a, one)) && reaches(b, one), "from outside");
    for (what, from) in
        [("another node", two as &dyn Host), ("its pod", &far), ("a pod beside", &near), ("the pod", &web)]
    {
        assert!(mapped(from), "from {what} itself");
    }
    assert!(mapped(one) && one.reaches(Ipv4Addr::LOCALHOST, HOST_PORT), "from the node");

    let allow_only = |client: Ipv4Addr| {
        let rules = json!([{ "action": "Allow", "source": { "nets": [format!("{client}/32")] } }, { "action": "Deny" }]);
        world.etcd().put_global_policy("web", policy::ingress(1, "app == 'web'", rules)).unwrap();
    };
    allow_only(a.ip);
    assert!(soon(|| !reaches(b, one)), "another client");
    assert!(reaches(a, one) && !mapped(two) && !mapped(&near));
    allow_only(two.public_ip());
    assert!(soon(|| mapped(two)), "a node");
    // Towards other nodes, pods are masqueraded.
    assert!(mapped(&far) && !reaches(a, one) && !mapped(&near));
    allow_only(near.ip());
    assert!(soon(|| mapped(&near)), "a pod beside");
    assert!(!mapped(two) && !reaches(a, one));
    assert!(mapped(one), "the node itself is never policed");

    map_port(one, &web, "DEL");
    assert_eq!(near.connect(one.public_ip(), HOST_PORT), Connect::Refused, "nobody listens there any more");
}
