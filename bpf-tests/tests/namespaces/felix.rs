//! That the baseline `K(n)` costs a packet what flanneld's and Felix's own rules cost it.
//!
//! Two clusters: one is the topology that figures are taken from, the other has the rules that the real programs left
//! on a node. The same packets cross both, and for each the rules that it was compared with are counted.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use bpf_tests::{
    Capture, Host, Node, Topology,
    topology::{Chain, Counters, Kind},
    until,
};
use etherparse::PacketBuilder;

const RULES: &str = include_str!("../fixtures/felix-flannel.iptables-save");
const SETS: &str = include_str!("../fixtures/felix-flannel.ipset-save");

const ARRIVES: Duration = Duration::from_secs(5);
/// Of the pods' eth0, which nobody looks at, and of the host's ends.
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [0xee; 6];
/// Of no rule's.
const PORTS: (u16, u16) = (30_001, 30_002);

/// A packet from the first pod to the second, or back.
struct Packet {
    is: &'static str,
    back: bool,
    frame: Vec<u8>,
}

/// In the order of a conversation.
fn packets(one: Ipv4Addr, two: Ipv4Addr) -> Vec<Packet> {
    let ends = |back| if back { ((two, PORTS.1), (one, PORTS.0)) } else { ((one, PORTS.0), (two, PORTS.1)) };
    let ip = |back| {
        let ((from, _), (to, _)) = ends(back);
        PacketBuilder::ethernet2(POD_MAC, HOST_MAC).ipv4(from.octets(), to.octets(), 64)
    };
    let tcp = |is, back, syn, seq, ack: Option<u32>, payload: &[u8]| {
        let ((_, from), (_, to)) = ends(back);
        let mut packet = ip(back).tcp(from, to, seq, 60_000);
        packet = if syn { packet.syn() } else { packet };
        packet = if let Some(number) = ack { packet.ack(number) } else { packet };
        let mut frame = Vec::new();
        packet.write(&mut frame, payload).unwrap();
        Packet { is, back, frame }
    };
    let udp = |is, back| {
        let ((_, from), (_, to)) = ends(back);
        let mut frame = Vec::new();
        ip(back).udp(from, to).write(&mut frame, b"hello").unwrap();
        Packet { is, back, frame }
    };
    vec![
        tcp("a connection's first packet", false, true, 1000, None, b""),
        tcp("its answer", true, true, 5000, Some(1001), b""),
        tcp("data on the connection", false, false, 1001, Some(5001), b"hello"),
        tcp("data the other way", true, false, 5001, Some(1006), b"hello"),
        udp("a first datagram", false),
        udp("a second one, unanswered", false),
        udp("the answer", true),
        udp("a datagram after the answer", false),
    ]
}

/// What one packet met on one node.
#[derive(Debug, PartialEq, Eq)]
struct Met {
    /// Rules that it was compared with.
    crossed: BTreeMap<Chain, u64>,
    /// Which rules it matched, and how often.
    matched: BTreeMap<Chain, Vec<(usize, u64)>>,
}

