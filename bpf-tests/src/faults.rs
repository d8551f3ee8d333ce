//! What may happen to a cluster of two Canal nodes that carries traffic, one fault after the other: to agents, to etcd, to pins and
//! devices. Each returns when it is over and everything is as before.
//!
//! Owns: how a fault is made, and what it may cost. Does not: make the traffic.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    node::Node,
    policy,
    probe::Host as _,
    until,
    world::{self, World},
};

/// What follows from a change, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(10);
/// Reconnecting backs off, up to a few seconds; half-open connections are noticed after some more.
const RECONNECTED: Duration = Duration::from_secs(40);
const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Where the path itself changes, it is whole again within this time.
pub const WHOLE_AGAIN: Duration = Duration::from_secs(2);

/// Where it happens.
pub struct Scene<'a> {
    pub world: &'a World,
    /// Waits until so many more packets have come in each direction; false if they do not.
    pub arrive: &'a dyn Fn(u64) -> bool,
}

pub struct Fault {
    pub what: &'static str,
    kind: Kind,
}

enum Kind {
    /// The path does not change, and no packet may be lost.
    Harmless(fn(&Scene<'_>) -> Result<()>),
    /// The path changes, and is whole again within moments; may tell how long that took, where it is not the longest gap between
    /// two packets.
    Harmful(fn(&Scene<'_>) -> Result<Option<Duration>>),
}

impl Fault {
    /// It may cost no packet; else those of less than [`WHOLE_AGAIN`].
    pub fn is_harmless(&self) -> bool {
        matches!(self.kind, Kind::Harmless(_))
    }

    /// Tells how long it took until packets came again, where that is not the longest gap between two packets.
    pub fn happen(&self, scene: &Scene<'_>) -> Result<Option<Duration>> {
        match self.kind {
            Kind::Harmless(happen) => happen(scene).map(|()| None),
            Kind::Harmful(happen) => happen(scene),
        }
        .context(self.what)
    }
}

/// The nodes choose their public addresses by themselves, so that these can change.
pub fn world() -> Result<World> {
    let world = World::builder().nodes(2).build()?;
    for node in world.nodes() {
        node.agent().unset_flag("--public-ip");
    }
    world.start_agents()?;
    Ok(world)
}

/// In an order in which each can follow the one before.
pub const ALL: [Fault; 15] = [
    harmless("each agent in turn is killed and started again", |scene| {
        scene.world.nodes().iter().try_for_each(|node| {
            node.agent().crash_and_restart()?;
            is_well(node)
        })
    }),
    harmless("each agent in turn is upgraded", |scene| {
        scene.world.nodes().iter().try_for_each(|node| {
            let before = programs(node)?;
            // To programs with other constants.
            node.agent().set_flag("--established", "keep");
            node.agent().terminate()?;
            node.agent().start()?;
            soon("the programs are others", || programs(node).is_ok_and(|now| now != before))?;
            is_well(node)
        })
    }),
    harmless("programs are loaded anew while the agents run", |scene| {
        let nodes = scene.world.nodes();
        let before: Vec<Value> = nodes.iter().map(programs).collect::<Result<_>>()?;
        let spec = json!({ "allowVXLANPacketsFromWorkloads": true });
        let etcd = scene.world.etcd();
        etcd.put_resource("felixconfigurations", "FelixConfiguration", None, "default", spec)?;
        let others =
            || nodes.iter().zip(&before).all(|(node, before)| programs(node).is_ok_and(|now| now != *before));
        soon("the programs are others", others)
    }),
    harmless("foreign and malformed keys", |scene| {
        let (etcd, strangers) = (scene.world.etcd(), strangers(scene.world)?);
        strangers.iter().try_for_each(|(key, value)| etcd.put(key, value))?;
        let named = |node: &Node| {
            node.agent()
                .status()
                .is_ok_and(|status| status["invalid"].to_string().contains("10.100.250.0-24"))
        };
        soon("they are named", || scene.world.nodes().iter().all(named))?;
        strangers.iter().try_for_each(|(key, _)| etcd.del(key))?;
        scene.world.nodes().iter().try_for_each(is_well)
    }),
    harmless("both leases are deleted by hand", |scene| {
        let held = leases(scene.world)?;
        held.iter().try_for_each(|(key, _)| scene.world.etcd().del(key))?;
        soon("they are there again", || leases(scene.world).is_ok_and(|now| now == held))
    }),
    harmless("etcd is killed and comes back", |scene| {
        scene.world.etcd().kill();
        all_apart(scene.world)?;
        scene.world.etcd().restart()?;
        all_connected(scene.world)
    }),
    harmless("etcd is compacted while it hangs", |scene| {
        let etcd = scene.world.etcd();
        etcd.pause()?;
        all_apart(scene.world)?;
        etcd.resume()?;
        (0..20).try_for_each(|_| etcd.put("/coreos.com/network/other", "x"))?;
        etcd.compact()?;
        all_connected(scene.world)
    }),
    harmless("etcd cannot be reached for longer than the leases last", |scene| {
        let (etcd, held) = (scene.world.etcd(), leases(scene.world)?);
        let ports = |state: &str| {
            let ports = scene.world.nodes().iter().map(|node| format!("link set m{} {state}", node.number()));
            ports.into_iter().try_for_each(|line| scene.world.hub().ip(&line).map(drop))
        };
        ports("down")?;
        all_apart(scene.world)?;
        let ids = etcd.ctl(&["lease", "list"])?;
        ids.lines().skip(1).try_for_each(|id| etcd.ctl(&["lease", "revoke", id]).map(drop))?;
        ensure!(leases(scene.world)?.is_empty(), "the leases do not end");
        ports("up")?;
        let again = || leases(scene.world).is_ok_and(|now| now == held);
        ensure!(until(RECONNECTED, again), "the leases do not come back");
        all_connected(scene.world)
    }),
    harmless("etcd loses its data", |scene| {
        let (etcd, held) = (scene.world.etcd(), leases(scene.world)?);
        etcd.kill();
        fs::remove_dir_all(scene.world.folder().join("etcd"))?;
        etcd.restart()?;
        etcd.put("/coreos.com/network/config", world::CONFIG)?;
        let again = || leases(scene.world).is_ok_and(|now| now == held);
        ensure!(until(RECONNECTED, again), "the leases do not come back");
        all_connected(scene.world)
    }),
    harmless("all pins are removed by hand", |scene| {
        let node = scene.world.node(1);
        let before = pins(node);
        ensure!(before.len() > 20, "{before:?}");
        fs::remove_dir_all(node.bpffs().join("canal"))?;
        // Nobody announces that: it is found at the next look.
        ensure!(until(SOON * 2, || pins(node) == before), "they are not put back: {:?}", pins(node));
        // The next agent finds them.
        node.agent().crash_and_restart()?;
        is_well(node)?;
        ensure!(pins(node) == before, "{:?}", pins(node));
        Ok(())
    }),
    harmful("a peer's MAC is changed in etcd by hand", |scene| {
        let two = scene.world.node(2);
        let mac = mac(two).context("no device")?;
        let find = || -> Result<(String, String)> {
            let leases = leases(scene.world)?;
            leases.into_iter().find(|(_, value)| value.contains(&mac)).context("no lease has its MAC")
        };
        let (key, value) = find()?;
        scene.world.etcd().put(&key, &value.replace(&mac, "0e:00:00:00:00:09"))?;
        soon("its node writes it again", || find().is_ok_and(|now| now == (key.clone(), value.clone())))?;
        Ok(None)
    }),
    harmful("the MAC of a peer's device is changed by hand", |scene| {
        let two = scene.world.node(2);
        let before = mac(two);
        two.netns().ip("link set canal.1 address 0e:00:00:00:00:08")?;
        soon("it is what it was", || mac(two) == before)?;
        Ok(None)
    }),
    harmful("a node's overlay device is deleted by hand", |scene| {
        let one = scene.world.node(1);
        let before = mac(one);
        one.netns().ip("link del canal.1")?;
        soon("there is another with its MAC", || mac(one) == before)?;
        is_well(one)?;
        Ok(None)
    }),
    harmful("a node's public address changes", |scene| {
        let one = scene.world.node(1);
        // The second address of a prefix goes with the first, unless told otherwise.
        one.netns().sysctl("net.ipv4.conf.up0.promote_secondaries", "1")?;
        one.netns().ip("addr add 192.168.50.33/24 dev up0")?;
        one.netns().ip("addr del 192.168.50.1/24 dev up0")?;
        let published = || {
            one.agent().status().is_ok_and(|status| status["lease"]["public_ip"] == "192.168.50.33")
                && leases(scene.world)
                    .is_ok_and(|all| all.iter().any(|(_, value)| value.contains(r#""192.168.50.33""#)))
        };
        soon("the others are told", published)?;
        Ok(None)
    }),
    harmful("the uplink is down for a while", |scene| {
        let one = scene.world.node(1);
        one.netns().ip("link set up0 down")?;
        let told = || problems(one).is_ok_and(|problems| problems.to_string().contains("up0"));
        soon("the agent notices", told)?;
        one.netns().ip("link set up0 up")?;
        let up = Instant::now();
        ensure!((scene.arrive)(1), "nothing comes when it is up again");
        let took = up.elapsed();
        is_well(one)?;
        Ok(Some(took))
    }),
];

const fn harmless(what: &'static str, happen: fn(&Scene<'_>) -> Result<()>) -> Fault {
    Fault { what, kind: Kind::Harmless(happen) }
}

const fn harmful(what: &'static str, happen: fn(&Scene<'_>) -> Result<Option<Duration>>) -> Fault {
    Fault { what, kind: Kind::Harmful(happen) }
}

/// Keys and values that nobody should write.
fn strangers(world: &World) -> Result<Vec<(String, String)>> {
    let lease = |ip: &str| {
        let data = r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}"#;
        format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{data}}}"#)
    };
    let ours = leases(world)?.swap_remove(0).0;
    let inside = ours.trim_start_matches(SUBNETS).replace(".0-24", ".128-25");
    let leases = [
        ("junk", "{".to_owned()),
        ("10.100.300.0-24", lease("192.168.50.7")),
        ("0.0.0.0-0", lease("192.168.50.7")),
        ("10.100.250.0-24", "\u{1}".to_owned()),
        ("10.100.251.0-24", r#"{"PublicIP":"192.168.50.9","BackendType":"wireguard"}"#.to_owned()),
        ("10.100.0.0-16", lease("192.168.50.7")),
        (inside.as_str(), lease("192.168.50.8")),
    ];
    let resources =
        ["tiers/default/x", "globalnetworkpolicies/bad", "workloadendpoints/default/node1-cni-x-eth0"];
    let leases = leases.into_iter().map(|(key, value)| (format!("{SUBNETS}{key}"), value));
    let resources = resources.map(|key| (format!("{}{key}", policy::RESOURCES), "x".to_owned()));
    Ok(leases.chain(resources).chain([("/coreos.com/network/other".to_owned(), "x".to_owned())]).collect())
}

fn leases(world: &World) -> Result<Vec<(String, String)>> {
    world.etcd().list(SUBNETS).map(|leases| leases.into_iter().collect())
}

fn mac(node: &Node) -> Option<String> {
    let link = node.netns().ip("-br link show canal.1").ok()?;
    link.split_whitespace().nth(2).map(str::to_owned)
}

/// Names of all that the agent pins.
fn pins(node: &Node) -> Vec<String> {
    let folders = fs::read_dir(node.bpffs().join("canal")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let mut names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn problems(node: &Node) -> Result<Value> {
    node.agent().status().map(|status| status["problems"].clone())
}

fn programs(node: &Node) -> Result<Value> {
    node.agent().status().map(|status| status["programs"].clone())
}

fn is_well(node: &Node) -> Result<()> {
    let is_well = until(RECONNECTED, || problems(node).is_ok_and(|problems| problems == json!([])));
    ensure!(is_well, "{} is not well: {}", node.name(), problems(node)?);
    Ok(())
}

fn is_connected(node: &Node) -> bool {
    node.agent().status().is_ok_and(|status| status["store"]["connected"] == true)
}

fn all_connected(world: &World) -> Result<()> {
    let all = || world.nodes().iter().all(is_connected);
    ensure!(until(RECONNECTED, all), "not all nodes follow etcd again");
    Ok(())
}

fn all_apart(world: &World) -> Result<()> {
    let none = || !world.nodes().iter().any(is_connected);
    ensure!(until(RECONNECTED, none), "a node does not notice that etcd is away");
    Ok(())
}

fn soon(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    ensure!(until(SOON, condition), "not within {SOON:?}: {what}");
    Ok(())
}
