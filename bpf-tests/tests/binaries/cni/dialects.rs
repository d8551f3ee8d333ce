//! Configurations that were written for flannel's and Calico's plugins.

use std::{os::unix::fs::symlink, path::PathBuf};

use bpf_tests::{Host, Netns, Node, World, policy::RESOURCES};
use serde_json::{Value, json};

use super::{Call, comes_to_hold, ip, netns, talks};
use crate::{one_node, soon};

/// The plugin under another name, as it is installed in place of the one that had it.
pub(super) fn named(node: &Node, name: &str) -> PathBuf {
    let folder = node.folder().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join(name);
    if !link.exists() {
        symlink(bpf_tests::agent::binary("canal-cni").unwrap(), &link).unwrap();
    }
    link
}

/// Where this node has what has one place on a machine.
pub(super) fn with_paths(node: &Node, mut config: Value) -> Value {
    config["socket"] = json!(node.agent().socket());
    config["subnetFile"] = json!(node.agent().subnet_file());
    if config["type"] == "flannel" {
        config["dataDir"] = json!(node.folder().join("flannel"));
    }
    config["ipam"]["dataDir"] = json!(node.folder().join("ipam"));
    config
}

pub(super) fn endpoint(world: &World, key: &str) -> Option<Value> {
    let text = world.etcd().get(&format!("{RESOURCES}workloadendpoints/{key}")).unwrap()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// Adds and deletes a pod, which must talk, and have this endpoint meanwhile.
fn comes_and_goes(world: &World, pod: &Netns, call: &Call<'_>, key: &str) -> (Value, Value) {
    let node = call.node;
    let result = call.clone().verb("ADD").result();
    let address = match result.get("ip4") {
        None => ip(&result),
        Some(ip4) => ip4["ip"].as_str().unwrap().split('/').next().unwrap().parse().unwrap(),
    };
    assert!(soon(|| endpoint(world, key).is_some()), "{key}: {:?}", world.etcd().workload_endpoints());
    comes_to_hold(world, node, 1);
    assert!(talks(node, pod, address));
    let endpoint = endpoint(world, key).unwrap();
    assert_eq!(endpoint["spec"]["ipNetworks"], json!([format!("{address}/32")]));
    call.clone().verb("DEL").works();
    call.clone().verb("DEL").works();
    comes_to_hold(world, node, 0);
    (result, endpoint)
}

/// As the guide of Canal's first phase has it.
#[test]
fn the_configuration_of_canal_phase_1_makes_pods_under_its_nodename() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let config = with_paths(
        node,
        json!({
            "name": "canal", "type": "flannel",
            "delegate": {"type": "calico", "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "nodename": "192.0.2.11"},
        }),
    );
    let pod = netns(&world, "p");
    let call = Call { program: named(node, "flannel"), ..Call::new(node, "ADD", &pod, "p").with(&config) };
    let key = format!("default/192.0.2.11-cni-{}-eth0", bpf_tests::pod::container_id("p"));
    let (result, endpoint) = comes_and_goes(&world, &pod, &call, &key);
    assert_eq!((&result["cniVersion"], &endpoint["spec"]["node"]), (&json!("0.2.0"), &json!("192.0.2.11")));
    let profile = format!("{RESOURCES}profiles/canal");
    assert!(world.etcd().get(&profile).unwrap().is_some());
}

const NAMESPACE: &str = r#"{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}}"#;

/// A pod of the namespace `shop` as its API shows it.
pub(super) fn web() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}, "uid": "u1"},
        "spec": {"nodeName": "node1", "serviceAccountName": "robot", "containers": [{"name": "c",
                 "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
    })
}

/// Answers for these pods of the namespace `shop` as the API of Kubernetes does, on the node's loopback.
pub(super) fn kubernetes(node: &Node, pods: &[Value]) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = node.netns().run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    let named = |pod: &Value| (pod["metadata"]["name"].as_str().unwrap().to_owned(), pod.to_string());
    let pods: std::collections::BTreeMap<_, _> = pods.iter().map(named).collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
            let line = head.next().unwrap().unwrap();
            while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            // Calico's plugin writes the address into the pod's annotations (`…/status`), and is shown the pod.
            let path = line.split(' ').nth(1).unwrap_or_default();
            let name =
                path.split_once("/namespaces/shop/pods/").map(|(_, name)| name.trim_end_matches("/status"));
            let (status, body) = match name.and_then(|name| pods.get(name)) {
                Some(pod) => ("200 OK", pod.as_str()),
                None if path.ends_with("/namespaces/shop") => ("200 OK", NAMESPACE),
                None => ("404 Not Found", "{}"),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            drop(stream.write_all((head + body).as_bytes()));
        }
    });
    root
}

