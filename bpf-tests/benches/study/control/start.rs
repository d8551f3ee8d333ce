//! From the start of an agent's process until every peer is in the kernel.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use bpf_tests::{Host as _, Node, Pod};
use canal_agent::dataplane::pins::Pins;
use canal_common::{
    Ip4, names,
    node::{Node as Peer, NodeRef},
};
use ipnet::Ipv4Net;
use serde_json::json;

use super::store::{Entry, Store};

/// Much longer than any start may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at the table.
const LOOK: Duration = Duration::from_micros(500);
/// In seconds.
const DAY: f64 = 86_400.0;

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

/// Of an agent.
pub(super) struct Start {
    /// From before the process was there until what was waited for.
    pub(super) seconds: f64,
    /// From the list of leases, as the agent's log tells, until what was waited for.
    pub(super) since_list: Option<f64>,
    /// Where the time went until the agent was ready, as its log tells.
    pub(super) phases: Vec<(&'static str, f64)>,
}

/// Parts of a start, and words of the line in the agent's log that ends each.
const PHASES: [(&str, &str); 5] = [
    ("the process", "canal-agent starts"),
    ("etcd, the configuration, the uplink", "chose the uplink"),
    ("the subnet lease", "holding the subnet lease"),
    ("tables and programs, and a list from etcd", "first complete list"),
    ("the rest, up to readiness", "ready: "),
];

/// Starts the node's agent, with nothing in the kernel, and waits for peers `1..=peers`.
pub(super) fn until_peers(node: &Node, peers: u32) -> Result<Start> {
    let mut launch = Launch::new(node)?;
    let pins = Pins::open(&node.bpffs())?;
    let mut routes = None;
    let there = |routes: &LpmTrie<MapData, Ip4, NodeRef>, number| {
        routes.get(&Key::new(24, subnet(number).network().into()), 0).is_ok()
    };
    launch.wait("the last peer is not in the kernel", || {
        if routes.is_none() {
            let Ok(map) = MapData::from_pin(pins.table(names::ROUTES)) else { return Ok(false) };
            routes = Some(LpmTrie::try_from(Map::LpmTrie(map))?);
        }
        // The last one is programmed last.
        Ok(routes.as_ref().is_some_and(|routes| there(routes, peers)))
    })?;
    let routes = routes.context("no routes")?;
    let missing = (1..=peers).filter(|number| !there(&routes, *number)).count();
    ensure!(missing == 0, "the last peer is in the kernel, and {missing} others are not");
    let nodes = Array::<_, Peer>::try_from(Map::Array(MapData::from_pin(pins.table(names::NODES))?))?;
    let alive = nodes.iter().filter_map(Result::ok).filter(|node| node.flags & Peer::ALIVE != 0).count();
    ensure!(alive == peers as usize, "{alive} nodes in the kernel instead of {peers}");
    launch.end()
}

/// Starts the node's agent and waits until these pods are as policy wants them.
pub(super) fn until_pods(node: &Node, pods: &[Pod]) -> Result<Start> {
    let mut launch = Launch::new(node)?;
    let is_ready = |pod: &Pod| {
        node.agent().endpoint_state(pod.ip()).is_ok_and(|state| state.as_deref() == Some("ready"))
    };
    launch.wait("not all pods are ready", || Ok(pods.iter().all(is_ready)))?;
    launch.end()
}

/// An agent that starts.
struct Launch<'a> {
    node: &'a Node,
    /// Seconds since 1970.
    epoch: f64,
    begun: Instant,
    seconds: f64,
}

impl<'a> Launch<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        std::fs::remove_file(node.agent().log_file()).ok();
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let begun = Instant::now();
        node.agent().spawn()?;
        Ok(Self { node, epoch, begun, seconds: 0.0 })
    }

    fn wait(&mut self, problem: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
        loop {
            thread::sleep(LOOK);
            if is_done()? {
                self.seconds = self.begun.elapsed().as_secs_f64();
                return Ok(());
            }
            ensure!(self.begun.elapsed() < PATIENCE, "{problem}; the log:\n{}", self.node.agent().log());
        }
    }

    /// Waits for the rest.
    fn end(self) -> Result<Start> {
        let agent = self.node.agent();
        ensure!(agent.says(&["ready: "], PATIENCE), "the agent is not ready; the log:\n{}", agent.log());
        let (log, done) = (agent.log(), (self.epoch + self.seconds) % DAY);
        let listed =
            log.lines().find(|line| line.contains("first complete list") && line.contains("Network"));
        let since_list = listed.and_then(seconds_of_day).map(|listed| done - listed);
        Ok(Start { seconds: self.seconds, since_list, phases: phases(&log, self.epoch) })
    }
}

