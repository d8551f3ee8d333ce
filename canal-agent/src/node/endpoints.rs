//! Local endpoints as they stand: what the cluster says about this node, met with the interfaces that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use canal_common::Mac;
use ipnet::{IpNet, Ipv4Net};
use tracing::warn;

use crate::{
    cni::HOST_PREFIX as OWN_PREFIX,
    compile::{Compiler, Judgement},
    dataplane::{overlay::ROUTE_PROTOCOL, policy::Desired, spoofing::Borrowed},
    endpoint::Registry,
    model::{Cluster, EndpointKey, Labels, WorkloadEndpoint},
    netlink::{self, FilterHook, Netlink, Route, sysctl},
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
    pub(super) shape: Option<Shape>,
    desired: Option<Desired>,
    pub(super) judgement: Option<Judgement>,
    spoofed: Vec<IpNet>,
}

/// The host's interfaces.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_name: BTreeMap<String, netlink::Link>,
    filter_hooks: BTreeMap<u32, FilterHook>,
}

impl Links {
    /// Reads them anew; what could not be read stays as it was, and is what is wrong.
    pub(super) fn read(&mut self, netlink: &mut Netlink) -> Result<Option<netlink::Error>, netlink::Error> {
        self.by_name = netlink.links()?.into_iter().map(|link| (link.name.clone(), link)).collect();
        let hooks = netlink.filter_hooks().map(|hooks| self.filter_hooks = hooks);
        Ok(hooks.err())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &netlink::Link> {
        self.by_name.values()
    }

    fn shape(&self, link: &netlink::Link) -> Option<Shape> {
        Shape::of(&link.qdisc, self.filter_hooks.get(&link.index).copied())
    }
}

/// Which ways lead through queues or filters that somebody has put on a pod's interface, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    In,
    Out,
    Both,
}

impl Shape {
    /// Our own programs need neither.
    fn of(root: &str, hook: Option<FilterHook>) -> Option<Self> {
        let is_in = !matches!(root, "" | "noqueue" | "noop") || hook == Some(FilterHook::Both);
        match (is_in, hook.is_some()) {
            (false, false) => None,
            (true, false) => Some(Self::In),
            (false, true) => Some(Self::Out),
            (true, true) => Some(Self::Both),
        }
    }

    pub(super) fn slug(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Both => "both",
        }
    }
}

/// By address: two endpoints that claim one address are told apart by their keys, and the lower one has it.
#[derive(Debug, Default)]
pub(super) struct Locals {
    by_address: BTreeMap<Ipv4Addr, Local>,
    /// Endpoints without a place in the table above.
    pub(super) shadowed: Vec<(Ipv4Addr, Local)>,
    /// Endpoints without an IPv4 address: nothing passes.
    pub(super) addressless: Vec<EndpointKey>,
    /// Every pod's interface that exists, with its index, also those that no endpoint describes (any more). Whatever is
    /// not programmed is closed by the hooks there.
    guarded: BTreeMap<String, u32>,
}

/// What is asked of an endpoint before it is served.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    /// Felix's `InterfacePrefix`, beside our own plugin's.
    pub(super) prefixes: &'a [String],
    /// Whatever it is called, it is no pod's.
    pub(super) uplink: u32,
    /// Felix's `WorkloadSourceSpoofing` is `Any`.
    pub(super) may_spoof: bool,
}

