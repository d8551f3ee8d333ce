//! What pods and strangers must not be able to do.

use bpf_tests::{Capture, Cmd, Host, Pod, World, policy};
use serde_json::json;

use crate::{
    SOON, soon, two_nodes,
    vxlan::{self, Inner},
};

/// What a pod does.
type Act<'a> = &'a dyn Fn();

/// The MAC of every pod's gateway.
const GATEWAY: [u8; 6] = [0xee; 6];

fn ethernet(pod: &Pod, src: [u8; 6], ethertype: [u8; 2], payload: &[u8]) {
    let frame = [&GATEWAY[..], &src, &ethertype, payload].concat();
    pod.send_frame("eth0", &frame).unwrap();
}

fn arp(operation: u8, mac: [u8; 6], claims: [u8; 4], asks: [u8; 4]) -> Vec<u8> {
    let kind = [0, 1, 8, 0, 6, 4, 0, operation];
    [&kind[..], &mac, &claims, &[0; 6], &asks].concat()
}

#[test]
fn a_pod_can_spoof_neither_address_nor_mac_nor_arp_and_sends_no_vxlan() {
    let (world, a, b) = two_nodes();
    let victim = world.node(1).add_pod("victim", &[]).unwrap();
    let agent = world.node(1).agent();
    let own = vxlan::mac(a.mac());
    let other = vxlan::mac(victim.mac());
    let (ip, stolen, far) = (a.ip().octets(), victim.ip().octets(), b.ip().octets());
    let ipv4 = [8, 0];
    let mut at_far =
        Capture::start(b.netns(), "eth0", "icmp[icmptype] == icmp-echo", world.folder()).unwrap();
    let mut at_wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();

    // The crafted packet is right: from the true address it arrives.
    ethernet(&a, own, ipv4, &vxlan::echo_request(ip, far));
    assert!(at_far.sees(&format!("src host {}", a.ip()), SOON));

    let neighbours = || world.node(1).netns().ip("neigh show").unwrap();
    let before = neighbours();
    let counted = |reason: &str| agent.count("from_pod", reason).unwrap();
    let acts: [(&str, &str, Act<'_>); 9] = [
        ("a neighbour's address", "spoofed-ip", &|| {
            ethernet(&a, own, ipv4, &vxlan::echo_request(stolen, far));
        }),
        ("an address of nobody", "spoofed-ip", &|| {
            ethernet(&a, own, ipv4, &vxlan::echo_request([198, 51, 100, 1], far));
        }),
        ("a remote pod's address", "spoofed-ip", &|| {
            ethernet(&a, own, ipv4, &vxlan::echo_request(far, stolen));
        }),
        ("the node's address", "spoofed-ip", &|| {
            ethernet(&a, own, ipv4, &vxlan::echo_request([192, 168, 50, 1], far));
        }),
        ("a neighbour's MAC", "spoofed-mac", &|| ethernet(&a, other, ipv4, &vxlan::echo_request(ip, far))),
        ("an ARP answer for a neighbour", "spoofed-ip", &|| {
            ethernet(&a, own, [8, 6], &arp(2, own, stolen, [169, 254, 1, 1]));
        }),
        ("an ARP request in a neighbour's name", "spoofed-ip", &|| {
            ethernet(&a, own, [8, 6], &arp(1, own, stolen, [169, 254, 1, 1]));
        }),
        ("an ARP with another MAC", "spoofed-mac", &|| {
            ethernet(&a, own, [8, 6], &arp(2, other, ip, [169, 254, 1, 1]));
        }),
        ("IPv6", "not-ipv4", &|| ethernet(&a, own, [0x86, 0xdd], &[0x60; 40])),
    ];
    for (what, reason, act) in acts {
        let count = counted(reason);
        act();
        assert!(soon(|| counted(reason) > count), "{what}: {reason} is counted");
    }
    assert_eq!(neighbours(), before, "the host believes what it believed");

    let envelope = vxlan::ping(Inner { vni: 1, mac: [0x0e, 0, 0, 0, 0, 2], src: stolen, dst: far });
    let count = counted("pod-tunnel");
    for node in world.nodes() {
        a.send_udp(node.public_ip(), 8472, &envelope).unwrap();
    }
    a.send_udp(b.ip(), 8472, &envelope).unwrap();
    assert!(soon(|| counted("pod-tunnel") >= count + 3), "VXLAN of a pod's own");
    a.send_udp(world.node(2).public_ip(), 8473, &envelope).unwrap();
    assert!(at_wire.sees("udp dst port 8473", SOON), "other datagrams get out");

    at_far.stop().unwrap();
    at_wire.stop().unwrap();
    assert_eq!(at_far.packets(&format!("not src host {}", a.ip())).unwrap(), Vec::<String>::new());
    assert_eq!(at_wire.packets(&format!("src host {}", a.ip())).unwrap().len(), 1, "only the one to 8473");
    assert!(a.pings(b.ip()) && victim.pings(b.ip()), "and all others go on");
}

#[test]
fn a_pod_that_changes_its_own_address_or_mac_is_mute_until_it_changes_back() {
    let (_world, a, b) = two_nodes();
    a.netns().ip("addr add 10.100.250.250/32 dev eth0").unwrap();
    let stolen = a.netns().cmd(&format!("ping -n -c 2 -i 0.2 -W 1 -I 10.100.250.250 {}", b.ip()));
    assert!(!stolen.output().unwrap().ok());
    a.netns().ip("link set eth0 address 0e:0e:0e:0e:0e:0e").unwrap();
    assert!(!a.pings(b.ip()));
    a.netns().ip(&format!("link set eth0 address {}", a.mac())).unwrap();
    assert!(soon(|| a.pings(b.ip())));
}

/// Node 1 is Canal's, node 2 flannel's, node 3 has no lease.
struct Wild {
    world: World,
    a: Pod,
    mac: [u8; 6],
}

fn wild() -> Wild {
    let world = World::builder().nodes(3).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    world.node(1).agent().start().unwrap();
    let a = world.node(1).add_pod("a", &[]).unwrap();
    let status = world.node(1).agent().status().unwrap();
    let mac = vxlan::mac(status["lease"]["vtep_mac"].as_str().unwrap());
    Wild { world, a, mac }
}

#[test]
fn vxlan_is_taken_only_from_lease_holders_and_only_with_their_own_sources() {
    let Wild { world, a, mac } = wild();
    let flannel = world.flannel_node(2).unwrap();
    let agent = world.node(1).agent();
    assert!(soon(|| agent.status().unwrap()["peers"].as_array().is_some_and(|p| p.len() == 1)));
    let good = Inner { vni: 1, mac, src: [10, 100, 200, 9], dst: a.ip().octets() };
    let to = world.node(1).public_ip();
    let mut pod = Capture::start(a.netns(), "eth0", "icmp", world.folder()).unwrap();

    flannel.node().send_udp(to, 8472, &vxlan::ping(good)).unwrap();
    assert!(pod.sees("src host 10.100.200.9", SOON), "a right one from a lease holder arrives");
    // An answer may have been sent; from here on only requests count.
    let requests = |capture: &Capture| capture.packets("icmp[icmptype] == icmp-echo").unwrap().len();
    let arrived = requests(&pod);

    let foreign = Inner { src: [10, 100, 77, 9], ..good };
    let own_subnet = Inner { src: a.ip().octets(), ..good };
    let world_address = Inner { src: [203, 0, 113, 9], ..good };
    let cases = [
        ("no lease", 3, good, "from_wire", "unknown-node"),
        ("an inner source of nobody's subnet", 2, foreign, "from_wire", "wrong-source"),
        ("an inner source of the receiver's own subnet", 2, own_subnet, "from_wire", "wrong-source"),
        ("an inner source outside the network", 2, world_address, "from_wire", "wrong-source"),
        ("another device's MAC", 2, Inner { mac: [0x0e, 9, 9, 9, 9, 9], ..good }, "from_wire", "wrong-vtep"),
        ("another VNI", 2, Inner { vni: 2, ..good }, "from_overlay", "unknown-node"),
        ("VNI 0", 2, Inner { vni: 0, ..good }, "from_overlay", "unknown-node"),
    ];
    for (what, sender, inner, hook, reason) in cases {
        let count = agent.count(hook, reason).unwrap();
        world.node(sender).send_udp(to, 8472, &vxlan::ping(inner)).unwrap();
        assert!(soon(|| agent.count(hook, reason).unwrap() > count), "{what}: {hook} {reason} is counted");
        assert_eq!(requests(&pod), arrived, "{what}: nothing reaches the pod");
    }
    pod.stop().unwrap();
}

#[test]
fn the_same_holds_for_envelopes_that_arrive_in_fragments() {
    let Wild { world, a, mac } = wild();
    let flannel = world.flannel_node(2).unwrap();
    let agent = world.node(1).agent();
    assert!(soon(|| agent.status().unwrap()["peers"].as_array().is_some_and(|p| p.len() == 1)));
    let good = Inner { vni: 1, mac, src: [10, 100, 200, 9], dst: a.ip().octets() };
    let to = world.node(1).public_ip();
    // Trailing bytes behind the inner packet make the envelope larger than the wire's MTU.
    let large = |inner: Inner| [vxlan::ping(inner), vec![0; 2000]].concat();
    let mut pod = Capture::start(a.netns(), "eth0", "icmp[icmptype] == icmp-echo", world.folder()).unwrap();
    flannel.node().send_udp(to, 8472, &large(good)).unwrap();
    assert!(pod.sees("src host 10.100.200.9", SOON), "{}", agent.status().unwrap()["counters"]);
    for (sender, inner, reason) in
        [(3, good, "unknown-node"), (2, Inner { src: [10, 100, 77, 9], ..good }, "wrong-source")]
    {
        let count = agent.count("from_overlay", reason).unwrap();
        world.node(sender).send_udp(to, 8472, &large(inner)).unwrap();
        assert!(soon(|| agent.count("from_overlay", reason).unwrap() > count), "{reason}");
    }
    pod.stop().unwrap();
    assert_eq!(pod.packets("").unwrap().len(), 1);
}

/// A veth made by hand, as the Calico plugin makes it, which no endpoint in the store describes.
#[test]
fn a_pods_interface_without_an_endpoint_is_closed_in_both_directions() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let mut octets = b.ip().octets();
    octets[3] = 250;
    let ip = std::net::Ipv4Addr::from(octets);
    let netns = bpf_tests::Netns::create(&format!("{}pod-stray", world.prefix())).unwrap();
    Cmd::line(&format!(
        "ip -n {} link add calistray type veth peer name eth0 netns {}",
        node.netns().name(),
        netns.name()
    ))
    .run()
    .unwrap();
    for line in [
        "link set calistray address ee:ee:ee:ee:ee:ee mtu 1450 up",
        &format!("route add {ip}/32 dev calistray"),
    ] {
        node.netns().ip(line).unwrap();
    }
    for line in [
        "link set eth0 mtu 1450 up",
        &format!("addr add {ip}/32 dev eth0"),
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1",
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0",
    ] {
        netns.ip(line).unwrap();
    }
    let attached = || {
        let status = node.agent().status().unwrap();
        status["programs"].as_array().unwrap().iter().any(|p| p["interface"] == "calistray")
    };
    assert!(soon(attached), "an interface with Calico's prefix is ours to guard");
    let mut inside = Capture::start(
        &netns,
        "eth0",
        "icmp[icmptype] == icmp-echo and dst host not 127.0.0.1",
        world.folder(),
    )
    .unwrap();
    assert!(!a.pings(ip) && !b.pings(ip));
    let out = netns.cmd(&format!("ping -n -c 2 -i 0.2 -W 1 {}", a.ip())).output().unwrap();
    assert!(!out.ok(), "{}", out.stdout);
    inside.stop().unwrap();
    assert_eq!(inside.packets(&format!("dst host {ip}")).unwrap(), Vec::<String>::new());
}

