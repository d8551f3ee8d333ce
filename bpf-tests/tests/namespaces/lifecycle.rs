//! The agent comes and goes; the data path stays.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use bpf_tests::{Cmd, Host, LiveConnection, Node, Pinger, Pod, policy, until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::{SOON, soon, two_nodes};

const PACE: Duration = Duration::from_millis(10);

/// Program ids by interface and program.
fn programs(node: &Node) -> BTreeMap<String, u64> {
    let status = node.agent().status().unwrap();
    let programs = status["programs"].as_array().unwrap();
    let name = |p: &serde_json::Value| format!("{} {}", p["interface"], p["program"]);
    programs.iter().map(|p| (name(p), p["id"].as_u64().unwrap())).collect()
}

/// Names of the pinned links, and the kernel's id of each.
fn links(node: &Node) -> BTreeMap<String, u64> {
    let pins = fs::read_dir(node.bpffs().join("canal/links")).unwrap().flatten();
    pins.map(|pin| {
        let path = pin.path().display().to_string();
        let shown = Cmd::line("bpftool -j link show pinned").arg(path).run().unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        (pin.file_name().into_string().unwrap(), shown["id"].as_u64().unwrap())
    })
    .collect()
}

#[test]
fn a_killed_agent_loses_no_packet_and_its_successor_swaps_the_programs_in_place() {
    let (world, a, b) = two_nodes();
    let _server = b.serve_tcp(9000).unwrap();
    let live = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    let node = world.node(1);
    let (programs_before, links_before) = (programs(node), links(node));
    assert_eq!(links_before.len(), 5, "pod 2, uplink 1, overlay 2: {links_before:?}");
    let out = Pinger::start(a.netns(), b.ip(), PACE).unwrap();
    let inward = Pinger::start(b.netns(), a.ip(), PACE).unwrap();
    for _ in 0..2 {
        node.agent().kill_9();
        let seen = out.stats().received;
        assert!(soon(|| out.stats().received > seen + 50), "without an agent packets go on");
        node.agent().start().unwrap();
    }
    assert!(soon(|| programs(node).keys().eq(programs_before.keys())));
    let seen = out.stats().received;
    assert!(soon(|| out.stats().received > seen + 50));
    for (direction, pinger) in [("out", out), ("in", inward)] {
        let stats = pinger.stop().unwrap();
        assert_eq!(stats.lost, 0, "{direction}: {stats:?}");
        assert!(stats.received > 100, "{direction}: {stats:?}");
    }
    assert!(live.is_alive());
    assert_eq!(links(node), links_before, "the same attachments");
    let programs_after = programs(node);
    for (place, id) in &programs_before {
        assert!(programs_after[place] > *id, "{place}: a program of the new process");
    }
}

#[test]
fn policy_is_enforced_while_no_agent_runs_and_followed_by_the_next() {
    let (world, a, b) = two_nodes();
    let _server = b.serve_tcp(80).unwrap();
    let node = world.node(2);
    let deny =
        policy::ingress(1, "app == 'b'", json!([{"action": "Deny", "protocol": "TCP"}, {"action": "Allow"}]));
    world.etcd().put_global_policy("t", deny).unwrap();
    assert!(soon(|| !a.reaches(b.ip(), 80)));
    node.agent().terminate().unwrap();
    assert!(node.agent().says(&["the data path stays"], SOON), "{}", node.agent().log());
    assert!(a.pings(b.ip()) && b.pings(a.ip()), "SIGTERM leaves the data path");
    assert!(!a.reaches(b.ip(), 80), "and the policy");
    world.etcd().delete_global_policy("t").unwrap();
    assert!(!a.reaches(b.ip(), 80), "nobody has told the kernel");
    node.agent().start().unwrap();
    assert!(soon(|| a.reaches(b.ip(), 80)));
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
}

#[test]
fn a_restart_with_policy_that_fits_the_tables_only_once_closes_nobody_and_loses_nothing() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    // A row for each of the sources.
    let denied = |n: u32| json!({"action": "Deny", "source": {"nets": [format!("198.18.{}.{}/32", n / 250, n % 250)]}});
    let rules: Vec<_> = (0..600).map(denied).chain([json!({"action": "Allow"})]).collect();
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!(rules))).unwrap();
    node.agent().set_flag("--max-rows", "1024");
    node.agent().crash_and_restart().unwrap();
    let rows = || {
        let status = node.agent().status().unwrap();
        let tables = status["tables"].as_array().unwrap();
        tables.iter().find(|table| table["table"] == "ROWS").unwrap()["entries"].as_u64().unwrap()
    };
    assert!(soon(|| rows() > 600), "{}", rows());
    let pinger = Pinger::start(a.netns(), b.ip(), PACE).unwrap();
    for _ in 0..2 {
        node.agent().crash_and_restart().unwrap();
        assert!(
            soon(|| node.agent().endpoint_state(b.ip()).unwrap().as_deref() == Some("ready")),
            "{:?}",
            node.agent().status()
        );
        let seen = pinger.stats().received;
        assert!(soon(|| pinger.stats().received > seen + 20));
    }
    let stats = pinger.stop().unwrap();
    assert_eq!(stats.lost, 0, "{stats:?}");
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())), "the tables that are followed are those that judge");
}

