//! Datagrams in pieces: inside and outside of the envelope, in and out of order.

use bpf_tests::progrun::packet::Packet;
use bpf_tests::{
    Capture, Host, Netns, Pod, World,
    load::{self, Congestion, Path},
};
use canal_common::Mac;

use crate::{BULK, SOON, soon, two_nodes};

const PORT: u16 = 5353;

/// A question to `to` in three parts; the echo comes back when somebody has put all together.
fn parts(from: &Pod, to: std::net::Ipv4Addr, id: u16) -> Vec<Vec<u8>> {
    let mac: Mac = from.mac().parse().unwrap();
    let mut packet = Packet { id, ..Packet::udp((from.ip(), 4000 + id), (to, PORT)).payload(&[7; 64]) };
    let length = u16::try_from(packet.body.len()).unwrap();
    packet.body[4..6].copy_from_slice(&length.to_be_bytes());
    let [first, rest] = packet.split(24);
    let [second, third] = rest.split(24);
    let third = Packet { offset: 6, ..third };
    [first, second, third].map(|part| part.macs(mac, Mac::new([0xee; 6])).bytes()).to_vec()
}

#[test]
fn fragments_that_a_pod_sends_in_any_order_arrive_near_and_far() {
    let (world, a, b) = two_nodes();
    let near = world.node(1).add_pod("near", &[]).unwrap();
    let host = world.node(1);
    assert!(soon(|| a.pings(near.ip())));
    let _echoes = [near.serve_udp(PORT).unwrap(), b.serve_udp(PORT).unwrap(), host.serve_udp(PORT).unwrap()];
    let seen = Capture::start(a.netns(), "eth0", &format!("udp src port {PORT}"), world.folder()).unwrap();
    let mut id = 0;
    for (what, to) in [("on this node", near.ip()), ("on the other", b.ip()), ("the node itself", host.ip())]
    {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]] {
            id += 1;
            let parts = parts(&a, to, id);
            for part in order {
                a.send_frame("eth0", &parts[part]).unwrap();
            }
            assert!(seen.sees(&format!("udp dst port {}", 4000 + id), SOON), "{what}, {order:?}");
        }
    }
    // A piece that the wire has turned round: the receiving node puts it together, policy and all.
    assert!(world.node(1).agent().count("from_pod", "frag-unknown").unwrap() == 0);
}

/// Node 1 and node 2 get a router between them whose second half is narrower than the first.
fn narrow_path(world: &World, mtu: u32) -> Netns {
    let router = Netns::create(&format!("{}router", world.prefix())).unwrap();
    router.sysctl("net.ipv4.ip_forward", "1").unwrap();
    for (number, other, mtu) in [(1, 2, 1500), (2, 1, mtu)] {
        let node = world.node(number).netns();
        if number == 1 {
            node.ip("link del up0").unwrap();
        }
        let line = format!("link add up0 type veth peer name r{number} netns {}", router.name());
        node.ip(&line).unwrap();
        node.ip(&format!("link set up0 mtu {mtu} up")).unwrap();
        for line in [
            format!("addr add 192.168.50.{number}/32 dev up0"),
            "route add 192.168.50.254 dev up0".to_owned(),
            format!("route add 192.168.50.{other} via 192.168.50.254 dev up0"),
        ] {
            node.ip(&line).unwrap();
        }
        for line in [
            format!("link set r{number} mtu {mtu} up"),
            format!("addr add 192.168.50.254/32 dev r{number}"),
            format!("route add 192.168.50.{number} dev r{number}"),
        ] {
            router.ip(&line).unwrap();
        }
    }
    router
}

#[test]
fn envelopes_that_a_router_cut_to_pieces_are_put_together_and_judged() {
    let world = World::builder().nodes(2).build().unwrap();
    // Node 1 believes in 1500 bytes all the way.
    let router = narrow_path(&world, 1300);
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let mut narrow = Capture::start(&router, "r2", "", world.folder()).unwrap();
    assert_eq!(a.ping_sized(b.ip(), 3, 1400).unwrap().lost, 0, "an envelope in two pieces");
    assert_eq!(a.ping_sized(b.ip(), 2, 4000).unwrap().lost, 0, "pieces in pieces");
    assert!(load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 18);
    narrow.stop().unwrap();
    assert!(!narrow.packets("ip[6:2] & 0x3fff != 0").unwrap().is_empty(), "the router cuts");
    let agent = world.node(2).agent();
    assert!(agent.count("from_overlay", "delivered").unwrap() > 0);
    let deny = bpf_tests::policy::ingress(1, "app == 'b'", serde_json::json!([]));
    world.etcd().put_global_policy("closed", deny).unwrap();
    assert!(soon(|| a.ping_sized(b.ip(), 1, 1400).unwrap().lost == 1), "policy holds for pieces as well");
    assert!(
        agent.count("from_overlay", "policy-ingress").unwrap()
            + agent.count("from_overlay", "flow-denied").unwrap()
            > 0
    );
}
