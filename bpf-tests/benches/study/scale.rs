//! A large cluster on one node: from the store's list to the kernel, what it takes to keep, and what a change costs.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Result, ensure};
use canal_agent::{
    compile::Compiler,
    dataplane::{
        object::{Object, Sizes},
        policy::{Desired, Limits, PolicyTables},
        tables::KernelTables,
    },
    model::{
        Cluster,
        resource::{Kind, Resource},
    },
};
use canal_common::{Mac, settings::Settings};
use serde_json::{Value, json};

use super::{Figure, memory};

const POLICIES: u32 = 10_000;
const ENDPOINTS: u32 = 100_000;
pub(super) const LABEL_SETS: u32 = 2_000;
/// With [`NETS_PER_SET`] CIDRs each.
const NETWORK_SETS: u32 = 100;
const NETS_PER_SET: u32 = 100;
pub(super) const LOCAL: u32 = 250;
const NAMESPACES: u32 = 50;
const APPS: u32 = 1000;

const TO_KERNEL_S: f64 = 3.0;
const MEMORY_MB: f64 = 400.0;
const LABEL_MS: f64 = 10.0;
const POLICY_MS: f64 = 50.0;

pub(super) type Entry = (String, Vec<u8>);

pub(super) fn measure(changes: u32) -> Result<Vec<Figure>> {
    let (mut figures, process) = (Vec::new(), std::process::id());
    let mut object = Object::load(&Settings::default(), None, &Sizes::new())?;
    let (kernel, leftovers) = KernelTables::adopt(&mut object.ebpf)?;
    let mut node = Node {
        cluster: Cluster::default(),
        compiler: Compiler::new("node1"),
        tables: PolicyTables::new(kernel, leftovers, Limits::default()),
    };
    let list = list();
    let bytes: usize = list.iter().map(|(key, value)| key.len() + value.len()).sum();
    eprintln!("{} objects, {} MB", list.len(), bytes / 1_000_000);
    let before = memory::resident_mb(process, "VmRSS")?;

    let start = Instant::now();
    node.cluster.replace_all(list.into_iter());
    let read = Instant::now();
    node.compile();
    let compiled = Instant::now();
    node.write()?;
    let written = Instant::now();
    ensure!(node.cluster.invalid().is_empty(), "{:?}", node.cluster.invalid());
    ensure!(
        node.compiler.endpoints().len() == LOCAL as usize,
        "{} local pods",
        node.compiler.endpoints().len()
    );
    eprintln!("{:?}", node.tables.sizes());
    figures.push(seconds("from list to kernel", start, written).at_most(TO_KERNEL_S));
    figures.push(seconds("  of this, reading objects", start, read));
    figures.push(seconds("  of this, compiling", read, compiled));
    figures.push(seconds("  of this, writing tables", compiled, written));
    figures.push(
        Figure::of("resident, highest, with the list", "MB", memory::resident_mb(process, "VmHWM")?)
            .at_most(MEMORY_MB),
    );
    figures.push(Figure::of("  of this, the list and this program", "MB", before));
    figures.push(Figure::of("resident then", "MB", memory::resident_mb(process, "VmRSS")?));

    for change in Change::ALL {
        let mut times = Vec::new();
        for turn in 0..changes {
            let (key, value) = change.entry(turn);
            // Changes that come at once are applied together: each finds the tables at rest.
            node.tables.wait_for_programs()?;
            let start = Instant::now();
            node.cluster.apply(&key, Some(&value));
            node.compile();
            node.write()?;
            times.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let p99 = times[times.len() * 99 / 100];
        let name = change.sentence();
        figures.push(Figure::median(format!("{name}, p50"), "ms", times));
        figures.push(Figure::of(format!("{name}, p99"), "ms", p99).at_most(change.limit_ms()));
    }
    figures.push(Figure::of("resident in the end", "MB", memory::resident_mb(process, "VmRSS")?));

    let tables = memory::tables(process)?;
    let total = tables.values().sum();
    figures.push(Figure::of("kernel memory of all tables", "MB", memory::megabytes(total)));
    for (table, bytes) in tables {
        figures.push(Figure::of(format!("  of this, {table}"), "MB", memory::megabytes(bytes)));
    }
    drop(object);
    Ok(figures)
}

/// What the agent's node thread does for policy, without interfaces.
struct Node {
    cluster: Cluster,
    compiler: Compiler,
    tables: PolicyTables<KernelTables>,
}

impl Node {
    fn compile(&mut self) {
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
    }

    fn write(&mut self) -> Result<()> {
        let desired = self.compiler.endpoints().iter().map(|((_, address), judgement)| {
            let (ingress, egress) = (judgement.ingress.clone(), judgement.egress.clone());
            let (pod_mac, host_mac) = (Mac::new([2; 6]), Mac::new([4; 6]));
            (*address, Desired { ifindex: 1, pod_mac, host_mac, shaped: false, ingress, egress })
        });
        let desired = desired.collect();
        let problems = self.tables.apply(self.compiler.census(), &desired)?;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    }
}

/// What changes while all else stands.
#[derive(Clone, Copy)]
enum Change {
    RemoteLabel,
    LocalLabel,
    PolicyPort,
    PolicyOfMany,
    RemotePod,
}

impl Change {
    const ALL: [Self; 5] =
        [Self::RemoteLabel, Self::LocalLabel, Self::RemotePod, Self::PolicyPort, Self::PolicyOfMany];

    fn sentence(self) -> &'static str {
        match self {
            Self::RemoteLabel => "labels of a pod elsewhere",
            Self::LocalLabel => "labels of a pod here",
            Self::RemotePod => "another pod elsewhere",
            Self::PolicyPort => "a port in a policy of pods here",
            Self::PolicyOfMany => "a port in a policy of any pods",
        }
    }

    fn limit_ms(self) -> f64 {
        match self {
            Self::RemoteLabel | Self::LocalLabel | Self::RemotePod => LABEL_MS,
            Self::PolicyPort | Self::PolicyOfMany => POLICY_MS,
        }
    }

    fn entry(self, turn: u32) -> Entry {
        match self {
            Self::RemoteLabel => endpoint(5_000 + turn, (5_007 + turn) % LABEL_SETS),
            Self::LocalLabel => endpoint(turn % LOCAL, (turn + 13) % LABEL_SETS),
            Self::RemotePod => endpoint(2 * ENDPOINTS + turn, turn % LABEL_SETS),
            Self::PolicyPort => policy(turn % LOCAL, 9_000 + turn),
            Self::PolicyOfMany => policy(turn * 17 % POLICIES, 10_000 + turn),
        }
    }
}

