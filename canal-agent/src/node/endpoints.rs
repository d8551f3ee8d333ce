//! Local endpoints as they stand: what the cluster says about this node, met with the interfaces that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use tracing::warn;

use crate::{
    compile::Judgement,
    dataplane::{overlay::ROUTE_PROTOCOL, policy::Desired},
    endpoint::Registry,
    model::{Cluster, EndpointKey, Labels},
    netlink::{self, Netlink, Route, sysctl},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// The interface is not there (yet).
    Waiting,
    /// It goes on with the policy that it had, for this reason.
    Degraded(String),
    /// Nothing passes, for this reason.
    Closed(String),
}

impl State {
    pub(super) fn slug(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Degraded(_) => "degraded",
            Self::Closed(_) => "closed",
        }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Waiting => Some("its interface does not exist"),
            Self::Degraded(reason) | Self::Closed(reason) => Some(reason),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Local {
    pub(super) key: EndpointKey,
    pub(super) interface: String,
    pub(super) labels: Labels,
    pub(super) state: State,
    /// The interface is one that our CNI plugin made and left down for us to open.
    ours: bool,
    up: bool,
    desired: Option<Desired>,
    pub(super) ingress: Vec<String>,
    pub(super) egress: Vec<String>,
}

/// By address: two endpoints that claim one address are told apart by their keys, and the lower one has it.
#[derive(Debug, Default)]
pub(super) struct Locals {
    by_address: BTreeMap<Ipv4Addr, Local>,
    /// Endpoints without a place in the table above.
    pub(super) shadowed: Vec<(Ipv4Addr, Local)>,
    /// Every pod's interface that exists, with its index, also those that no endpoint describes (any more). Whatever is
    /// not programmed is closed by the hooks there.
    guarded: BTreeMap<String, u32>,
}

/// What Calico's plugin and ours call the host's end of a pod's pair.
const POD_PREFIX: &str = "cali";

impl Locals {
    pub(super) fn find(
        cluster: &Cluster,
        registry: &Registry,
        node: &str,
        judgements: &BTreeMap<(EndpointKey, Ipv4Addr), Judgement>,
        netlink: &mut Netlink,
    ) -> Result<Self, netlink::Error> {
        let links: BTreeMap<String, netlink::Link> =
            netlink.links()?.into_iter().map(|l| (l.name.clone(), l)).collect();
        let leaving: BTreeSet<&EndpointKey> =
            registry.records().iter().filter(|(_, record)| record.leaving).map(|(key, _)| key).collect();
        let mut locals = Self::default();
        locals.guarded.extend(links.values().filter(|l| is_pods(l)).map(|l| (l.name.clone(), l.index)));
        for (key, workload) in cluster.endpoints_of(node).filter(|(key, _)| !leaving.contains(key)) {
            for addr in &workload.addresses {
                let judgement = judgements.get(&(key.clone(), *addr));
                let link = links.get(&workload.interface_name);
                // Whatever the object in the store says: programs and policy go on nothing that is the host's own.
                let is_hosts = link.is_some_and(|l| !is_pods(l));
                let (state, desired) = match (judgement, link, workload.mac) {
                    (_, None, _) => (State::Waiting, None),
                    _ if is_hosts => {
                        let reason = format!(
                            "its interface {} is not a pod's: it must be a veth whose name begins with {POD_PREFIX}",
                            workload.interface_name
                        );
                        (State::Closed(reason), None)
                    }
                    (None, ..) => (State::Closed("its policy could not be computed".to_owned()), None),
                    (_, _, None) => {
                        (State::Closed("its WorkloadEndpoint names no MAC address".to_owned()), None)
                    }
                    (Some(judgement), Some(link), Some(pod_mac)) => {
                        let desired = Desired {
                            ifindex: link.index,
                            pod_mac,
                            host_mac: link.mac.unwrap_or_default(),
                            ingress: judgement.ingress.clone(),
                            egress: judgement.egress.clone(),
                        };
                        (State::Ready, Some(desired))
                    }
                };
                let local = Local {
                    key: key.clone(),
                    interface: workload.interface_name.clone(),
                    labels: workload.labels.clone(),
                    state,
                    ours: registry.records().contains_key(key),
                    up: link.is_some_and(|l| l.up),
                    desired,
                    ingress: judgement.map(|j| j.ingress.policies()).unwrap_or_default(),
                    egress: judgement.map(|j| j.egress.policies()).unwrap_or_default(),
                };
                locals.insert(*addr, local);
            }
        }
        Ok(locals)
    }

