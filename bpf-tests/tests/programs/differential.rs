//! Random clusters and packets: what the kernel programs do with tables that the agent wrote is what the definition of
//! policy says, over a sequence of updates and restarts.

use std::{collections::BTreeMap, env, fs, path::Path, thread};

use bpf_tests::progrun::Links;
use canal_agent::{
    compile::{Compiler, reference, reference::Reference},
    dataplane::{
        pins::Pins,
        policy::{Desired, Limits, PolicyTables},
        tables::KernelTables,
    },
    model::{
        Cluster, EndpointKey,
        resource::{Kind, Resource},
        rule::Direction,
    },
};
use canal_common::flow::flow_key;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};

use super::*;

const HERE: &str = "n1";
const VERDICTS: usize = 20_000;
const PACKETS_PER_CLUSTER: usize = 400;
/// Every so many clusters, a fresh process takes the tables over.
const LIFE: usize = 6;

/// Numbers that look random and follow from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), as in Java.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Puts a field into an object, sometimes.
    fn maybe(
        &mut self,
        percent: usize,
        object: &mut Value,
        field: &str,
        value: impl FnOnce(&mut Self) -> Value,
    ) {
        if self.chance(percent) {
            object[field] = value(self);
        }
    }

    fn list(&mut self, most: usize, item: impl Fn(&mut Self) -> Value) -> Value {
        let length = 1 + self.below(most);
        (0..length).map(|_| item(self)).collect()
    }
}

fn selector(dice: &mut Dice) -> Value {
    let all = [
        "all()",
        "app == 'web'",
        "app != 'web'",
        "has(tier)",
        "!has(tier)",
        "app in {'web','db'}",
        "set == 'x'",
    ];
    (*dice.pick(&all)).into()
}

fn net(dice: &mut Dice) -> Value {
    let all =
        ["10.244.0.0/16", "10.244.1.8/30", "10.244.2.0/24", "203.0.113.0/24", "203.0.113.7/32", "0.0.0.0/0"];
    (*dice.pick(&all)).into()
}

fn port(dice: &mut Dice) -> Value {
    dice.pick(&[json!(80), json!(443), json!("80:90"), json!("1000:65535"), json!("http"), json!("dns")])
        .clone()
}

fn entity(dice: &mut Dice) -> Value {
    let mut entity = json!({});
    dice.maybe(30, &mut entity, "selector", selector);
    dice.maybe(10, &mut entity, "notSelector", selector);
    dice.maybe(25, &mut entity, "nets", |dice| dice.list(2, net));
    dice.maybe(10, &mut entity, "notNets", |dice| dice.list(2, net));
    dice.maybe(30, &mut entity, "ports", |dice| dice.list(2, port));
    dice.maybe(10, &mut entity, "notPorts", |dice| dice.list(2, port));
    entity
}

fn rules(dice: &mut Dice) -> Value {
    dice.list(3, |dice| {
        let mut rule =
            json!({ "action": *dice.pick(&["Allow", "Allow", "Allow", "Allow", "Deny", "Pass", "Log"]) });
        dice.maybe(40, &mut rule, "protocol", |dice| {
            dice.pick(&["TCP", "UDP", "SCTP", "ICMP"]).to_owned().into()
        });
        dice.maybe(45, &mut rule, "source", entity);
        dice.maybe(45, &mut rule, "destination", entity);
        rule
    })
}

fn policy(dice: &mut Dice) -> (String, Value) {
    let mut spec = json!({});
    dice.maybe(70, &mut spec, "selector", selector);
    dice.maybe(70, &mut spec, "order", |dice| dice.below(4).into());
    dice.maybe(60, &mut spec, "tier", |dice| dice.pick(&["default", "first"]).to_owned().into());
    dice.maybe(80, &mut spec, "types", |dice| {
        dice.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]).clone()
    });
    dice.maybe(90, &mut spec, "ingress", rules);
    dice.maybe(90, &mut spec, "egress", rules);
    let name = *dice.pick(&["p", "q", "r", "s"]);
    (Resource::new(Kind::GlobalNetworkPolicy, "", name).key(), json!({ "spec": spec }))
}

/// The first three are pods of this node.
fn pod_address(n: usize) -> Ipv4Addr {
    if n < 3 { pod(n).ip } else { Ipv4Addr::new(10, 244, 2, n as u8) }
}

