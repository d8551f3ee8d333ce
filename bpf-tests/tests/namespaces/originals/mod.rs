//! Beside the real flanneld, Felix and Calico plugin, with the real calicoctl, where the PATH has them all; else these
//! are reported as skipped.
//!
//! ```text
//!   node 1, Canal: a web, b db        node 2, the real ones: c web, d db
//! ```

mod moving;
mod policies;

use std::{net::Ipv4Addr, path::Path, time::Duration};

use bpf_tests::{At, Cmd, Host, Netns, Node, Proc, World, pod::container_id, policy::RESOURCES, until};
use serde_json::{Value, json};

use crate::{calico_store::edit, flanneld::Flanneld, soon};

const CALICO: [(&str, &str); 2] =
    [("DATASTORE_TYPE", "etcdv3"), ("ETCD_ENDPOINTS", bpf_tests::etcd::ENDPOINT)];
/// Felix programs within a second or so, and the machine does other things.
const PROGRAMMED: Duration = Duration::from_secs(20);

fn with_store(command: Cmd) -> Cmd {
    CALICO.iter().fold(command, |command, (name, value)| command.env(name, *value))
}

/// Runs until it is dropped.
fn felix(node: &Node) -> Proc {
    let log = node.folder().join("felix.log");
    let mut command = with_store(node.netns().cmd("calico-felix"));
    for (name, value) in [
        ("DATASTORETYPE", CALICO[0].1),
        ("ETCDENDPOINTS", CALICO[1].1),
        ("FELIXHOSTNAME", &node.name()),
        // Where iptables would want a module that the kernel may not have.
        ("IPTABLESBACKEND", "NFT"),
        ("IPV6SUPPORT", "false"),
        ("LOGFILEPATH", "none"),
        ("LOGSEVERITYFILE", "none"),
        ("LOGSEVERITYSYS", "none"),
        ("LOGSEVERITYSCREEN", "info"),
        ("HEALTHENABLED", "true"),
        ("XDPENABLED", "false"),
        ("DEFAULTENDPOINTTOHOSTACTION", "Accept"),
    ] {
        command = command.env(&format!("FELIX_{name}"), value);
    }
    let process = command.start(&log).unwrap();
    let asked = || node.netns().cmd("curl -sf http://localhost:9099/readiness").output().unwrap().ok();
    assert!(until(PROGRAMMED, asked), "Felix is not ready: {}", tail(&log));
    process
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Whose plugin attaches a pod. Both are called `calico`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Ours,
    Theirs,
}

/// A pod, whoever made it.
struct Member {
    netns: Netns,
    ip: Ipv4Addr,
    id: String,
    /// Of its endpoint in etcd.
    key: String,
}

impl Member {
    fn at(&self) -> At<'_> {
        At { netns: &self.netns, ip: self.ip }
    }
}

impl Plugin {
    fn add(self, world: &World, node: &Node, name: &str) -> Member {
        let netns = Netns::create(&format!("{}pod-{name}", world.prefix())).unwrap();
        let id = container_id(name);
        let result = self.call("ADD", world, node, &netns, &id);
        let result: Value = serde_json::from_str(&result).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap();
        let ip = address.split('/').next().unwrap().parse().unwrap();
        let key = format!("{RESOURCES}workloadendpoints/default/{}-cni-{id}-eth0", node.name());
        assert!(soon(|| world.etcd().get(&key).unwrap().is_some()), "{key}");
        Member { netns, ip, id, key }
    }

    fn del(self, world: &World, node: &Node, member: &Member) {
        self.call("DEL", world, node, &member.netns, &member.id);
    }