#[test]
fn an_endpoint_that_names_the_hosts_own_interface_is_closed_and_the_host_goes_on() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let mut octets = b.ip().octets();
    for (number, interface) in ["up0", "canal.1"].into_iter().enumerate() {
        octets[3] = 240 + u8::try_from(number).unwrap();
        let ip = std::net::Ipv4Addr::from(octets);
        let spec = json!({
            "orchestrator": "cni", "node": "node2", "containerID": "x", "endpoint": "eth0",
            "ipNetworks": [format!("{ip}/32")], "profiles": ["canal"], "interfaceName": interface,
            "mac": "0e:00:00:00:00:99",
        });
        let name = format!("node2-cni-x{number}-eth0");
        world
            .etcd()
            .put_resource("workloadendpoints", "WorkloadEndpoint", Some("default"), &name, spec)
            .unwrap();
        let state = || node.agent().endpoint_state(ip).unwrap();
        assert!(soon(|| state().as_deref() == Some("closed")), "{interface}: {:?}", state());
    }
    let programs = node.agent().status().unwrap()["programs"].to_string();
    assert_eq!(programs.matches("from_pod").count(), 1, "{programs}");
    assert!(a.pings(b.ip()) && b.pings(a.ip()) && node.pings(world.node(1).public_ip()));
}

