//! A node programmed by hand exactly as flanneld programs one: device, address, lease, and for each peer a
//! neighbour, an FDB row and a route; or the route alone, to peers that need no tunnel.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    sync::Mutex,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{cmd::Cmd, etcd::Etcd, netns::Netns, node::Node, probe::Host};

const NETWORK: &str = "10.100.0.0/16";
const SUBNETS: &str = "/coreos.com/network/subnets/";
/// flannel's own.
const LEASE_TTL: Duration = Duration::from_hours(24);

/// What the network's configuration says, and the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlannelBackend {
    Vxlan {
        /// Whether the envelopes carry UDP checksums, as flanneld's do.
        checksums: bool,
        /// `DirectRouting`: all peers of a world are on one link.
        direct: bool,
    },
    HostGw,
}

impl FlannelBackend {
    fn is_direct(self) -> bool {
        matches!(self, Self::HostGw | Self::Vxlan { direct: true, .. })
    }
}

/// A peer that runs flannel instead of Canal, with pods that no policy guards.
#[derive(Debug)]
pub struct FlannelNode<'a> {
    node: &'a Node,
    etcd: &'a Etcd,
    subnet: Ipv4Addr,
    vtep_mac: String,
    backend: FlannelBackend,
    next_pod: AtomicU8,
    known: Mutex<BTreeSet<String>>,
}

/// A pod on such a node.
#[derive(Debug)]
pub struct FlannelPod {
    netns: Netns,
    ip: Ipv4Addr,
    host_interface: String,
}

impl Host for FlannelPod {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

impl<'a> FlannelNode<'a> {
    pub(crate) fn program(node: &'a Node, etcd: &'a Etcd, backend: FlannelBackend) -> Result<Self> {
        let number = node.number();
        let subnet = Ipv4Addr::new(10, 100, 200u8.wrapping_add(number).wrapping_sub(2), 0);
        let vtep_mac = format!("0e:00:00:00:00:{number:02x}");
        if let FlannelBackend::Vxlan { checksums, .. } = backend {
            make_device(node, &vtep_mac, subnet, checksums)?;
        }
        let (next_pod, known) = (AtomicU8::new(2), Mutex::default());
        let flannel = Self { node, etcd, subnet, vtep_mac, backend, next_pod, known };
        flannel.put_lease()?;
        Ok(flannel)
    }

    /// Writes its lease, as flanneld does at its start.
    pub fn put_lease(&self) -> Result<()> {
        let public_ip = self.node.public_ip();
        let lease = match self.backend {
            FlannelBackend::Vxlan { .. } => json!({
                "PublicIP": public_ip,
                "PublicIPv6": null,
                "BackendType": "vxlan",
                "BackendData": {"VNI": 1, "VtepMAC": self.vtep_mac},
            }),
            FlannelBackend::HostGw => {
                json!({"PublicIP": public_ip, "PublicIPv6": null, "BackendType": "host-gw"})
            }
        };
        self.etcd.put_leased(&self.lease_key(), &lease.to_string(), LEASE_TTL)
    }

    /// Its device, as a flanneld that finds none makes it: up, with its address, and without peers.
    pub fn make_device(&self) -> Result<()> {
        make_device(self.node, &self.vtep_mac, self.subnet, true)
    }

