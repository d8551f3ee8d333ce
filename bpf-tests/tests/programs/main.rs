//! The kernel programs packet by packet: every hook, every reason, every rule of the flow table.
//!
//! What BPF_PROG_RUN cannot show (see `bpf_tests::progrun::Context`) is left to the tests with namespaces: tunnel keys
//! (so the whole of `from_overlay` behind its first check, and the kernel device as the way out), aggregates on their
//! way into an envelope, and where a redirect leads.

#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers of pods and bounded dice")]

mod arp;
mod differential;
mod direct;
mod envelope;
mod event;
mod flood;
mod flow;
mod fragment;
mod from_pod;
mod from_wire;
mod host;
mod icmp;
mod judge;
mod keep;
mod nodes;
mod overlay;
mod reason;
mod shape;
mod spoofing;
mod table;
mod to_pod;
mod transport;

use std::net::Ipv4Addr;

use bpf_tests::progrun::{
    Context, DROP, Lab, NEXT, NODE_IP, REDIRECT, Ran, VNI, VTEP_MAC, VXLAN_PORT, packet::*,
};
use canal_common::{
    Mac,
    endpoint::{Endpoint, EndpointPolicy},
    flow::Flow,
    node::Node,
    policy::{FANOUT, Row, Verdict, icmp_port, key},
    reason::{Hook, Reason},
    settings::Settings,
};

/// A pod of this node, on the interface of the same number.
#[derive(Debug, Clone, Copy)]
struct Pod {
    number: usize,
    ip: Ipv4Addr,
    mac: Mac,
    id: u32,
}

const A: Pod = pod(0);
const B: Pod = pod(1);
const HOST_MAC: Mac = Mac::new([0xee; 6]);

const fn pod(number: usize) -> Pod {
    let n = number as u8;
    Pod {
        number,
        ip: Ipv4Addr::new(10, 244, 1, 10 + n),
        mac: Mac::new([2, 0, 0, 0, 1, n]),
        id: 5 + number as u32,
    }
}

/// A pod of another node, and that node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 20);
const REMOTE_NET: &str = "10.244.2.0/24";
const REMOTE_NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
const REMOTE_VTEP: Mac = Mac::new([2, 0xca, 0, 0, 0, 2]);
const REMOTE_INDEX: u32 = 3;
const MTU: u16 = 1450;
/// The rest of the world.
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Rows and the rules in them.
const ALLOW: u32 = 1;
const DENY: u32 = 2;

fn remote_node() -> Node {
    Node { ip: REMOTE_NODE.into(), vtep_mac: REMOTE_VTEP, mtu: MTU, flags: Node::ALIVE }
}

impl Pod {
    fn ingress_set(self) -> u32 {
        self.id * 2
    }

    fn egress_set(self) -> u32 {
        self.id * 2 + 1
    }

    fn from(self, lab: &Lab) -> Context {
        Context::on(lab.links.pods[self.number])
    }

    fn at(self, port: u16) -> End {
        (self.ip, port)
    }
}

/// The lab with pods A and B and a node behind which REMOTE is; everybody may talk.
fn story(tell: impl FnOnce(&mut Lab) + Send) {
    story_with(0, tell);
}

/// As [`story`], with these flags of [`Settings`].
fn story_with(flags: u32, tell: impl FnOnce(&mut Lab) + Send) {
    Lab::run_with(flags, |lab| {
        lab.put_node(REMOTE_INDEX, REMOTE_NET, remote_node());
        add_pods(lab);
        tell(lab);
    });
}

fn add_pods(lab: &mut Lab) {
    lab.put_row(ALLOW, &one_verdict(Verdict::ALLOW, ALLOW));
    lab.put_row(DENY, &one_verdict(Verdict::DENY, DENY));
    for pod in [A, B] {
        add_pod(lab, pod);
        lab.put_set(pod.ingress_set(), &[ALLOW]);
        lab.put_set(pod.egress_set(), &[ALLOW]);
    }
}

fn add_pod(lab: &mut Lab, pod: Pod) {
    let ifindex = lab.links.pods[pod.number];
    lab.put_policy(
        pod.id,
        EndpointPolicy { ingress_set: pod.ingress_set(), egress_set: pod.egress_set(), flags: 0 },
    );
    lab.put_endpoint(
        pod.ip,
        Endpoint { ifindex, id: pod.id, pod_mac: pod.mac, host_mac: HOST_MAC, flags: 0 },
    );
}