impl Locals {
    pub(super) fn find(
        cluster: &Cluster,
        registry: &Registry,
        terms: &Terms<'_>,
        compiler: &Compiler,
        links: &Links,
    ) -> Self {
        let is_ours = |key: &EndpointKey| registry.holder(key).is_some();
        let leaving: BTreeSet<EndpointKey> =
            registry.leaving().map(|(key, _)| key).filter(|key| !is_ours(key)).collect();
        let present = || {
            let keys = compiler.local_endpoints().filter(|key| !leaving.contains(key));
            keys.filter_map(|key| Some((key, cluster.endpoint(key)?)))
        };
        // Who asks for what is not granted is as good as absent.
        let claims = present().filter(|(_, workload)| workload.spoofed.is_empty() || terms.may_spoof);
        let owners = interface_owners(claims.map(|(key, workload)| (key, workload, is_ours(key))));
        let mut locals = Self::default();
        // Whatever kind it is of: one that cannot be served is closed, not open.
        let pods = links.by_name.values().filter(|link| terms.is_named_as_pods(link));
        locals.guarded.extend(pods.map(|l| (l.name.clone(), l.index)));
        for (key, workload) in present() {
            let link = links.by_name.get(&workload.interface_name);
            let shape = link.and_then(|link| links.shape(link));
            let owner = owners.get(workload.interface_name.as_str()).copied().unwrap_or(key);
            let refusal = terms.refusal(key, workload, link, owner);
            if workload.addresses.is_empty() {
                locals.addressless.push(key.clone());
            }
            for addr in &workload.addresses {
                let judgement = compiler.endpoints().get(&(key.clone(), *addr));
                let closed = |reason: &str| (State::Closed(reason.to_owned()), None);
                let (state, desired) = match (link, judgement, workload.mac) {
                    (None, ..) => (State::Waiting, None),
                    _ if refusal.is_some() => closed(refusal.as_deref().unwrap_or_default()),
                    (_, None, _) => closed("its policy could not be computed"),
                    (_, _, None) => closed("its WorkloadEndpoint names no MAC address"),
                    (Some(link), Some(judgement), Some(pod_mac)) => {
                        let desired = Desired {
                            ifindex: link.index,
                            pod_mac,
                            host_mac: link.mac.unwrap_or_default(),
                            shaped: shape.is_some(),
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
                    ours: is_ours(key),
                    up: link.is_some_and(|l| l.up),
                    shape,
                    desired,
                    judgement: judgement.cloned(),
                    spoofed: workload.spoofed.clone(),
                };
                locals.insert(*addr, local);
            }
        }
        locals
    }

    /// An endpoint that can be served has the address before one that cannot, one whose interface exists before one that
    /// waits, one of our own plugin before one that only the store knows; else the lower key.
    fn insert(&mut self, addr: Ipv4Addr, mut local: Local) {
        let Some(holder) = self.by_address.get(&addr) else {
            self.by_address.insert(addr, local);
            return;
        };
        let claim = |local: &Local| (local.state == State::Ready, local.state != State::Waiting, local.ours);
        if claim(&local) > claim(holder) {
            local = self.by_address.insert(addr, local).expect("the holder was just seen");
        }
        let holder = &self.by_address[&addr];
        if local.state == State::Ready {
            local.state = State::Closed(format!("its address is that of {}", holder.key));
            local.desired = None;
        }
        self.shadowed.push((addr, local));
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

    /// Endpoints that are enforced with all of their addresses.
    pub(super) fn enforced(&self) -> BTreeSet<&EndpointKey> {
        let mut keys: BTreeSet<_> = self.all().map(|(_, local)| &local.key).collect();
        for (_, local) in self.all() {
            if !matches!(local.state, State::Ready | State::Degraded(_)) {
                keys.remove(&local.key);
            }
        }
        keys
    }

    /// Sources that endpoints may use beside their own.
    pub(super) fn borrowed(&self) -> Borrowed {
        let mut borrowed = Borrowed::new();
        for (addr, local, desired) in self.present() {
            for net in &local.spoofed {
                if let IpNet::V4(net) = net {
                    // Of an endpoint with several addresses, the first is asked for its policy.
                    borrowed.entry((desired.ifindex, *net)).or_insert(addr);
                }
            }
        }
        borrowed
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

    /// Which addresses are reached by which interfaces: as long as this stays, only their policy may be another.
    pub(super) fn wires(&self) -> Vec<(Ipv4Addr, u32, Mac)> {
        self.present().map(|(addr, _, desired)| (addr, desired.ifindex, desired.pod_mac)).collect()
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

impl Terms<'_> {
    /// Why an endpoint is not served, although its interface is there.
    fn refusal(
        &self,
        key: &EndpointKey,
        workload: &WorkloadEndpoint,
        link: Option<&netlink::Link>,
        owner: &EndpointKey,
    ) -> Option<String> {
        let interface = &workload.interface_name;
        // Whatever the object in the store says: programs and policy go on nothing that is the host's own.
        if link.is_some_and(|link| !self.is_pods(link)) {
            let prefixes = self.all_prefixes().collect::<Vec<_>>().join(" or ");
            return Some(format!(
                "its interface {interface} is not a pod's: it must be a veth whose name begins with {prefixes} \
                 (InterfacePrefix)"
            ));
        }
        if owner != key {
            return Some(format!("its interface {interface} is that of {owner}"));
        }
        (!workload.spoofed.is_empty() && !self.may_spoof).then(|| {
            "it asks for allowSpoofedSourcePrefixes, and WorkloadSourceSpoofing is not Any".to_owned()
        })
    }

    fn all_prefixes(&self) -> impl Iterator<Item = &str> {
        let others = self.prefixes.iter().map(String::as_str).filter(|prefix| *prefix != OWN_PREFIX);
        std::iter::once(OWN_PREFIX).chain(others)
    }

    fn is_pods(&self, link: &netlink::Link) -> bool {
        link.kind == "veth" && self.is_named_as_pods(link)
    }

    fn is_named_as_pods(&self, link: &netlink::Link) -> bool {
        // A device without a kind is hardware: never a pod's, whatever prefix was set.
        !link.kind.is_empty()
            && link.index != self.uplink
            && self.all_prefixes().any(|prefix| link.name.starts_with(prefix))
    }
}

/// Of those that claim one interface: one of our own plugin before those that only the store knows, then, as in Calico,
/// the lowest by orchestrator, workload and endpoint.
fn interface_owners<'a>(
    claims: impl Iterator<Item = (&'a EndpointKey, &'a WorkloadEndpoint, bool)>,
) -> BTreeMap<&'a str, &'a EndpointKey> {
    let mut best: BTreeMap<&str, (_, &EndpointKey)> = BTreeMap::new();
    for (key, workload, ours) in claims.filter(|(_, workload, _)| !workload.interface_name.is_empty()) {
        // Felix's name of the workload has the namespace in front.
        let id = (
            !ours,
            &workload.orchestrator,
            format!("{}/{}", key.namespace, workload.workload),
            &workload.endpoint,
        );
        let claim = (id, key);
        best.entry(&workload.interface_name)
            .and_modify(|held| {
                if claim < *held {
                    held.clone_from(&claim);
                }
            })
            .or_insert(claim);
    }
    best.into_iter().map(|(interface, (_, key))| (interface, key)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(namespace: &str, orchestrator: &str, workload: &str) -> (EndpointKey, WorkloadEndpoint) {
        let endpoint = WorkloadEndpoint {
            orchestrator: orchestrator.to_owned(),
            workload: workload.to_owned(),
            endpoint: "eth0".to_owned(),
            interface_name: "cali1".to_owned(),
            ..WorkloadEndpoint::default()
        };
        // The keys' own order says nothing.
        (EndpointKey::new(namespace, &format!("z{}", workload.len())), endpoint)
    }

    #[test]
    fn what_a_veth_is_born_with_shapes_nothing_and_whatever_else_is_there_does() {
        for born in ["", "noqueue", "noop"] {
            assert_eq!(Shape::of(born, None), None, "{born}");
            assert_eq!(Shape::of(born, Some(FilterHook::Ingress)), Some(Shape::Out), "{born}");
            assert_eq!(Shape::of(born, Some(FilterHook::Both)), Some(Shape::Both), "{born}");
        }
        for other in ["tbf", "htb", "pfifo_fast", "mq"] {
            assert_eq!(Shape::of(other, None), Some(Shape::In), "{other}");
            assert_eq!(Shape::of(other, Some(FilterHook::Ingress)), Some(Shape::Both), "{other}");
        }
    }

    #[test]
    fn the_lowest_by_orchestrator_workload_and_endpoint_has_the_interface_but_our_plugins_comes_first() {
        let claims = [
            claim("a", "k8s", "a"),
            claim("b", "cni", "zz"),
            claim("a", "cni", "zzz"),
            claim("b", "cni", "a-long-one"),
        ];
        let owner = |ours: Option<usize>| {
            let all = claims.iter().enumerate().map(|(n, (key, endpoint))| (key, endpoint, ours == Some(n)));
            let forward = interface_owners(all.clone())["cali1"];
            let mut reversed: Vec<_> = all.collect();
            reversed.reverse();
            assert_eq!(interface_owners(reversed.into_iter())["cali1"], forward, "in any order");
            claims.iter().position(|(key, _)| key == forward)
        };
        assert_eq!(owner(None), Some(2), "the namespace is part of the workload");
        assert_eq!(owner(Some(0)), Some(0));
        let nameless = (EndpointKey::new("a", "n"), WorkloadEndpoint::default());
        assert!(interface_owners([(&nameless.0, &nameless.1, false)].into_iter()).is_empty());
    }
}
