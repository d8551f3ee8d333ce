//! The store comes late, goes, comes back, and comes back empty.

use std::{fs, time::Duration};

use bpf_tests::{Host, Node, Pinger, World, policy, until, world};
use serde_json::json;

use crate::{SOON, soon, two_nodes};

/// Reconnecting backs off, up to a few seconds.
const RECONNECTED: Duration = Duration::from_secs(30);

fn connected(node: &Node) -> bool {
    node.agent().status().is_ok_and(|s| s["store"]["connected"] == true)
}

#[test]
fn an_agent_waits_for_an_etcd_that_is_not_there_yet_and_says_so() {
    let world = World::builder().nodes(1).build().unwrap();
    world.etcd().kill();
    let agent = world.node(1).agent();
    agent.spawn().unwrap();
    assert!(
        agent.says(&["cannot", "http://192.168.60.254:2379", "connection refused", "etcd"], SOON),
        "{}",
        agent.log()
    );
    assert!(agent.is_running() && !agent.subnet_file().exists());
    world.etcd().restart().unwrap();
    agent.wait_ready(RECONNECTED).unwrap();
    let attempts = agent.log().lines().filter(|l| l.contains("connection refused")).count();
    assert!(attempts < 40, "{attempts} complaints are too many");
}

#[test]
fn traffic_and_pods_go_on_without_etcd_and_later_policy_arrives_when_it_is_back() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(20)).unwrap();
    world.etcd().kill();
    for node in world.nodes() {
        assert!(soon(|| !connected(node)), "{} says that etcd is away", node.name());
        let problems = node.agent().status().unwrap()["problems"].to_string();
        assert!(problems.contains("etcd is away"), "{problems}");
    }
    // A pod is made and talks on what is known, and a restart takes nothing away.
    let late = node.add_pod("late", &[("app", "late")]).unwrap();
    assert!(late.pings(b.ip()) && late.pings(world.node(2).public_ip()));
    node.agent().kill_9();
    node.agent().spawn().unwrap();
    assert!(node.agent().says(&["cannot", "etcd"], SOON));
    assert!(a.pings(b.ip()) && late.pings(b.ip()));
    node.del_pod(&late).unwrap();

    world.etcd().restart().unwrap();
    for node in world.nodes() {
        assert!(until(RECONNECTED, || connected(node)), "{}", node.agent().log());
    }
    let keys = || world.etcd().workload_endpoints().unwrap();
    assert!(soon(|| keys().len() == 2), "the late pod came and went: {:?}", keys());
    assert_eq!(pinger.stop().unwrap().lost, 0);
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())), "policy is followed again");
}

#[test]
fn a_store_that_answers_nothing_is_noticed_and_left_behind_when_it_wakes() {
    let (world, a, b) = two_nodes();
    world.etcd().pause().unwrap();
    assert!(until(RECONNECTED, || !connected(world.node(2))), "half-open watches do not hang for ever");
    assert!(a.pings(b.ip()));
    world.etcd().resume().unwrap();
    assert!(until(RECONNECTED, || connected(world.node(2))));
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
}

