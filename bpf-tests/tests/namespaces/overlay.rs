//! The overlay between two Canal nodes.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use bpf_tests::{
    Capture, Host, World,
    load::{self, Congestion, Path},
    policy,
    probe::{At, Connect, Pinger},
    until,
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::{BULK, SOON, soon, two_nodes};

/// Where everything between the nodes goes.
const TUNNEL: &str = "udp dst port 8472";
/// An Ethernet frame with a full packet of the uplink's MTU.
const FRAME: u32 = 1514;

#[test]
fn pods_of_two_nodes_talk_inside_vxlan_and_large_packets_cross_whole() {
    let (world, a, b) = two_nodes();
    for (pod, node) in [(&a, world.node(1)), (&b, world.node(2))] {
        let link = pod.netns().ip("link show eth0").unwrap();
        assert!(link.contains("mtu 1450"), "{link}");
        let address = pod.netns().ip("-br addr show eth0").unwrap();
        assert!(address.contains(&format!("{}/32", pod.ip())), "{address}");
        let env = std::fs::read_to_string(node.agent().subnet_file()).unwrap();
        assert!(
            env.contains("FLANNEL_NETWORK=10.100.0.0/16\n") && env.contains("FLANNEL_MTU=1450\n"),
            "{env}"
        );
    }
    let mut wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();
    assert!(b.pings(a.ip()));
    let (_a, _b) = (a.serve_tcp(8080).unwrap(), b.serve_tcp(8080).unwrap());
    assert!(a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080));
    let (_ua, _ub) = (a.serve_udp(5353).unwrap(), b.serve_udp(5353).unwrap());
    assert_eq!((a.udp_echoes(b.ip(), 5353, 5).unwrap(), b.udp_echoes(a.ip(), 5353, 5).unwrap()), (5, 5));
    assert!(load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 20);
    wire.stop().unwrap();

    for node in world.nodes() {
        let from = format!("{TUNNEL} and src host {}", node.public_ip());
        let envelopes = wire.envelopes(&from).unwrap().into_iter().filter(|p| p.contains(".8472:"));
        let strange: Vec<_> = envelopes.filter(|p| !p.contains("VXLAN, flags [I] (0x08), vni 1")).collect();
        assert!(strange.is_empty() && !wire.packets(&from).unwrap().is_empty(), "{strange:?}");
    }
    let bare = wire.packets("net 10.100.0.0/16 or tcp").unwrap();
    assert_eq!(bare, Vec::<String>::new(), "nothing of the pods outside an envelope");
    let longest = wire.lengths(TUNNEL).unwrap().into_iter().max().unwrap();
    assert!(longest > 32 << 10, "packets of up to 64 KB, not {longest} bytes");
}

#[test]
fn segments_that_arrive_one_by_one_are_joined_again_before_the_pod_sees_them() {
    let (world, a, b) = two_nodes();
    let (one, two) = (world.node(1).netns(), world.node(2).netns());
    // A wire that carries frames of its MTU, and a receiver that polls, as a network card's driver does.
    one.cmd("ethtool -K up0 tso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
        .run()
        .unwrap();
    two.cmd("ethtool -K up0 gro on").run().unwrap();
    let mut wire = Capture::start(one, "up0", TUNNEL, world.folder()).unwrap();
    let mut pod = Capture::start(b.netns(), "eth0", "tcp", world.folder()).unwrap();
    load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap();
    wire.stop().unwrap();
    pod.stop().unwrap();
    let sent = wire.lengths("src host 192.168.50.1").unwrap().into_iter().max().unwrap();
    assert!(sent <= FRAME, "the wire carries frames of its MTU, not {sent} bytes");
    let lengths = pod.lengths(&format!("src host {}", a.ip())).unwrap();
    let joined = lengths.iter().filter(|length| **length > FRAME).count();
    assert!(joined > 10, "{joined} of {} packets were aggregates", lengths.len());
}

#[test]
fn checksums_are_right_at_the_receiver_whoever_computes_them() {
    let (world, a, b) = two_nodes();
    let _echo = b.serve_udp(5353).unwrap();
    let _server = b.serve_tcp(8080).unwrap();
    // Left to offload by the pod and computed behind the envelope; computed in the pod and carried along.
    for (netns, device) in [(world.node(1).netns(), "up0"), (a.netns(), "eth0")] {
        netns.cmd(&format!("ethtool -K {device} tx off tso off")).run().unwrap();
        let filter = format!("src host {}", a.ip());
        let mut pod = Capture::start_whole(b.netns(), "eth0", &filter, world.folder()).unwrap();
        assert!(a.pings(b.ip()));
        assert!(a.reaches(b.ip(), 8080));
        assert_eq!(a.udp_echoes(b.ip(), 5353, 3).unwrap(), 3);
        load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK / 4).unwrap();
        pod.stop().unwrap();
        let lines = pod.packets_in_full("").unwrap();
        for right in ["udp sum ok", "(correct)", "ICMP echo request"] {
            assert!(lines.iter().any(|l| l.contains(right)), "{device}: {right}");
        }
        let wrong = |l: &&String| {
            ["(incorrect", "bad udp cksum", "bad cksum", "wrong icmp cksum"].iter().any(|w| l.contains(w))
        };
        assert_eq!(lines.iter().find(wrong), None, "{device}");
        netns.cmd(&format!("ethtool -K {device} tx on tso on")).run().unwrap();
    }
}