fn endpoint(dice: &mut Dice) -> (String, Value) {
    let n = dice.below(6);
    let mut labels = json!({});
    dice.maybe(70, &mut labels, "app", |dice| dice.pick(&["web", "db", "other"]).to_owned().into());
    dice.maybe(50, &mut labels, "tier", |_| "x".into());
    let ports = [
        json!([]),
        json!([{ "name": "http", "protocol": "TCP", "port": 80 }, { "name": "dns", "protocol": "UDP", "port": 53 }]),
        json!([{ "name": "http", "protocol": "TCP", "port": 443 }]),
    ];
    let node = if n < 3 { HERE } else { "n2" };
    let spec = json!({
        "ipNetworks": [format!("{}/32", pod_address(n))],
        "profiles": [*dice.pick(&["open", "half"])],
        "ports": dice.pick(&ports),
    });
    let key = Resource::new(Kind::WorkloadEndpoint, "shop", &format!("{node}-cni-c{n}-eth0")).key();
    (key, json!({ "metadata": { "labels": labels }, "spec": spec }))
}

fn other(dice: &mut Dice) -> (String, Value) {
    match dice.below(3) {
        0 => {
            let nets = dice.list(3, net);
            let set = json!({ "metadata": { "labels": { "set": *dice.pick(&["x", "y"]) } }, "spec": { "nets": nets } });
            let name: &&str = dice.pick(&["s", "t"]);
            (Resource::new(Kind::GlobalNetworkSet, "", name).key(), set)
        }
        1 => {
            let tier = json!({ "spec": { "order": -1, "defaultAction": *dice.pick(&["Deny", "Pass"]) } });
            (Resource::new(Kind::Tier, "", "first").key(), tier)
        }
        _ => {
            let spec = json!({ "ingress": rules(dice), "egress": rules(dice) });
            (Resource::new(Kind::Profile, "", "half").key(), json!({ "spec": spec }))
        }
    }
}

