//! The real plugins `flannel` and `calico` beside ours under their names, where the PATH has both; else these are
//! reported as skipped.

use std::{env, net::Ipv4Addr, path::PathBuf};

use bpf_tests::{Host, Netns, Node, World, pod::container_id, policy::RESOURCES};
use serde_json::{Value, json};

use super::{
    Call, Held, PLUGINS, comes_to_hold,
    dialects::{endpoint, kubeconfig, kubernetes, named, web, with_paths},
    files, ip, netns, talks,
};
use crate::{one_node, soon};

/// Whose plugins a call goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Theirs,
    Ours,
}

impl Whose {
    /// The call, to this one's plugin of that name.
    fn of<'a>(self, node: &'a Node, name: &str, call: Call<'a>) -> Call<'a> {
        match self {
            Self::Ours => Call { program: named(node, name), ..call },
            Self::Theirs => {
                let search = env::var("PATH").unwrap();
                let found = env::split_paths(&search).find(|folder| folder.join("calico").is_file()).unwrap();
                Call { program: found.join(name), path: format!("{}:{PLUGINS}", found.display()), ..call }
            }
        }
    }
}

/// With what Calico's plugin wants to find in the store.
fn world() -> World {
    let world = one_node();
    let spec = json!({"clusterGUID": "4df4343587ba4d6f9eccef4b64df6c7f", "datastoreReady": true});
    world.etcd().put_resource("clusterinformations", "ClusterInformation", None, "default", spec).unwrap();
    world.node(1).agent().start().unwrap();
    world
}

/// The guide's configuration of Canal's first phase, and what the manifest adds for a default route.
fn of_flannel(node: &Node, version: &str) -> Value {
    let delegate = json!({"type": "calico", "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "nodename": "node1",
                          "include_default_routes": true});
    let config = json!({"name": "canal", "cniVersion": version, "type": "flannel", "delegate": delegate});
    with_paths(node, config)
}

/// Calico's own, for pods of Kubernetes.
fn of_kubernetes(node: &Node, version: &str, pods: &[Value]) -> Value {
    let subnet = node.agent().status().unwrap()["lease"]["subnet"].clone();
    let config = json!({
        "name": "canal", "cniVersion": version, "type": "calico", "etcd_endpoints": bpf_tests::etcd::ENDPOINT,
        "nodename": "node1", "mtu": 1400, "ipam": {"type": "host-local", "subnet": subnet},
        "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": kubeconfig(node, &kubernetes(node, pods))},
    });
    with_paths(node, config)
}

/// What one of the two made, with what differs from pod to pod under one name.
fn seen(world: &World, pod: &Netns, id: &str, key: &str) -> [String; 4] {
    assert!(soon(|| endpoint(world, key).is_some()), "{key}: {:?}", world.etcd().workload_endpoints());
    let stored = world.etcd().get(&format!("{RESOURCES}workloadendpoints/{key}")).unwrap().unwrap();
    let value: Value = serde_json::from_str(&stored).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let address = text(&value["spec"]["ipNetworks"][0]).replace("/32", "");
    let (mac, host) = (text(&value["spec"]["mac"]), text(&value["spec"]["interfaceName"]));
    let (uid, born) = (text(&value["metadata"]["uid"]), text(&value["metadata"]["creationTimestamp"]));
    let names = [
        (id, "<container>"),
        (&host, "<interface>"),
        (&address, "<address>"),
        (&mac, "<mac>"),
        (&uid, "<uid>"),
        (&born, "<born>"),
    ];
    let named = |text: &str| names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let link = |namespace: &Netns, name: &str| {
        let links: Value =
            serde_json::from_str(&namespace.ip(&format!("-j -d link show {name}")).unwrap()).unwrap();
        format!("{} {} {}", links[0]["mtu"], links[0]["address"], links[0]["flags"])
    };
    let default = pod.ip("route show default").unwrap() + &pod.ip("route get 169.254.1.1").unwrap();
    let default = default.lines().filter(|line| !line.trim().starts_with("cache")).collect::<String>();
    [
        named(&stored),
        named(&format!("{} {}", link(pod, "eth0"), pod.ip("-4 -o addr show eth0").unwrap())),
        named(&format!("{} {}", link(world.node(1).netns(), &host), host)),
        named(&default),
    ]
}