#[test]
fn each_node_is_one_hop_and_says_so_when_the_hops_are_spent() {
    let (world, a, b) = two_nodes();
    let other = world.node(1).add_pod("a2", &[]).unwrap();
    let ping = |line: &str| a.netns().cmd(&format!("ping -n -c 1 -W 1 {line}")).output().unwrap().stdout;
    let whole = ping(&b.ip().to_string());
    assert!(whole.contains("ttl=62"), "two nodes on the way: {whole}");
    let near = ping(&other.ip().to_string());
    assert!(near.contains("ttl=63"), "one node on the way: {near}");
    for hops in [1, 2] {
        let said = ping(&format!("-t {hops} {}", b.ip()));
        assert!(said.contains("Time to live exceeded"), "{hops} hops: {said}");
    }
    assert!(ping(&format!("-t 3 {}", b.ip())).contains("ttl=62"));
}

#[test]
fn what_does_not_fit_is_fragmented_or_refused_with_the_mtu_that_fits() {
    let (world, a, b) = two_nodes();
    for size in [1400, 4000, 20_000] {
        assert_eq!(a.ping_sized(b.ip(), 2, size).unwrap().lost, 0, "{size} bytes out");
        assert_eq!(b.ping_sized(a.ip(), 2, size).unwrap().lost, 0, "{size} bytes in");
    }
    let fragments = world.node(2).agent();
    assert!(fragments.count("from_wire", "delivered").unwrap() > 0);

    // A pod that believes in a larger MTU learns the right one from the node.
    a.netns().ip("link set eth0 mtu 1500").unwrap();
    world.node(1).netns().ip(&format!("link set {} mtu 1500", a.host_interface())).unwrap();
    let ping = |line: &str| a.netns().cmd(&format!("ping -n -W 1 {line} {}", b.ip())).output().unwrap();
    let dont_fragment = ping("-c 2 -i 0.2 -M do -s 1472");
    let said = dont_fragment.stdout + &dont_fragment.stderr;
    assert!(said.contains("mtu = 1450") || said.contains("mtu=1450"), "{said}");
    let route = a.netns().ip(&format!("route get {}", b.ip())).unwrap();
    assert!(route.contains("mtu 1450"), "the pod's kernel has learnt it: {route}");
    a.netns().ip("route flush cache").unwrap();
    // Without "don't fragment" the node cuts it.
    assert_eq!(ping("-c 2 -i 0.2 -M dont -s 1472").status.code(), Some(0));
}

#[test]
fn a_peer_that_leaves_for_good_is_forgotten_and_one_that_comes_is_learnt() {
    let (world, a, b) = two_nodes();
    let leases = world.etcd().keys("/coreos.com/network/subnets/").unwrap();
    assert_eq!(leases.len(), 2);
    world.node(2).agent().kill_9();
    let subnet = world.node(2).agent().subnet_file();
    let env = std::fs::read_to_string(subnet).unwrap();
    let own = env.lines().find_map(|l| l.strip_prefix("FLANNEL_SUBNET=")).unwrap().replace(".1/", ".0-");
    world.etcd().del(&format!("/coreos.com/network/subnets/{own}")).unwrap();
    let agent = world.node(1).agent();
    let peers = || agent.status().unwrap()["peers"].as_array().map_or(9, Vec::len);
    assert!(a.pings(b.ip()), "it has some time to take its lease again");
    assert!(until(SOON * 6, || peers() == 0), "{:?}", agent.status().unwrap()["peers"]);
    assert!(!a.pings(b.ip()), "no lease, no way");
    world.node(2).agent().start().unwrap();
    assert!(soon(|| peers() == 1 && a.pings(b.ip())), "the same subnet again, so the pod works again");
    assert!(world.node(2).agent().says(&["holding the subnet lease"], SOON));
}