#[test]
fn an_endpoint_that_cannot_be_programmed_is_closed_not_open() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let key = world.etcd().workload_endpoints().unwrap().into_iter().find(|k| k.contains("node2")).unwrap();
    // A stranger's endpoint with the pod's interface and an address that the host routes there, but no MAC.
    let mut octets = b.ip().octets();
    octets[3] = 230;
    let ip = std::net::Ipv4Addr::from(octets);
    let spec = json!({
        "orchestrator": "cni", "node": "node2", "containerID": "y", "endpoint": "eth0",
        "ipNetworks": [format!("{ip}/32")], "profiles": ["canal"], "interfaceName": b.host_interface(),
    });
    world
        .etcd()
        .put_resource("workloadendpoints", "WorkloadEndpoint", Some("default"), "node2-cni-y-eth0", spec)
        .unwrap();
    assert!(soon(|| node.agent().endpoint_state(ip).unwrap().as_deref() == Some("closed")));
    node.netns().ip(&format!("route add {ip}/32 dev {}", b.host_interface())).unwrap();
    b.netns().ip(&format!("addr add {ip}/32 dev eth0")).unwrap();
    assert!(!a.pings(ip), "closed");
    assert!(a.pings(b.ip()), "and its neighbour is not concerned: {key}");
}

