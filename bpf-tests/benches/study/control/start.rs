//! From the start of an agent's process until every peer is in the kernel.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, LpmTrie, Map, MapData, lpm_trie::Key};
use bpf_tests::{Node, World, until};
use canal_agent::dataplane::pins::Pins;
use canal_common::{
    Ip4, names,
    node::{Node as Peer, NodeRef},
};
use ipnet::Ipv4Net;
use serde_json::json;

use super::store::Entry;

/// Much longer than any start may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the table.
const LOOK: Duration = Duration::from_micros(500);

/// The subnet of the peer with this number. The agent programs them in their order.
fn subnet(number: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a40_0000 + (number << 8)), 24)
}

/// Its lease, as flanneld writes one.
pub(super) fn lease(number: u32) -> Entry {
    let [_, _, high, low] = number.to_be_bytes();
    let value = json!({
        "PublicIP": Ipv4Addr::new(172, 16, high, low), "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": format!("02:ca:00:01:{high:02x}:{low:02x}") },
    });
    let key = subnet(number).to_string().replace('/', "-");
    (format!("/coreos.com/network/subnets/{key}"), value.to_string().into_bytes())
}

/// Where the time went, as the agent's log tells: each line was written so many seconds after the process was started.
pub(super) struct Start {
    pub(super) seconds: f64,
    pub(super) phases: Vec<(&'static str, f64)>,
}

/// Parts of a start, and the first words of the line that ends each in the agent's log.
const PHASES: [(&str, &str); 6] = [
    ("the process", "canal-agent starts"),
    ("etcd, network configuration", "read the network configuration"),
    ("the uplink", "chose the uplink"),
    ("the subnet lease", "holding the subnet lease"),
    ("programs, tables, the list of leases", "following etcd"),
    ("the rest", "ready: "),
];

/// Starts the node's agent, with nothing in the kernel, and waits for peers `1..=peers`.
pub(super) fn cold(world: &World, node: &Node, peers: u32) -> Result<Start> {
    let agent = node.agent();
    std::fs::remove_file(agent.log_file()).ok();
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let begun = Instant::now();
    agent.spawn()?;
    let pins = Pins::open(&node.bpffs())?;
    let mut routes = None;
    let there = |routes: &LpmTrie<MapData, Ip4, NodeRef>, number| {
        routes.get(&Key::new(24, subnet(number).network().into()), 0).is_ok()
    };
    loop {
        ensure!(begun.elapsed() < PATIENCE, "peer {peers} is not in the kernel; the log: {}", agent.log());
        std::thread::sleep(LOOK);
        if routes.is_none() {
            let Ok(map) = MapData::from_pin(pins.table(names::ROUTES)) else { continue };
            routes = Some(LpmTrie::try_from(Map::LpmTrie(map))?);
        }
        // The last one is programmed last.
        if routes.as_ref().is_some_and(|routes| there(routes, peers)) {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let routes = routes.context("no routes")?;
    let missing: Vec<u32> = (1..=peers).filter(|number| !there(&routes, *number)).collect();
    ensure!(missing.is_empty(), "the last peer is in the kernel, and {} others are not", missing.len());
    let nodes = Array::<_, Peer>::try_from(Map::Array(MapData::from_pin(pins.table(names::NODES))?))?;
    let alive = nodes.iter().filter_map(Result::ok).filter(|node| node.flags & Peer::ALIVE != 0).count();
    ensure!(alive == peers as usize, "{alive} nodes in the kernel instead of {peers}");
    agent.wait_ready(PATIENCE)?;
    ensure!(until(PATIENCE, || agent.log().contains("ready: ")), "the agent is not ready: {}", agent.log());
    let _ = world;
    Ok(Start { seconds, phases: phases(&agent.log(), epoch) })
}

fn phases(log: &str, epoch: f64) -> Vec<(&'static str, f64)> {
    let mut before = epoch % 86_400.0;
    let ends = PHASES.iter().filter_map(|(phase, words)| {
        let line = log.lines().find(|line| line.contains(words))?;
        let end = seconds_of_day(line)?;
        let took = end - before;
        before = end;
        Some((*phase, took))
    });
    ends.collect()
}

/// Of a line that begins with a time as RFC 3339 writes it.
fn seconds_of_day(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}
