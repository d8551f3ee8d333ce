//! A node that flannel made, with pods in it, from flanneld to Canal and back: nobody is drained, and traffic goes on.

use std::{fs, net::Ipv4Addr, time::Duration};

use bpf_tests::{
    FlannelNode, Host, LiveConnection, Node, Pinger, Pod, Proc, World,
    flannel::{FlannelBackend, FlannelPod},
    policy,
    policy::RESOURCES,
};
use serde_json::{Value, json};

use crate::{SOON, soon};

const PACE: Duration = Duration::from_millis(10);
/// What pods may be without packets for.
const GAP: Duration = Duration::from_secs(1);
/// Who has a lease and is not there.
const ABSENT: &str = "192.168.50.77";

/// Node 1 and 2 are flannel's, 3 is Canal's.
fn world() -> World {
    let world = World::builder().nodes(3).build().unwrap();
    let open = json!({ "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }] });
    world.etcd().put_profile("open", open).unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    world
}

/// The endpoint of a pod, as Calico's plugin has published it on a node whose network is flannel's.
fn publish(world: &World, node: &Node, name: &str, pod: &FlannelPod) {
    let (number, ip) = (node.name(), pod.ip());
    let value = json!({
        "metadata": { "name": format!("{number}-k8s-{name}-eth0"), "namespace": "shop" },
        "spec": { "orchestrator": "k8s", "node": number, "pod": name, "endpoint": "eth0", "profiles": ["open"],
                  "ipNetworks": [format!("{ip}/32")], "interfaceName": pod.host_interface(), "mac": pod.mac().unwrap() },
    });
    let key = format!("{RESOURCES}workloadendpoints/shop/{number}-k8s-{name}-eth0");
    world.etcd().put(&key, &value.to_string()).unwrap();
}

/// Steady pings, each from and to somebody, to see how long nothing passes.
struct Steady(Vec<(&'static str, Pinger)>);

impl Steady {
    fn start(ways: &[(&'static str, &dyn Host, Ipv4Addr)]) -> Self {
        let start = |from: &dyn Host, to| Pinger::start(from.netns(), to, PACE).unwrap();
        Self(ways.iter().map(|(what, from, to)| (*what, start(*from, *to))).collect())
    }

    fn stop(self, when: &str) {
        for (what, pinger) in self.0 {
            let stats = pinger.stop().unwrap();
            let gap = PACE * stats.lost;
            eprintln!("{when}: {what}: {} of {} pings lost, {gap:?}", stats.lost, stats.sent());
            assert!(gap < GAP, "{when}: {what}: {stats:?}");
        }
    }
}

fn device(node: &Node, name: &str) -> Option<Value> {
    let said = node.netns().ip(&format!("-j -d addr show {name}")).ok()?;
    serde_json::from_str::<Value>(&said).ok().map(|links| links[0].clone())
}

fn is_up(link: &Value) -> bool {
    link["flags"].to_string().contains("\"UP\"")
}

fn firewall(node: &Node) -> String {
    let all = ["iptables-nft-save", "iptables-legacy-save"].map(|line| node.netns().cmd(line).run().unwrap());
    all.concat()
}

/// A process that is called flanneld.
fn pretend_flanneld(node: &Node) -> Proc {
    let program = node.folder().join("flanneld");
    fs::copy("/bin/sleep", &program).unwrap();
    let command = node.netns().cmd(&format!("{} 600", program.display()));
    let process = command.start(&node.folder().join("flanneld.log")).unwrap();
    let runs =
        || fs::read_to_string(format!("/proc/{}/comm", process.pid())).is_ok_and(|c| c == "flanneld\n");
    assert!(soon(runs), "it runs");
    process
}

/// Ours stands as flannel's did, and nothing of flannel's is left.
fn stands_in_flannels_place(flannel: &FlannelNode<'_>) {
    let node = flannel.node();
    let gone = || device(node, "flannel.1").is_none() && !firewall(node).contains("FLANNEL");
    assert!(soon(gone), "{:?} {} {}", device(node, "flannel.1"), firewall(node), node.agent().log());
    let ours = device(node, "canal.1").unwrap();
    assert_eq!(ours["address"], flannel.vtep_mac());
    let addresses = ours["addr_info"].to_string();
    assert!(addresses.contains(&format!("\"local\":\"{}\"", flannel.subnet())), "{addresses}");
    assert!(
        soon(|| node.agent().status().unwrap()["problems"] == json!([])),
        "{}",
        node.agent().status().unwrap()
    );
}

/// A node of flannel's with a pod on it, and the pods of others that it talks to.
struct Scene<'w> {
    one: &'w Node,
    old: FlannelNode<'w>,
    a: FlannelPod,
    b: FlannelPod,
    c: Pod,
    /// What flanneld wrote for the CNI plugin.
    file: String,
}

impl<'w> Scene<'w> {
    fn set(world: &'w World) -> Self {
        let (one, three) = (world.node(1), world.node(3));
        let (old, far) = (world.flannel_node(1).unwrap(), world.flannel_node(2).unwrap());
        three.agent().start().unwrap();
        assert!(soon(|| old.learn_peers().unwrap() == 2 && far.learn_peers().unwrap() == 2));
        let (a, b) = (old.add_pod("a").unwrap(), far.add_pod("b").unwrap());
        let c = three.add_pod("c", &[]).unwrap();
        publish(world, one, "a", &a);
        let file = old.write_subnet_file().unwrap();
        Self { one, old, a, b, c, file }
    }

    /// Beside the device: rules of every kind, and routes.
    fn add_what_else_flannel_leaves(&self, world: &World) {
        let ip = |line: &str| drop(self.one.netns().ip(line).unwrap());
        for tool in ["iptables-nft", "iptables-legacy"] {
            self.old.install_rules(tool).unwrap();
        }
        for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
            self.one.netns().cmd(&format!("nft add table {table}")).run().unwrap();
        }
        // Of a network with both families. It keeps the port from ours, too.
        ip("link add flannel-v6.1 type vxlan id 1 local fd00::1 dev up0 dstport 8472 nolearning");
        ip("link set flannel-v6.1 up");
        // A peer that flannel reached directly; and what an administrator made.
        let lease = json!({ "PublicIP": ABSENT, "PublicIPv6": null, "BackendType": "vxlan",
                            "BackendData": { "VNI": 1, "VtepMAC": "0e:00:00:00:00:77" } });
        world.etcd().put("/coreos.com/network/subnets/10.100.177.0-24", &lease.to_string()).unwrap();
        for route in ["10.100.177.0/24", "10.100.178.0/24", "10.9.0.0/16", "default"] {
            ip(&format!("route add {route} via {ABSENT} dev up0"));
        }
    }

    fn ways(&self) -> [(&'static str, &dyn Host, Ipv4Addr); 5] {
        [
            ("pod to flannel's pod", &self.a, self.b.ip()),
            ("flannel's pod to pod", &self.b, self.a.ip()),
            ("Canal's pod to pod", &self.c, self.a.ip()),
            ("host to flannel's pod", self.one, self.b.ip()),
            ("host to its pod", self.one, self.a.ip()),
        ]
    }

    fn every_way_is_open(&self) {
        for (what, from, to) in self.ways() {
            assert!(from.pings(to), "{what}");
        }
    }

    fn routes(&self) -> String {
        self.one.netns().ip("route show").unwrap()
    }

    /// Everything is ours, and what is not flannel's is as it was.
    fn is_taken_over(&self, world: &World) {
        let (one, old) = (self.one, &self.old);
        stands_in_flannels_place(old);
        assert_eq!(fs::read_to_string(one.agent().subnet_file()).unwrap(), self.file, "to the byte");
        let lease = world.etcd().get(&old.lease_key()).unwrap().unwrap();
        assert!(
            lease.contains(old.vtep_mac()) && lease.contains("node1"),
            "the same one, taken over: {lease}"
        );
        let routes = self.routes();
        assert!(!routes.contains("10.100.177.0/24"), "{routes}");
        for route in ["10.100.178.0/24 via", "10.9.0.0/16 via", "default via"] {
            assert!(routes.contains(route), "{route} is not flannel's: {routes}");
        }
        let nft = one.netns().cmd("nft list tables").run().unwrap();
        assert!(nft.contains("table ip canal-masq") && !nft.contains("flannel-ipv4"), "{nft}");
        let v6 = device(one, "flannel-v6.1").unwrap();
        assert!(!is_up(&v6) && nft.contains("flannel-ipv6"), "it is left: {v6} {nft}");
        assert!(one.agent().says(&["IPv6 is not carried", "flannel-v6.1"], GAP));
        self.every_way_is_open();
    }

    /// Everything is as flanneld would have made it.
    fn is_given_back(&self, world: &World) {
        let (one, old) = (self.one, &self.old);
        let theirs = device(one, "flannel.1").unwrap();
        let info = &theirs["linkinfo"]["info_data"];
        assert_eq!(theirs["address"], old.vtep_mac());
        assert_eq!(
            (&info["id"], &info["port"], &info["local"], &info["link"], &info["learning"]),
            (&json!(1), &json!(8472), &json!("192.168.50.1"), &json!("up0"), &json!(false)),
            "flanneld keeps a device that is so: {info}"
        );
        assert!(theirs["addr_info"].to_string().contains(&old.subnet().to_string()), "{theirs}");
        assert!(device(one, "canal.1").is_none() && !one.bpffs().join("canal").exists());
        assert!(!self.routes().contains("proto 202"), "{}", self.routes());
        assert_eq!(fs::read_to_string(one.agent().subnet_file()).unwrap(), self.file);
        assert!(world.etcd().get(&old.lease_key()).unwrap().is_some());
        let endpoints = world.etcd().workload_endpoints().unwrap();
        assert!(endpoints.iter().any(|key| key.contains("node1-k8s-a")), "{endpoints:?}");
        // It programs the same once more.
        old.learn_peers().unwrap();
        self.every_way_is_open();
    }
}

#[test]
fn canal_takes_a_node_over_from_flanneld_under_traffic_and_gives_it_back() {
    let world = world();
    let scene = Scene::set(&world);
    let Scene { one, old, a, b, c, .. } = &scene;
    scene.add_what_else_flannel_leaves(&world);
    // Not enforced as long as flannel has the node.
    let deny = json!([{ "action": "Deny", "protocol": "TCP", "destination": { "ports": [9999] } }]);
    world.etcd().put_global_policy("shut", policy::ingress(1, "all()", deny)).unwrap();
    let _servers = [8080, 9999].map(|port| a.serve_tcp(port).unwrap());
    assert!(b.reaches(a.ip(), 9999), "no policy yet");
    assert!(a.pings(b.ip()) && b.pings(a.ip()) && c.pings(a.ip()));

    // Beside a flanneld nothing is touched.
    one.agent().add_switch("--ip-masq=true");
    let mut flanneld = pretend_flanneld(one);
    one.agent().spawn().unwrap();
    let refusal = ["flanneld (process", "flannel.1", "systemctl disable --now flanneld"];
    assert!(one.agent().says(&refusal, SOON));
    assert!(soon(|| !one.agent().is_running()), "it ends");
    assert!(device(one, "canal.1").is_none() && !one.bpffs().join("canal").exists());
    flanneld.kill();

    let live = [b.netns(), c.netns()].map(|from| LiveConnection::open(from, a.ip(), 8080).unwrap());
    let steady = Steady::start(&scene.ways());
    // Another node's flanneld is none of ours.
    let elsewhere = pretend_flanneld(world.node(2));
    one.agent().start().unwrap();
    let said = one.agent().says(&["took the place of flannel's device", "flannel.1"], SOON);
    assert!(said, "{}", one.agent().log());
    stands_in_flannels_place(old);
    assert!(soon(|| !b.reaches(a.ip(), 9999)), "policy is in force");
    steady.stop("flannel to Canal");
    assert!(live.iter().all(LiveConnection::is_alive), "connections live on");
    drop(elsewhere);
    scene.is_taken_over(&world);

    // host-local goes on with its records.
    let records = one.folder().join("ipam/canal");
    fs::create_dir_all(&records).unwrap();
    fs::write(records.join(a.ip().to_string()), "a\neth0").unwrap();
    let d = one.add_pod("d", &[]).unwrap();
    assert!(soon(|| d.pings(b.ip()) && d.pings(a.ip()) && b.pings(d.ip())));

    // Back.
    let ways: Vec<_> =
        scene.ways()[..4].iter().copied().chain([("our plugin's pod", &d as _, b.ip())]).collect();
    let steady = Steady::start(&ways);
    one.agent().terminate().unwrap();
    let said = one.agent().hand_over_to_flannel().unwrap();
    for words in
        ["made flannel.1 on up0", old.vtep_mac(), "peers", "NO POLICY IS ENFORCED", "removed canal.1"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    steady.stop("Canal to flannel");
    assert!(live.iter().all(LiveConnection::is_alive));
    scene.is_given_back(&world);
    assert!(b.reaches(a.ip(), 9999), "no policy any more");
    // The gateway's MAC comes from the kernel now.
    d.netns().ip("neigh flush dev eth0").unwrap();
    assert!(soon(|| d.pings(b.ip())), "{}", d.netns().ip("neigh").unwrap());
    assert_eq!(one.agent().hand_over_to_flannel().unwrap().trim(), "nothing to remove", "once is enough");

    // And forth again.
    let steady = Steady::start(&ways);
    one.agent().start().unwrap();
    stands_in_flannels_place(old);
    steady.stop("and forth again");
    assert!(soon(|| d.pings(b.ip()) && !b.reaches(a.ip(), 9999)));
}

#[test]
fn wherever_a_takeover_was_cut_off_the_next_start_finishes_it() {
    let world = World::builder().nodes(2).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let one = world.node(1);
    let (old, far) = (world.flannel_node(1).unwrap(), world.flannel_node(2).unwrap());
    old.learn_peers().unwrap();
    far.learn_peers().unwrap();
    let (a, b) = (old.add_pod("a").unwrap(), far.add_pod("b").unwrap());
    publish(&world, one, "a", &a);
    let ip = |line: &str| drop(one.netns().ip(line).unwrap());
    one.agent().add_switch("--ip-masq=true");
    one.agent().start().unwrap();
    for (what, up, rules, gear) in [
        ("ours is made", ["flannel.1"].as_slice(), true, "kernel"),
        ("theirs is down", &[], true, "tc"),
        ("ours is up", &["canal.1"], true, "kernel"),
        ("theirs is gone", &["canal.1"], true, "xdp"),
    ] {
        stands_in_flannels_place(&old);
        assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip()) && one.pings(b.ip())), "before {what}");
        one.agent().kill_9();
        ip("link set canal.1 down");
        if what != "theirs is gone" {
            old.make_device().unwrap();
        }
        for device in ["flannel.1", "canal.1"] {
            if !up.contains(&device) && one.netns().ip(&format!("link show {device}")).is_ok() {
                ip(&format!("link set {device} down"));
            }
        }
        for device in up {
            ip(&format!("link set {device} up"));
        }
        if rules {
            old.install_rules("iptables-nft").unwrap();
        }
        one.agent().set_flag("--decap-gear", gear);
        one.agent().start().unwrap();
    }
    stands_in_flannels_place(&old);
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip()) && one.pings(b.ip())));

    // One that comes beside a running agent is told of, and changes nothing.
    let mut flanneld = pretend_flanneld(one);
    ip("link set canal.1 down");
    assert!(soon(|| device(one, "canal.1").is_some_and(|link| is_up(&link))));
    ip("link add flannel.1 type vxlan id 1 local 192.168.50.1 dev up0 dstport 8472");
    let problems = || one.agent().status().unwrap()["problems"].to_string();
    assert!(soon(|| problems().contains("flanneld (process")), "{}", problems());
    assert!(device(one, "flannel.1").is_some() && a.pings(b.ip()) && b.pings(a.ip()));
    flanneld.kill();
    ip("link set flannel.1 mtu 1400");
    stands_in_flannels_place(&old);

    // Whatever the tools that are missing, nothing is left without a word, and what still masquerades is left.
    one.agent().kill_9();
    old.install_rules("iptables-nft").unwrap();
    let tools = one.folder().join("bin");
    fs::create_dir_all(&tools).unwrap();
    let place = |tool: &str| {
        let path = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|folder| format!("{folder}/{tool}"));
        let path = path.iter().find(|path| fs::exists(path).unwrap()).unwrap();
        std::os::unix::fs::symlink(path, tools.join(tool)).unwrap();
    };
    // Who starts it needs that one.
    place("ip");
    one.agent().set_env("PATH", &tools.display().to_string());
    one.agent().add_switch("--ip-masq=true");
    one.agent().start().unwrap();
    assert!(
        soon(|| problems().contains("cannot run nft") && problems().contains("install nftables")),
        "{}",
        problems()
    );
    place("nft");
    let words =
        ["flannel's rules are left in the firewall (FLANNEL-POSTRTG, FLANNEL-FWD)", "install iptables"];
    let told = || words.iter().all(|words| problems().contains(words));
    assert!(bpf_tests::until(SOON * 2, told), "{}", problems());
    assert!(firewall(one).contains("FLANNEL-POSTRTG") && a.pings(b.ip()));
}

