//! `canal-agent cleanup` leaves nothing.

use std::{collections::BTreeSet, fs, path::Path};

use bpf_tests::{Host, Node, World};

use crate::soon;

/// Every trace that an agent can leave on a node.
fn traces(node: &Node) -> BTreeSet<String> {
    let netns = node.netns();
    let mut found = BTreeSet::new();
    for line in ["link show", "route show table all", "rule show", "neigh show nud permanent", "-4 addr show"]
    {
        let said = netns.ip(&format!("-o {line}")).unwrap();
        // Counts and timers are no traces, and addresses that the kernel gives itself come when they come.
        let lines = said.lines().filter(|l| !l.contains("fe80::"));
        found.extend(lines.map(|l| format!("{line}: {}", l.split(" qlen").next().unwrap_or(l))));
    }
    found.extend(netns.cmd("nft list ruleset").run().unwrap().lines().map(|l| format!("nft: {l}")));
    let sockets = netns.cmd("ss -Hlnu sport = :8472").run().unwrap();
    found.extend(sockets.lines().map(|l| format!("socket: {l}")));
    files(node.folder(), &mut found);
    found
}

fn files(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        // The plugin's address book is host-local's, the log the test's.
        if path.ends_with("ipam") || path.ends_with("agent.log") {
            continue;
        }
        into.insert(format!("file: {}", path.display()));
        if path.is_dir() {
            files(&path, into);
        }
    }
}

fn world() -> World {
    let world = World::builder().nodes(2).build().unwrap();
    world.node(1).agent().add_switch("--ip-masq=true");
    world
}

#[test]
fn nothing_is_left_after_the_pods_are_gone() {
    let world = world();
    let node = world.node(1);
    let before = traces(node);
    world.start_agents().unwrap();
    let a = node.add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let running = traces(node);
    for trace in ["canal.1", "canal-masq", "subnet.env", "agent.sock", "from_wire", "8472"] {
        assert!(running.iter().any(|t| t.contains(trace)), "{trace} in {running:#?}");
    }
    node.del_pod(&a).unwrap();
    node.agent().terminate().unwrap();
    let said = node.agent().clean_up().unwrap();
    for part in ["programs", "tables", "canal.1", "masquerade", "subnet.env", "endpoints"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let after = traces(node);
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(
        before.difference(&after).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "and nothing else is taken"
    );
    assert!(
        node.agent().clean_up().unwrap().contains("nothing to remove"),
        "a second time there is nothing to do"
    );
    // The node can come back.
    node.agent().start().unwrap();
    let again = node.add_pod("again", &[]).unwrap();
    assert!(soon(|| again.pings(b.ip())));
}

#[test]
fn a_pod_that_is_still_there_keeps_its_interface_and_loses_its_programs() {
    let world = world();
    let node = world.node(1);
    world.start_agents().unwrap();
    let a = node.add_pod("a", &[]).unwrap();
    let refused = node.agent().clean_up().unwrap_err().to_string();
    assert!(refused.contains("another canal-agent runs"), "not under a running agent: {refused}");
    assert!(node.pings(a.ip()), "and it has done nothing");
    node.agent().kill_9();
    node.agent().clean_up().unwrap();
    assert!(
        node.netns().ip(&format!("link show {}", a.host_interface())).is_ok(),
        "the pod's is the runtime's"
    );
    assert!(!node.netns().ip("route show").unwrap().contains("proto 202"));
    assert!(!node.bpffs().join("canal").exists());
    node.del_pod(&a).unwrap();
}