/// A few changes; at the beginning, a whole cluster.
fn advance(dice: &mut Dice, entries: &mut BTreeMap<String, Value>) {
    let open = json!({ "spec": { "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }] } });
    entries.insert(Resource::new(Kind::Profile, "", "open").key(), open);
    let changes = if entries.len() < 5 { 20 } else { 1 + dice.below(4) };
    for _ in 0..changes {
        let (key, value) = match dice.below(10) {
            0..4 => policy(dice),
            4..8 => endpoint(dice),
            _ => other(dice),
        };
        if dice.chance(20) { drop(entries.remove(&key)) } else { drop(entries.insert(key, value)) }
    }
}

fn cluster_of(entries: &BTreeMap<String, Value>) -> Cluster {
    let mut cluster = Cluster::default();
    for (key, value) in entries {
        cluster.apply(key, Some(value.to_string().as_bytes()));
    }
    cluster
}

fn random_packet(dice: &mut Dice, src: Ipv4Addr, dst: Ipv4Addr) -> reference::Packet {
    let ports = [53, 79, 80, 85, 90, 91, 443, 999, 1000, 40000, 65535];
    let mut packet = reference::Packet {
        source: src,
        destination: dst,
        protocol: *dice.pick(&[6, 6, 6, 17, 17, 132, 1, 47]),
        src_port: 0,
        dst_port: 0,
        icmp_type: 0,
        icmp_code: 0,
    };
    match packet.protocol {
        6 | 17 | 132 => (packet.src_port, packet.dst_port) = (*dice.pick(&ports), *dice.pick(&ports)),
        1 => (packet.icmp_type, packet.icmp_code) = *dice.pick(&[(8, 0), (0, 0), (8, 1), (42, 0)]),
        _ => {}
    }
    packet
}

fn frame_of(packet: &reference::Packet) -> Packet {
    let (src, dst) = ((packet.source, packet.src_port), (packet.destination, packet.dst_port));
    match packet.protocol {
        6 => Packet::tcp(src, dst, SYN),
        1 => Packet::icmp(src.0, dst.0, (packet.icmp_type, packet.icmp_code), [0, 9, 0, 1]),
        17 => Packet::udp(src, dst),
        protocol => Packet { proto: protocol, ..Packet::udp(src, dst) },
    }
}

/// The node's process: it may die, its tables stay.
struct Process {
    lab: Lab,
    policy: PolicyTables<KernelTables>,
}

impl Process {
    fn start(links: Links, pins: &Pins) -> Self {
        let mut lab = Lab::load(links, Some(pins)).unwrap();
        let (tables, leftovers) = KernelTables::adopt(&mut lab.object.ebpf).unwrap();
        Self { lab, policy: PolicyTables::new(tables, leftovers, Limits::default()) }
    }

    fn update(&mut self, cluster: &Cluster) -> BTreeMap<Ipv4Addr, EndpointKey> {
        let mut compiler = Compiler::of(cluster, HERE);
        let keys: BTreeMap<Ipv4Addr, EndpointKey> =
            compiler.endpoints().keys().map(|(key, addr)| (*addr, key.clone())).collect();
        let desired = keys.iter().map(|(addr, key)| {
            let pod = (0..3).map(pod).find(|pod| pod.ip == *addr).expect("a pod of this node");
            let judgement = &compiler.endpoints()[&(key.clone(), *addr)];
            let desired = Desired {
                ifindex: self.lab.links.pods[pod.number],
                pod_mac: pod.mac,
                host_mac: HOST_MAC,
                ingress: judgement.ingress.clone(),
                egress: judgement.egress.clone(),
            };
            (*addr, desired)
        });
        let desired = desired.collect();
        let problems = self.policy.apply(compiler.census(), &desired).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        keys
    }

    /// Sends the packet from the pod, or through the stack to the pod; whether it passed.
    fn judge(&mut self, local: Pod, direction: Direction, packet: &reference::Packet) -> bool {
        let frame = frame_of(packet).macs(local.mac, HOST_MAC).bytes();
        let links = self.lab.links;
        let sender = (0..3).find(|n| pod(*n).ip == packet.source);
        let context =
            // Whatever is no pod of ours comes by an interface that says nothing about it.
            Context::on(links.pods[local.number]).came_by(sender.map_or(links.overlay, |n| links.pods[n]));
        let hook = if direction == Direction::Egress { Hook::FromPod } else { Hook::ToPod };
        let (action, _) = self.lab.try_send(hook, &frame, context).unwrap();
        let ports = match packet.protocol {
            1 if matches!(packet.icmp_type, 0 | 8) => (9, 9),
            _ => (packet.src_port, packet.dst_port),
        };
        let (src, dst) = (packet.source.into(), packet.destination.into());
        self.lab.forget_flow(&flow_key(src, dst, ports.0, ports.1, packet.protocol).0);
        action != DROP
    }
}

/// Passes when both ends, as far as they are here, allow it.
fn expected(
    reference: &Reference<'_>,
    keys: &BTreeMap<Ipv4Addr, EndpointKey>,
    packet: &reference::Packet,
) -> bool {
    let allows =
        |addr, direction| keys.get(addr).is_none_or(|key| reference.judge(key, direction, packet).allow);
    allows(&packet.source, Direction::Egress) && allows(&packet.destination, Direction::Ingress)
}

fn tell(dice: &mut Dice, bpffs: &Path, verdicts: usize) {
    let pins = Pins::open(bpffs).unwrap();
    let links = Links::make().unwrap();
    let mut process = Process::start(links, &pins);
    let (mut entries, mut judged, mut allowed, mut clusters) = (BTreeMap::new(), 0, 0, 0);
    while judged < verdicts {
        clusters += 1;
        if clusters % LIFE == 0 {
            drop(process);
            process = Process::start(links, &pins);
        }
        advance(dice, &mut entries);
        let cluster = cluster_of(&entries);
        let keys = process.update(&cluster);
        let reference = Reference::new(&cluster);
        let locals: Vec<Pod> = (0..3).map(pod).filter(|pod| keys.contains_key(&pod.ip)).collect();
        if locals.is_empty() {
            continue;
        }
        for _ in 0..PACKETS_PER_CLUSTER {
            let local = *dice.pick(&locals);
            let peers = [
                pod_address(0),
                pod_address(1),
                pod_address(2),
                pod_address(3),
                pod_address(4),
                pod_address(5),
            ];
            let strangers = [
                WORLD,
                Ipv4Addr::new(203, 0, 113, 8),
                Ipv4Addr::new(10, 244, 1, 9),
                Ipv4Addr::new(8, 8, 8, 8),
            ];
            let peer = if dice.chance(70) { *dice.pick(&peers) } else { *dice.pick(&strangers) };
            let (direction, src, dst) = if dice.chance(50) {
                (Direction::Egress, local.ip, peer)
            } else {
                (Direction::Ingress, peer, local.ip)
            };
            let packet = random_packet(dice, src, dst);
            let wanted = expected(&reference, &keys, &packet);
            let found = process.judge(local, direction, &packet);
            assert_eq!(
                found, wanted,
                "cluster {clusters}, {direction} of {}: {packet:?}\n{entries:#?}",
                local.ip
            );
            judged += 1;
            allowed += usize::from(found);
        }
    }
    println!("{judged} verdicts on {clusters} clusters, {allowed} allow");
    assert!(
        allowed * 10 > judged && allowed * 10 < judged * 9,
        "{allowed} of {judged} allow: the cases say too little"
    );
}

#[test]
fn the_kernel_judges_as_the_definition_says_over_updates_and_restarts() {
    let number = |name, default| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seed, verdicts) = (number("CANAL_SEED", 20_261_124), number("CANAL_VERDICTS", VERDICTS as u64));
    println!("CANAL_SEED={seed} CANAL_VERDICTS={verdicts}");
    let folder = tempfile::tempdir().unwrap();
    let bpffs = folder.path().join("bpf");
    fs::create_dir(&bpffs).unwrap();
    // Interfaces and pins of its own, which end with the thread.
    let story = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        tell(&mut Dice(seed), &bpffs, usize::try_from(verdicts).unwrap());
    });
    story.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