/// The store's content, as Calico's tools and plugin write it.
fn list() -> Vec<Entry> {
    let mut list = Vec::new();
    list.extend((0..ENDPOINTS).map(|number| endpoint(number, number % LABEL_SETS)));
    list.extend((0..POLICIES).map(|number| policy(number, 8080)));
    for number in 0..NETWORK_SETS {
        let net = |at| Ipv4Addr::from_bits(0xc612_0000 + number * NETS_PER_SET + at);
        let nets: Vec<String> = (0..NETS_PER_SET).map(|at| format!("{}/32", net(at))).collect();
        let labels = json!({ "set": format!("s{number}") });
        let value = json!({ "metadata": { "labels": labels }, "spec": { "nets": nets } });
        list.push(entry(Kind::GlobalNetworkSet, "", &format!("s{number}"), &value));
    }
    let allow = json!([{ "action": "Allow" }]);
    for number in 0..NAMESPACES {
        let labels = json!({ "pcns.projectcalico.org/name": format!("ns{number}"), "pcns.env": "prod" });
        let spec = json!({ "labelsToApply": labels, "ingress": allow, "egress": allow });
        list.push(entry(Kind::Profile, "", &format!("kns.ns{number}"), &json!({ "spec": spec })));
        let spec = json!({ "labelsToApply": { "pcsa.projectcalico.org/name": "default" } });
        list.push(entry(Kind::Profile, "", &format!("ksa.ns{number}.default"), &json!({ "spec": spec })));
    }
    for number in 0..20 {
        let source = json!({ "selector": format!("set == 's{number}'") });
        let rules = json!([{ "action": "Deny", "source": source }, { "action": "Pass" }]);
        let spec = json!({ "tier": "edge", "order": number, "types": ["Ingress"], "ingress": rules });
        list.push(entry(Kind::GlobalNetworkPolicy, "", &format!("edge.{number}"), &json!({ "spec": spec })));
    }
    list.push(entry(Kind::Tier, "", "edge", &json!({ "spec": { "order": 10 } })));
    list
}

