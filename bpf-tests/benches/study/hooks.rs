//! What each hook costs in each state, and what of it is flow table and policy: the same packets to the programs that
//! users run, and to those that were compiled without both.
//!
//! What BPF_PROG_RUN cannot make is not here: a tunnel key, so of `from_overlay` only what it refuses for the want of
//! one; aggregates; and what a redirect costs once it is carried out. A packet's hash, which a socket has often worked
//! out before, is worked out by `from_pod` every time.

mod cases;

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::progrun::{DROP, Lab};
use canal_common::{
    Mac,
    endpoint::{Endpoint, EndpointPolicy},
    node::Node,
    policy::{self, FANOUT, Row, Verdict},
    reason::Hook,
    wire::PROTO_UDP,
};

use self::cases::{Case, ESTABLISHED};
use super::Figure;

/// Packets for one reading of one case.
const RUNS: u16 = 2_000;
/// What flow table and policy may cost an established packet.
const TARGET: f64 = 1.5;

/// A pod of this node, on the interface of the same number.
#[derive(Debug, Clone, Copy)]
struct Pod {
    number: usize,
    ip: Ipv4Addr,
    mac: Mac,
    id: u32,
}

const A: Pod = Pod { number: 0, ip: Ipv4Addr::new(10, 244, 1, 10), mac: Mac::new([2, 0, 0, 0, 1, 0]), id: 5 };
const B: Pod = Pod { number: 1, ip: Ipv4Addr::new(10, 244, 1, 11), mac: Mac::new([2, 0, 0, 0, 1, 1]), id: 6 };
const GATEWAY: Mac = Mac::new([0xee; 6]);
/// A pod of another node, and that node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 20);
const REMOTE_NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
/// The rest of the world.
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// No node's and no pod's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 51, 1);
/// Other nodes; behind the first one is `REMOTE`.
const NODES: u8 = 250;

/// A row that allows all but UDP to one port.
const ALL_BUT: u32 = 1;
const REFUSED: u16 = 9;

pub(super) fn measure(rounds: u32, bare: &Path) -> Result<Vec<Figure>> {
    let (mut whole, mut bare) = (Desk::new(Lab::open()?), Desk::new(Lab::open_file(bare)?));
    let mut readings: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut bare_readings: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut ratios: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for case in 0..whole.cases.len() {
            readings.entry(case).or_default().push(whole.read(case)?);
        }
        for (pair, names) in ESTABLISHED {
            let (mut with, mut without) = (0.0, 0.0);
            for case in 0..whole.cases.len() {
                if !names.contains(&whole.cases[case].what) {
                    continue;
                }
                // Each comes first as often as last.
                for is_bare in [round % 2 == 0, round % 2 != 0] {
                    if is_bare {
                        let ns = bare.read(case)?;
                        bare_readings.entry(case).or_default().push(ns);
                        without += ns;
                    } else {
                        with += whole.read(case)?;
                    }
                }
            }
            ratios.entry(pair).or_default().push(with / without);
        }
    }
    let mut figures = Vec::new();
    for (case, readings) in readings {
        figures.push(Figure::median(whole.cases[case].name(), "ns", readings));
        if let Some(readings) = bare_readings.remove(&case) {
            figures.push(Figure::median("  the same without flow table and policy", "ns", readings));
        }
    }
    for (pair, ratios) in ratios {
        figures.push(Figure::median(pair, "", ratios).at_most(TARGET));
    }
    let idle = (0..rounds).map(|_| whole.lab.idle_run(RUNS.into())).collect::<Result<Vec<_>>>()?;
    figures.push(Figure::median("a program that does nothing, which is taken off all of these", "ns", idle));
    for hook in Hook::ALL {
        figures.extend(sizes(&mut whole.lab, *hook, "")?);
    }
    for hook in [Hook::FromPod, Hook::FromWire] {
        figures.extend(sizes(&mut bare.lab, hook, ", without flow table and policy")?);
    }
    Ok(figures)
}

