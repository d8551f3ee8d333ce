//! Packets between nodes: the real agent, CNI plugin and etcd, and whole packets from one namespace to another.
//!
//! Each test has a world of its own, so they run beside each other. After a failure the world's logs, captures,
//! tables and namespaces' state are under `target/test-artefacts/<name of the test>`.
//!
//! Not here: that a kernel without tcx or BTF is refused (this kernel has both; `dataplane::object` reads the
//! release in a unit test), and what one packet does in one program (layer `programs`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod backends;
mod bandwidth;
mod calico_store;
mod cleanup;
mod etcd_away;
mod faults;
mod felix;
mod flannel;
mod flanneld;
mod flip;
mod fragments;
mod fresh;
mod gears;
mod inspection;
mod isolation;
mod lifecycle;
mod naming_eras;
mod originals;
mod outside;
mod overlay;
mod policy;
mod portmap;
mod repair;
mod resize;
mod security;
mod stage;
mod takeover;
mod territory;
mod to_host;
mod vxlan;

use std::time::Duration;

use bpf_tests::{Host, Pod, World, until};

/// What follows from a change, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(10);
/// A transfer long enough for windows to open.
const BULK: Duration = Duration::from_millis(400);

fn soon(condition: impl FnMut() -> bool) -> bool {
    until(SOON, condition)
}

/// Two Canal nodes with a pod each that reach one another.
fn two_nodes() -> (World, Pod, Pod) {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    assert!(soon(|| a.pings(b.ip())), "a reaches b");
    (world, a, b)
}
