//! A whole cluster: a hub with the management network and etcd, and nodes on an underlay.
//!
//! ```text
//!            hub: br0 192.168.60.254/24, etcd
//!             │               │
//!   mg0 192.168.60.1    mg0 192.168.60.2
//!           node 1 ────────── node 2
//!   up0 192.168.50.1/24   up0 192.168.50.2/24
//! ```
//!
//! With two nodes the underlay is one veth pair; with more it is a bridge in a namespace of its own. No node
//! has a default route. Each node has its own bpffs, which outlives its agent.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    artefacts,
    cmd::Cmd,
    etcd::Etcd,
    flannel::{FlannelBackend, FlannelNode},
    netns::Netns,
    node::Node,
    pod::Pod,
    probe::Host,
    sweep, until,
};

/// flannel's configuration that a world starts with, unless told otherwise.
pub const CONFIG: &str = r#"{ "Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// How long an agent may take until it serves.
pub const AGENT_READY: Duration = Duration::from_secs(15);

/// A cluster to be.
#[derive(Debug)]
pub struct Builder {
    nodes: u8,
    prefix: Option<String>,
    config: Option<String>,
}

impl Builder {
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Instead of a unique one: for a world that [`sweep::sweep`] must find later, by hand. What an earlier world
    /// with this prefix left is removed.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// flannel's configuration to put into etcd before anything else; `None` for a store without one.
    #[must_use]
    pub fn config(mut self, config: Option<&str>) -> Self {
        self.config = config.map(str::to_owned);
        self
    }

    pub fn build(self) -> Result<World> {
        ensure!((1..=200).contains(&self.nodes), "a world has 1 to 200 nodes, not {}", self.nodes);
        sweep::sweep_dead();
        let prefix = self.prefix.unwrap_or_else(sweep::automatic_prefix);
        sweep::sweep(&prefix);
        let folder = sweep::folder(&prefix);
        {
            let _making = sweep::making();
            let made = fs::DirBuilder::new().mode(0o700).create(&folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // From here on a failure is cleaned up by the guard.
        let guard = Guard { prefix: prefix.clone(), keep: false };

        let hub = Netns::create(&format!("{prefix}hub"))?;
        for line in ["link add br0 type bridge", "link set br0 up", "addr add 192.168.60.254/24 dev br0"] {
            hub.ip(line)?;
        }
        let nodes = (1..=self.nodes)
            .map(|number| Node::create(&prefix, &folder, number))
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            let port = format!("m{}", node.number());
            veth((&hub, &port), (node.netns(), "mg0"))?;
            hub.ip(&format!("link set {port} master br0 up"))?;
            node.netns().ip("link set mg0 up")?;
            node.netns().ip(&format!("addr add 192.168.60.{}/24 dev mg0", node.number()))?;
        }
        let wire = underlay(&prefix, &nodes)?;
        let etcd = Etcd::start(&hub, &folder)?;
        if let Some(config) = &self.config {
            etcd.put("/coreos.com/network/config", config)?;
        }
        Ok(World { nodes, etcd, hub, wire, folder, guard })
    }
}

pub(crate) fn veth(left: (&Netns, &str), right: (&Netns, &str)) -> Result<()> {
    Cmd::line("ip link add")
        .args([left.1, "netns", left.0.name(), "type", "veth", "peer", "name", right.1])
        .args(["netns", right.0.name()])
        .run()
        .map(drop)
}

fn underlay(prefix: &str, nodes: &[Node]) -> Result<Option<Netns>> {
    let mut wire = None;
    if let [one, two] = nodes {
        veth((one.netns(), "up0"), (two.netns(), "up0"))?;
    } else {
        let bridge = Netns::create(&format!("{prefix}wire"))?;
        bridge.ip("link add br0 type bridge")?;
        bridge.ip("link set br0 up")?;
        for node in nodes {
            let port = format!("p{}", node.number());
            veth((&bridge, &port), (node.netns(), "up0"))?;
            bridge.ip(&format!("link set {port} master br0 up"))?;
        }
        wire = Some(bridge);
    }
    for node in nodes {
        node.netns().ip("link set up0 up")?;
        node.netns().ip(&format!("addr add {}/24 dev up0", node.public_ip()))?;
    }
    Ok(wire)
}

/// A running cluster. Drop it to remove it; after a panic the artefacts are saved first.
#[derive(Debug)]
pub struct World {
    nodes: Vec<Node>,
    etcd: Etcd,
    hub: Netns,
    wire: Option<Netns>,
    folder: PathBuf,
    guard: Guard,
}

impl World {
    pub fn builder() -> Builder {
        Builder { nodes: 2, prefix: None, config: Some(CONFIG.to_owned()) }
    }

    /// Numbered from 1, as their addresses.
    ///
    /// # Panics
    /// If the world has no such node.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    pub fn hub(&self) -> &Netns {
        &self.hub
    }

    /// The namespace of the underlay's bridge, if there are more than two nodes.
    pub fn wire(&self) -> Option<&Netns> {
        self.wire.as_ref()
    }

    /// Holds everything that is not a namespace; nodes' files are in `n1/`, `n2/` ….
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn prefix(&self) -> &str {
        &self.guard.prefix
    }

    /// Starts an agent on every node and waits until all serve.
    pub fn start_agents(&self) -> Result<()> {
        for node in &self.nodes {
            node.agent().spawn()?;
        }
        self.nodes.iter().try_for_each(|n| n.agent().wait_ready(AGENT_READY))
    }

    /// Makes this node what flanneld makes of one; see [`FlannelNode`].
    pub fn flannel_node(&self, number: u8) -> Result<FlannelNode<'_>> {
        self.flannel_node_with(number, FlannelBackend::Vxlan { checksums: true, direct: false })
    }

    /// The same with this backend.
    pub fn flannel_node_with(&self, number: u8, backend: FlannelBackend) -> Result<FlannelNode<'_>> {
        FlannelNode::program(self.node(number), &self.etcd, backend)
    }

    /// The same with envelopes that carry no UDP checksums, as the kernel's default is.
    pub fn flannel_node_without_checksums(&self, number: u8) -> Result<FlannelNode<'_>> {
        self.flannel_node_with(number, FlannelBackend::Vxlan { checksums: false, direct: false })
    }

    /// Every pod made with [`Node::add_pod`] and not deleted, node by node.
    pub fn pods(&self) -> Vec<Pod> {
        self.nodes.iter().flat_map(Node::pods).collect()
    }

    /// Runs a story in this world. If it fails or panics, the artefacts are saved and their place is printed.
    pub fn tell(&self, name: &str, story: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        story(self).inspect_err(|_| artefacts::save(self, name))
    }

    /// Leaves everything as it is when this is dropped; `sweep(prefix)` removes it.
    pub fn keep(mut self) -> String {
        self.guard.keep = true;
        let prefix = self.guard.prefix.clone();
        // Dropping would kill processes and delete namespaces one by one.
        std::mem::forget(self);
        prefix
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            artefacts::save(self, thread.name().unwrap_or("test"));
        }
    }
}

/// Removes whatever is left when the world, or what there is of it, is gone.
#[derive(Debug)]
struct Guard {
    prefix: String,
    keep: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.keep {
            sweep::sweep(&self.prefix);
        }
    }
}

/// Looks every moment until it holds, for five seconds: for things that follow from a change in etcd.
pub fn soon(condition: impl FnMut() -> bool) -> bool {
    until(Duration::from_secs(5), condition)
}