fn one_verdict(kind: u32, rule: u32) -> Row {
    row(&[(0, Verdict::new(kind, rule))])
}

/// A page with these bounds.
fn row(slots: &[(u32, Verdict)]) -> Row {
    let mut row = Row { bounds: [u32::MAX; FANOUT], ..Row::DENY_ALL };
    for (at, (bound, verdict)) in slots.iter().enumerate() {
        (row.bounds[at], row.verdicts[at]) = (*bound, *verdict);
    }
    row
}

/// Changes a set as the agent does: the tables, then the generation.
fn revise(lab: &mut Lab, pod: Pod, set: u32, row: u32) {
    lab.put_set(set, &[row]);
    lab.bump(pod.id);
}

/// `packet` as `pod` sends it.
fn leave(lab: &mut Lab, pod: Pod, packet: &Packet) -> Ran {
    let context = pod.from(lab);
    lab.send(Hook::FromPod, &packet.clone().macs(pod.mac, HOST_MAC).bytes(), context)
}

/// `packet` as the stack delivers it to `pod`, having come in by the way that leads to its sender.
fn enter(lab: &mut Lab, pod: Pod, packet: &Packet) -> Ran {
    let came_by = match packet.src {
        src if src == A.ip => lab.links.pods[A.number],
        src if src == B.ip => lab.links.pods[B.number],
        REMOTE => lab.links.overlay,
        _ => lab.links.uplink,
    };
    enter_by(lab, pod, packet, came_by)
}

fn enter_by(lab: &mut Lab, pod: Pod, packet: &Packet, came_by: u32) -> Ran {
    let context = pod.from(lab).came_by(came_by);
    lab.send(Hook::ToPod, &packet.bytes(), context)
}

/// `packet` as this host itself sends it to `pod`.
fn from_host(lab: &mut Lab, pod: Pod, packet: &Packet) -> Ran {
    let context = pod.from(lab);
    lab.send(Hook::ToPod, &packet.bytes(), context)
}

fn outer() -> Outer {
    Outer::new(REMOTE_NODE, NODE_IP, VXLAN_PORT, VNI)
}

/// `packet` as the other node sends it.
fn arrive(lab: &mut Lab, packet: &Packet) -> Ran {
    let frame = packet.clone().macs(REMOTE_VTEP, VTEP_MAC).in_vxlan(&outer());
    wire(lab, &frame)
}

/// A frame on the uplink.
fn wire(lab: &mut Lab, frame: &[u8]) -> Ran {
    let context = Context::on(lab.links.uplink);
    lab.send(Hook::FromWire, frame, context)
}

#[track_caller]
fn passes(ran: &Ran, action: i32, reason: Reason) {
    assert_eq!((ran.action, ran.reason), (action, Some(reason)), "{}", reason.slug());
}

#[track_caller]
fn delivered(ran: &Ran) {
    passes(ran, REDIRECT, Reason::Delivered);
}

#[track_caller]
fn encapsulated(ran: &Ran) {
    passes(ran, REDIRECT, Reason::Encapsulated);
}

#[track_caller]
fn to_stack(ran: &Ran) {
    passes(ran, NEXT, Reason::ToStack);
}

#[track_caller]
fn no_pod(ran: &Ran) {
    passes(ran, NEXT, Reason::NoPod);
}

#[track_caller]
fn dropped(ran: &Ran, reason: Reason) {
    assert!(reason.is_drop());
    passes(ran, DROP, reason);
}

/// Neither touched nor counted.
#[track_caller]
fn untouched(ran: &Ran, frame: &[u8]) {
    assert_eq!((ran.action, ran.reason, &ran.frame[..]), (NEXT, None, frame));
}

/// The only flow there is, and whether it has been answered.
#[track_caller]
fn only_flow(lab: &mut Lab) -> (Flow, bool) {
    let (live, new) = (lab.flows(), lab.new_flows());
    match (&live[..], &new[..]) {
        ([(_, flow)], []) => (*flow, true),
        ([], [(_, flow)]) => (*flow, false),
        _ => panic!("one flow expected: {live:?} {new:?}"),
    }
}