fn note(node: &Node, name: &str) -> PathBuf {
    node.folder().join("flannel").join(container_id(name))
}

fn address_of(world: &World, key: &str) -> Ipv4Addr {
    let endpoint = endpoint(world, key).unwrap();
    endpoint["spec"]["ipNetworks"][0].as_str().unwrap().trim_end_matches("/32").parse().unwrap()
}

#[test]
#[cfg_attr(not(has_calico), ignore = "there are no flannel and calico on the PATH")]
fn a_pod_of_ours_is_in_store_kernel_and_notes_what_the_real_plugins_make_it() {
    let world = world();
    let node = world.node(1);
    for version in ["0.3.1", "0.4.0"] {
        let config = of_flannel(node, version);
        let [theirs, ours] = [Whose::Theirs, Whose::Ours].map(|whose| {
            let name = format!("{whose:?}");
            let pod = netns(&world, &name);
            let call = whose.of(node, "flannel", Call::new(node, "ADD", &pod, &name).with(&config));
            let result = call.clone().result();
            let id = container_id(&name);
            let seen = seen(&world, &pod, &id, &format!("default/node1-cni-{id}-eth0"));
            assert!(soon(|| talks(node, &pod, ip(&result))), "{name} {version}");
            let note: Value = serde_json::from_slice(&std::fs::read(note(node, &name)).unwrap()).unwrap();
            call.verb("DEL").works();
            assert!(soon(|| Held::of(&world, node).counts() == [0; 6]), "{:?}", Held::of(&world, node));
            (seen, note)
        });
        assert_eq!(ours, theirs, "{version}");
    }
}

/// Pods with whatever their endpoints show.
fn pods() -> Vec<Value> {
    let pod = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut pod = web();
        pod["metadata"]["name"] = json!(name);
        change(&mut pod);
        pod
    };
    vec![
        web(),
        pod("dotted.name-with-dashes", &|pod| {
            pod["metadata"]["generateName"] = json!("dotted.name-");
            pod["metadata"]["labels"] = json!({"app.kubernetes.io/name": "x", "a": "", "z-9": "v_1.2"});
        }),
        pod("bare", &|pod| {
            pod["metadata"].as_object_mut().unwrap().remove("labels");
            pod["spec"] = json!({"nodeName": "node1", "containers": [{"name": "c"}]});
        }),
        pod("ports", &|pod| {
            pod["spec"]["initContainers"] =
                json!([{"name": "i", "ports": [{"name": "init", "containerPort": 1}]}]);
            pod["spec"]["containers"] = json!([
                {"name": "a", "ports": [{"containerPort": 80}, {"name": "no-protocol", "containerPort": 81},
                                        {"containerPort": 82, "hostPort": 8082, "protocol": "UDP"}]},
                {"name": "b", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1", "hostPort": 53},
                                        {"name": "m3ua", "containerPort": 2905, "protocol": "SCTP"},
                                        {"name": "http", "containerPort": 80, "protocol": "TCP"}]},
            ]);
        }),
        pod("account", &|pod| pod["spec"]["serviceAccountName"] = json!("s".repeat(63))),
        pod("shorter", &|pod| pod["spec"]["serviceAccountName"] = json!("s".repeat(62))),
        pod("annotated", &|pod| {
            pod["metadata"]["annotations"] = json!({
                "cni.projectcalico.org/hwAddr": "02:00:00:00:00:09",
                "cni.projectcalico.org/allowedSourcePrefixes": "[\"192.0.2.0/24\", \"198.51.100.7/32\"]",
                "other.example/x": "y",
            });
        }),
    ]
}