#[test]
fn a_pod_is_not_reached_once_its_endpoint_is_gone() {
    let (world, a, b) = two_nodes();
    world.etcd().put_global_policy("t", policy::ingress(1, "all()", json!([{"action": "Allow"}]))).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let node = world.node(2);
    // The namespace stays, as with a runtime that is slow.
    bpf_tests::pod::cni(node, "DEL", b.netns(), b.name(), &[]).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
    assert!(soon(|| node.agent().endpoint_state(b.ip()).unwrap().is_none()));
}

#[test]
fn a_pod_does_not_choose_the_vlan_of_its_nodes_packets() {
    let (world, a, b) = two_nodes();
    let agent = world.node(1).agent();
    let mut wire = Capture::start(world.node(1).netns(), "up0", "", world.folder()).unwrap();
    let before = agent.count("from_pod", "not-ipv4").unwrap();
    let tagged = [&[0, 77, 8, 0][..], &vxlan::echo_request(a.ip().octets(), b.ip().octets())].concat();
    ethernet(&a, vxlan::mac(a.mac()), [0x81, 0], &tagged);
    assert!(soon(|| agent.count("from_pod", "not-ipv4").unwrap() > before));
    // What follows it on the wire has come, so it would have, too.
    assert!(a.pings(b.ip()) && wire.sees("udp port 8472", SOON));
    wire.stop().unwrap();
    assert_eq!(wire.packets("vlan").unwrap(), Vec::<String>::new());
}

#[test]
fn an_endpoint_that_names_an_interface_of_the_host_closes_nothing_but_itself() {
    let (world, a, b) = two_nodes();
    let agent = world.node(1).agent();
    for interface in ["mg0", "up0", "lo", "canal.1"] {
        let name = format!("node1-cni-evil{}-eth0", interface.replace('.', ""));
        let object = json!({
            "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"orchestrator": "cni", "node": "node1", "endpoint": "eth0", "ipNetworks": ["10.100.99.9/32"],
                     "profiles": ["canal"], "interfaceName": interface, "mac": "02:00:00:00:00:09"},
        });
        let key = format!("{}workloadendpoints/default/{name}", policy::RESOURCES);
        world.etcd().put(&key, &object.to_string()).unwrap();
        let told = || agent.status().unwrap()["endpoints"].to_string().contains("is not a pod's");
        assert!(soon(told), "{interface}: {}", agent.status().unwrap()["endpoints"]);
        assert!(a.pings(b.ip()), "{interface}");
        world.etcd().del(&key).unwrap();
        assert!(soon(|| !told()), "{interface}: the agent still hears etcd");
    }
}