/// A file that leads to this API.
pub(super) fn kubeconfig(node: &Node, server: &str) -> PathBuf {
    let file = node.folder().join("kubeconfig");
    let tls = if server.starts_with("https") { ", insecure-skip-tls-verify: true" } else { "" };
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{server}'{tls}}}}}]\nusers: [{{name: u, user: {{token: s3cret}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// What the manifest's `install-cni` writes; a runtime passes each plugin of the list its part, with name and version.
#[test]
fn the_list_of_canals_etcd_manifest_makes_pods_of_kubernetes() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let list = json!({
        "name": "canal", "cniVersion": "1.0.0",
        "plugins": [
            {
                "type": "flannel",
                "delegate": {
                    "type": "calico", "include_default_routes": true,
                    "etcd_endpoints": bpf_tests::etcd::ENDPOINT,
                    "etcd_key_file": "/etc/cni/net.d/calico-tls/etcd-key",
                    "etcd_cert_file": "/etc/cni/net.d/calico-tls/etcd-cert",
                    "etcd_ca_cert_file": "/etc/cni/net.d/calico-tls/etcd-ca",
                    "log_level": "info",
                    "policy": {"type": "k8s", "k8s_api_root": kubernetes(node, &[web()]), "k8s_auth_token": "s3cret"},
                    "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    });
    let mut config = list["plugins"][0].clone();
    for key in ["name", "cniVersion"] {
        config[key] = list[key].clone();
    }
    // The only path in it that has to exist.
    let kubeconfig = kubeconfig(node, "https://192.0.2.1:6443");
    config["delegate"]["kubernetes"]["kubeconfig"] = json!(kubeconfig);
    let config = with_paths(node, config);
    // As Calico's controllers make it of a namespace.
    let open = json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]});
    world.etcd().put_profile("kns.shop", open).unwrap();
    let pod = netns(&world, "p");
    let program = named(node, "flannel");
    let call = Call { program, ..Call::new(node, "ADD", &pod, "p").with(&config).of_pod("shop", "web-0") };
    let (result, endpoint) = comes_and_goes(&world, &pod, &call, "shop/node1-k8s-web--0-eth0");
    let routes: Vec<_> = result["routes"].as_array().unwrap().iter().map(|r| r["dst"].clone()).collect();
    assert_eq!(routes, ["10.100.0.0/16", "0.0.0.0/0"], "{result}");
    assert_eq!(endpoint["metadata"]["labels"]["app"], "web", "{endpoint}");
    assert_eq!(endpoint["spec"]["pod"], "web-0", "{endpoint}");
    assert_eq!(endpoint["spec"]["profiles"], json!(["kns.shop", "ksa.shop.robot"]), "{endpoint}");
    assert_eq!(endpoint["spec"]["ports"][0]["name"], "http", "{endpoint}");
    // Calico's name for the pod's interface.
    assert_eq!(endpoint["spec"]["interfaceName"], "calia4fc3c48bd8", "{endpoint}");
    assert_eq!(endpoint["spec"]["containerID"], bpf_tests::pod::container_id("p"));
}

#[test]
fn calicos_configuration_with_host_local_makes_pods() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let subnet = node.agent().status().unwrap()["lease"]["subnet"].clone();
    let ipam = [json!({"type": "host-local", "subnet": subnet}), json!({"type": "host-local"})];
    for (ipam, version) in ipam.into_iter().zip(["0.3.1", "1.0.0"]) {
        let config = with_paths(
            node,
            json!({
                "name": "k8s-pod-network", "cniVersion": version, "type": "calico",
                "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "log_level": "warning", "nodename": "node1", "mtu": 1400,
                "ipam": ipam,
                "container_settings": {"allow_ip_forwarding": true},
            }),
        );
        let name = format!("c{}", version.replace('.', ""));
        let pod = netns(&world, &name);
        let call = Call { program: named(node, &name), ..Call::new(node, "ADD", &pod, &name).with(&config) };
        let result = call.clone().result();
        assert!(talks(node, &pod, ip(&result)));
        let said = pod.ip("-d link show eth0").unwrap();
        assert!(said.contains("mtu 1400"), "{said}");
        assert_eq!(pod.cmd("sysctl -n net.ipv4.ip_forward").run().unwrap().trim(), "1");
        let key = format!("default/node1-cni-{}-eth0", bpf_tests::pod::container_id(&name));
        assert!(soon(|| endpoint(&world, &key).is_some()), "{:?}", world.etcd().workload_endpoints());
        assert_eq!(endpoint(&world, &key).unwrap()["spec"]["profiles"], json!(["k8s-pod-network"]));
        call.verb("DEL").works();
        comes_to_hold(&world, node, 0);
    }
    assert!(
        super::files(&node.folder().join("ipam/k8s-pod-network"), |name| name.starts_with("10.")).is_empty()
    );
}
