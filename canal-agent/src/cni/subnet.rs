//! The node's subnet and MTU, from the file that the agent (or flanneld) writes.

use std::{fs, io, path::Path};

use ipnet::Ipv4Net;

use super::error::{CniError, Code};

/// Below this IPv4 does not work.
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65535;

/// What a pod's interface needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// In network form.
    pub net: Ipv4Net,
    pub mtu: u32,
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

    /// `NAME=value` lines; others than the two that matter are ignored.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.trim().split_once('='));
            lines.filter(|(n, _)| *n == name).map(|(_, v)| v.trim()).next_back().filter(|v| !v.is_empty())
        };
        let subnet = value("FLANNEL_SUBNET").ok_or("FLANNEL_SUBNET is missing")?;
        let net: Ipv4Net =
            subnet.parse().map_err(|_| format!("FLANNEL_SUBNET={subnet} is not an IPv4 network"))?;
        if net.prefix_len() > 30 {
            return Err(format!("FLANNEL_SUBNET={subnet} has no room for a pod"));
        }
        let mtu = value("FLANNEL_MTU").ok_or("FLANNEL_MTU is missing")?;
        match mtu.parse() {
            Ok(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => Ok(Self { net: net.trunc(), mtu }),
            _ => Err(format!("FLANNEL_MTU={mtu} is not a number from {MTU_MIN} to {MTU_MAX}")),
        }
    }
}
