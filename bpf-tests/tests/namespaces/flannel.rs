//! A Canal node and nodes programmed by hand exactly as flanneld programs them.

use bpf_tests::{
    Capture, FlannelNode, Host, Netns, World,
    load::{self, Congestion, Path},
    policy,
};

use crate::{BULK, soon};

/// Node 1 runs Canal; 2 sends outer UDP checksums as flanneld does, 3 does not.
fn world() -> World {
    let world = World::builder().nodes(3).build().unwrap();
    // The network's own profile allows only endpoints that are known, and flannel's pods are not.
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    world
}

fn peers_learnt(world: &World, peers: [&FlannelNode<'_>; 2]) {
    world.node(1).agent().start().unwrap();
    for peer in peers {
        assert!(soon(|| peer.learn_peers().unwrap() == 2), "flannel knows both others");
    }
}

fn pings_sized(from: &Netns, to: std::net::Ipv4Addr, size: u32) -> bool {
    from.cmd(&format!("ping -n -q -c 2 -i 0.2 -W 1 -s {size} {to}")).output().unwrap().ok()
}

#[test]
fn pods_talk_in_both_directions_with_and_without_outer_checksums() {
    let world = world();
    let with = world.flannel_node(2).unwrap();
    let without = world.flannel_node_without_checksums(3).unwrap();
    peers_learnt(&world, [&with, &without]);
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let _server = a.serve_tcp(8080).unwrap();
    let _echo = a.serve_udp(5353).unwrap();
    for (number, flannel) in [(2, &with), (3, &without)] {
        let b = flannel.add_pod(&format!("b{number}")).unwrap();
        let mut wire =
            Capture::start_whole(world.node(number).netns(), "up0", "udp dst port 8472", world.folder())
                .unwrap();
        assert!(soon(|| a.pings(b.ip())), "out to node {number}");
        assert!(b.pings(a.ip()), "in from node {number}");
        let _there = b.serve_tcp(8080).unwrap();
        let _echo_there = b.serve_udp(5353).unwrap();
        assert!(a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080));
        assert_eq!((a.udp_echoes(b.ip(), 5353, 3).unwrap(), b.udp_echoes(a.ip(), 5353, 3).unwrap()), (3, 3));
        wire.stop().unwrap();
        // Who puts a checksum on the envelope, and who does not.
        let sums = |from: u8| {
            let lines = wire.packets_in_full(&format!("src host 192.168.50.{from}")).unwrap();
            lines.into_iter().filter(|l| l.contains(".8472: ")).collect::<Vec<_>>().join("\n")
        };
        assert!(sums(1).contains("[no cksum]"), "{}", sums(1));
        assert_eq!(sums(number).contains("[no cksum]"), number == 3, "{}", sums(number));
    }
}

#[test]
fn bulk_crosses_whole_in_both_directions() {
    let world = world();
    let with = world.flannel_node(2).unwrap();
    let without = world.flannel_node_without_checksums(3).unwrap();
    peers_learnt(&world, [&with, &without]);
    let a = world.node(1).add_pod("a", &[]).unwrap();
    for (number, flannel) in [(2, &with), (3, &without)] {
        let b = flannel.add_pod(&format!("b{number}")).unwrap();
        assert!(soon(|| a.pings(b.ip())));
        let mut wire =
            Capture::start(world.node(1).netns(), "up0", "udp dst port 8472", world.folder()).unwrap();
        assert!(
            load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 20,
            "out"
        );
        assert!(
            load::bulk(Path { from: &b, to: &a }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 20,
            "in"
        );
        wire.stop().unwrap();
        for from in [1, number] {
            let longest = wire.lengths(&format!("src host 192.168.50.{from}")).unwrap().into_iter().max();
            assert!(longest > Some(32 << 10), "64 KB packets from node {from}, not {longest:?}");
        }
    }
}

#[test]
fn hosts_reach_the_other_sides_pods_and_fragments_cross_both_ways() {
    let world = world();
    let with = world.flannel_node(2).unwrap();
    let without = world.flannel_node_without_checksums(3).unwrap();
    peers_learnt(&world, [&with, &without]);
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let canal = world.node(1);
    for (number, flannel) in [(2, &with), (3, &without)] {
        let b = flannel.add_pod(&format!("b{number}")).unwrap();
        let node = flannel.node();
        assert!(soon(|| a.pings(b.ip())));
        assert!(canal.pings(b.ip()), "our host to flannel's pod");
        assert!(node.pings(a.ip()), "flannel's host to our pod");
        let _server = a.serve_tcp(8080).unwrap();
        let _there = b.serve_tcp(8080).unwrap();
        assert!(canal.reaches(b.ip(), 8080) && node.reaches(a.ip(), 8080));
        assert!(
            load::bulk(Path { from: canal, to: &b }, 1, Congestion::Default, BULK / 2).unwrap().bytes
                > 1 << 20
        );
        for size in [1400, 4000, 20_000] {
            for (what, from, to) in [
                ("pod out", a.netns(), b.ip()),
                ("pod in", b.netns(), a.ip()),
                ("host out", canal.netns(), b.ip()),
                ("host in", node.netns(), a.ip()),
            ] {
                assert!(pings_sized(from, to, size), "{what}, {size} bytes, node {number}");
            }
        }
    }
}

#[test]
fn a_peers_lease_is_followed_gone_back_and_with_another_mac() {
    let world = world();
    let mut flannel = world.flannel_node(2).unwrap();
    world.node(1).agent().start().unwrap();
    assert!(soon(|| flannel.learn_peers().unwrap() == 1));
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let b = flannel.add_pod("b").unwrap();
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));

    world.etcd().del(&flannel.lease_key()).unwrap();
    let agent = world.node(1).agent();
    let peers = || agent.status().unwrap()["peers"].clone();
    assert!(soon(|| peers().as_array().is_some_and(Vec::is_empty)), "{}", peers());
    assert!(!a.pings(b.ip()) && !b.pings(a.ip()), "without a lease nothing passes");
    assert!(agent.count("from_wire", "unknown-node").unwrap() > 0, "and it is counted");

    flannel.put_lease().unwrap();
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())), "back");

    flannel.change_mac("0e:00:00:00:aa:02").unwrap();
    assert!(soon(|| peers()[0]["vtep_mac"] == "0e:00:00:00:aa:02"), "{}", peers());
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())), "with the new MAC");
}