#[test]
fn every_vni_and_port_carries_packets_and_another_is_taken_up_by_a_restart() {
    let config = |vni: u32, port: u16| {
        format!(r#"{{"Network":"10.100.0.0/16","Backend":{{"Type":"vxlan","VNI":{vni},"Port":{port}}}}}"#)
    };
    let world = World::builder().nodes(2).config(Some(&config(0, 4789))).build().unwrap();
    world.start_agents().unwrap();
    let (a, b) = (world.node(1).add_pod("a", &[]).unwrap(), world.node(2).add_pod("b", &[]).unwrap());
    for (vni, port, gear) in [(0, 4789, "tc"), (0x00ff_ffff, 1, "xdp"), (10_000, 65535, "kernel")] {
        let what = format!("VNI {vni}, port {port}, gear {gear}");
        if port != 4789 {
            world.etcd().put("/coreos.com/network/config", &config(vni, port)).unwrap();
            for node in world.nodes() {
                node.agent().terminate().unwrap();
                node.agent().set_flag("--decap-gear", gear);
            }
            world.start_agents().unwrap();
        }
        let (_a, _b) = (a.serve_tcp(8080).unwrap(), b.serve_tcp(8080).unwrap());
        assert!(soon(|| a.reaches(b.ip(), 8080) && b.reaches(a.ip(), 8080)), "{what}");
        let mut wire = Capture::start(world.node(1).netns(), "up0", "udp", world.folder()).unwrap();
        assert!(a.pings(b.ip()), "{what}");
        wire.stop().unwrap();
        assert!(!wire.packets(&format!("udp dst port {port}")).unwrap().is_empty(), "{what}");
        assert_eq!(
            wire.packets(&format!("udp dst port not {port}")).unwrap(),
            Vec::<String>::new(),
            "{what}"
        );
        for node in world.nodes() {
            let devices = node.netns().ip("-br link show type vxlan").unwrap();
            assert!(
                devices.starts_with(&format!("canal.{vni} ")) && devices.lines().count() == 1,
                "{devices}"
            );
        }
    }
}

#[test]
fn a_node_whose_kernel_takes_vxlan_off_delivers_and_judges_all_the_same() {
    let world = World::builder().nodes(2).build().unwrap();
    let receiver = world.node(2);
    receiver.agent().set_flag("--decap-gear", "kernel");
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let b = receiver.add_pod("b", &[("app", "b")]).unwrap();
    let _served = b.serve_tcp(8080).unwrap();
    assert!(soon(|| a.reaches(b.ip(), 8080)));
    let on_uplink = |gear: &str| {
        let status = receiver.agent().status().unwrap();
        assert_eq!(status["uplink"]["decap_gear"], gear);
        let programs = status["programs"].as_array().unwrap().clone();
        programs.iter().any(|program| program["program"] == "from_wire")
    };
    assert!(!on_uplink("kernel"));
    assert!(load::bulk(Path { from: &a, to: &b }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 20);

    // The programs of the way that is taken now refuse what policy refuses.
    world.etcd().put_global_policy("closed", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| a.connect(b.ip(), 8080) == Connect::TimedOut));
    world.etcd().delete_global_policy("closed").unwrap();
    assert!(soon(|| a.reaches(b.ip(), 8080)));

    // And back, without losing a ping.
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    receiver.agent().unset_flag("--decap-gear");
    receiver.agent().terminate().unwrap();
    receiver.agent().start().unwrap();
    assert!(on_uplink("tc"));
    let stats = pinger.stop().unwrap();
    assert_eq!(stats.lost, 0, "{stats:?}");
}

#[test]
fn datagrams_that_a_pod_hands_over_as_one_aggregate_arrive_one_by_one() {
    const SEGMENT: usize = 1200;
    const COUNT: usize = 20;
    let (world, a, b) = two_nodes();
    let near = world.node(1).add_pod("near", &[]).unwrap();
    assert!(soon(|| a.pings(near.ip())));
    for to in [&b, &near] {
        let target = SocketAddrV4::new(to.ip(), 5353);
        let receiver = to.netns().run(|| UdpSocket::bind(target)).unwrap().unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        a.netns()
            .run(|| {
                let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(SEGMENT).unwrap()).unwrap();
                sender.send_to(&vec![9; SEGMENT * COUNT], target).unwrap()
            })
            .unwrap();
        let mut buffer = [0; 2 * SEGMENT];
        for number in 0..COUNT {
            let received = receiver.recv(&mut buffer);
            let received = received.unwrap_or_else(|error| panic!("datagram {number} to {target}: {error}"));
            assert_eq!(received, SEGMENT, "datagram {number} to {target}");
        }
    }
}

#[test]
fn a_tunnel_that_pods_have_between_them_goes_through_ours() {
    let (world, a, b) = two_nodes();
    for (pod, other, last) in [(&a, &b, 1), (&b, &a, 2)] {
        for line in [
            &format!(
                "link add vx0 mtu 1400 type vxlan id 5 local {} remote {} dstport 9000",
                pod.ip(),
                other.ip()
            ),
            &format!("addr add 172.30.0.{last}/24 dev vx0"),
            "link set vx0 up",
        ] {
            pod.netns().ip(line).unwrap();
        }
    }
    let inside = Ipv4Addr::new(172, 30, 0, 2);
    assert!(soon(|| a.pings(inside)));
    // Aggregates of such packets are none that could be put into another envelope as they are.
    let _served = b.serve_tcp(8080).unwrap();
    assert!(a.reaches(inside, 8080));
    let to = At { netns: b.netns(), ip: inside };
    assert!(load::bulk(Path { from: &a, to: &to }, 1, Congestion::Default, BULK).unwrap().bytes > 1 << 18);
    assert!(world.node(1).agent().count("to_overlay", "fallback").unwrap() > 0);
}