    /// An endpoint whose interface exists has the address before one that waits, one of our own plugin before one that
    /// only the store knows; else the lower key.
    fn insert(&mut self, addr: Ipv4Addr, mut local: Local) {
        let Some(holder) = self.by_address.get(&addr) else {
            self.by_address.insert(addr, local);
            return;
        };
        let claim = |local: &Local| (local.state != State::Waiting, local.ours);
        if claim(&local) > claim(holder) {
            local = self.by_address.insert(addr, local).expect("the holder was just seen");
        }
        let holder = &self.by_address[&addr];
        let reason = format!("its address is that of {}", holder.key);
        self.shadowed.push((addr, Local { state: State::Closed(reason), desired: None, ..local }));
    }

    pub(super) fn get(&self, addr: Ipv4Addr) -> Option<&Local> {
        self.by_address.get(&addr)
    }

    /// Those that hold their addresses.
    pub(super) fn holders(&self) -> impl Iterator<Item = (Ipv4Addr, &Local)> {
        self.by_address.iter().map(|(addr, local)| (*addr, local))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Ipv4Addr, &Local)> {
        self.by_address
            .iter()
            .map(|(addr, local)| (*addr, local))
            .chain(self.shadowed.iter().map(|(a, l)| (*a, l)))
    }

    /// Those whose interface exists, with what is to be programmed.
    pub(super) fn present(&self) -> impl Iterator<Item = (Ipv4Addr, &Local, &Desired)> {
        self.by_address.iter().filter_map(|(addr, local)| Some((*addr, local, local.desired.as_ref()?)))
    }

    /// Interfaces that get the pods' hooks.
    pub(super) fn guarded(&self) -> impl Iterator<Item = (&str, u32)> {
        self.guarded.iter().map(|(name, index)| (name.as_str(), *index))
    }

    /// Closes every endpoint behind an interface.
    pub(super) fn close_interface(&mut self, interface: &str, reason: &str) {
        let behind = self.by_address.iter().filter(|(_, local)| local.interface == interface);
        let addresses: Vec<_> = behind.map(|(addr, _)| *addr).collect();
        for addr in addresses {
            self.close(addr, reason.to_owned());
        }
    }

    /// There is no room for its new policy.
    pub(super) fn degrade(&mut self, addr: Ipv4Addr, reason: String) {
        if let Some(local) = self.by_address.get_mut(&addr) {
            warn!(endpoint = %local.key, reason, "endpoint keeps its last policy");
            local.state = State::Degraded(reason);
        }
    }

    pub(super) fn close(&mut self, addr: Ipv4Addr, reason: String) {
        if let Some(local) = self.by_address.get_mut(&addr) {
            warn!(endpoint = %local.key, reason, "endpoint is closed");
            local.state = State::Closed(reason);
            local.desired = None;
        }
    }

    pub(super) fn desired(&self) -> BTreeMap<Ipv4Addr, Desired> {
        self.present().map(|(addr, _, desired)| (addr, desired.clone())).collect()
    }

    /// Routes and neighbours on the host, and the way into the pod opened; routes of ours that lead nowhere removed.
    pub(super) fn connect(&self, netlink: &mut Netlink) -> Result<Vec<String>, netlink::Error> {
        let mut problems = Vec::new();
        let routes = netlink.routes()?;
        let mut wanted = BTreeSet::new();
        for (addr, local, desired) in self.present() {
            let route =
                Route { protocol: ROUTE_PROTOCOL, ..Route::link(Ipv4Net::from(addr), desired.ifindex) };
            wanted.insert((route.dst, desired.ifindex));
            if let Err(error) = connect(netlink, addr, local, desired, &route, &routes) {
                problems.push(format!("{}: {error}", local.key));
            }
        }
        for stale in routes.iter().filter(|r| r.protocol == ROUTE_PROTOCOL && r.dst.prefix_len() == 32) {
            if stale.oif.is_some_and(|oif| !wanted.contains(&(stale.dst, oif))) {
                netlink.delete_route(stale)?;
            }
        }
        Ok(problems)
    }
}

fn is_pods(link: &netlink::Link) -> bool {
    link.kind == "veth" && link.name.starts_with(POD_PREFIX)
}

fn connect(
    netlink: &mut Netlink,
    addr: Ipv4Addr,
    local: &Local,
    desired: &Desired,
    route: &Route,
    routes: &[Route],
) -> Result<(), netlink::Error> {
    if !local.up && local.ours {
        // Whatever the defaults for new interfaces are: packets are forwarded, and IPv6 is not carried yet.
        for (setting, value) in [("ipv4/conf/{}/forwarding", "1"), ("ipv6/conf/{}/disable_ipv6", "1")] {
            sysctl::set_if_present(&format!("net/{}", setting.replace("{}", &local.interface)), value)?;
        }
        netlink.set_up(desired.ifindex)?;
    }
    let reachable = routes.iter().any(|r| r.dst == route.dst && r.oif == route.oif);
    if !reachable || (!local.up && local.ours) {
        netlink.replace_route(route)?;
        // The host needs not ask, and a pod cannot claim another's answer.
        netlink.add_neigh_permanent(desired.ifindex, addr, desired.pod_mac)?;
    }
    Ok(())
}