fn sizes(lab: &mut Lab, hook: Hook, which: &str) -> Result<[Figure; 3]> {
    let (size, name) = (lab.size(hook)?, hook.slug());
    let figure = |what, unit, number: u32| Figure::of(format!("{name}: {what}{which}"), unit, number.into());
    Ok([
        figure("instructions", "", size.instructions),
        figure("instructions that the verifier walks", "", size.verified),
        figure("machine code", "B", size.machine_code),
    ])
}

/// A node with two pods that may talk to everybody, and with other nodes.
struct Desk {
    lab: Lab,
    cases: Vec<Case>,
}

impl Desk {
    fn new(mut lab: Lab) -> Self {
        for number in 0..NODES {
            let ip = Ipv4Addr::new(192, 168, 50, 2 + number);
            let node =
                Node { ip: ip.into(), vtep_mac: vtep(number), mtu: 1450, flags: Node::ALIVE | Node::ON_LINK };
            let subnet = format!("10.244.{}.0/24", 2 + u32::from(number));
            lab.put_node(1 + u32::from(number), &subnet, node);
        }
        let port = policy::key(PROTO_UDP, REFUSED);
        let (allow, deny) = (Verdict::new(Verdict::ALLOW, 1), Verdict::new(Verdict::DENY, 2));
        let mut row = Row { bounds: [u32::MAX; FANOUT], ..Row::DENY_ALL };
        for (at, (bound, verdict)) in [(0, allow), (port, deny), (port + 1, allow)].into_iter().enumerate() {
            (row.bounds[at], row.verdicts[at]) = (bound, verdict);
        }
        lab.put_row(ALL_BUT, &row);
        for pod in [A, B] {
            let (ingress_set, egress_set) = (pod.id * 2, pod.id * 2 + 1);
            lab.put_set(ingress_set, &[ALL_BUT]);
            lab.put_set(egress_set, &[ALL_BUT]);
            lab.put_policy(pod.id, EndpointPolicy { ingress_set, egress_set, flags: 0 });
            let ifindex = lab.links.pods[pod.number];
            let endpoint = Endpoint { ifindex, id: pod.id, pod_mac: pod.mac, host_mac: GATEWAY, flags: 0 };
            lab.put_endpoint(pod.ip, endpoint);
        }
        let cases = cases::all(lab.links);
        Self { lab, cases }
    }

    /// Nanoseconds of one packet.
    fn read(&mut self, case: usize) -> Result<f64> {
        let case = &self.cases[case];
        self.lab.visit(|lab| fire(lab, case)).with_context(|| case.name())
    }
}

fn fire(lab: &mut Lab, case: &Case) -> Result<f64> {
    lab.forget_flows();
    for shot in &case.before {
        let (action, _) = lab.try_send(shot.hook, &shot.frame, shot.context)?;
        ensure!(action != DROP, "what comes before is dropped by {}", shot.hook.slug());
    }
    let idle = lab.idle_run(case.frames.len())?;
    let before = counted(lab, case);
    let (ns, actions) = lab.cost(case.hook, &case.frames, case.context)?;
    let other = actions.iter().find(|action| **action != case.action);
    ensure!(other.is_none(), "action {other:?} instead of {}", case.action);
    let counted = counted(lab, case) - before;
    let expected = if case.reason.is_some() { case.frames.len() as u64 } else { 0 };
    ensure!(counted == expected, "{counted} of {expected} packets were counted as {:?}", case.reason);
    Ok(ns - idle)
}

/// Packets that the hook has counted for the case's reason; for any, where it is to count none.
fn counted(lab: &mut Lab, case: &Case) -> u64 {
    let counters = lab.counters().into_iter();
    let of_case =
        counters.filter(|(hook, reason, _)| *hook == case.hook && case.reason.is_none_or(|r| r == *reason));
    of_case.map(|(_, _, counter)| counter.packets).sum()
}

fn vtep(number: u8) -> Mac {
    Mac::new([2, 0xca, 0, 0, 1, number])
}
