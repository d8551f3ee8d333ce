//! `canalctl`, for people and for scripts.

use bpf_tests::{Host, Node, World, agent::binary, cmd::Output};
use serde_json::Value;

use crate::soon;

pub(crate) fn canalctl(node: &Node, line: &str) -> Output {
    let program = binary("canalctl").unwrap().display().to_string();
    node.netns()
        .cmd(&format!("{program} {line}"))
        .args(["--socket", &node.agent().socket().display().to_string()])
        .args(["--bpffs", &node.bpffs().display().to_string()])
        .output()
        .unwrap()
}

/// Packets that the status counts at a hook for a reason.
fn counted(status: &Value, hook: &str, reason: &str) -> u64 {
    let counters = status["counters"].as_array().unwrap();
    let found = counters.iter().find(|c| c["hook"] == hook && c["reason"] == reason);
    found.and_then(|c| c["packets"].as_u64()).unwrap_or_default()
}

#[test]
fn status_shows_everything_to_people_and_to_scripts() {
    let world = World::builder().nodes(2).build().unwrap();
    let node = world.node(1);
    let nothing = canalctl(node, "status");
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    assert!(
        nothing.stderr.contains("no canal-agent listens") && nothing.stderr.contains("no pinned tables"),
        "{nothing:?}"
    );

    world.start_agents().unwrap();
    let a = node.add_pod("a", &[("app", "web")]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let table = canalctl(node, "status");
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    for part in [
        "Agent",
        "node1",
        "Store",
        "http://192.168.60.254:2379",
        "connected",
        "revision",
        "Lease",
        "10.100.0.0/16",
        "VNI 1",
        "UDP 8472",
        "MTU 1450",
        "Health",
        "ok",
        "PEER SUBNET",
        "192.168.50.2",
        "ENDPOINT",
        "ready",
        "PROGRAM",
        "from_pod",
        "to_pod",
        "from_wire",
        "to_overlay",
        "from_overlay",
        "canal.1",
        "up0",
        "TABLE",
        "CAPACITY",
        "REASON",
        "encapsulated",
        "delivered",
        &a.ip().to_string(),
        a.host_interface(),
    ] {
        assert!(table.stdout.contains(part), "{part:?} is not in:\n{}", table.stdout);
    }

    let json = canalctl(node, "status -o json");
    assert_eq!(json.status.code(), Some(0));
    let status: Value = serde_json::from_str(&json.stdout).unwrap();
    for field in [
        "version",
        "node",
        "uptime_seconds",
        "problems",
        "store",
        "lease",
        "peers",
        "endpoints",
        "programs",
        "tables",
        "invalid",
        "counters",
    ] {
        assert!(status.get(field).is_some(), "{field}: {status}");
    }
    assert_eq!(status["node"], "node1");
    assert_eq!(status["store"]["connected"], true);
    assert_eq!(status["peers"][0]["public_ip"], "192.168.50.2");
    assert_eq!(status["endpoints"][0]["labels"]["app"], "web");
    assert_eq!(status["programs"].as_array().unwrap().len(), 5, "{status}");
    assert!(
        counted(&status, "from_pod", "encapsulated") > 0 && counted(&status, "from_wire", "delivered") > 0
    );
}

#[test]
fn the_exit_status_tells_how_it_is_and_counters_are_shown_without_an_agent() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let node = world.node(1);
    let a = node.add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let json = canalctl(node, "status -o json");
    assert_eq!(json.status.code(), Some(0));
    let status: Value = serde_json::from_str(&json.stdout).unwrap();
    world.etcd().kill();
    assert!(soon(|| canalctl(node, "status").status.code() == Some(1)));
    let degraded = canalctl(node, "status");
    assert!(
        degraded.stdout.contains("PROBLEM") && degraded.stdout.contains("etcd is away"),
        "{}",
        degraded.stdout
    );
    node.agent().terminate().unwrap();
    assert!(a.pings(b.ip()));
    let down = canalctl(node, "status");
    assert_eq!(down.status.code(), Some(2));
    assert!(
        down.stdout.contains("encapsulated") && down.stderr.contains("no canal-agent listens"),
        "{down:?}"
    );
    let down = canalctl(node, "status -o json");
    assert_eq!(down.status.code(), Some(2));
    let pinned: Value = serde_json::from_str(&down.stdout).unwrap();
    assert!(
        counted(&pinned, "from_pod", "encapsulated") > counted(&status, "from_pod", "encapsulated"),
        "they go on"
    );
    assert!(!pinned["problems"].as_array().unwrap().is_empty());
    world.etcd().restart().unwrap();
    node.agent().start().unwrap();
    assert!(soon(|| canalctl(node, "status").status.code() == Some(0)));
}

#[test]
fn a_wrong_verb_or_flag_is_explained() {
    let world = crate::one_node();
    for line in ["", "stats", "status --output yaml", "status --no-such-flag"] {
        let said = canalctl(world.node(1), line);
        assert!(
            !said.ok() && said.stderr.contains("Usage") || said.stderr.contains("possible values"),
            "{line}: {said:?}"
        );
    }
}
