//! A node: a namespace with a management and an underlay interface, a bpffs, and at most one agent.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::{
    agent::Agent,
    netns::Netns,
    pod::{self, Pod},
    probe::Host,
    sweep,
};

/// One machine of the cluster.
#[derive(Debug)]
pub struct Node {
    number: u8,
    prefix: String,
    folder: PathBuf,
    // Dropped in this order: pods, then the agent, then the namespace.
    pods: Mutex<Vec<Pod>>,
    agent: Agent,
    netns: Netns,
}

impl Node {
    pub(crate) fn create(prefix: &str, world: &Path, number: u8) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}n{number}"))?;
        // Whoever needs it sets it.
        netns.sysctl("net.ipv4.ip_forward", "0")?;
        let folder = world.join(format!("n{number}"));
        let bpffs = folder.join("bpffs");
        let making = sweep::making();
        fs::create_dir_all(&bpffs).with_context(|| format!("cannot make {}", bpffs.display()))?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs on {}", bpffs.display()))?;
        drop(making);
        let felix = format!("EndpointStatusPathPrefix = {}\n", folder.join("calico").display());
        fs::write(folder.join("felix.cfg"), felix).context("cannot write Felix's file")?;
        let agent = Agent::new(number, netns.name(), &folder);
        Ok(Self { number, prefix: prefix.to_owned(), folder, pods: Mutex::default(), agent, netns })
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    /// As the agent is told: `node1`.
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// The node's address on the underlay.
    pub fn public_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 50, self.number)
    }

    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Root of the node's bpffs; the agent pins below `canal/` there.
    pub fn bpffs(&self) -> PathBuf {
        self.folder.join("bpffs")
    }

    /// Plays the container runtime: makes a namespace and calls the CNI plugin for `eth0` in it.
    pub fn add_pod(&self, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
        let pod = pod::create(self, &self.prefix, name, labels)?;
        self.pod_list().push(pod.clone());
        Ok(pod)
    }

    /// Calls the CNI plugin's DEL and deletes the namespace.
    pub fn del_pod(&self, pod: &Pod) -> Result<()> {
        self.pod_list().retain(|p| p.name() != pod.name());
        let answer = pod::cni(self, "DEL", pod.netns(), pod.name(), &[])?;
        ensure!(answer.ok(), "CNI DEL of pod {}: {}{}", pod.name(), answer.stdout, answer.stderr);
        pod.delete_netns();
        Ok(())
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.pod_list().clone()
    }

    fn pod_list(&self) -> MutexGuard<'_, Vec<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Node {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.public_ip()
    }
}
