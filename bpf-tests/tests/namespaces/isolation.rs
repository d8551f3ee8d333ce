//! Several agents on one kernel, each in its own network namespace with its own bpffs, do not meet.

use std::{collections::BTreeSet, fs};

use bpf_tests::{Host, World, policy};
use serde_json::json;

use crate::{soon, two_nodes};

fn programs(world: &World) -> BTreeSet<u64> {
    let of = |status: serde_json::Value| {
        let ids: Vec<_> =
            status["programs"].as_array().unwrap().iter().map(|p| p["id"].as_u64().unwrap()).collect();
        ids
    };
    world.nodes().iter().flat_map(|n| of(n.agent().status().unwrap())).collect()
}

#[test]
fn two_clusters_with_the_same_addresses_on_one_kernel_do_not_meet() {
    let (first, a, b) = two_nodes();
    let (second, c, d) = two_nodes();
    assert_eq!(first.node(1).public_ip(), second.node(1).public_ip());
    let (ours, theirs) = (programs(&first), programs(&second));
    assert_eq!((ours.len(), theirs.len()), (10, 10), "programs are loaded per agent");
    assert!(ours.is_disjoint(&theirs));

    first.etcd().put_global_policy("t", policy::ingress(1, "all()", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
    assert!(c.pings(d.ip()) && d.pings(c.ip()), "policy of one is none of the other's");

    // Cleaning up and going away is the node's own affair, also for the other node of the same cluster.
    first.node(1).agent().terminate().unwrap();
    first.node(1).agent().clean_up().unwrap();
    assert!(fs::read_dir(first.node(2).bpffs().join("canal/links")).unwrap().count() > 0);
    assert!(c.pings(d.ip()));
    drop(first);
    assert!(c.pings(d.ip()) && programs(&second) == theirs);
}