/// Whatever carries a pod's name is guarded as one; what is no veth cannot be served, whoever claims it.
#[test]
fn an_interface_that_is_named_as_a_pods_and_is_no_veth_is_guarded_and_closed() {
    let (world, a, b) = two_nodes();
    let node = world.node(2);
    let agent = node.agent();
    let behind = bpf_tests::Netns::create(&format!("{}pod-behind", world.prefix())).unwrap();
    let mut octets = b.ip().octets();
    node.netns().ip("addr add 8.6.0.1/32 dev lo").unwrap();
    for (number, (interface, made)) in [
        ("califb", &["link add califb type ifb"][..]),
        ("calitun", &["tuntap add dev calitun mode tun"]),
        ("calibridge", &["link add calibridge type bridge"]),
    ]
    .into_iter()
    .enumerate()
    {
        octets[3] = 240 + u8::try_from(number).unwrap();
        let ip = std::net::Ipv4Addr::from(octets);
        for line in made {
            node.netns().ip(line).unwrap();
        }
        let programs = || agent.status().unwrap()["programs"].as_array().unwrap().clone();
        let on_it = || programs().iter().filter(|p| p["interface"] == interface).count();
        assert!(soon(|| on_it() == 2), "{interface}: {:?}", programs());
        for line in [format!("link set {interface} up"), format!("route add {ip}/32 dev {interface}")] {
            node.netns().ip(&line).unwrap();
        }
        // A tun device's packets begin where others have their Ethernet headers: no reason fits them.
        let denied = || -> u64 {
            let counters = agent.status().unwrap()["counters"].as_array().unwrap().clone();
            let drops = counters.iter().filter(|c| c["hook"] == "to_pod" && c["drop"] == true);
            drops.filter_map(|c| c["packets"].as_u64()).sum()
        };
        for claimed in [false, true] {
            if claimed {
                let spec = json!({
                    "orchestrator": "cni", "node": "node2", "containerID": "x", "endpoint": "eth0",
                    "ipNetworks": [format!("{ip}/32")], "profiles": ["canal"], "interfaceName": interface,
                    "mac": "0e:00:00:00:00:99",
                });
                let name = format!("node2-cni-{interface}-eth0");
                world
                    .etcd()
                    .put_resource("workloadendpoints", "WorkloadEndpoint", Some("default"), &name, spec)
                    .unwrap();
                let state = || agent.endpoint_state(ip).unwrap();
                assert!(soon(|| state().as_deref() == Some("closed")), "{interface}: {:?}", state());
            }
            let before = denied();
            assert!(!node.pings(ip) && denied() > before, "{interface}, claimed: {claimed}");
            if interface == "calitun" {
                // Where others have their type, its packets have their source: this one reads as ARP.
                let before = denied();
                let ping = format!("ping -n -c 2 -i 0.2 -W 1 -I 8.6.0.1 {ip}");
                let ping = node.netns().cmd(&ping).output().unwrap();
                assert!(!ping.ok() && denied() > before, "claimed: {claimed}");
            }
        }
        assert_eq!(on_it(), 2, "{interface}: guarded still");
    }

    // Who sends through such an interface is no pod either.
    let address = std::net::Ipv4Addr::from(octets);
    Cmd::line(&format!("ip -n {} link add port0 type veth", node.netns().name()))
        .args(["peer", "name", "eth0", "netns", behind.name()])
        .run()
        .unwrap();
    node.netns().ip("link set port0 master calibridge up").unwrap();
    let bridge = node.netns().cmd("cat /sys/class/net/calibridge/address").run().unwrap();
    for line in [
        "link set eth0 up",
        &format!("addr add {address}/32 dev eth0"),
        "route add default dev eth0",
        &format!("neigh add {} lladdr {} dev eth0 nud permanent", node.ip(), bridge.trim()),
    ] {
        behind.ip(line).unwrap();
    }
    let refused = || agent.count("from_pod", "spoofed-ip").unwrap();
    let before = refused();
    let ping = behind.cmd(&format!("ping -n -c 2 -i 0.2 -W 1 {}", node.ip())).output().unwrap();
    assert!(!ping.ok() && refused() > before, "{}", agent.status().unwrap()["counters"]);
    assert!(agent.is_running() && a.pings(b.ip()) && b.pings(a.ip()));
}
