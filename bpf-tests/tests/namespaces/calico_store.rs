//! Endpoints and policies exactly as a real calicoctl and a real Calico CNI plugin wrote them, and endpoints that claim
//! what others have or what they may not.
//!
//! The fixture is what they left in an etcd, with the test cluster's addresses in the policy's nets, a label on one
//! endpoint, and the pods' true MACs where the plugin would have written them.

use std::net::Ipv4Addr;

use bpf_tests::{Cmd, Host, Netns, Node, World, policy, policy::RESOURCES, until};
use serde_json::{Value, json};

use crate::{SOON, soon};

const DUMP: &str = include_str!("../fixtures/store-dump.txt");

/// A pod that somebody else's plugin made.
struct Foreign {
    netns: Netns,
    ip: Ipv4Addr,
}

impl Host for Foreign {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

/// As the Calico plugin leaves it: the pair up, and the host's route to the pod.
fn plug(node: &Node, world: &World, interface: &str, mac: &str, ip: &str) -> Foreign {
    let netns = Netns::create(&format!("{}pod-{interface}", world.prefix())).unwrap();
    Cmd::line(&format!(
        "ip -n {} link add {interface} type veth peer name eth0 address {mac}",
        node.netns().name()
    ))
    .args(["netns", netns.name()])
    .run()
    .unwrap();
    for line in [
        format!("link set {interface} address ee:ee:ee:ee:ee:ee mtu 1450 up"),
        format!("route add {ip}/32 dev {interface} scope link"),
    ] {
        node.netns().ip(&line).unwrap();
    }
    for line in [
        "link set eth0 mtu 1450 up".to_owned(),
        format!("addr add {ip}/32 dev eth0"),
        "route add 169.254.1.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
    ] {
        netns.ip(&line).unwrap();
    }
    Foreign { netns, ip: ip.parse().unwrap() }
}

#[test]
fn what_calicos_own_tools_wrote_is_enforced_on_what_its_plugin_made() {
    let world = World::builder().nodes(2).config(None).build().unwrap();
    let lines: Vec<_> = DUMP.lines().collect();
    for pair in lines.chunks_exact(2) {
        world.etcd().put(pair[0], pair[1]).unwrap();
    }
    let a = plug(world.node(1), &world, "calica", "96:80:86:ac:b9:8e", "10.100.30.2");
    let b = plug(world.node(2), &world, "calicb", "1e:aa:0c:34:f1:0a", "10.100.56.2");
    world.start_agents().unwrap();

    // The nodes take the leases that are theirs by address, with the MACs that others know.
    for (number, subnet, mac) in
        [(1, "10.100.30.0/24", "82:d2:48:77:ea:cf"), (2, "10.100.56.0/24", "b6:5a:ac:9f:0c:c3")]
    {
        let lease = world.node(number).agent().status().unwrap()["lease"].clone();
        assert_eq!((&lease["subnet"], &lease["vtep_mac"]), (&subnet.into(), &mac.into()), "{lease}");
    }
    let ready = |number: u8, pod: &Foreign| {
        world.node(number).agent().endpoint_state(pod.ip).unwrap().as_deref() == Some("ready")
    };
    assert!(soon(|| ready(1, &a) && ready(2, &b)));
    for number in [1, 2] {
        let status = world.node(number).agent().status().unwrap();
        assert_eq!(status["invalid"], serde_json::json!({}), "every object of Calico's is understood");
        let policies = &status["endpoints"][0];
        for direction in ["ingress", "egress"] {
            let names = policies[direction].to_string();
            let at = |name: &str| names.find(name).unwrap_or_else(|| panic!("{name} in {names}"));
            assert!(at("p0") < at("zz"), "in their order: {names}");
        }
    }

    let ports = [10_000, 10_001, 10_002, 10_003];
    let servers: Vec<_> =
        [&a, &b].iter().flat_map(|p| ports.map(|port| p.serve_tcp(port).unwrap())).collect();
    let _echoes = (a.serve_udp(5353).unwrap(), b.serve_udp(5353).unwrap());
    assert!(soon(|| a.pings(b.ip)) && soon(|| b.pings(a.ip)));
    for (port, in_from_b) in ports.into_iter().zip([false, false, false, true]) {
        assert_eq!(b.reaches(a.ip, port), in_from_b, "b to a:{port}");
        assert!(a.reaches(b.ip, port), "a to b:{port}: a is neither of the nets nor bad");
    }
    assert_eq!(b.udp_echoes(a.ip, 5353, 2).unwrap(), 2, "b's way out to a is not in the denied net");
    assert_eq!(a.udp_echoes(b.ip, 5353, 1).unwrap(), 0, "a's way out to b's subnet by UDP is");
    drop(servers);

    // Nothing of theirs was touched but the leases, which say now whose they are, and what the cluster's type lacked.
    for pair in lines.chunks_exact(2).filter(|pair| !pair[0].contains("/subnets/")) {
        let with_type = if pair[0].ends_with("/clusterinformations/default") {
            pair[1].replace(",\"datastoreReady\"", ",\"clusterType\":\"k8s,canal\",\"datastoreReady\"")
        } else {
            pair[1].to_owned()
        };
        assert_eq!(world.etcd().get(pair[0]).unwrap(), Some(with_type), "{}", pair[0]);
    }
    // Whoever waits for a policy before a pod begins is told of Calico's endpoints too.
    let told = |number: u8, name: &str| world.node(number).agent().endpoint_status().join(name).exists();
    assert!(told(1, "cni default%2Fca eth0") && told(2, "cni default%2Fcb eth0"));
    // When the plugin deletes the endpoint, the pod is closed at once.
    let key = lines.iter().find(|l| l.ends_with("node2-cni-cb-eth0")).unwrap();
    world.etcd().del(key).unwrap();
    assert!(soon(|| !a.pings(b.ip)));
    assert!(soon(|| !told(2, "cni default%2Fcb eth0")) && told(1, "cni default%2Fca eth0"));
}

const MAC: &str = "96:80:86:ac:b9:8e";

/// An endpoint as the Calico plugin writes one for a Kubernetes pod.
fn put_endpoint(world: &World, pod: &str, interface: &str, ip: &str, more: Value) {
    let mut value = json!({ "metadata": { "name": format!("node1-k8s-{pod}-eth0"), "namespace": "shop" },
        "spec": { "orchestrator": "k8s", "node": "node1", "pod": pod, "endpoint": "eth0", "profiles": ["open"],
                  "ipNetworks": [format!("{ip}/32")], "interfaceName": interface, "mac": MAC } });
    if let Value::Object(more) = more {
        value["spec"].as_object_mut().unwrap().extend(more);
    }
    world.etcd().put(&endpoint_key(pod), &value.to_string()).unwrap();
}

fn endpoint_key(pod: &str) -> String {
    format!("{RESOURCES}workloadendpoints/shop/node1-k8s-{pod}-eth0")
}

/// One node with a profile `open`, whose pods may do everything.
fn open_world() -> World {
    let world = World::builder().nodes(1).build().unwrap();
    let open = json!({ "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }] });
    world.etcd().put_profile("open", open).unwrap();
    world.node(1).agent().start().unwrap();
    world
}

/// State and reason of an endpoint of the node.
fn standing(world: &World, pod: &str) -> String {
    let status = world.node(1).agent().status().unwrap();
    let key = format!("shop/node1-k8s-{pod}-eth0");
    let found = status["endpoints"].as_array().unwrap().iter().find(|e| e["key"] == key.as_str()).cloned();
    found.map_or_else(|| "unknown".to_owned(), |e| format!("{} {}", e["state"], e["reason"]))
}

fn felix(world: &World, spec: Value) {
    world.etcd().put_resource("felixconfigurations", "FelixConfiguration", None, "default", spec).unwrap();
}

#[test]
fn of_two_endpoints_that_claim_an_interface_the_lowest_has_it_until_it_goes() {
    let world = open_world();
    let node = world.node(1);
    put_endpoint(&world, "beta", "cali1", "10.100.200.2", json!({}));
    let pod = plug(node, &world, "cali1", MAC, "10.100.200.2");
    assert!(soon(|| standing(&world, "beta").contains("ready")), "{}", standing(&world, "beta"));
    assert!(node.pings(pod.ip));
    put_endpoint(&world, "alpha", "cali1", "10.100.200.3", json!({}));
    assert!(soon(|| standing(&world, "alpha").contains("ready")), "{}", standing(&world, "alpha"));
    let shadowed = standing(&world, "beta");
    assert!(shadowed.contains("closed") && shadowed.contains("shop/node1-k8s-alpha-eth0"), "{shadowed}");
    let told = |pod: &str| node.agent().endpoint_status().join(format!("k8s shop%2F{pod} eth0")).exists();
    assert!(told("alpha") && !told("beta"));
    assert!(soon(|| !node.pings(pod.ip)));
    world.etcd().del(&endpoint_key("alpha")).unwrap();
    assert!(soon(|| standing(&world, "beta").contains("ready")) && soon(|| node.pings(pod.ip)));
}

#[test]
fn pods_interfaces_are_those_whose_names_begin_as_felix_is_told() {
    let world = open_world();
    let node = world.node(1);
    put_endpoint(&world, "web", "tap7", "10.100.200.2", json!({}));
    let pod = plug(node, &world, "tap7", MAC, "10.100.200.2");
    assert!(soon(|| standing(&world, "web").contains("InterfacePrefix")), "{}", standing(&world, "web"));
    felix(&world, json!({ "interfacePrefix": "tap,qvo" }));
    assert!(soon(|| standing(&world, "web").contains("ready")), "{}", standing(&world, "web"));
    assert!(node.pings(pod.ip));
    // Our own plugin's pods are pods whatever Felix is told.
    let own = node.add_pod("own", &[]).unwrap();
    assert!(own.pings(pod.ip));
}

#[test]
fn borrowed_sources_close_an_endpoint_unless_felix_allows_them() {
    let world = open_world();
    let node = world.node(1);
    let other = node.add_pod("other", &[]).unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    put_endpoint(
        &world,
        "web",
        "cali1",
        "10.100.200.2",
        json!({ "allowSpoofedSourcePrefixes": ["203.0.113.0/24"] }),
    );
    let pod = plug(node, &world, "cali1", MAC, "10.100.200.2");
    assert!(
        soon(|| standing(&world, "web").contains("WorkloadSourceSpoofing")),
        "{}",
        standing(&world, "web")
    );
    assert!(!pod.pings(other.ip()));
    felix(&world, json!({ "workloadSourceSpoofing": "Any" }));
    assert!(soon(|| standing(&world, "web").contains("ready")), "{}", standing(&world, "web"));
    assert!(pod.pings(other.ip()));
    pod.netns.ip("addr add 203.0.113.7/32 dev eth0").unwrap();
    let refused = || node.agent().count("from_pod", "spoofed-ip").unwrap();
    let borrow = |source: &str| {
        pod.netns.cmd(&format!("ping -c 1 -W 1 -I {source} {}", other.ip())).output().unwrap();
    };
    let before = refused();
    borrow("203.0.113.7");
    assert_eq!(refused(), before, "what it may borrow is taken");
    pod.netns.ip("addr add 198.51.100.7/32 dev eth0").unwrap();
    assert!(soon(|| {
        borrow("198.51.100.7");
        refused() > before
    }));
    felix(&world, json!({ "workloadSourceSpoofing": "Disabled" }));
    assert!(soon(|| standing(&world, "web").contains("closed")) && soon(|| !pod.pings(other.ip())));
}

#[test]
fn host_endpoints_are_reported_and_policies_are_shown_by_the_names_their_authors_gave() {
    let world = open_world();
    let node = world.node(1);
    let pod = node.add_pod("web", &[]).unwrap();
    let etcd = world.etcd();
    etcd.put_resource(
        "hostendpoints",
        "HostEndpoint",
        None,
        "h1",
        json!({ "node": "node1", "interfaceName": "up0" }),
    )
    .unwrap();
    etcd.put_resource(
        "hostendpoints",
        "HostEndpoint",
        None,
        "h2",
        json!({ "node": "node2", "interfaceName": "up0" }),
    )
    .unwrap();
    etcd.put_resource(
        "stagedglobalnetworkpolicies",
        "StagedGlobalNetworkPolicy",
        None,
        "s",
        json!({ "x": 1 }),
    )
    .unwrap();
    let spec = policy::allow_all();
    etcd.put_global_policy("default.old-era", spec.clone()).unwrap();
    let annotated = json!({ "metadata": { "annotations": { "projectcalico.org/metadata": "{\"name\":\"default.typed\"}" } }, "spec": spec });
    etcd.put(&format!("{RESOURCES}globalnetworkpolicies/default.default.typed"), &annotated.to_string())
        .unwrap();
    let shown = || node.agent().status().unwrap()["endpoints"][0]["ingress"].to_string();
    assert!(soon(|| shown().contains("GlobalNetworkPolicy old-era")), "{}", shown());
    assert!(soon(|| shown().contains("GlobalNetworkPolicy default.typed")), "{}", shown());
    let status = node.agent().status().unwrap();
    let notice = "HostEndpoint h1: not enforced yet; its addresses and ports count where selectors name it";
    assert_eq!(status["notices"], json!([notice]));
    assert_eq!((&status["invalid"], &status["problems"]), (&json!({}), &json!([])));
    assert!(node.pings(pod.ip()));
}

/// Changes an endpoint in etcd, as `calicoctl` does it.
pub(super) fn edit(world: &World, key: &str, change: impl FnOnce(&mut Value)) {
    let mut endpoint: Value = serde_json::from_str(&world.etcd().get(key).unwrap().unwrap()).unwrap();
    change(&mut endpoint);
    world.etcd().put(key, &endpoint.to_string()).unwrap();
}

#[test]
fn labels_and_profiles_that_are_set_in_etcd_count_for_our_own_pods_through_losses_and_restarts() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let (one, two) = (world.node(1), world.node(2));
    let (a, b) = (one.add_pod("a", &[]).unwrap(), two.add_pod("b", &[("app", "b")]).unwrap());
    let _server = b.serve_tcp(80).unwrap();
    assert!(soon(|| a.reaches(b.ip(), 80)), "by the network's profile");
    let keys = world.etcd().workload_endpoints().unwrap();
    let key = keys.iter().find(|key| key.contains("/node2-")).unwrap();
    let deny = policy::ingress(1, "quarantine == 'true'", json!([{"action": "Deny"}]));
    world.etcd().put_global_policy("quarantine", deny).unwrap();

    edit(&world, key, |endpoint| endpoint["metadata"]["labels"]["quarantine"] = json!("true"));
    assert!(soon(|| !a.reaches(b.ip(), 80)), "its own node cuts it off");
    let told = world.etcd().get(key).unwrap();
    // Somebody else comes, at which the publisher looks at all.
    let _c = two.add_pod("c", &[]).unwrap();
    world.etcd().del(key).unwrap();
    assert!(soon(|| world.etcd().get(key).unwrap() == told), "it is written again as it had become");
    assert!(!a.reaches(b.ip(), 80));
    two.agent().kill_9();
    world.etcd().del(key).unwrap();
    two.agent().start().unwrap();
    assert!(soon(|| world.etcd().get(key).unwrap() == told), "also by the next agent");
    assert!(!a.reaches(b.ip(), 80));

    // A short one, without what only the node knows; and no profile at all, which allows nothing.
    edit(&world, key, |endpoint| {
        drop(endpoint["metadata"]["labels"].as_object_mut().unwrap().remove("quarantine"));
        drop(endpoint["spec"].as_object_mut().unwrap().remove("mac"));
    });
    assert!(soon(|| a.reaches(b.ip(), 80)), "and back");
    edit(&world, key, |endpoint| endpoint["spec"]["profiles"] = json!([]));
    assert!(soon(|| !a.reaches(b.ip(), 80)), "no profile, no way in");
    world.etcd().del(key).unwrap();
    assert!(soon(|| world.etcd().get(key).unwrap().is_some()));
    assert!(!a.reaches(b.ip(), 80), "nor after a loss");
    // Nobody's business but the node's: it goes by its own address, and says so again.
    edit(&world, key, |endpoint| {
        endpoint["spec"]["profiles"] = json!(["canal"]);
        endpoint["spec"]["ipNetworks"] = json!(["10.100.99.99/32"]);
    });
    let ours = || world.etcd().get(key).unwrap().unwrap().contains(&b.ip().to_string());
    assert!(until(2 * SOON, ours), "mended, though nothing else happens");
    assert!(!a.reaches(b.ip(), 80));
}