#[test]
fn a_node_whose_peers_are_reached_without_a_tunnel_is_taken_over_and_given_back() {
    let config = r#"{ "Network": "10.100.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    let world = World::builder().nodes(2).config(Some(config)).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let one = world.node(1);
    let [old, far] = [1, 2].map(|number| world.flannel_node_with(number, FlannelBackend::HostGw).unwrap());
    old.learn_peers().unwrap();
    far.learn_peers().unwrap();
    let (a, b) = (old.add_pod("a").unwrap(), far.add_pod("b").unwrap());
    publish(&world, one, "a", &a);
    old.install_rules("iptables-nft").unwrap();
    one.agent().add_switch("--ip-masq=true");
    let way = || one.netns().ip(&format!("route show {}/24", far.subnet())).unwrap();
    let mut flanneld = pretend_flanneld(one);
    one.agent().spawn().unwrap();
    assert!(
        one.agent().says(&["flanneld (process", "route to", "via 192.168.50.2"], SOON),
        "{}",
        one.agent().log()
    );
    assert!(soon(|| !one.agent().is_running()));
    flanneld.kill();

    let ways: [(&str, &dyn Host, Ipv4Addr); 3] =
        [("out", &a, b.ip()), ("in", &b, a.ip()), ("host", one, b.ip())];
    let steady = Steady::start(&ways);
    one.agent().start().unwrap();
    assert!(soon(|| way().contains("proto 202") && !firewall(one).contains("FLANNEL")), "{}", way());
    steady.stop("host-gw to Canal");
    assert!(soon(|| one.agent().status().unwrap()["problems"] == json!([])));

    let steady = Steady::start(&ways);
    one.agent().terminate().unwrap();
    let said = one.agent().hand_over_to_flannel().unwrap();
    assert!(said.contains("left the route to") && said.contains("NO POLICY IS ENFORCED"), "{said}");
    steady.stop("Canal to host-gw");
    assert!(way().contains("via 192.168.50.2 dev up0") && !way().contains("proto 202"), "{}", way());
    assert!(a.pings(b.ip()) && b.pings(a.ip()) && one.pings(b.ip()));
}
