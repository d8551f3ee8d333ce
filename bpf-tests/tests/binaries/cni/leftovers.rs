//! What was cut off, or happened while nobody looked, is brought to its end.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bpf_tests::{Host, Netns, Node, pod::container_id};
use serde_json::{Value, json};

use super::{Call, Held, comes_to_hold, config, files, ip, netns, talks};
use crate::{one_node, soon};

fn record(node: &Node, name: &str) -> PathBuf {
    node.folder().join(format!("state/endpoints/{}@eth0.json", container_id(name)))
}

fn edit(file: &PathBuf, change: impl FnOnce(&mut Value)) {
    let mut record: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    change(&mut record);
    fs::write(file, record.to_string()).unwrap();
}

/// In milliseconds since 1970.
fn ago(time: Duration) -> u64 {
    let then = SystemTime::now() - time;
    u64::try_from(then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[test]
fn pods_that_went_while_the_agent_was_down_leave_and_the_living_stay() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (lives, gone) = (netns(&world, "lives"), netns(&world, "gone"));
    let result = Call::new(node, "ADD", &lives, "lives").result();
    Call::new(node, "ADD", &gone, "gone").works();
    comes_to_hold(&world, node, 2);
    node.agent().kill_9();
    drop(gone);
    node.agent().start().unwrap();
    comes_to_hold(&world, node, 1);
    assert!(talks(node, &lives, ip(&result)));

    // As a reboot leaves it: no interface, and everything on disk.
    node.agent().terminate().unwrap();
    drop(lives);
    assert!(soon(|| super::veths(node) == 0));
    node.agent().start().unwrap();
    comes_to_hold(&world, node, 0);
    // The runtime learns of its containers' end later, and says so.
    Call { netns: String::new(), ..Call::new(node, "DEL", node.netns(), "lives") }.works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn an_add_that_was_cut_off_long_ago_is_swept_and_a_young_one_is_left_alone() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    for name in ["old", "young"] {
        let pod = netns(&world, name);
        Call::new(node, "ADD", &pod, name).works();
        std::mem::forget(pod);
    }
    comes_to_hold(&world, node, 2);
    node.agent().terminate().unwrap();
    // As a plugin leaves it that was killed when all was made and before it said so.
    for (name, age) in [("old", Duration::from_mins(3)), ("young", Duration::ZERO)] {
        edit(&record(node, name), |record| {
            record["phase"] = json!("begun");
            record["since"] = json!(ago(age));
            record["endpoint"]["addresses"] = json!([]);
            record["endpoint"].as_object_mut().unwrap().remove("mac");
        });
    }
    node.agent().start().unwrap();
    assert!(soon(|| super::veths(node) == 1 && super::leases(node).len() == 1));
    assert!(soon(|| files(&node.folder().join("state/endpoints"), |_| true).len() == 1));
    assert!(record(node, "young").exists());
    Call { netns: String::new(), ..Call::new(node, "DEL", node.netns(), "young") }.works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn a_clock_that_went_back_sweeps_nothing_and_loses_nothing() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let result = Call::new(node, "ADD", &pod, "p").result();
    node.agent().terminate().unwrap();
    edit(&record(node, "p"), |record| record["since"] = json!(ago(Duration::ZERO) + 86_400_000));
    node.agent().start().unwrap();
    assert!(talks(node, &pod, ip(&result)));
    let other = netns(&world, "q");
    let second = Call::new(node, "ADD", &other, "q").result();
    assert!(talks(node, &other, ip(&second)));
    // A DEL that nobody heard is heard all the same, although by the clock the pod came later.
    node.agent().terminate().unwrap();
    Call::new(node, "DEL", &pod, "p").works();
    node.agent().start().unwrap();
    comes_to_hold(&world, node, 1);
    Call::new(node, "DEL", &other, "q").works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn a_lost_state_directory_is_told_and_its_pods_can_be_deleted() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (one, other) = (netns(&world, "one"), netns(&world, "other"));
    let first = Call::new(node, "ADD", &one, "one").result();
    let second = Call::new(node, "ADD", &other, "other").result();
    comes_to_hold(&world, node, 2);
    node.agent().kill_9();
    fs::remove_dir_all(node.folder().join("state")).unwrap();
    node.agent().start().unwrap();
    // Etcd still has their endpoints, from which the agent knows them.
    let ready = |result: &Value| node.agent().endpoint_state(ip(result)).unwrap().as_deref() == Some("ready");
    assert!(soon(|| ready(&first) && ready(&second)));
    assert!(talks(node, &one, ip(&first)) && talks(node, &other, ip(&second)));
    let notices = node.agent().status().unwrap()["notices"].to_string();
    for name in ["one", "other"] {
        assert!(notices.contains(&container_id(name)), "{notices}");
        assert!(notices.contains("etcd has its endpoint"), "{notices}");
    }
    assert_eq!(Held::of(&world, node).counts(), [2, 2, 2, 2, 0, 0]);
    Call::new(node, "DEL", &one, "one").works();
    assert!(soon(|| Held::of(&world, node).counts() == [1, 1, 1, 1, 0, 0]), "{:?}", Held::of(&world, node));
    // Whoever is added again is on record again.
    let again = Call::new(node, "ADD", &other, "other").result();
    assert!(talks(node, &other, ip(&again)));
    comes_to_hold(&world, node, 1);
    let mut all = config(node, "1.1.0");
    all["cni.dev/valid-attachments"] = json!([]);
    Call::new(node, "GC", &other, "x").with(&all).works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn a_del_while_etcd_is_away_ends_when_it_is_back() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod: Netns = netns(&world, "p");
    Call::new(node, "ADD", &pod, "p").works();
    comes_to_hold(&world, node, 1);
    world.etcd().kill();
    Call::new(node, "DEL", &pod, "p").works();
    assert_eq!((super::veths(node), super::leases(node).len()), (0, 0));
    node.agent().kill_9();
    world.etcd().restart().unwrap();
    node.agent().start().unwrap();
    comes_to_hold(&world, node, 0);
}