    fn call(self, verb: &str, world: &World, node: &Node, netns: &Netns, id: &str) -> String {
        let lease = |(key, value): (String, String)| {
            let lease: Value = serde_json::from_str(&value).unwrap();
            let is_ours = lease["PublicIP"] == node.public_ip().to_string();
            is_ours.then(|| key.rsplit('/').next().unwrap().replace('-', "/"))
        };
        let leases = world.etcd().list("/coreos.com/network/subnets/").unwrap();
        let subnet = leases.into_iter().find_map(lease).unwrap();
        let ipam = json!({"type": "host-local", "subnet": subnet, "dataDir": node.folder().join("ipam")});
        let config = json!({
            "name": "canal", "cniVersion": "1.0.0", "type": "calico", "nodename": node.name(), "mtu": 1450,
            "etcd_endpoints": bpf_tests::etcd::ENDPOINT, "ipam": ipam,
            "socket": node.agent().socket(), "subnetFile": node.agent().subnet_file(),
        });
        let ours = bpf_tests::agent::binary("canal-cni").unwrap();
        let program = if self == Self::Ours { ours.as_path() } else { Path::new("calico") };
        let command = node.netns().cmd(&program.display().to_string()).stdin(config.to_string());
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns.path().display().to_string())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni:/opt/cni/bin")
            .run()
            .unwrap()
    }
}

/// What runs on the second node.
struct Theirs<'a> {
    _flanneld: Flanneld<'a>,
    _felix: Proc,
}

impl<'a> Theirs<'a> {
    fn start(world: &'a World) -> Self {
        Self { _flanneld: Flanneld::start(world, 2), _felix: felix(world.node(2)) }
    }
}

fn world() -> World {
    let config = r#"{"Network":"10.100.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let world = World::builder().nodes(2).config(Some(config)).build().unwrap();
    let spec = json!({"clusterGUID": "4df4343587ba4d6f9eccef4b64df6c7f", "datastoreReady": true});
    world.etcd().put_resource("clusterinformations", "ClusterInformation", None, "default", spec).unwrap();
    // Calico's pods find their gateway by proxy ARP, which the kernel does for what it has a route to.
    world.node(2).netns().ip("route add default via 192.168.60.254").unwrap();
    world
}

/// The profiles of a namespace and of two service accounts, as kube-controllers write them.
fn put_profiles(world: &World) {
    let open = json!([{"action": "Allow"}]);
    let labels = json!({"pcns.team": "blue", "pcns.projectcalico.org/name": "default"});
    let namespace = json!({"ingress": open, "egress": open, "labelsToApply": labels});
    world.etcd().put_profile("kns.default", namespace).unwrap();
    for (name, role) in [("robot", "worker"), ("human", "boss")] {
        let labels = json!({"pcsa.role": role, "pcsa.projectcalico.org/name": name});
        world.etcd().put_profile(&format!("ksa.default.{name}"), json!({"labelsToApply": labels})).unwrap();
    }
}

/// The pods of both nodes, labelled as by calicoctl: a, b, c and d. Web is the robot's, db the human's.
fn members(world: &World) -> [Member; 4] {
    let (one, two) = (world.node(1), world.node(2));
    let [a, b] = ["a", "b"].map(|name| Plugin::Ours.add(world, one, name));
    let [c, d] = ["c", "d"].map(|name| Plugin::Theirs.add(world, two, name));
    let members = [a, b, c, d];
    let ports = json!([{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "dns", "protocol": "UDP", "port": 53}]);
    put_profiles(world);
    let of = [(json!({"app": "web", "tier": "front"}), "robot"), (json!({"app": "db"}), "human")];
    for (member, (labels, account)) in members.iter().zip(of.iter().cycle()) {
        edit(world, &member.key, |endpoint| {
            let own = endpoint["metadata"]["labels"].as_object_mut().unwrap();
            own.extend(labels.as_object().unwrap().clone());
            own.insert("projectcalico.org/serviceaccount".to_owned(), json!(account));
            endpoint["spec"]["ports"] = ports.clone();
            endpoint["spec"]["profiles"] = json!(["kns.default", format!("ksa.default.{account}")]);
        });
    }
    members
}

/// What calicoctl printed, or complained of.
fn calicoctl(world: &World, line: &str, stdin: &str) -> Result<String, String> {
    let command = world.node(1).netns().cmd(&format!("calicoctl {line}")).stdin(stdin.to_owned());
    let output = with_store(command).output().unwrap();
    if output.ok() { Ok(output.stdout) } else { Err(output.stdout + &output.stderr) }
}

fn apply(world: &World, resource: &Value) -> Result<String, String> {
    calicoctl(world, "apply -f -", &resource.to_string())
}