#[test]
#[cfg_attr(not(has_calico), ignore = "there are no flannel and calico on the PATH")]
fn a_pod_of_kubernetes_is_in_store_and_kernel_what_calicos_plugin_makes_it() {
    let world = world();
    let node = world.node(1);
    let open = json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]});
    world.etcd().put_profile("kns.shop", open).unwrap();
    // Without it a pod that asks for more sources is closed, with Felix and here.
    let spoofing = json!({"workloadSourceSpoofing": "Any"});
    world
        .etcd()
        .put_resource("felixconfigurations", "FelixConfiguration", None, "default", spoofing)
        .unwrap();
    let pods = pods();
    let mut config = of_kubernetes(node, "1.0.0", &pods);
    // Calico's plugin waits for the file with which the agent says that the policy is in force.
    config["policy_setup_timeout_seconds"] = json!(10);
    config["endpoint_status_dir"] = json!(node.agent().endpoint_status());
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let key = format!("shop/node1-k8s-{}-eth0", name.replace('-', "--"));
        let [theirs, ours] = [Whose::Theirs, Whose::Ours].map(|whose| {
            let container = format!("{whose:?}");
            let netns = netns(&world, &container);
            let call = Call::new(node, "ADD", &netns, &container).with(&config).of_pod("shop", name);
            let call = whose.of(node, "calico", call);
            let output = call.clone().make();
            assert!(
                output.ok() && !output.stderr.contains("Error waiting for endpoint"),
                "{name}: {output:?}"
            );
            let result: Value = serde_json::from_str(&output.stdout).unwrap();
            let seen = seen(&world, &netns, &container_id(&container), &key);
            assert!(soon(|| talks(node, &netns, ip(&result))), "{name}");
            call.verb("DEL").works();
            assert!(soon(|| Held::of(&world, node).counts() == [0; 6]), "{:?}", Held::of(&world, node));
            seen
        });
        assert_eq!(ours, theirs, "{name}");
    }
}

/// Moved to Canal, and back: each one's DEL ends what the other's ADD made.
#[test]
#[cfg_attr(not(has_calico), ignore = "there are no flannel and calico on the PATH")]
fn pods_of_the_real_plugins_and_of_ours_are_ended_by_the_others() {
    let world = world();
    let node = world.node(1);
    for (adder, ender) in [(Whose::Theirs, Whose::Ours), (Whose::Ours, Whose::Theirs)] {
        for plugin in ["flannel", "calico"] {
            let name = format!("{adder:?}-{plugin}");
            let mut config = of_flannel(node, "0.4.0");
            if plugin == "calico" {
                let ipam = json!({"type": "host-local", "subnet": node.agent().status().unwrap()["lease"]["subnet"]});
                config = json!({"name": "canal", "cniVersion": "1.0.0", "type": "calico", "nodename": "node1",
                                "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "ipam": ipam});
                config = with_paths(node, config);
            }
            let pod = netns(&world, &name);
            let call = Call::new(node, "ADD", &pod, &name).with(&config);
            adder.of(node, plugin, call.clone()).works();
            let key = format!("default/node1-cni-{}-eth0", container_id(&name));
            assert!(soon(|| endpoint(&world, &key).is_some()), "{name}");
            let address = address_of(&world, &key);
            assert!(soon(|| talks(node, &pod, address)), "{name}");

            // Who goes back has stopped the agent.
            if ender == Whose::Theirs {
                node.agent().terminate().unwrap();
            }
            ender.of(node, plugin, call.verb("DEL")).works();
            assert!(pod.ip("link show eth0").is_err(), "{name}");
            if ender == Whose::Theirs {
                let Held { veths, leases, endpoints, .. } = Held::of(&world, node);
                assert_eq!((veths, leases.len(), endpoints.len()), (0, 0, 0), "{name}");
                node.agent().start().unwrap();
            }
            comes_to_hold(&world, node, 0);
            assert!(files(&node.folder().join("flannel"), |_| true).is_empty(), "{name}");
        }
    }
}
