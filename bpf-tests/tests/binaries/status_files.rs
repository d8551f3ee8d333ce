//! Files that tell of enforced endpoints.

use std::fs;

use bpf_tests::{Host, Node, pod};
use serde_json::{Value, json};

use crate::{one_node, soon};

fn files(node: &Node) -> Vec<String> {
    let Ok(entries) = fs::read_dir(node.agent().endpoint_status()) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn name(pod: &str) -> String {
    format!("cni default%2F{} eth0", pod::container_id(pod))
}

#[test]
fn a_pods_file_is_there_when_add_returns_and_goes_with_it() {
    let world = one_node();
    let node = world.node(1);
    fs::create_dir_all(node.agent().endpoint_status()).unwrap();
    fs::write(node.agent().endpoint_status().join("k8s shop%2Fweb-0 eth0"), "{}").unwrap();
    node.agent().start().unwrap();
    assert!(soon(|| files(node).is_empty()), "what an earlier program left: {:?}", files(node));
    let a = node.add_pod("a", &[]).unwrap();
    assert_eq!(files(node), [name("a")]);
    let text = fs::read_to_string(node.agent().endpoint_status().join(name("a"))).unwrap();
    let content: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        content,
        json!({ "ifaceName": a.host_interface(), "mac": a.mac(), "ipv4Nets": [format!("{}/32", a.ip())] })
    );
    let b = node.add_pod("b", &[]).unwrap();
    assert_eq!(files(node).len(), 2);
    node.del_pod(&a).unwrap();
    assert!(soon(|| files(node) == [name("b")]), "{:?}", files(node));

    // Nobody is there to take the file away; the next agent does.
    node.agent().kill_9();
    node.del_pod(&b).unwrap();
    assert_eq!(files(node), [name("b")]);
    node.agent().start().unwrap();
    assert!(soon(|| files(node).is_empty()));
    node.add_pod("c", &[]).unwrap();
    node.agent().terminate().unwrap();
    assert!(node.agent().clean_up().unwrap().contains("endpoint status files"));
    assert!(!node.agent().endpoint_status().exists() && !node.agent().nodename_file().exists());
}
