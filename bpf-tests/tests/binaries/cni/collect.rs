//! GC removes everything of a network that the runtime does not list.

use bpf_tests::{Netns, Node, World, pod::container_id};
use serde_json::{Value, json};

use super::{Call, Held, comes_to_hold, config, ip, netns, talks};
use crate::{one_node, soon};

fn list(config: Value, names: &[&str]) -> Value {
    let mut config = config;
    let one = |name: &&str| json!({"containerID": container_id(name), "ifname": "eth0"});
    config["cni.dev/valid-attachments"] = names.iter().map(one).collect();
    config["cni.dev/attachments"] = config["cni.dev/valid-attachments"].clone();
    config
}

fn three(world: &World, node: &Node) -> Vec<(Netns, Value)> {
    ["a", "b", "c"]
        .map(|name| {
            let pod = netns(world, name);
            let result = Call::new(node, "ADD", &pod, name).result();
            (pod, result)
        })
        .into()
}

/// The runtime names no container.
fn gc<'a>(node: &'a Node, pod: &Netns, config: &Value) -> Call<'a> {
    let (id, netns, interface) = (String::new(), String::new(), String::new());
    Call { id, netns, interface, ..Call::new(node, "GC", pod, "x").with(config) }
}

#[test]
fn what_is_not_listed_goes_and_the_rest_and_other_networks_stay() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pods = three(&world, node);
    let mut elsewhere = config(node, "1.1.0");
    elsewhere["name"] = json!("other");
    // Two networks of a node share its subnet.
    let [_, _, third, _] = ip(&pods[0].1).octets();
    elsewhere["ipam"]["rangeStart"] = json!(format!("10.100.{third}.100"));
    let other = netns(&world, "o");
    let others = Call::new(node, "ADD", &other, "o").with(&elsewhere).result();
    let (kept, result) = &pods[1];
    // What a runtime forgot long ago has only a note of host-local's left.
    let note = node.folder().join(format!("ipam/canal/10.100.{third}.200"));
    std::fs::write(&note, format!("{}\r\neth0", container_id("forgotten"))).unwrap();
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().len() == 4), "etcd hears of all");
    let before = Held::of(&world, node);

    let said = gc(node, kept, &config(node, "1.1.0")).fails_with(7);
    assert!(said.contains("cni.dev/valid-attachments"), "{said}");
    assert_eq!(Held::of(&world, node).counts(), before.counts(), "without a list nothing goes");

    let output = gc(node, kept, &list(config(node, "1.1.0"), &["b"])).make();
    assert!(output.ok() && output.stdout.is_empty(), "{output:?}");
    assert!(!output.stderr.contains(&container_id("b")), "{}", output.stderr);
    for name in ["a", "c"] {
        assert!(output.stderr.contains(&container_id(name)), "{}", output.stderr);
    }
    assert!(!note.exists());
    assert!(pods[0].0.ip("link show eth0").is_err() && pods[2].0.ip("link show eth0").is_err());
    assert!(talks(node, kept, ip(result)));
    assert!(talks(node, &other, ip(&others)), "another network's pod stays");
    assert!(soon(|| Held::of(&world, node).counts() == [2, 1, 2, 2, 2, 0]), "{:?}", Held::of(&world, node));
    assert_eq!(super::leases(node), [ip(result).to_string()]);
    Call::new(node, "CHECK", kept, "b").with(&super::after(result, config(node, "1.1.0"))).works();

    gc(node, kept, &list(config(node, "1.1.0"), &["b"])).works();
    Call::new(node, "DEL", &other, "o").with(&elsewhere).works();
    comes_to_hold(&world, node, 1);
    gc(node, kept, &list(config(node, "1.1.0"), &[])).works();
    comes_to_hold(&world, node, 0);
    for name in ["a", "b", "c"] {
        Call::new(node, "DEL", kept, name).works();
    }
}

#[test]
fn without_an_agent_nothing_goes() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pods = three(&world, node);
    comes_to_hold(&world, node, 3);
    let before = Held::of(&world, node);
    node.agent().terminate().unwrap();
    let said = gc(node, &pods[0].0, &list(config(node, "1.1.0"), &["b"])).fails_with(11);
    assert!(said.contains("canal-agent"), "{said}");
    assert_eq!(Held::of(&world, node), before);
    assert!(pods.iter().all(|(pod, result)| talks(node, pod, ip(result))));
    node.agent().start().unwrap();
    gc(node, &pods[0].0, &list(config(node, "1.1.0"), &["b"])).works();
    comes_to_hold(&world, node, 1);
}
