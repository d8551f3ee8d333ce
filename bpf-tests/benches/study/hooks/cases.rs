//! The packets, and what must have happened before each.

use bpf_tests::progrun::{
    Context, DROP, Links, NEXT, NODE_IP, REDIRECT, VNI, VTEP_MAC, VXLAN_PORT,
    packet::{ACK, End, Outer, Packet, SYN, arp},
};
use canal_common::{
    Mac,
    reason::{Hook, Reason},
};
use etherparse::ArpOperation;

use super::{A, B, GATEWAY, Pod, REFUSED, REMOTE, REMOTE_NODE, RUNS, STRANGER, WORLD, vtep};

/// What is measured.
pub(super) struct Case {
    pub(super) what: &'static str,
    /// Once, in this order.
    pub(super) before: Vec<Shot>,
    pub(super) hook: Hook,
    pub(super) context: Context,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) action: i32,
    /// Counted for every packet; `None` where nothing is.
    pub(super) reason: Option<Reason>,
}

/// A packet at a hook.
#[derive(Clone)]
pub(super) struct Shot {
    pub(super) hook: Hook,
    pub(super) context: Context,
    pub(super) frame: Vec<u8>,
}

impl Case {
    pub(super) fn name(&self) -> String {
        format!("{}: {}", self.hook.slug(), self.what)
    }
}

/// Cases that are the two ends of an established flow, and what they are together.
pub(super) const ESTABLISHED: [(&str, [&str; 2]); 2] = [
    ("established TCP, from_pod and from_wire, to the same without flow table and policy", [TCP_OUT, TCP_IN]),
    ("established UDP, from_pod and from_wire, to the same without flow table and policy", [UDP_OUT, UDP_IN]),
];
const TCP_OUT: &str = "established TCP to another node";
const TCP_IN: &str = "established TCP";
const UDP_OUT: &str = "established UDP to another node";
const UDP_IN: &str = "established UDP";

