//! Pods, made as a container runtime makes them: a namespace, and the real CNI plugin for what is in it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    agent::binary,
    cmd::Output,
    netns::{self, Netns},
    node::Node,
    probe::Host,
};

/// Where the real `host-local` is, unless the environment says otherwise.
const PLUGINS: &str = "/usr/lib/cni:/opt/cni/bin";

/// A pod with `eth0`. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    ip: Ipv4Addr,
    result: Value,
    netns: Netns,
}

impl Pod {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The plugin's answer to ADD.
    pub fn result(&self) -> &Value {
        &self.0.result
    }

    /// Name of the host's end of the veth pair.
    pub fn host_interface(&self) -> &str {
        self.0.result["interfaces"][0]["name"].as_str().unwrap_or_default()
    }

    /// The MAC of `eth0`.
    pub fn mac(&self) -> &str {
        self.0.result["interfaces"][1]["mac"].as_str().unwrap_or_default()
    }

    pub(crate) fn delete_netns(&self) {
        netns::remove(self.0.netns.name());
    }
}

impl Host for Pod {
    fn netns(&self) -> &Netns {
        &self.0.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.0.ip
    }
}

pub(crate) fn create(node: &Node, prefix: &str, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
    let netns = Netns::create(&format!("{prefix}pod-{name}"))?;
    let answer = cni(node, "ADD", &netns, name, labels)?;
    if !answer.ok() {
        bail!("CNI ADD of pod {name}: {}{}", answer.stdout, answer.stderr);
    }
    let result: Value = serde_json::from_str(&answer.stdout)
        .with_context(|| format!("CNI ADD of pod {name} answered {:?}", answer.stdout))?;
    let address = result["ips"][0]["address"].as_str().unwrap_or_default();
    let ip = address.split('/').next().unwrap_or_default();
    let ip = ip.parse().with_context(|| format!("CNI ADD of pod {name}: address {address:?}"))?;
    Ok(Pod(Arc::new(Inner { name: name.to_owned(), ip, result, netns })))
}

/// One call of the plugin, whatever it answers.
pub fn cni(node: &Node, verb: &str, netns: &Netns, name: &str, labels: &[(&str, &str)]) -> Result<Output> {
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "canal",
        "type": "canal-cni",
        "socket": node.agent().socket(),
        "subnetFile": node.agent().subnet_file(),
        "ipam": {"type": "host-local", "dataDir": node.folder().join("ipam")},
    });
    if !labels.is_empty() {
        let labels: Vec<_> = labels.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        config["args"] = json!({"cni": {"labels": labels}});
    }
    cni_with(node, verb, netns, name, &config.to_string())
}

/// One call of the plugin with any text as its configuration.
pub fn cni_with(node: &Node, verb: &str, netns: &Netns, name: &str, config: &str) -> Result<Output> {
    let plugin = binary("canal-cni")?;
    node.netns()
        .cmd(&plugin.display().to_string())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container_id(name))
        .env("CNI_NETNS", netns.path().display().to_string())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", std::env::var("CNI_PATH").unwrap_or_else(|_| PLUGINS.to_owned()))
        .stdin(config)
        .output()
}

/// 64 hexadecimal digits, as runtimes make them; the same for the same pod name.
pub fn container_id(name: &str) -> String {
    let part = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, name).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}
