//! Which destinations a pod gets a route for.

use ipnet::Ipv4Net;

use super::{
    super::{
        error::{CniError, Code},
        subnet::Subnet,
    },
    fields::{Fields, Notes},
};

const DEFAULT: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0);

/// What the configuration says about routes. All of them go by the one gateway that pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// Those that `ipam.routes` names.
    pub named: Vec<Ipv4Net>,
    /// One for each network of the subnet file, as flannel's plugin adds them.
    pub networks: bool,
    /// One for everything else.
    pub default: bool,
}

impl Routes {
    /// On a node with this subnet, in the order in which results list them.
    pub fn on(&self, subnet: &Subnet) -> Result<Vec<Ipv4Net>, CniError> {
        let mut all = self.named.clone();
        if self.networks {
            if subnet.networks.is_empty() && !self.default {
                let msg = "the subnet file does not say what the pod network is";
                let hint = "FLANNEL_NETWORK is missing in it: restart the agent (or flanneld), which writes the file";
                return Err(CniError::new(Code::NoSubnet, msg, hint));
            }
            all.extend(&subnet.networks);
        }
        if self.default {
            all.push(DEFAULT);
        }
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|net| seen.insert(*net));
        Ok(all)
    }
}

/// `routes` of `ipam`.
pub(super) fn named(ipam: &mut Fields, notes: &mut Notes) -> Result<Vec<Ipv4Net>, CniError> {
    let mut named = Vec::new();
    for mut route in ipam.objects("routes")? {
        let Some(text) = route.text("dst")? else {
            return Err(ipam.invalid("routes", "a route without `dst`", "each route names its destination"));
        };
        match text.parse::<ipnet::IpNet>() {
            Ok(ipnet::IpNet::V4(net)) => named.push(net.trunc()),
            Ok(ipnet::IpNet::V6(_)) => notes.add(&route.path("dst"), "pods have no IPv6 here"),
            Err(_) => return Err(route.invalid("dst", text, "want a destination such as 10.0.0.0/8")),
        }
        let why = "all routes of a pod go by 169.254.1.1, as Calico's do";
        route.no_effect(&["gw", "mtu", "advmss", "priority", "table", "scope"], why, notes);
        route.finish(notes);
    }
    Ok(named)
}
