//! STATUS tells whether an ADD would work.

use std::fs;

use bpf_tests::World;
use serde_json::json;

use super::{Call, config, netns};

#[test]
fn status_is_silent_where_add_would_work_and_says_why_it_would_not() {
    let network = r#"{"Network": "10.100.0.0/24", "SubnetLen": 29, "SubnetMin": "10.100.0.8", "Backend": {"Type": "vxlan"}}"#;
    let world = World::builder().nodes(1).config(Some(network)).build().unwrap();
    let node = world.node(1);
    let pod = netns(&world, "p");
    let status = || Call {
        // The runtime says nothing of a container.
        id: String::new(),
        netns: String::new(),
        interface: String::new(),
        ..Call::new(node, "STATUS", &pod, "p")
    };
    assert!(status().fails_with(50).contains("no canal-agent listens"));
    node.agent().start().unwrap();
    assert_eq!(status().works(), "");

    let gone = Call { path: "/no/such/folder".to_owned(), ..status() }.fails_with(50);
    assert!(gone.contains("host-local") && gone.contains("/no/such/folder"), "{gone}");
    let mut large = config(node, "1.1.0");
    large["mtu"] = json!(9000);
    assert!(status().with(&large).fails_with(50).contains("9000"));

    let away = node.folder().join("subnet.away");
    fs::rename(node.agent().subnet_file(), &away).unwrap();
    let mut none = config(node, "1.1.0");
    none["subnetFile"] = json!("/no/such/subnet.env");
    assert!(status().with(&none).fails_with(50).contains("/no/such/subnet.env"));
    drop(fs::rename(&away, node.agent().subnet_file()));

    // Of eight addresses: network, gateway and broadcast are no pods'.
    let pods: Vec<_> = (0..5).map(|n| node.add_pod(&format!("p{n}"), &[]).unwrap()).collect();
    let full = status().fails_with(50);
    assert!(full.contains("no free address") && full.contains("every address"), "{full}");
    node.del_pod(&pods[1]).unwrap();
    assert_eq!(status().works(), "");
    node.agent().terminate().unwrap();
    assert!(status().fails_with(50).contains("no canal-agent listens"));
}

#[test]
fn before_the_policies_are_read_the_node_is_not_ready() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let status = || Call::new(node, "STATUS", &pod, "p");
    status().works();
    world.etcd().kill();
    status().works();
    node.agent().kill_9();
    node.agent().spawn().unwrap();
    // It has no lease, and does not listen, or has read nothing yet.
    status().fails_with(50);
    world.etcd().restart().unwrap();
    node.agent().wait_ready(crate::RETRIED).unwrap();
    status().works();
}