    /// What flanneld writes for the CNI plugin, with `--ip-masq`.
    pub fn write_subnet_file(&self) -> Result<String> {
        let [a, b, c, _] = self.subnet.octets();
        let text = format!(
            "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={a}.{b}.{c}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        fs::write(self.node.agent().subnet_file(), &text).context("cannot write the subnet file")?;
        Ok(text)
    }

    /// Its rules, as `--ip-masq` and `--iptables-forward-rules` make them; `iptables` names the program.
    pub fn install_rules(&self, iptables: &str) -> Result<()> {
        let own = format!("{}/24", self.subnet);
        let (masq, forward) =
            ("-m comment --comment \"flanneld masq\" -j", "-m comment --comment \"flanneld forward\" -j");
        let rules = format!(
            "*nat\n\
             :FLANNEL-POSTRTG - [0:0]\n\
             -A POSTROUTING {masq} FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} RETURN\n\
             -A FLANNEL-POSTRTG -s {own} -d {NETWORK} {masq} RETURN\n\
             -A FLANNEL-POSTRTG -s {NETWORK} -d {own} {masq} RETURN\n\
             -A FLANNEL-POSTRTG ! -s {NETWORK} -d {own} {masq} RETURN\n\
             -A FLANNEL-POSTRTG -s {NETWORK} ! -d 224.0.0.0/4 {masq} MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {NETWORK} -d {NETWORK} {masq} MASQUERADE --random-fully\n\
             COMMIT\n\
             *filter\n\
             :FLANNEL-FWD - [0:0]\n\
             -A FORWARD {forward} FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {NETWORK} {forward} ACCEPT\n\
             -A FLANNEL-FWD -d {NETWORK} {forward} ACCEPT\n\
             COMMIT\n"
        );
        let restore = self.node.netns().cmd(&format!("{iptables}-restore --noflush"));
        restore.stdin(rules).run().map(drop)
    }

    pub fn lease_key(&self) -> String {
        format!("{SUBNETS}{}-24", self.subnet)
    }

    /// As a flanneld that made its device anew: another MAC, on the device and in the lease.
    pub fn change_mac(&mut self, mac: &str) -> Result<()> {
        self.node.netns().ip(&format!("link set flannel.1 address {mac}"))?;
        mac.clone_into(&mut self.vtep_mac);
        self.put_lease()?;
        // The kernel forgot its neighbours with the old address.
        self.learn_peers().map(drop)
    }

    pub fn node(&self) -> &Node {
        self.node
    }

    pub fn subnet(&self) -> Ipv4Addr {
        self.subnet
    }

    pub fn vtep_mac(&self) -> &str {
        &self.vtep_mac
    }

    /// Programs a peer for every lease but its own; tells how many peers it knows now.
    pub fn learn_peers(&self) -> Result<usize> {
        let netns = self.node.netns();
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (key, value) in self.etcd.list(SUBNETS)? {
            // As flanneld, leave out what is not a lease.
            let Ok(lease) = serde_json::from_str::<Value>(&value) else { continue };
            let (Some((network, bits)), Some(peer)) =
                (key.strip_prefix(SUBNETS).and_then(|k| k.rsplit_once('-')), lease["PublicIP"].as_str())
            else {
                continue;
            };
            if network == self.subnet.to_string() {
                continue;
            }
            if self.backend.is_direct() {
                netns.ip(&format!("route replace {network}/{bits} via {peer} dev up0"))?;
                known.insert(key);
                continue;
            }
            let Some(mac) = lease["BackendData"]["VtepMAC"].as_str() else { continue };
            netns.ip(&format!("neigh replace {network} lladdr {mac} dev flannel.1 nud permanent"))?;
            Cmd::line("bridge -n")
                .arg(netns.name())
                .args(["fdb", "replace", mac, "dev", "flannel.1", "dst", peer])
                .run()?;
            netns.ip(&format!("route replace {network}/{bits} via {network} dev flannel.1 onlink"))?;
            known.insert(key);
        }
        Ok(known.len())
    }

    /// A pod wired as the Calico plugin wires one.
    pub fn add_pod(&self, name: &str) -> Result<FlannelPod> {
        let last = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let [a, b, c, _] = self.subnet.octets();
        let mtu = if self.backend == FlannelBackend::HostGw { 1500 } else { 1450 };
        FlannelPod::create(self.node, name, Ipv4Addr::new(a, b, c, last), mtu)
    }
}

fn make_device(node: &Node, vtep_mac: &str, subnet: Ipv4Addr, checksums: bool) -> Result<()> {
    let (netns, public_ip) = (node.netns(), node.public_ip());
    netns.ip(&format!(
        "link add flannel.1 address {vtep_mac} mtu 1450 type vxlan id 1 local {public_ip} dev up0 \
         dstport 8472 nolearning {}",
        if checksums { "udpcsum" } else { "noudpcsum" }
    ))?;
    netns.ip("link set flannel.1 up")?;
    netns.ip(&format!("addr add {subnet}/32 dev flannel.1")).map(drop)
}

impl FlannelPod {
    /// On any node that routes; the node's own peers are its business.
    pub fn create(node: &Node, name: &str, ip: Ipv4Addr, mtu: u16) -> Result<Self> {
        // As the bridge plugin does where it is the pods' gateway.
        node.netns().sysctl("net.ipv4.ip_forward", "1")?;
        let last = ip.octets()[3];
        let host = node.netns();
        let world = host.name().strip_suffix(&format!("n{}", node.number())).context("a node's name")?;
        let netns = Netns::create(&format!("{world}pod-{name}"))?;
        let veth = format!("calif{last}");
        host.ip(&format!("link add {veth} type veth peer name eth0 netns {}", netns.name()))?;
        host.ip(&format!("link set {veth} address ee:ee:ee:ee:ee:ee mtu {mtu} up"))?;
        host.ip(&format!("route add {ip}/32 dev {veth}"))?;
        for line in [
            &format!("link set eth0 mtu {mtu} up"),
            &format!("addr add {ip}/32 dev eth0"),
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1",
            // In place of proxy ARP, which needs a default route on the node.
            "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0",
        ] {
            netns.ip(line)?;
        }
        Ok(Self { netns, ip, host_interface: veth })
    }

    /// Name of the host's end of the veth pair.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// The MAC of `eth0`.
    pub fn mac(&self) -> Result<String> {
        let said = self.netns.ip("-j link show eth0")?;
        let links: Value = serde_json::from_str(&said)?;
        Ok(links[0]["address"].as_str().context("eth0 has no MAC")?.to_owned())
    }
}