#[test]
fn a_restart_keeps_subnet_mac_and_lease_and_wakes_no_peer() {
    let (world, a, b) = two_nodes();
    let node = world.node(1);
    let key = "/coreos.com/network/subnets/";
    let (leases, lease) = (world.etcd().list(key).unwrap(), node.agent().status().unwrap()["lease"].clone());
    let etcd_leases = || world.etcd().ctl(&["lease", "list"]).unwrap();
    let before = etcd_leases();
    node.agent().crash_and_restart().unwrap();
    assert_eq!(world.etcd().list(key).unwrap(), leases);
    assert_eq!(node.agent().status().unwrap()["lease"], lease);
    assert!(until(SOON, || etcd_leases().lines().count() == before.lines().count()), "no etcd lease leaks");
    assert!(a.pings(b.ip()));
}

#[test]
fn pods_whose_interfaces_went_while_no_agent_ran_are_forgotten_and_no_bad_record_costs_anybody() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let records = node.folder().join("state/endpoints");
    let record = |pod: &Pod| {
        let mut files = fs::read_dir(&records).unwrap().map(|file| file.unwrap().path());
        let is_of = |file: &PathBuf| fs::read_to_string(file).unwrap().contains(pod.host_interface());
        files.find(is_of).unwrap()
    };
    let mut pods = ["gone", "stuck"].map(|name| node.add_pod(name, &[]).unwrap());
    pods.sort_by_key(record);
    let [stuck, gone] = &pods;
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().len() == 4));
    node.agent().kill_9();
    for pod in &pods {
        node.netns().ip(&format!("link del {}", pod.host_interface())).unwrap();
    }
    fs::write(records.join("broken@eth0.json"), r#"{"endpoint": {"container"#).unwrap();
    // The first of them can be read, and nothing can take its place.
    let fixed = record(stuck);
    mount(Some(&fixed), &fixed, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    node.agent().start().unwrap();
    assert!(soon(|| node.agent().endpoint_state(gone.ip()).unwrap().is_none()));
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().len() == 3), "and etcd is told");
    let status = node.agent().status().unwrap();
    let invalid = status["invalid"].as_object().unwrap();
    assert!(invalid.keys().any(|k| k.ends_with("broken@eth0.json")), "{invalid:?}");
    assert!(records.join("broken@eth0.json").exists(), "left for a person to look at");
    assert!(status["problems"].to_string().contains("cannot be given up yet"), "{}", status["problems"]);
    umount2(&fixed, MntFlags::MNT_DETACH).unwrap();
    // The agent has mounts of its own.
    let pid = node.agent().pid().unwrap();
    Cmd::line(&format!("nsenter -t {pid} -m umount")).arg(fixed.display().to_string()).run().unwrap();
    let leaves = until(2 * SOON, || world.etcd().workload_endpoints().unwrap().len() == 2);
    assert!(leaves, "{:?}", node.agent().status());
    assert!(a.pings(b.ip()));
    let links: Vec<_> = links(node).into_keys().collect();
    assert!(!links.iter().any(|l| l.starts_with(gone.host_interface())), "{links:?}");
    node.del_pod(gone).unwrap();
}

#[test]
fn pins_of_another_layout_are_replaced_and_pins_of_others_stay() {
    let world = bpf_tests::World::builder().nodes(2).build().unwrap();
    let node = world.node(1);
    let make = |path: &str, line: &str| {
        let path = node.bpffs().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        Cmd::line("bpftool map create").arg(path.display().to_string()).args(line.split(' ')).run().unwrap();
    };
    let tables = format!("canal/v{}", canal_common::LAYOUT);
    make(&format!("{tables}/FLOWS"), "type hash key 4 value 4 entries 16 name FLOWS");
    make(&format!("{tables}/ENDPOINTS"), "type array key 4 value 8 entries 16 name ENDPOINTS");
    make(&format!("{tables}/PEERS"), "type hash key 4 value 4 entries 1 name PEERS");
    make("canal/v0/FLOWS", "type hash key 4 value 4 entries 16 name FLOWS");
    make("someone/FLOWS", "type hash key 4 value 4 entries 16 name FLOWS");
    fs::create_dir_all(node.bpffs().join("canal/links")).unwrap();
    make("canal/links/up0-from_wire", "type hash key 4 value 4 entries 16 name nolink");
    world.start_agents().unwrap();
    let a = node.add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    for table in ["FLOWS", "ENDPOINTS", "PEERS"] {
        assert!(node.agent().says(&["another layout", table], SOON), "{table}: {}", node.agent().log());
    }
    assert!(soon(|| !node.bpffs().join("canal/v0").exists()), "nobody reads the old layout any more");
    assert!(node.bpffs().join("someone/FLOWS").exists());
}
