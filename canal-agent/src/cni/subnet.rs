//! The node's subnet and MTU, from the file that the agent (or flanneld) writes.

use std::{fs, io, path::Path};

use ipnet::Ipv4Net;

use super::error::{CniError, Code};

/// Below this IPv4 does not work.
pub(super) const MTU_MIN: u32 = 68;
pub(super) const MTU_MAX: u32 = 65535;

/// What the file says. Networks and masquerading may be missing, as no pod's address depends on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// In network form.
    pub net: Ipv4Net,
    pub mtu: u32,
    /// All of the pod network, in network form.
    pub networks: Vec<Ipv4Net>,
    /// Whether the daemon masquerades what pods send out of the pod network.
    pub masquerades: bool,
}

impl Subnet {
    pub fn load(path: &Path) -> Result<Self, CniError> {
        let no_subnet = |details: String| {
            CniError::new(Code::NoSubnet, format!("this node has no subnet in {}", path.display()), details)
        };
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(no_subnet),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(no_subnet(
                "the file does not exist: canal-agent writes it when it has its lease; is it running, and is \
                 `subnetFile` its --subnet-file?"
                    .to_owned(),
            )),
            Err(e) => Err(no_subnet(format!("it cannot be read: {e}"))),
        }
    }

    /// `NAME=value` lines, of which the last of a name counts; quotes are part of a value. Lines of other names are
    /// ignored.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.trim().split_once('='));
            lines.filter(|(n, _)| *n == name).map(|(_, v)| v.trim()).next_back().filter(|v| !v.is_empty())
        };
        let (subnet, mtu) = match (value("FLANNEL_SUBNET"), value("FLANNEL_MTU")) {
            (Some(subnet), Some(mtu)) => (subnet, mtu),
            (None, _) if value("FLANNEL_IPV6_SUBNET").is_some() => {
                return Err(
                    "FLANNEL_SUBNET is missing: it has a subnet for IPv6 only, which pods do not get here"
                        .to_owned(),
                );
            }
            (None, Some(_)) => return Err("FLANNEL_SUBNET is missing".to_owned()),
            (Some(_), None) => return Err("FLANNEL_MTU is missing".to_owned()),
            (None, None) => return Err("FLANNEL_SUBNET and FLANNEL_MTU are missing".to_owned()),
        };
        let network = |name: &str, text: &str| {
            text.trim().parse::<Ipv4Net>().map_err(|_| format!("{name}={text} is not an IPv4 network"))
        };
        let net = network("FLANNEL_SUBNET", subnet)?;
        if net.prefix_len() > 30 {
            return Err(format!("FLANNEL_SUBNET={subnet} has no room for a pod"));
        }
        let mtu = match mtu.parse() {
            Ok(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => mtu,
            _ => return Err(format!("FLANNEL_MTU={mtu} is not a number from {MTU_MIN} to {MTU_MAX}")),
        };
        let mut networks = Vec::new();
        for text in value("FLANNEL_NETWORK").into_iter().flat_map(|list| list.split(',')) {
            let network = network("FLANNEL_NETWORK", text)?.trunc();
            if !networks.contains(&network) {
                networks.push(network);
            }
        }
        let masquerades = value("FLANNEL_IPMASQ") == Some("true");
        Ok(Self { net: net.trunc(), mtu, networks, masquerades })
    }
}