const REQUESTS: u16 = 40_000;
const SERVICE: u16 = 8080;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn all(links: Links) -> Vec<Case> {
    let hooks = Hooks { links };
    let (remote, local, world, host) =
        ((REMOTE, SERVICE), B.at(SERVICE), (WORLD, SERVICE), (NODE_IP, SERVICE));
    let leaves = |packet: Packet| hooks.leaves(A, packet);
    // Of flows that A began, and of flows that the other side did.
    let out = |to: End| (A.at(REQUESTS), to);
    let into = |from: End| ((from.0, REQUESTS), A.at(SERVICE));

    let tcp_out = shake(out(remote), &leaves, &|packet| hooks.arrives(packet));
    let udp_out = speak(out(remote), &leaves, &|packet| hooks.arrives(packet));
    let tcp_in = shake(into(remote), &|packet| hooks.arrives(packet), &leaves);
    let udp_in = speak(into(remote), &|packet| hooks.arrives(packet), &leaves);
    let tcp_local = shake(out(local), &leaves, &|packet| hooks.leaves(B, packet));
    let udp_local = speak(out(local), &leaves, &|packet| hooks.leaves(B, packet));
    let tcp_world = shake(out(world), &leaves, &|packet| hooks.enters(packet));
    let udp_world = speak(into(world), &|packet| hooks.enters(packet), &leaves);
    let udp_host = speak(into(host), &|packet| hooks.by_host(packet), &leaves);
    let udp_forwarded =
        speak(out(remote), &|packet| hooks.forwarded(&packet), &|packet| hooks.arrives(packet));
    let [first_out, later_out] = fragments(out(remote));
    let [first_in, later_in] = fragments(into(remote));

    let tcp = |(from, to): (End, End)| Packet::tcp(from, to, ACK);
    let udp = |(from, to): (End, End)| Packet::udp(from, to);
    let back = |(from, to): (End, End)| (to, from);
    let one = |what, before: &[Shot], shot: Shot, action, reason| Case {
        what,
        before: before.to_vec(),
        hook: shot.hook,
        context: shot.context,
        frames: vec![shot.frame; RUNS.into()],
        action,
        reason: Some(reason),
    };
    // Each packet from a port of its own.
    let each = |what, shot: &dyn Fn(u16) -> Shot, action, reason| {
        let shots: Vec<Shot> = (0..RUNS).map(|run| shot(REQUESTS + 1 + run)).collect();
        let (hook, context) = (shots[0].hook, shots[0].context);
        let frames = shots.into_iter().map(|shot| shot.frame).collect();
        Case { what, before: Vec::new(), hook, context, frames, action, reason: Some(reason) }
    };
    let none: &[Shot] = &[];
    let question = arp(ArpOperation::REQUEST, (A.mac, A.ip), (Mac::default(), B.ip));
    let refused = |from, to| Packet::udp((from, REQUESTS), (to, REFUSED));

    vec![
        one(TCP_OUT, &tcp_out, leaves(tcp(out(remote))), REDIRECT, Reason::Encapsulated),
        one(UDP_OUT, &udp_out, leaves(udp(out(remote))), REDIRECT, Reason::Encapsulated),
        one(
            "answer to another node, TCP",
            &tcp_in,
            leaves(tcp(back(into(remote)))),
            REDIRECT,
            Reason::Encapsulated,
        ),
        one(
            "established TCP to a pod here",
            &tcp_local,
            leaves(tcp(out(local))),
            REDIRECT,
            Reason::Delivered,
        ),
        one(
            "established UDP to a pod here",
            &udp_local,
            leaves(udp(out(local))),
            REDIRECT,
            Reason::Delivered,
        ),
        one("established TCP to the world", &tcp_world, leaves(tcp(out(world))), NEXT, Reason::ToStack),
        each(
            "new TCP flow to another node",
            &|port| leaves(Packet::tcp(A.at(port), remote, SYN)),
            REDIRECT,
            Reason::Encapsulated,
        ),
        each(
            "new UDP flow to another node",
            &|port| leaves(Packet::udp(A.at(port), remote)),
            REDIRECT,
            Reason::Encapsulated,
        ),
        each(
            "new UDP flow to a pod here",
            &|port| leaves(Packet::udp(A.at(port), local)),
            REDIRECT,
            Reason::Delivered,
        ),
        one("refused by policy", none, leaves(refused(A.ip, REMOTE)), DROP, Reason::PolicyEgress),
        one(
            "first fragment to another node",
            &udp_out,
            leaves(first_out.clone()),
            REDIRECT,
            Reason::Encapsulated,
        ),
        one(
            "later fragment to another node",
            &[&udp_out[..], &[leaves(first_out)]].concat(),
            leaves(later_out),
            REDIRECT,
            Reason::Encapsulated,
        ),
        one("another's address", none, leaves(Packet::udp((STRANGER, 1), remote)), DROP, Reason::SpoofedIp),
        one(
            "ARP question",
            none,
            Shot { frame: question, ..leaves(udp(out(remote))) },
            REDIRECT,
            Reason::ArpAnswered,
        ),
        one(
            "established TCP from the world",
            &tcp_world,
            hooks.enters(tcp(back(out(world)))),
            NEXT,
            Reason::Delivered,
        ),
        one(
            "established UDP from the world",
            &udp_world,
            hooks.enters(udp(into(world))),
            NEXT,
            Reason::Delivered,
        ),
        one(
            "established UDP from the node itself",
            &udp_host,
            hooks.by_host(udp(into(host))),
            NEXT,
            Reason::Delivered,
        ),
        each(
            "new UDP flow from the world",
            &|port| hooks.enters(Packet::udp((WORLD, port), A.at(SERVICE))),
            NEXT,
            Reason::Delivered,
        ),
        one("refused by policy", none, hooks.enters(refused(WORLD, A.ip)), DROP, Reason::PolicyIngress),
        Case { reason: None, ..one("no VXLAN", none, hooks.passes(), NEXT, Reason::ToStack) },
        one(TCP_IN, &tcp_in, hooks.arrives(tcp(into(remote))), REDIRECT, Reason::Delivered),
        one(UDP_IN, &udp_in, hooks.arrives(udp(into(remote))), REDIRECT, Reason::Delivered),
        one(
            "answer from another node, TCP",
            &tcp_out,
            hooks.arrives(tcp(back(out(remote)))),
            REDIRECT,
            Reason::Delivered,
        ),
        each(
            "new TCP flow",
            &|port| hooks.arrives(Packet::tcp((REMOTE, port), A.at(SERVICE), SYN)),
            REDIRECT,
            Reason::Delivered,
        ),
        each(
            "new UDP flow",
            &|port| hooks.arrives(Packet::udp((REMOTE, port), A.at(SERVICE))),
            REDIRECT,
            Reason::Delivered,
        ),
        one("refused by policy", none, hooks.arrives(refused(REMOTE, A.ip)), DROP, Reason::PolicyIngress),
        one("first fragment", &udp_in, hooks.arrives(first_in.clone()), REDIRECT, Reason::Delivered),
        one(
            "later fragment",
            &[&udp_in[..], &[hooks.arrives(first_in)]].concat(),
            hooks.arrives(later_in),
            REDIRECT,
            Reason::Delivered,
        ),
        one(
            "from no node of ours",
            none,
            hooks.arrives_from_stranger(udp(into(remote))),
            DROP,
            Reason::UnknownNode,
        ),
        one(
            "from the node itself",
            none,
            hooks.to_overlay(&udp((host, remote))),
            REDIRECT,
            Reason::Encapsulated,
        ),
        one(
            "established UDP that the stack forwards",
            &udp_forwarded,
            hooks.forwarded(&udp(out(remote))),
            REDIRECT,
            Reason::Encapsulated,
        ),
        one("to nobody", none, hooks.to_overlay(&udp((host, (STRANGER, 1)))), DROP, Reason::NoRoute),
        one("without a tunnel key", none, hooks.by_device(udp(into(remote))), DROP, Reason::UnknownNode),
    ]
}