pub(super) fn endpoint(number: u32, label_set: u32) -> Entry {
    let node = if number < LOCAL { 1 } else { 2 + number / LOCAL };
    let namespace = format!("ns{}", label_set % NAMESPACES);
    let name = format!("node{node}-k8s-p{number}-eth0");
    let value = json!({
        "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": name, "namespace": namespace,
            "uid": "6f5a0000-0000-4000-8000-000000000000", "creationTimestamp": "2026-03-04T05:06:07Z",
            "labels": {
                "app": format!("app{}", label_set % APPS), "tier": format!("t{}", label_set / APPS),
                "zone": format!("z{}", label_set % 4), "projectcalico.org/namespace": namespace,
                "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "default",
            },
        },
        "spec": {
            "orchestrator": "k8s", "node": format!("node{node}"), "pod": format!("p{number}"), "endpoint": "eth0",
            "containerID": format!("{number:064x}"),
            "ipNetworks": [format!("{}/32", Ipv4Addr::from_bits(0x0a00_0000 + number))],
            "profiles": [format!("kns.{namespace}"), format!("ksa.{namespace}.default")],
            "interfaceName": format!("cali{number:x}"), "mac": "5a:11:22:33:44:55",
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        },
    });
    entry(Kind::WorkloadEndpoint, &namespace, &name, &value)
}

fn policy(number: u32, port: u32) -> Entry {
    let namespace = format!("ns{}", number % APPS % NAMESPACES);
    let name = format!("default.p{number}");
    let value = json!({
        "kind": "NetworkPolicy", "apiVersion": "projectcalico.org/v3",
        "metadata": { "name": name, "namespace": namespace }, "spec": policy_spec(number, port),
    });
    entry(Kind::NetworkPolicy, &namespace, &name, &value)
}

pub(super) fn policy_spec(number: u32, port: u32) -> Value {
    let (app, round) = (number % APPS, number / APPS);
    let from = json!({ "selector": format!("app == 'app{}'", (app + NAMESPACES * round) % APPS) });
    let block = format!("172.{}.{}.0/24", 16 + number % 16, number % 256);
    let dns = json!({ "selector": "k8s-app == 'dns'", "namespaceSelector": "all()", "ports": [53] });
    let tier = json!({ "selector": format!("tier == 't{}'", number % 2), "namespaceSelector": "all()" });
    json!({
        "order": round, "selector": format!("app == 'app{app}'"), "types": ["Ingress", "Egress"],
        "ingress": [
            { "action": "Allow", "protocol": "TCP", "source": from, "destination": { "ports": [port] } },
            { "action": "Deny", "source": { "nets": [block] } },
        ],
        "egress": [
            { "action": "Allow", "protocol": "UDP", "destination": dns },
            { "action": "Allow", "protocol": "TCP", "destination": tier },
        ],
    })
}

pub(super) fn entry(kind: Kind, namespace: &str, name: &str, value: &Value) -> Entry {
    (Resource::new(kind, namespace, name).key(), value.to_string().into_bytes())
}

fn seconds(what: &str, from: Instant, to: Instant) -> Figure {
    Figure::of(what, "s", to.duration_since(from).as_secs_f64())
}
