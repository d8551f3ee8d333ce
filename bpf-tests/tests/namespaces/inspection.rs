//! What a person sees with `bpftool`.

use std::fs;

use bpf_tests::{Cmd, Host, policy};
use canal_common::names;
use serde_json::json;

use crate::{soon, two_nodes};

#[test]
fn every_pinned_table_is_dumped_with_named_fields_and_every_program_has_its_hooks_name() {
    let (world, a, b) = two_nodes();
    let _server = b.serve_tcp(80).unwrap();
    // Something in each table: a net, a rule, fragments, a flow that both sides spoke in and one that only one did.
    let rules = json!([
        {"action": "Deny", "source": {"nets": ["198.51.100.0/24"]}},
        {"action": "Deny", "protocol": "UDP", "destination": {"ports": [53]}},
        {"action": "Allow", "source": {"selector": "app == 'a'"}},
    ]);
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", rules)).unwrap();
    let node = world.node(2);
    assert!(soon(|| a.udp_echoes(b.ip(), 53, 1).unwrap() == 0
        && node.agent().count("from_wire", "policy-ingress").unwrap() > 0));
    assert!(a.pings(b.ip()) && a.reaches(b.ip(), 80));
    assert_eq!(a.ping_sized(b.ip(), 1, 4000).unwrap().lost, 0);
    b.send_udp(a.ip(), 7777, b"nobody answers").unwrap();

    let tables = node.bpffs().join(format!("canal/v{}", canal_common::LAYOUT));
    let mut present: Vec<_> =
        fs::read_dir(&tables).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    present.sort();
    let mut wanted: Vec<_> = names::MAPS.iter().chain(&[names::JUDGE]).map(|m| (*m).to_owned()).collect();
    wanted.sort();
    assert_eq!(present, wanted);

    let dump = |table: &str| {
        let path = tables.join(table).display().to_string();
        Cmd::line("bpftool map dump pinned").arg(path).run().unwrap()
    };
    for (table, fields) in [
        ("FLOWS", &["lo_port", "hi_port", "proto", "last_seen", "state", "generation", "endpoint"][..]),
        ("FLOWS_NEW", &["lo_port", "hi_port", "proto", "last_seen"]),
        ("FRAGS", &["src", "dst", "id", "src_port", "dst_port"]),
        ("GENERATIONS", &["generation"]),
        ("ENDPOINTS", &["octets", "ifindex", "id", "pod_mac", "host_mac"]),
        ("POLICY", &["ingress_set", "egress_set", "flags"]),
        ("PEERS", &["octets", "class"]),
        ("NETS", &["class"]),
        ("ROWS", &["bounds", "verdicts", "bits"]),
        ("ROUTES", &["node"]),
        ("NODE_IPS", &["octets", "node"]),
        ("NODES", &["ip", "vtep_mac", "mtu", "flags"]),
        ("COUNTERS", &["packets", "bytes"]),
        ("RULE_HITS", &["flows"]),
        ("EVENT_BUDGET", &["tick", "sent", "lost"]),
    ] {
        let text = dump(table);
        for field in fields {
            assert!(
                text.contains(&format!("\"{field}\"")),
                "{table} without {field}: {}",
                &text[..text.len().min(800)]
            );
        }
    }
    // The kernel takes no types for a table of tables. It names each policy set by its id; in there it is class → row.
    let sets = tables.join("SETS").display().to_string();
    let sets: Vec<serde_json::Value> =
        serde_json::from_str(&Cmd::line("bpftool -j map dump pinned").arg(sets).run().unwrap()).unwrap();
    let ids: Vec<u32> = sets.iter().filter_map(inner_id).collect();
    assert!(!ids.is_empty(), "{sets:?}");
    for id in ids {
        Cmd::line("bpftool map dump id").arg(id.to_string()).run().unwrap();
    }

    let programs = node.agent().status().unwrap()["programs"].clone();
    for name in names::PROGRAMS {
        let ids: Vec<_> = programs.as_array().unwrap().iter().filter(|p| p["program"] == *name).collect();
        assert!(!ids.is_empty(), "{name} in {programs}");
        let shown = Cmd::line("bpftool prog show id").arg(ids[0]["id"].to_string()).run().unwrap();
        assert!(shown.contains(&format!("name {name}")) && shown.contains("sched_cls"), "{shown}");
        assert!(shown.contains("btf_id"), "with types: {shown}");
    }
    let judge = tables.join(names::JUDGE).display().to_string();
    let shown = Cmd::line("bpftool prog show pinned").arg(judge).run().unwrap();
    assert!(shown.contains("name judge"), "attached nowhere, found by its pin: {shown}");
}

/// The id of the table that an element of a table of tables holds: four bytes, as `"0x2f"`.
fn inner_id(element: &serde_json::Value) -> Option<u32> {
    let bytes: Vec<u8> = element["value"]
        .as_array()?
        .iter()
        .filter_map(|byte| u8::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok())
        .collect();
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