/// A connection up to its first data.
fn shake(ends: (End, End), there: &dyn Fn(Packet) -> Shot, back: &dyn Fn(Packet) -> Shot) -> Vec<Shot> {
    let (client, server) = ends;
    vec![
        there(Packet::tcp(client, server, SYN)),
        back(Packet::tcp(server, client, SYN | ACK)),
        there(Packet::tcp(client, server, ACK)),
    ]
}

/// Question and answer.
fn speak(ends: (End, End), there: &dyn Fn(Packet) -> Shot, back: &dyn Fn(Packet) -> Shot) -> Vec<Shot> {
    let (client, server) = ends;
    vec![there(Packet::udp(client, server)), back(Packet::udp(server, client))]
}

fn fragments((from, to): (End, End)) -> [Packet; 2] {
    Packet::udp(from, to).payload(&[0; 40]).split(16)
}

impl Pod {
    fn at(self, port: u16) -> End {
        (self.ip, port)
    }
}

/// Where packets are seen.
struct Hooks {
    links: Links,
}

impl Hooks {
    fn leaves(&self, pod: Pod, packet: Packet) -> Shot {
        let context = Context::on(self.links.pods[pod.number]);
        Shot { hook: Hook::FromPod, context, frame: packet.macs(pod.mac, GATEWAY).bytes() }
    }

    /// For `A`, by the stack, from the world.
    fn enters(&self, packet: Packet) -> Shot {
        let context = self.by_host(packet.clone()).context.came_by(self.links.uplink);
        Shot { context, ..self.by_host(packet) }
    }

    /// For `A`, by the stack, from the node itself.
    fn by_host(&self, packet: Packet) -> Shot {
        let context = Context::on(self.links.pods[A.number]);
        Shot { hook: Hook::ToPod, context, frame: packet.macs(GATEWAY, A.mac).bytes() }
    }

    fn arrives(&self, packet: Packet) -> Shot {
        self.on_wire(packet, REMOTE_NODE)
    }

    fn arrives_from_stranger(&self, packet: Packet) -> Shot {
        self.on_wire(packet, STRANGER)
    }

    fn on_wire(&self, packet: Packet, node: std::net::Ipv4Addr) -> Shot {
        let frame = packet.macs(vtep(0), VTEP_MAC).in_vxlan(&Outer::new(node, NODE_IP, VXLAN_PORT, VNI));
        Shot { hook: Hook::FromWire, context: Context::on(self.links.uplink), frame }
    }

    /// On the uplink, and none of Canal's business.
    fn passes(&self) -> Shot {
        let frame = Packet::tcp((REMOTE_NODE, REQUESTS), (NODE_IP, SERVICE), ACK).bytes();
        Shot { hook: Hook::FromWire, context: Context::on(self.links.uplink), frame }
    }

    /// From the node itself.
    fn to_overlay(&self, packet: &Packet) -> Shot {
        Shot { hook: Hook::ToOverlay, context: Context::on(self.links.overlay), frame: packet.bytes() }
    }

    /// From `A`, by the stack.
    fn forwarded(&self, packet: &Packet) -> Shot {
        let context = Context::on(self.links.overlay).came_by(self.links.pods[A.number]);
        Shot { context, ..self.to_overlay(packet) }
    }

    fn by_device(&self, packet: Packet) -> Shot {
        Shot { hook: Hook::FromOverlay, ..self.to_overlay(&packet.macs(vtep(0), VTEP_MAC)) }
    }
}
