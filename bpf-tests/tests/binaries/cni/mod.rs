//! `canal-cni` as a container runtime calls it.

mod calls;
mod check;
mod collect;
mod dialects;
mod foreign;
mod garbage;
mod leftovers;
mod originals;
mod status;
mod storm;
mod twice;
mod verbs;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bpf_tests::{Cmd, Host, Netns, Node, World, agent::binary, cmd::Output, pod};
use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni:/opt/cni/bin";
/// The agent looks at everything again after ten seconds; a machine that does other things takes longer.
const LOOKED_AGAIN: Duration = Duration::from_secs(40);

/// One call with everything that the runtime may get wrong.
#[derive(Clone)]
struct Call<'a> {
    node: &'a Node,
    program: PathBuf,
    verb: &'a str,
    id: String,
    netns: String,
    interface: String,
    path: String,
    arguments: String,
    config: String,
}

impl<'a> Call<'a> {
    fn new(node: &'a Node, verb: &'a str, netns: &Netns, name: &str) -> Self {
        Self {
            node,
            program: binary("canal-cni").unwrap(),
            verb,
            id: pod::container_id(name),
            netns: netns.path().display().to_string(),
            interface: "eth0".to_owned(),
            path: PLUGINS.to_owned(),
            arguments: String::new(),
            config: config(node, "1.1.0").to_string(),
        }
    }

    fn verb(self, verb: &'a str) -> Self {
        Self { verb, ..self }
    }

    fn with(self, config: &Value) -> Self {
        Self { config: config.to_string(), ..self }
    }

    /// As a pod of Kubernetes.
    fn of_pod(self, namespace: &str, name: &str) -> Self {
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u1");
        Self { arguments, ..self }
    }

    fn command(self) -> Cmd {
        let command = self.node.netns().cmd(&self.program.display().to_string());
        command
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", self.path)
            .env("CNI_ARGS", self.arguments)
            .stdin(self.config)
    }

    fn make(self) -> Output {
        self.command().output().unwrap()
    }

    /// It must succeed; returns what it printed.
    fn works(self) -> String {
        let what = format!("{} {}", self.verb, self.config);
        let output = self.make();
        assert!(output.ok(), "{what}: {output:?}");
        output.stdout
    }

    /// It must succeed with a result.
    fn result(self) -> Value {
        serde_json::from_str(&self.works()).unwrap()
    }

    /// It must fail with this code; returns message and details.
    fn fails_with(self, code: u64) -> String {
        let output = self.make();
        assert!(!output.ok(), "{output:?}");
        let error: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!(error["code"], code, "{error}");
        assert!(error["cniVersion"].is_string() && error["msg"].is_string(), "{error}");
        format!("{} {}", error["msg"], error["details"])
    }
}

fn config(node: &Node, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "canal", "type": "canal-cni",
        "socket": node.agent().socket(), "subnetFile": node.agent().subnet_file(),
        "ipam": {"type": "host-local", "dataDir": node.folder().join("ipam")},
    })
}

/// The configuration of a later call about what was made.
fn after(result: &Value, mut config: Value) -> Value {
    config["prevResult"] = result.clone();
    config
}

fn netns(world: &World, name: &str) -> Netns {
    Netns::create(&format!("{}pod-{name}", world.prefix())).unwrap()
}

/// The real one.
fn host_local() -> PathBuf {
    let all = PLUGINS.split(':').map(|folder| Path::new(folder).join("host-local"));
    all.into_iter().find(|path| path.is_file()).unwrap()
}

/// Addresses that host-local has given out.
fn leases(node: &Node) -> Vec<String> {
    files(&node.folder().join("ipam/canal"), |name| name.starts_with("10."))
}

fn files(folder: &Path, test: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().into_string().unwrap()).filter(|name| test(name));
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

fn veths(node: &Node) -> usize {
    node.netns().ip("-br link show type veth").unwrap().lines().filter(|l| l.starts_with("cali")).count()
}

/// Entries of the kernel's table of local pods.
fn entries(node: &Node) -> usize {
    let pins = node.bpffs().join("canal");
    let versions = files(&pins, |name| name.starts_with('v'));
    let pin = pins.join(&versions[0]).join("ENDPOINTS");
    let dump = Cmd::line("bpftool -j map dump pinned").arg(pin.display().to_string()).run().unwrap();
    let dump: Value = serde_json::from_str(&dump).unwrap();
    dump.as_array().unwrap().len()
}

/// Everything that pods have on a node and in etcd.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    veths: usize,
    leases: Vec<String>,
    endpoints: Vec<String>,
    entries: usize,
    records: Vec<String>,
    goodbyes: Vec<String>,
}

impl Held {
    /// Etcd must be up.
    fn of(world: &World, node: &Node) -> Self {
        Self {
            veths: veths(node),
            leases: leases(node),
            endpoints: world.etcd().workload_endpoints().unwrap(),
            entries: entries(node),
            records: files(&node.folder().join("state/endpoints"), |name| !name.starts_with('.')),
            goodbyes: files(&node.folder().join("goodbyes"), |name| !name.starts_with('.')),
        }
    }

    fn counts(&self) -> [usize; 6] {
        let Self { veths, leases, endpoints, entries, records, goodbyes } = self;
        [*veths, leases.len(), endpoints.len(), *entries, records.len(), goodbyes.len()]
    }
}

/// It comes to hold this many pods, each completely, and nothing else.
fn comes_to_hold(world: &World, node: &Node, pods: usize) {
    let mut held = Held::of(world, node);
    let wanted = [pods, pods, pods, pods, pods, 0];
    bpf_tests::until(LOOKED_AGAIN, || {
        held = Held::of(world, node);
        held.counts() == wanted
    });
    if held.counts() != wanted {
        for name in &held.records {
            println!(
                "{name}: {:?}",
                std::fs::read_to_string(node.folder().join("state/endpoints").join(name))
            );
        }
    }
    assert_eq!(held.counts(), wanted, "{pods} pods: {held:?}");
}

/// The pod's address in a result.
fn ip(result: &Value) -> std::net::Ipv4Addr {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

/// Both ways, with a node whose agent has it.
fn talks(node: &Node, pod: &Netns, ip: std::net::Ipv4Addr) -> bool {
    bpf_tests::At { netns: pod, ip }.pings(node.public_ip()) && node.pings(ip)
}
