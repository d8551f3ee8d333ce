//! Policies as each release of calicoctl names them in etcd, all at once, as they are in the middle of an upgrade.
//!
//! The fixture is written as those releases write, with invented values: up to 3.28 the key of a policy in the default
//! tier has `default.` in front, from 3.29 on there may be a label with the tier, later an annotation with the name that
//! was typed, and from 3.32 on the key is that name. Policies of Kubernetes are copied as `knp.default.…` by all.

use std::thread;

use bpf_tests::{Host, World};
use serde_json::json;

use crate::soon;

const STORE: &str = include_str!("../fixtures/naming-eras.txt");

/// Port of the web pod, whether the client reaches it, and why.
const VERDICTS: [(u16, bool, &str); 18] = [
    (8001, false, "edge.block-old, without label"),
    (8002, false, "edge.block-typed, with label and annotation"),
    (8003, false, "pass-rest, whose name says nothing of its tier"),
    (8026, true, "default/default.allow-326, which names no tier and a protocol in small letters"),
    (8028, true, "default.allow-328"),
    (8029, true, "default.allow-329-0"),
    (8030, true, "default/default.allow-329-7, annotated"),
    (8031, true, "default.allow-331, labelled and annotated"),
    (8032, true, "allow-332"),
    (8033, true, "default/allow-332, of the same name"),
    (8034, true, "default/knp.default.allow"),
    (8035, true, "default.twice and twice, the same before and after its renaming"),
    (8036, false, "either of these"),
    (8037, true, "b-tie comes before default.a-tie, and would not before a-tie"),
    (8038, true, "default/web-x comes before default/web"),
    (8039, false, "shop/default.elsewhere is not about this namespace"),
    (8040, false, "the end of the default tier"),
    (8041, false, "the end of the default tier, and no profile behind it"),
];

/// By tier and order, then by key; named as people know them.
const ORDER: [&str; 18] = [
    "GlobalNetworkPolicy edge.block-old",
    "GlobalNetworkPolicy edge.block-bad",
    "GlobalNetworkPolicy edge.block-typed",
    "GlobalNetworkPolicy pass-rest",
    "NetworkPolicy default/allow-326",
    "GlobalNetworkPolicy allow-328",
    "GlobalNetworkPolicy allow-329-0",
    "NetworkPolicy default/allow-329-7",
    "GlobalNetworkPolicy allow-331",
    "GlobalNetworkPolicy allow-332",
    "NetworkPolicy default/allow-332",
    "GlobalNetworkPolicy twice",
    "GlobalNetworkPolicy twice",
    "GlobalNetworkPolicy b-tie",
    "GlobalNetworkPolicy a-tie",
    "NetworkPolicy default/web-x",
    "NetworkPolicy default/web",
    "NetworkPolicy default/knp.default.allow",
];

#[test]
fn policies_named_by_every_release_of_calicoctl_give_one_table_of_verdicts() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let web = world.node(1).add_pod("web", &[("app", "web")]).unwrap();
    let clients =
        [1, 2].map(|node| world.node(node).add_pod(&format!("client{node}"), &[("app", "client")]).unwrap());
    let bad = world.node(2).add_pod("bad", &[("app", "client")]).unwrap();
    let _servers: Vec<_> = VERDICTS.iter().map(|(port, ..)| web.serve_tcp(*port).unwrap()).collect();
    for client in clients.iter().chain([&bad]) {
        assert!(soon(|| client.reaches(web.ip(), 8041)), "no policy yet");
    }

    let store = STORE.replace("BAD_NET", &format!("{}/32", bad.ip()));
    let lines: Vec<&str> = store.lines().collect();
    for pair in lines.chunks_exact(2) {
        world.etcd().put(pair[0], pair[1]).unwrap();
    }
    assert!(soon(|| !bad.reaches(web.ip(), 8028)), "edge.block-bad, by a network set");
    // The last object may be a moment away yet; a refusal takes its time, so all ask at once.
    thread::scope(|scope| {
        for (client, (port, passes, why)) in clients.iter().flat_map(|c| VERDICTS.map(|verdict| (c, verdict)))
        {
            let (web, name) = (web.ip(), client.name());
            scope.spawn(move || {
                assert!(soon(|| client.reaches(web, port) == passes), "{name} to {port}: {why}");
            });
        }
    });
    let status = world.node(1).agent().status().unwrap();
    assert_eq!(status["invalid"], json!({}));
    let endpoints = status["endpoints"].as_array().unwrap();
    let of_web = endpoints.iter().find(|endpoint| endpoint["labels"]["app"] == "web").unwrap();
    assert_eq!(of_web["ingress"], json!(ORDER));
    for pair in lines.chunks_exact(2) {
        assert_eq!(world.etcd().get(pair[0]).unwrap().as_deref(), Some(pair[1]), "{}", pair[0]);
    }
}