/// By packet, what it met on the two nodes.
fn measure(topology: &Topology) -> Vec<(&'static str, [Met; 2])> {
    let (path, (one, two)) = (topology.path(), topology.nodes().unwrap());
    // The packets are all that there is: nobody answers by himself.
    for (end, other) in [(path.from, path.to), (path.to, path.from)] {
        end.netns().ip(&format!("route add blackhole {}", other.ip())).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let captures = [path.from, path.to].map(|end| {
        let from_peer = format!("ip and dst host {}", end.ip());
        Capture::start(end.netns(), "eth0", &from_peer, folder.path()).unwrap()
    });
    let read = || [one, two].map(|node| Counters::read(node.netns(), None).unwrap());
    let mut all = Vec::new();
    for packet in packets(path.from.ip(), path.to.ip()) {
        let Packet { is, back, frame } = packet;
        let (sender, arriving) = if back { (path.to, &captures[0]) } else { (path.from, &captures[1]) };
        let arrived = || arriving.packets("").unwrap().len();
        let (before, earlier) = (read(), arrived());
        sender.send_frame("eth0", &frame).unwrap();
        assert!(until(ARRIVES, || arrived() == earlier + 1), "{is} arrives");
        let after = read();
        let met = after.iter().zip(&before).map(|(after, before)| {
            let since = after.since(before).unwrap();
            Met { crossed: since.crossed().unwrap(), matched: since.matched() }
        });
        all.push((is, met.collect::<Vec<_>>().try_into().unwrap()));
    }
    all
}

/// The rules and sets of the real node on this one, with its names and addresses.
fn install_theirs(node: &Node, own: Ipv4Addr, peer: Ipv4Addr) {
    let mapped = |text: &str| {
        let [a, b, c, _] = own.octets();
        text.replace("calicb", "calif2")
            .replace("10.100.30.2", &peer.to_string())
            .replace("10.100.56.", &format!("{a}.{b}.{c}."))
            .replace("192.168.50.2", &node.public_ip().to_string())
            .replace("192.168.60.2", &format!("192.168.60.{}", node.number()))
    };
    node.netns().cmd("ipset restore").stdin(mapped(SETS)).run().unwrap();
    node.netns().cmd("iptables-nft-restore").stdin(mapped(RULES)).run().unwrap();
}

/// Apart from the policies' own chains, with the groups under one name. Felix makes that by a hash.
fn fixed_part<T: Clone>(chains: &BTreeMap<Chain, T>) -> BTreeMap<Chain, T> {
    let kept = chains.iter().filter(|((_, name), _)| !is_policy(name));
    let renamed = kept.map(|((table, name), value)| {
        let groups = ["cali-gi-", "cali-go-"];
        let name =
            groups.iter().find(|group| name.starts_with(**group)).map_or(name.as_str(), |group| *group);
        ((table.clone(), name.to_owned()), value.clone())
    });
    renamed.collect()
}

fn is_policy(chain: &str) -> bool {
    chain.starts_with("cali-pi-") || chain.starts_with("cali-po-")
}

/// How many rules of policies a packet met.
fn of_policies(met: &Met) -> u64 {
    met.crossed.iter().filter(|((_, chain), _)| is_policy(chain)).map(|(_, rules)| rules).sum()
}

#[test]
fn a_packet_meets_the_rules_that_the_real_programs_put_in_its_way() {
    let ours = Topology::build(Kind::Felix { rules: 10 }, None).unwrap();
    let theirs = Topology::build(Kind::Vxlan, None).unwrap();
    let ((one, two), path) = (theirs.nodes().unwrap(), theirs.path());
    install_theirs(one, path.from.ip(), path.to.ip());
    install_theirs(two, path.to.ip(), path.from.ip());
    for ((is, ours), (_, theirs)) in measure(&ours).iter().zip(&measure(&theirs)) {
        let counts = ours.each_ref().map(|met| met.crossed.values().sum::<u64>());
        println!("{is}: compared with {} rules on the first node, {} on the second", counts[0], counts[1]);
        for (node, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert_eq!(fixed_part(&ours.crossed), fixed_part(&theirs.crossed), "{is}, node {}", node + 1);
            assert_eq!(fixed_part(&ours.matched), fixed_part(&theirs.matched), "{is}, node {}", node + 1);
        }
        // Two rules for each of the policy's but the last; theirs are one for egress and two for ingress before it.
        let new =
            ["a connection's first packet", "a first datagram", "a second one, unanswered"].contains(is);
        let expected = if new { ([9, 9], [3, 5]) } else { ([0, 0], [0, 0]) };
        assert_eq!((ours.each_ref().map(of_policies), theirs.each_ref().map(of_policies)), expected, "{is}");
    }
}

#[test]
fn every_table_stands_in_the_way_of_a_first_packet() {
    let topology = Topology::build(Kind::Felix { rules: 1 }, None).unwrap();
    let measured = measure(&topology);
    let (_, nodes) = &measured[0];
    for met in nodes {
        let tables: Vec<_> = met.crossed.keys().map(|(table, _)| table.as_str()).collect();
        for table in ["raw", "mangle", "nat", "filter"] {
            assert!(tables.contains(&table), "{tables:?}");
        }
        assert_eq!(of_policies(met), 1, "the only rule, called without a group");
    }
}
