//! What a new flow costs at ten rules and at a hundred thousand: the same packet to the same program with tables that the
//! agent's library wrote, size after size, round after round.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::progrun::{
    Context, DROP, Lab, NEXT,
    packet::{Packet, SYN},
};
use canal_agent::{
    compile::Compiler,
    dataplane::{
        policy::{Desired, Limits, PolicyTables},
        tables::KernelTables,
    },
    model::{
        Cluster,
        resource::{Kind, Resource},
    },
};
use canal_common::{Mac, reason::Hook};
use serde_json::{Value, json};

use super::Figure;

const SIZES: [u32; 4] = [10, 1_000, 10_000, 100_000];
/// The last may take so many times what the first one takes.
const TARGET: f64 = 1.2;
const RULES_PER_POLICY: u32 = 10;
/// For one reading of the same packet again and again.
const RUNS: u32 = 20_000;
/// For one reading of packets of all peers in turn, each a flow of its own.
const TURNS: u16 = 20;

const HERE: &str = "n1";
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// Different labels of other pods.
const APPS: u32 = 97;
/// Somebody whom a net of the last policy covers.
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// The same packet again and again, with everything in the processor's caches. All are connection requests: those are
/// judged every time.
const CASES: [(&str, Ipv4Addr, u16, i32); 3] = [
    ("a new flow, peer by address", peer(0), 443, NEXT),
    ("a new flow, peer by net", WORLD, 443, NEXT),
    ("a flow that no rule allows", peer(0), 9, DROP),
];

const IN_TURN: &str = "a new flow, 97 peers in turn";

const fn peer(app: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0af4_0200 + app)
}

pub(super) fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let mut desks = SIZES.iter().map(|rules| Desk::new(*rules)).collect::<Result<Vec<_>>>()?;
    let mut readings: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..usize::try_from(rounds)? {
        for step in 0..desks.len() {
            // Each size comes first as often as last.
            let size = (step + round) % desks.len();
            for (case, ns) in desks[size].read()?.into_iter().enumerate() {
                readings.entry((case, size)).or_default().push(ns);
            }
        }
    }
    let mut figures = Vec::new();
    for (case, name) in CASES.iter().map(|(name, ..)| *name).chain([IN_TURN]).enumerate() {
        for (size, rules) in SIZES.iter().enumerate() {
            figures.push(Figure::median(
                format!("{name}, {rules} rules"),
                "ns",
                readings[&(case, size)].clone(),
            ));
        }
        // Round by round, so that what the machine did to all of a round is divided away.
        let (first, last) = (&readings[&(case, 0)], &readings[&(case, SIZES.len() - 1)]);
        let ratios = first.iter().zip(last).map(|(first, last)| last / first).collect();
        figures.push(Figure::median(format!("{name}, last to first"), "", ratios).at_most(TARGET));
    }
    Ok(figures)
}

/// A node with one pod and so many rules.
struct Desk {
    lab: Lab,
    _tables: PolicyTables<KernelTables>,
}

impl Desk {
    fn new(rules: u32) -> Result<Self> {
        let mut lab = Lab::open()?;
        let (tables, leftovers) = KernelTables::adopt(&mut lab.object.ebpf)?;
        let mut tables = PolicyTables::new(tables, leftovers, Limits::default());
        let cluster = cluster(rules);
        let mut compiler = Compiler::of(&cluster, HERE);
        let judgement = compiler.endpoints().values().next().context("the pod has no policy")?.clone();
        let desired = Desired {
            ifindex: lab.links.pods[0],
            pod_mac: Mac::new([2; 6]),
            host_mac: Mac::new([4; 6]),
            shaped: false,
            ingress: judgement.ingress,
            egress: judgement.egress,
        };
        let problems = tables.apply(compiler.census(), &[(POD, desired)].into())?;
        ensure!(problems.is_empty(), "{rules} rules: {problems:?}");
        eprintln!("{rules} rules: {:?}", tables.sizes());
        Ok(Self { lab, _tables: tables })
    }

    /// Nanoseconds by case.
    fn read(&mut self) -> Result<Vec<f64>> {
        self.lab.visit(|lab| {
            let context = Context::on(lab.links.pods[0]).came_by(lab.links.overlay);
            let mut time = |source, port, wanted, runs| -> Result<f64> {
                let frame = Packet::tcp(source, (POD, port), SYN).bytes();
                let (action, time) = lab.time(Hook::ToPod, &frame, context, runs)?;
                ensure!(action == wanted, "from {source:?} to port {port}: {action} instead of {wanted}");
                Ok(time.as_secs_f64() * 1e9)
            };
            let mut readings = CASES
                .iter()
                .map(|(_, source, port, action)| time((*source, 40_000), *port, *action, RUNS))
                .collect::<Result<Vec<_>>>()?;
            let mut sum = 0.0;
            for turn in 0..TURNS {
                for app in 0..APPS {
                    sum += time((peer(app), 40_000 + turn), 443, NEXT, 1)?;
                }
            }
            readings.push(sum / f64::from(u32::from(TURNS) * APPS));
            Ok(readings)
        })
    }
}

/// Rules of many peers, by label and by net, each on ports of its own; the last policy allows what is measured.
fn cluster(rules: u32) -> Cluster {
    let mut cluster = Cluster::default();
    let mut put = |kind, namespace: &str, name: &str, value: Value| {
        let key = Resource::new(kind, namespace, name).key();
        cluster.apply(&key, Some(value.to_string().as_bytes()));
    };
    let mut endpoint = |name: &str, address: Ipv4Addr, labels: Value| {
        let spec = json!({ "ipNetworks": [format!("{address}/32")] });
        put(Kind::WorkloadEndpoint, "shop", name, json!({ "metadata": { "labels": labels }, "spec": spec }));
    };
    endpoint(&format!("{HERE}-cni-c-eth0"), POD, json!({ "role": "measured" }));
    for app in 0..APPS {
        endpoint(&format!("n2-cni-c{app}-eth0"), peer(app), json!({ "app": format!("app{app}") }));
    }
    let allow = |source: Value, port: u32| json!({ "action": "Allow", "protocol": "TCP", "source": source, "destination": { "ports": [port] } });
    let rule = |number: u32| {
        let port = 1000 + number * 7 % 60_000;
        if number.is_multiple_of(4) {
            // Some thousands of nets, as address lists are long and rules name them again and again.
            let (block, net) = (16 + number / 1024 % 16, number / 4 % 256);
            return allow(json!({ "nets": [format!("172.{block}.{net}.0/24")] }), port);
        }
        allow(json!({ "selector": format!("app == 'app{}'", number % APPS) }), port)
    };
    // The last two are those that decide here.
    let passed_by: Vec<u32> = (0..rules - 2).collect();
    let mut policies: Vec<Vec<Value>> = passed_by
        .chunks(RULES_PER_POLICY as usize)
        .map(|numbers| numbers.iter().map(|number| rule(*number)).collect())
        .collect();
    policies.push(vec![
        allow(json!({ "selector": "has(app)" }), 443),
        allow(json!({ "nets": ["203.0.113.0/24"] }), 443),
    ]);
    for (order, rules) in policies.into_iter().enumerate() {
        let spec = json!({ "order": order, "selector": "role == 'measured'", "types": ["Ingress"], "ingress": rules });
        put(Kind::GlobalNetworkPolicy, "", &format!("p{order}"), json!({ "spec": spec }));
    }
    cluster
}
