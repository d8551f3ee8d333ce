//! Felix's parameters, from the machine and from etcd, and our own of the same sort.

use bpf_tests::{Host, LiveConnection, Node, Pod, World, policy, policy::RESOURCES};
use serde_json::{Value, json};

use crate::{agent_by, has, one_node, refusal, soon};

fn felix(world: &World, name: &str, spec: Value) {
    world.etcd().put_resource("felixconfigurations", "FelixConfiguration", None, name, spec).unwrap();
}

fn status(node: &Node, part: &str) -> String {
    node.agent().status().unwrap()[part].to_string()
}

/// Waits until the node has written its own object, which would else come after ours.
fn initialised(world: &World) {
    let key = format!("{RESOURCES}nodes/node1");
    assert!(soon(|| world.etcd().get(&key).unwrap().is_some()));
}

#[test]
fn a_change_in_etcd_is_followed_without_a_restart_and_a_bad_one_is_named_and_changes_nothing() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    initialised(&world);
    let pid = node.agent().pid();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(node.ip())), "the cluster's Return");
    let own = |action: &str| felix(&world, "node.node1", json!({ "defaultEndpointToHostAction": action }));
    own("Drop");
    assert!(soon(|| !a.pings(node.ip())));
    assert!(a.pings(b.ip()) && node.pings(a.ip()), "only what pods begin with their node is meant");
    own("Reject");
    assert!(soon(|| status(node, "invalid").contains("Reject")));
    has(
        &status(node, "invalid"),
        &[
            "FelixConfiguration node.node1 defaultEndpointToHostAction",
            "Drop, Accept or Return",
            "stays what it was",
        ],
    );
    assert!(!a.pings(node.ip()));
    own("return");
    assert!(soon(|| a.pings(node.ip())) && soon(|| status(node, "invalid") == "{}"));
    // The object of the whole cluster counts behind the node's, and the annotation before the field.
    let key = format!("{RESOURCES}felixconfigurations/default");
    let annotated = json!({ "metadata": { "annotations": { "config.projectcalico.org/DefaultEndpointToHostAction": "Drop" } },
        "spec": { "defaultEndpointToHostAction": "Return" } });
    world.etcd().put(&key, &annotated.to_string()).unwrap();
    world.etcd().put_global_policy("marker", policy::allow_all()).unwrap();
    assert!(soon(|| status(node, "endpoints").contains("marker")));
    assert!(a.pings(node.ip()));
    world.etcd().del(&format!("{RESOURCES}felixconfigurations/node.node1")).unwrap();
    assert!(soon(|| !a.pings(node.ip())));
    assert!(node.agent().says(&["Felix's parameters have changed"], crate::SOON));
    assert_eq!(node.agent().pid(), pid, "the same process all along");
}

#[test]
fn the_machine_beats_etcd_and_what_has_no_effect_is_said_once_without_harm() {
    let world = one_node();
    let node = world.node(1);
    let file = node.folder().join("felix.cfg");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!("{text}[global]\nDefaultEndpointToHostAction = DROP\nMTUIfacePattern = eth\n"),
    )
    .unwrap();
    node.agent().start().unwrap();
    initialised(&world);
    felix(&world, "default", json!({ "bpfEnabled": true, "healthEnabled": true, "reportingInterval": "0s" }));
    let a = node.add_pod("a", &[]).unwrap();
    assert!(soon(|| !a.pings(node.ip())), "the file beats the node's Return");
    let notices = || node.agent().status().unwrap()["notices"].as_array().unwrap().clone();
    let wanted = [
        format!("{}: no effect here: MTUIfacePattern", file.display()),
        "FelixConfiguration default: no effect here: bpfEnabled".to_owned(),
    ];
    assert!(soon(|| notices() == wanted), "{:?}", notices());
    let socket = node.agent().socket().display().to_string();
    let ctl = bpf_tests::agent::binary("canalctl").unwrap().display().to_string();
    let said = node.netns().cmd(&ctl).args(["status", "--socket", &socket]).output().unwrap();
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    has(&said.stdout, &["NOTICE", "bpfEnabled", "Health     ok"]);

    node.agent().terminate().unwrap();
    node.agent().set_env("FELIX_DefaultEndpointToHostAction", "ACCEPT");
    node.agent().start().unwrap();
    assert!(soon(|| a.pings(node.ip())), "the environment beats the file");
    assert!(notices().iter().any(|notice| notice.as_str().unwrap().contains("Accept acts as Return")));
}