/// What one peer's change touches in the kernel, in elements of each table, and how long after etcd has it, in seconds.
pub(super) fn change_one(
    node: &Node,
    store: &mut Store,
    number: u32,
) -> Result<(Vec<(&'static str, usize)>, f64)> {
    let tables = PeerTables::open(node)?;
    let before = tables.read()?;
    let (key, value) = lease(number);
    let other =
        String::from_utf8(value)?.replace("\"172.16.", "\"172.17.").replace("02:ca:00:01", "02:ca:00:02");
    store.put((key, other.into_bytes()))?;
    let begun = Instant::now();
    while tables.index(number)? == before.routes[&subnet(number)] {
        ensure!(begun.elapsed() < PATIENCE, "the change does not show");
        thread::sleep(LOOK);
    }
    let took = begun.elapsed().as_secs_f64();
    // The old entry goes behind the flip.
    thread::sleep(Duration::from_millis(200));
    let after = tables.read()?;
    let touched = vec![
        (names::NODES, differences(&before.nodes, &after.nodes)),
        (names::ROUTES, differences(&before.routes, &after.routes)),
        (names::NODE_IPS, differences(&before.addresses, &after.addresses)),
    ];
    Ok((touched, took))
}

/// What the kernel knows of peers.
struct PeerTables {
    nodes: Array<MapData, Peer>,
    routes: LpmTrie<MapData, Ip4, NodeRef>,
    addresses: HashMap<MapData, Ip4, NodeRef>,
}

struct Content {
    nodes: BTreeMap<u32, (Ipv4Addr, u32)>,
    routes: BTreeMap<Ipv4Net, u32>,
    addresses: BTreeMap<Ipv4Addr, u32>,
}

impl PeerTables {
    fn open(node: &Node) -> Result<Self> {
        let pins = Pins::open(&node.bpffs())?;
        let table = |name| MapData::from_pin(pins.table(name));
        Ok(Self {
            nodes: Array::try_from(Map::Array(table(names::NODES)?))?,
            routes: LpmTrie::try_from(Map::LpmTrie(table(names::ROUTES)?))?,
            addresses: HashMap::try_from(Map::HashMap(table(names::NODE_IPS)?))?,
        })
    }

    fn index(&self, number: u32) -> Result<u32> {
        Ok(self.routes.get(&Key::new(24, subnet(number).network().into()), 0)?.node)
    }

    fn read(&self) -> Result<Content> {
        let nodes = (0..).zip(self.nodes.iter());
        let nodes = nodes.map(|(index, node)| node.map(|node| (index, (node.ip.into(), node.flags))));
        let routes = self.routes.iter().map(|entry| {
            let (key, NodeRef { node }) = entry?;
            let length = u8::try_from(key.prefix_len())?;
            Ok((Ipv4Net::new(key.data().into(), length)?, node))
        });
        let addresses =
            self.addresses.iter().map(|entry| entry.map(|(ip, NodeRef { node })| (ip.into(), node)));
        Ok(Content {
            nodes: nodes.collect::<Result<_, _>>()?,
            routes: routes.collect::<Result<_>>()?,
            addresses: addresses.collect::<Result<_, _>>()?,
        })
    }
}

/// How many keys have another value, or are in one of them only.
fn differences<K: Ord, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> usize {
    let gone = before.keys().filter(|key| !after.contains_key(key)).count();
    gone + after.iter().filter(|(key, value)| before.get(key) != Some(value)).count()
}

fn phases(log: &str, epoch: f64) -> Vec<(&'static str, f64)> {
    let mut before = epoch % DAY;
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
