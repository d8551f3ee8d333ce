//! Pods that flannel's and Calico's plugins made before this node was moved.

use std::fs;

use bpf_tests::{Cmd, Host, Netns, Node, World, pod::container_id, until};
use serde_json::{Value, json};

use super::{Call, Held, LOOKED_AGAIN, PLUGINS, config, netns, talks};
use crate::{one_node, soon};

/// As flannel's plugin with Calico's behind it leaves it: `host-local`'s lease, the pair, the WorkloadEndpoint, and
/// flannel's note of the delegate's configuration.
fn plug(world: &World, node: &Node, name: &str) -> (Netns, std::net::Ipv4Addr) {
    let pod = netns(world, name);
    let id = container_id(name);
    let subnet = node.agent().status().unwrap()["lease"]["subnet"].clone();
    let stored = json!({
        "cniVersion": "1.0.0", "name": "canal", "type": "calico", "mtu": 1450, "nodename": "node1",
        "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "ipMasq": false,
        "ipam": {"type": "host-local", "dataDir": node.folder().join("ipam"), "ranges": [[{"subnet": subnet}]],
                 "routes": [{"dst": "10.100.0.0/16"}]},
    });
    let result = Cmd::new(super::host_local())
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &id)
        .env("CNI_NETNS", pod.path().display().to_string())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(stored.to_string())
        .run()
        .unwrap();
    let ip = super::ip(&serde_json::from_str(&result).unwrap());
    let interface = format!("cali{}", &id[..11]);
    Cmd::line(&format!("ip -n {} link add {interface} type veth peer name eth0", node.netns().name()))
        .args(["netns", pod.name()])
        .run()
        .unwrap();
    node.netns().ip(&format!("link set {interface} address ee:ee:ee:ee:ee:ee mtu 1450 up")).unwrap();
    node.netns().ip(&format!("route add {ip}/32 dev {interface} scope link")).unwrap();
    for line in [
        "link set eth0 mtu 1450 up".to_owned(),
        format!("addr add {ip}/32 dev eth0"),
        "route add 169.254.1.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
    ] {
        pod.ip(&line).unwrap();
    }
    let link: Value = serde_json::from_str(&pod.ip("-j link show eth0").unwrap()).unwrap();
    let spec = json!({
        "orchestrator": "cni", "workload": "", "node": "node1", "containerID": id, "pod": "", "endpoint": "eth0",
        "ipNetworks": [format!("{ip}/32")], "ipNATs": [], "ipv4Gateway": "", "ipv6Gateway": "",
        "profiles": ["canal"], "interfaceName": interface, "mac": link[0]["address"], "ports": [],
    });
    let endpoint = format!("node1-cni-{id}-eth0");
    world
        .etcd()
        .put_resource("workloadendpoints", "WorkloadEndpoint", Some("default"), &endpoint, spec)
        .unwrap();
    fs::create_dir_all(node.folder().join("flannel")).unwrap();
    fs::write(node.folder().join("flannel").join(&id), stored.to_string()).unwrap();
    (pod, ip)
}

/// The configuration as it was before, and still is.
fn flannels(node: &Node) -> Value {
    let mut config = config(node, "1.0.0");
    config["type"] = json!("flannel");
    config["dataDir"] = json!(node.folder().join("flannel"));
    config["delegate"] = json!({"type": "calico", "nodename": "node1"});
    config
}

fn nothing_is_left(world: &World, node: &Node) -> bool {
    until(LOOKED_AGAIN, || {
        Held::of(world, node).counts() == [0; 6]
            && super::files(&node.folder().join("flannel"), |_| true).is_empty()
    })
}

#[test]
fn del_removes_everything_of_a_pod_that_other_plugins_made() {
    let world = one_node();
    let node = world.node(1);
    world
        .etcd()
        .put_profile("canal", json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}))
        .unwrap();
    node.agent().start().unwrap();
    let (first, ip) = plug(&world, node, "first");
    let (second, other) = plug(&world, node, "second");
    assert!(soon(|| node.agent().endpoint_state(ip).unwrap().as_deref() == Some("ready")));
    assert!(soon(|| talks(node, &first, ip)) && soon(|| talks(node, &second, other)));

    // In the dialect that made it.
    Call::new(node, "DEL", &first, "first").with(&flannels(node)).works();
    assert!(first.ip("link show eth0").is_err());
    assert!(soon(|| Held::of(&world, node).counts() == [1, 1, 1, 1, 0, 0]), "{:?}", Held::of(&world, node));
    assert_eq!(super::files(&node.folder().join("flannel"), |_| true), [container_id("second")]);
    assert!(talks(node, &second, other), "the other one talks on");

    // The agent is down, and hears of it when it is back.
    node.agent().terminate().unwrap();
    Call::new(node, "DEL", &second, "second").with(&flannels(node)).works();
    let left = Held::of(&world, node);
    assert_eq!((left.veths, left.leases.len(), left.endpoints.len()), (0, 0, 1), "{left:?}");
    node.agent().start().unwrap();
    assert!(nothing_is_left(&world, node), "{:?}", Held::of(&world, node));
}

#[test]
fn del_in_our_own_dialect_removes_a_pod_of_calicos_plugin_too() {
    let world = one_node();
    let node = world.node(1);
    world
        .etcd()
        .put_profile("canal", json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}))
        .unwrap();
    node.agent().start().unwrap();
    let (pod, ip) = plug(&world, node, "p");
    fs::remove_dir_all(node.folder().join("flannel")).unwrap();
    assert!(soon(|| node.agent().endpoint_state(ip).unwrap().as_deref() == Some("ready")));
    // Its namespace is gone already, so that nothing tells of its interface.
    drop(pod);
    let gone = netns(&world, "gone");
    Call { netns: String::new(), ..Call::new(node, "DEL", &gone, "p") }.works();
    assert!(nothing_is_left(&world, node), "{:?}", Held::of(&world, node));

    let (pod, ip) = plug(&world, node, "q");
    fs::remove_dir_all(node.folder().join("flannel")).unwrap();
    assert!(soon(|| node.agent().endpoint_state(ip).unwrap().as_deref() == Some("ready")));
    let mut config = config(node, "1.1.0");
    config["cni.dev/valid-attachments"] = json!([]);
    Call::new(node, "GC", &pod, "q").with(&config).works();
    assert!(soon(|| Held::of(&world, node).endpoints.is_empty()), "GC: {:?}", Held::of(&world, node));
    assert!(nothing_is_left(&world, node), "GC: {:?}", Held::of(&world, node));
}