#[test]
fn pods_may_send_ipip_and_the_log_says_more_when_they_are_told_so() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    initialised(&world);
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    let dropped = || node.agent().count("from_pod", "pod-tunnel").unwrap();
    assert!(sends_ipip(&a, &b));
    assert!(soon(|| dropped() > 0));
    felix(&world, "default", json!({ "allowIPIPPacketsFromWorkloads": true, "logSeverityScreen": "Debug" }));
    assert!(node.agent().says(&["Felix's parameters have changed", "pods_may_ipip: true"], crate::SOON));
    assert!(node.agent().says(&["DEBUG"], crate::SOON), "the level follows");
    let before = dropped();
    assert!(sends_ipip(&a, &b) && a.pings(b.ip()));
    assert_eq!(dropped(), before);
}

/// One IP-in-IP packet, as its kernel would send it.
fn sends_ipip(from: &Pod, to: &Pod) -> bool {
    let mut packet = vec![0xee; 6];
    packet.extend(from.mac().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    packet.extend([0x08, 0x00, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 4, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum: u32 =
        packet[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let check = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[24..26].copy_from_slice(&check.to_be_bytes());
    from.send_frame("eth0", &packet).is_ok()
}

#[test]
fn live_connections_outlive_a_change_of_policy_if_that_is_wanted() {
    let world = one_node();
    let node = world.node(1);
    node.agent().set_flag("--established", "keep");
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[("app", "b")]).unwrap());
    let _server = b.serve_tcp(9000).unwrap();
    let live = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    world.etcd().put_global_policy("deny", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.reaches(b.ip(), 9000)));
    assert!(live.is_alive() && !a.pings(b.ip()));
}

#[test]
fn tables_are_as_large_as_asked_and_nonsense_is_refused() {
    let world = one_node();
    let node = world.node(1);
    for (flag, value, words) in [
        ("--max-flows", "12", &["--max-flows", "between 1024 and"][..]),
        ("--max-rows", "1000000", &["--max-rows", "65536"]),
        ("--flow-timeouts", "tcp=1h", &["--flow-timeouts", "tcp-established"]),
        ("--established", "maybe", &["--established", "judge", "keep"]),
    ] {
        has(&refusal(agent_by(node, "").args([flag, value])), words);
    }
    for (flag, value) in [
        ("--max-flows", "4096"),
        ("--max-peers", "2048"),
        ("--max-rows", "1024"),
        ("--flow-timeouts", "icmp=2s"),
    ] {
        node.agent().set_flag(flag, value);
    }
    node.agent().start().unwrap();
    let capacity = |table: &str| {
        let status = node.agent().status().unwrap();
        let found = status["tables"].as_array().unwrap().iter().find(|t| t["table"] == table).cloned();
        found.unwrap()["capacity"].clone()
    };
    assert_eq!((capacity("PEERS"), capacity("ROWS")), (json!(2048), json!(1024)));
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    assert!(a.pings(b.ip()));
    // The same on the next start: nothing is made anew, so connections live on.
    node.agent().crash_and_restart().unwrap();
    assert!(!node.agent().log().contains("has another layout or size"));
}

#[test]
fn pods_may_send_vxlan_to_one_another_while_they_are_told_so() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    initialised(&world);
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    // The overlay's port, and the one that Calico's own has by default.
    let ports = [8472, 4789];
    let _servers = ports.map(|port| b.serve_udp(port).unwrap());
    let echoed = |port| a.udp_echoes(b.ip(), port, 1).unwrap() == 1;
    let dropped = || node.agent().count("from_pod", "pod-tunnel").unwrap();
    assert!(ports.iter().all(|port| !echoed(*port)) && dropped() == 2);
    felix(&world, "default", json!({ "allowVXLANPacketsFromWorkloads": true }));
    assert!(soon(|| ports.iter().all(|port| echoed(*port))));
    // Outside the overlay nobody may take them for the node's own.
    let before = dropped();
    a.send_udp(node.ip(), 8472, b"x").unwrap();
    assert!(soon(|| dropped() == before + 1));
    felix(&world, "default", json!({ "allowVXLANPacketsFromWorkloads": false }));
    assert!(soon(|| ports.iter().all(|port| !echoed(*port))));
}