#[test]
fn an_etcd_that_lost_its_data_gets_leases_and_endpoints_again_and_pods_talk() {
    let (world, a, b) = two_nodes();
    let subnets = || world.etcd().keys("/coreos.com/network/subnets/").unwrap();
    let before = subnets();
    // A node that does not know that it has to write again, as flanneld's.
    let lease = r#"{"PublicIP":"192.168.50.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}}"#;
    world.etcd().put("/coreos.com/network/subnets/10.100.0.0-24", lease).unwrap();
    let knows = || world.node(1).agent().status().unwrap()["peers"].to_string().contains("10.100.0.0/24");
    assert!(soon(knows));
    let kept = || {
        policy::ingress(7, "app == 'b'", json!([{"action": "Deny", "protocol": "TCP"}, {"action": "Allow"}]))
    };
    let _server = b.serve_tcp(80).unwrap();
    world.etcd().put_global_policy("kept", kept()).unwrap();
    assert!(soon(|| !a.reaches(b.ip(), 80)));
    wipe(&world);
    assert!(until(RECONNECTED, || subnets() == before), "the same subnets again: {:?}", subnets());
    assert!(until(RECONNECTED, || world.etcd().workload_endpoints().unwrap().len() == 2));
    assert!(until(RECONNECTED, || a.pings(b.ip()) && b.pings(a.ip())));
    assert!(soon(|| world.etcd().get(&format!("{}profiles/canal", policy::RESOURCES)).unwrap().is_some()));
    assert!(!a.reaches(b.ip(), 80), "what is lost is not taken back");
    let deny = json!([{"action": "Deny"}]);
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", deny)).unwrap();
    assert!(soon(|| !a.pings(b.ip())), "and the watch follows the new store");
    world.etcd().delete_global_policy("t").unwrap();
    assert!(soon(|| a.pings(b.ip())) && !a.reaches(b.ip(), 80));
    let problems = || world.node(1).agent().status().unwrap()["problems"].to_string();
    assert!(knows() && problems().contains("lost its past, and 1 peers"), "{}", problems());
    world.etcd().put("/coreos.com/network/subnets/10.100.0.0-24", lease).unwrap();
    assert!(problems().contains("1 objects with it") && problems().contains("(GlobalNetworkPolicy kept)"));
    world.etcd().put_global_policy("kept", kept()).unwrap();
    assert!(soon(|| problems() == "[]") && knows(), "{}", problems());
    world.etcd().delete_global_policy("kept").unwrap();
    assert!(soon(|| a.reaches(b.ip(), 80)));
}

/// As after the loss of its disk; what every cluster begins with is written again.
fn wipe(world: &World) {
    world.etcd().kill();
    fs::remove_dir_all(world.folder().join("etcd")).unwrap();
    world.etcd().restart().unwrap();
    world.etcd().put("/coreos.com/network/config", world::CONFIG).unwrap();
}

#[test]
fn an_agent_that_starts_knows_whether_a_peer_has_left_or_etcd_has_lost_it() {
    let (world, a, b) = two_nodes();
    let agent = world.node(1).agent();
    let key = "/coreos.com/network/subnets/10.100.0.0-24";
    let lease = r#"{"PublicIP":"192.168.50.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}}"#;
    let knows = || agent.status().unwrap()["peers"].to_string().contains("10.100.0.0/24");
    let learn = || {
        world.etcd().put(key, lease).unwrap();
        assert!(soon(knows));
        let file = world.node(1).folder().join("state/peers.json");
        let kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains("10.100.0.0/24"));
        // Not at once, but with the next look at everything.
        assert!(until(SOON * 3, kept));
    };
    learn();
    agent.kill_9();
    world.etcd().del(key).unwrap();
    agent.start().unwrap();
    assert!(soon(|| !knows()), "it has left");

    learn();
    agent.kill_9();
    wipe(&world);
    let problems = || agent.status().unwrap()["problems"].to_string();
    for _ in 0..2 {
        agent.start().unwrap();
        assert!(soon(|| problems().contains("lost its past, and 1 peers")), "{}", problems());
        assert!(knows() && until(RECONNECTED, || a.pings(b.ip()) && b.pings(a.ip())));
        // The next one has only the memory of this one.
        let file = world.node(1).folder().join("state/peers.json");
        let kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains(r#""forgot":1"#));
        assert!(until(SOON * 3, kept));
        agent.kill_9();
    }
}

#[test]
fn a_compacted_history_and_a_burst_of_changes_are_no_loss() {
    let (world, a, b) = two_nodes();
    let etcd = world.etcd();
    etcd.pause().unwrap();
    assert!(until(RECONNECTED, || !connected(world.node(2))));
    etcd.resume().unwrap();
    for round in 0..20 {
        etcd.put_global_policy("t", policy::ingress(round, "app == 'b'", json!([{"action": "Allow"}])))
            .unwrap();
    }
    etcd.put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    etcd.compact().unwrap();
    assert!(until(RECONNECTED, || !a.pings(b.ip())));
    etcd.delete_global_policy("t").unwrap();
    etcd.compact().unwrap();
    assert!(until(RECONNECTED, || a.pings(b.ip())));
}
