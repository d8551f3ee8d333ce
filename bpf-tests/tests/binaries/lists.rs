//! Lists of plugins with ours in them, called as the CNI library calls them: each ADD with the result of the one before,
//! CHECK and DEL with that of the last.

use bpf_tests::{At, Host, Netns, Node, agent::binary, cmd::Output, pod::container_id, policy};
use serde_json::{Value, json};

use crate::{one_node, soon};

const PLUGINS: &str = "/usr/lib/cni";
const HOST_PORT: u16 = 18080;
const POD_PORT: u16 = 8080;

struct List<'a> {
    node: &'a Node,
    version: &'a str,
    plugins: Vec<Value>,
    /// What the runtime asks for, by capability.
    wishes: Value,
}

impl List<'_> {
    fn call(&self, plugin: &Value, verb: &str, pod: &Netns, previous: Option<&Value>) -> Output {
        let mut config = plugin.clone();
        config["name"] = json!("canal");
        config["cniVersion"] = json!(self.version);
        for (capability, wish) in self.wishes.as_object().unwrap() {
            if plugin["capabilities"][capability] == true {
                config["runtimeConfig"][capability] = wish.clone();
            }
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().unwrap();
        let ours = binary("canal-cni").unwrap().display().to_string();
        let program = if kind == "canal-cni" { ours } else { format!("{PLUGINS}/{kind}") };
        self.node
            .netns()
            .cmd(&program)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id(pod.name()))
            .env("CNI_NETNS", pod.path().display().to_string())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(config.to_string())
            .output()
            .unwrap()
    }

    /// The last result, or what the plugin that failed said.
    fn add(&self, pod: &Netns) -> Result<Value, Output> {
        let mut result = None;
        for plugin in &self.plugins {
            let output = self.call(plugin, "ADD", pod, result.as_ref());
            if !output.ok() {
                return Err(output);
            }
            result = Some(serde_json::from_str(&output.stdout).unwrap());
        }
        Ok(result.unwrap())
    }

    /// All but portmap, whose CHECK in Debian 12 wants IPv6 rules also for pods without IPv6.
    fn check(&self, pod: &Netns, result: &Value) {
        for plugin in self.plugins.iter().filter(|plugin| plugin["type"] != "portmap") {
            let output = self.call(plugin, "CHECK", pod, Some(result));
            assert!(output.ok(), "{} {plugin}: {output:?}", self.version);
        }
    }

    /// Older libraries know no result here.
    fn del(&self, pod: &Netns, result: Option<&Value>) {
        for plugin in self.plugins.iter().rev() {
            let output = self.call(plugin, "DEL", pod, result);
            assert!(output.ok(), "{} {plugin}: {output:?}", self.version);
        }
    }
}

fn list<'a>(node: &'a Node, version: &'a str) -> List<'a> {
    let ours = json!({
        "type": "canal-cni", "socket": node.agent().socket(), "subnetFile": node.agent().subnet_file(),
        "capabilities": {"ips": true, "mac": true},
        "ipam": {"type": "host-local", "dataDir": node.folder().join("ipam")},
    });
    let mapping = json!({"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"});
    let rate = json!({"ingressRate": 100_000_000, "ingressBurst": 8_000_000});
    List {
        node,
        version,
        plugins: vec![
            json!({"type": "loopback"}),
            ours,
            json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}}),
            json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ],
        wishes: json!({"portMappings": [mapping], "bandwidth": rate, "mac": "02:00:00:00:00:07"}),
    }
}

/// What is left on the node: links of pods and leases.
fn left(node: &Node) -> (usize, usize) {
    let links = node.netns().ip("-br link show").unwrap();
    let leases = std::fs::read_dir(node.folder().join("ipam/canal")).into_iter().flatten().flatten();
    let leases = leases.filter(|e| e.file_name().to_string_lossy().starts_with("10."));
    (links.lines().filter(|l| l.starts_with("cali") || l.starts_with("bwp")).count(), leases.count())
}

#[test]
fn in_every_version_ours_goes_on_from_the_plugin_before_and_the_next_from_ours() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let list = list(node, version);
        let pod = Netns::create(&format!("{}pod-{}", world.prefix(), version.replace('.', ""))).unwrap();
        let result = list.add(&pod).unwrap();
        assert_eq!(result["cniVersion"], version);
        let names: Vec<_> =
            result["interfaces"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
        assert_eq!((names[0], names[2]), ("lo", "eth0"), "{result}");
        assert!(names[1].starts_with("cali"), "{result}");
        assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:07");
        let of_pod = result["ips"].as_array().unwrap().iter().find(|ip| ip["interface"] == 2).unwrap();
        let (address, _) = of_pod["address"].as_str().unwrap().split_once('/').unwrap();
        let at = At { netns: &pod, ip: address.parse().unwrap() };
        let _server = at.serve_tcp(POD_PORT).unwrap();
        assert!(soon(|| node.reaches(node.public_ip(), HOST_PORT)), "{version}: the mapped port");
        let shaped = || node.agent().status().unwrap()["endpoints"][0]["shaped"] == "in";
        assert!(soon(shaped), "{version}: the limit");
        let result = (version != "0.3.1").then_some(&result);
        if let Some(result) = result {
            list.check(&pod, result);
        }
        list.del(&pod, result);
        assert_eq!(left(node), (0, 0), "{version}");
        assert!(!node.reaches(node.public_ip(), HOST_PORT), "{version}");
        list.del(&pod, result);
    }

    // What of it the reference plugins of today do not speak yet.
    let mut list = list(node, "1.1.0");
    list.plugins.remove(0);
    let pod = Netns::create(&format!("{}pod-110", world.prefix())).unwrap();
    let refused = list.add(&pod).unwrap_err();
    let error: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(error["code"], 1, "{error}");
    assert_eq!(left(node), (1, 1), "ours was done");
    let ours = List { plugins: vec![list.plugins[0].clone()], ..list };
    ours.del(&pod, None);
    assert_eq!(left(node), (0, 0), "and undone");
}
