//! The apply cycle: desired state → kernel, in one order, and what is told when it has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use canal_common::settings::Settings;
use ipnet::Ipv4Net;
use tracing::{info, warn};

use super::{
    Node,
    endpoints::{Locals, Terms},
    state::{NodeError, settings},
    uplink::{self, Host},
};
use crate::{
    dataplane::{
        hooks::Place,
        host,
        masquerade::{self, MasqueradeError},
        nodes::Peer,
        object::Object,
        overlay::{self, ROUTE_PROTOCOL},
        policy::Problem,
        routes,
    },
    endpoint::status_files::{self, StatusFileError},
    netlink::{Link, Route, sysctl},
    store::{SubnetEnv, subnet_file::SubnetFileError},
};

/// Whether the host forwards.
const FORWARD: &str = "net/ipv4/ip_forward";

impl Node {
    /// Makes the kernel agree with what is known. Order: device, peers, hooks, policy, endpoints, then what is left over.
    pub(super) fn reconcile(&mut self) {
        if !self.store.in_sync() {
            return;
        }
        self.bring_up_to_date();
        if self.answer_waiting() {
            // A refused endpoint leaves nothing behind.
            self.bring_up_to_date();
        }
        if self.failure.is_none()
            && let Some(ready) = self.ready.take()
        {
            let _ = ready.send(());
        }
        let (problems, invalid) = (self.all_problems(), self.invalid());
        self.health.set_ready(self.readiness());
        self.health.say(&self.in_one_line(&problems));
        self.told.problems(problems);
        self.told.invalid(invalid);
        self.keep_memory();
    }

    /// A lease, the first lists applied, and the subnet file written; the last two are not lost again.
    fn readiness(&self) -> Result<(), String> {
        match (&self.lease_problem, &self.ready) {
            (Some(problem), _) => Err(problem.clone()),
            (None, Some(_)) => {
                Err(self.failure.clone().unwrap_or_else(|| "not everything is in the kernel yet".to_owned()))
            }
            (None, None) => Ok(()),
        }
    }

    /// For the service manager.
    fn in_one_line(&self, problems: &[String]) -> String {
        let subnet = self.lease.subnet;
        let (peers, pods) = (self.nodes.len(), self.locals.all().count());
        match problems {
            [] => format!("{subnet}, {peers} peers, {pods} pods"),
            [one] => format!("{subnet}, {peers} peers, {pods} pods; {one}"),
            [one, rest @ ..] => {
                format!("{subnet}, {peers} peers, {pods} pods; {one}; {} more problems", rest.len())
            }
        }
    }

    fn bring_up_to_date(&mut self) {
        let begun = Instant::now();
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
        self.health.beat();
        // The next one looks at everything, unless this one comes to its end.
        let everything = std::mem::replace(&mut self.all_is_due, true) || self.failure.is_some();
        if everything || !self.follow_policy() {
            self.apply_all();
        }
        self.all_is_due = self.failure.is_some();
        self.cycles.record(begun.elapsed(), self.failure.is_some());
    }

    /// After a change that only policy has to follow, only policy is touched; false if it was not such a change, or failed.
    fn follow_policy(&mut self) -> bool {
        let locals = self.find_locals();
        if locals.wires() != self.locals.wires() {
            return false;
        }
        self.locals = locals;
        self.judge().is_ok()
    }

    fn apply_all(&mut self) {
        self.problems.clear();
        self.put_pins_back();
        let uplink = self.follow_uplink();
        self.tell_keeper();
        self.forward();
        self.health.beat();
        // Policy does not wait for a broken underlay, nor the other way round.
        let wanted = self.overlay();
        let device = match &wanted {
            Some(wanted) => self.ensure_device(wanted).map(Some),
            None => Ok(None),
        };
        // Before they are put anywhere, the programs are as they are to be; also where the device is not to be had.
        let index = match &device {
            Ok(Some(device)) => device.index,
            Ok(None) => 0,
            Err(_) => self.settings.overlay_ifindex,
        };
        let (overlay, policy) = match self.prepare_programs(index) {
            Ok(()) => (
                device.map_err(NodeError::from).and_then(|device| self.apply_peers(device.as_ref(), uplink)),
                self.apply_policy(),
            ),
            Err(error) => {
                self.locals = self.find_locals();
                (Err(error), self.judge())
            }
        };
        let failures: Vec<String> =
            [overlay, policy].into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        self.failure = (!failures.is_empty()).then(|| failures.join("; "));
        if self.failure.is_none() && wanted.is_none() {
            // Of another backend, before: until now it carried the packets.
            self.failure = overlay::remove(&mut self.netlink).err().map(|error| error.to_string());
        }
        self.health.beat();
        if self.failure.is_none() {
            self.failure = self.replace_flannels_device(wanted.as_ref()).err().map(|error| error.to_string());
        }
        match self.apply_masquerade() {
            Ok(()) if self.failure.is_none() => self.clear_after_flannel(),
            Ok(()) => {}
            Err(error) => self.problems.push(error.to_string()),
        }
        // Other programs take the file for a sign that all is there; without it no pod comes up.
        if self.failure.is_none() {
            self.failure = self.write_subnet_file().err().map(|error| error.to_string());
        }
    }

    /// Before anything else: programs that are loaded anew take the tables that are pinned, or empty ones.
    fn put_pins_back(&mut self) {
        let fragments = self.defrag.as_ref().map_or(Ok(false), |defrag| defrag.put_back(&self.pins));
        let fragments = fragments.map(|back| back.then(|| "defrag".to_owned()).into_iter().collect());
        let back = [self.object.put_back(&self.pins), self.hooks.put_back(), fragments];
        for back in back {
            match back {
                Ok(back) if back.is_empty() => {}
                Ok(back) => {
                    warn!(
                        pins = back.join(" "),
                        "somebody removed pins; they are back, and nothing was lost"
                    );
                }
                Err(error) => self.problems.push(error.to_string()),
            }
        }
    }

    fn apply_masquerade(&mut self) -> Result<(), MasqueradeError> {
        if self.masquerade_due {
            match &self.config.ip_masq {
                Some(rules) => self.masquerade.ensure(&masquerade::Terms {
                    network: self.network.network,
                    subnet: self.lease.subnet,
                    exempt: rules.exempt.iter().chain(&self.elsewhere).copied().collect(),
                    fully_random: !rules.keep_ports,
                })?,
                // An earlier agent may have had the flag; a host without nft has no table.
                None => drop(masquerade::remove()),
            }
            self.masquerade_due = false;
        }
        Ok(())
    }

    fn prepare_programs(&mut self, overlay_ifindex: u32) -> Result<(), NodeError> {
        // Before the programs that may read them.
        let addresses = self.netlink.addresses(None)?;
        match self.host_addresses.apply(&host::addresses_of(addresses.iter().map(|a| a.net))) {
            Ok(changed) => self.judge_anew |= changed && self.settings.flags & Settings::DROP_TO_HOST != 0,
            Err(error) => self.problems.push(error.to_string()),
        }
        self.reload_if_changed(overlay_ifindex)
    }

    fn apply_peers(&mut self, device: Option<&Link>, uplink: Result<(), NodeError>) -> Result<(), NodeError> {
        let routes = self.netlink.routes()?;
        // A link that is down has lost its routes, and no node its place on it.
        if self.uplink_runs || self.ways.is_empty() {
            let is_others = |route: &&Route| route.protocol != ROUTE_PROTOCOL || route.gateway.is_none();
            self.ways = routes.iter().filter(is_others).cloned().collect();
        }
        self.peers.set_means(self.means());
        let peers = self.peers.desired(self.own(), |ip| self.is_on_link(ip));
        self.keep_addresses_to(&peers);
        let problems = self.nodes.apply(&peers);
        self.problems.extend(problems);
        self.apply_routes(device, &peers, &routes);
        self.problems.extend(self.peers.unreachable(self.own(), |ip| self.is_on_link(ip)));
        let claims = self.claims();
        self.problems.extend(claims);
        self.hooks.pin_judge(&mut self.object)?;
        if let Some(device) = device {
            self.hooks.attach(&mut self.object, Place::Overlay, &device.name, device.index)?;
        }
        uplink?;
        if !self.judges_in_driver() {
            // Before the program above it is one that does not know what this one has done.
            self.hooks.detach(Place::Driver, &self.uplink.name)?;
        }
        if self.judges_uplink() {
            self.hooks.attach(&mut self.object, Place::Uplink, &self.uplink.name, self.uplink.index)?;
        }
        if self.judges_in_driver()
            && let Err(error) =
                self.hooks.attach(&mut self.object, Place::Driver, &self.uplink.name, self.uplink.index)
        {
            self.problems
                .push(format!("{error}; VXLAN is taken off one layer above, as with --decap-gear tc"));
        }
        Ok(())
    }

    /// Pods of nodes with another network see each other's address, too.
    fn keep_addresses_to(&mut self, peers: &BTreeMap<Ipv4Net, Peer>) {
        let elsewhere = peers.keys().filter(|subnet| !self.network.network.contains(*subnet)).copied();
        let elsewhere = Ipv4Net::aggregate(&elsewhere.collect());
        if self.elsewhere != elsewhere {
            self.elsewhere = elsewhere;
            self.masquerade_due = true;
        }
    }

    fn apply_routes(&mut self, device: Option<&Link>, peers: &BTreeMap<Ipv4Net, Peer>, present: &[Route]) {
        if !self.uplink_runs {
            return; // The kernel would refuse each of them.
        }
        let territory = self.territory();
        self.problems.extend(territory.problem(self.network.network));
        let (overlay, index) = (self.overlay(), device.map(|device| device.index));
        let place = routes::Place {
            backend: &self.network.backend,
            overlay: overlay.as_ref().zip(index),
            pods: &territory.nets(),
            subnet: self.lease.subnet,
            uplink: self.uplink.index,
        };
        let lost = self.peers.lost(self.own(), |ip| self.is_on_link(ip));
        let wanted = routes::wanted(place, peers, &lost, present);
        let problems = routes::ensure(&mut self.netlink, index, present, &wanted);
        self.problems.extend(problems);
    }

    /// The uplink may have been made anew, got another address or MTU, or be another interface by now. While there is none
    /// that would do, the last one counts.
    fn follow_uplink(&mut self) -> Result<(), NodeError> {
        let host = Host::read(&mut self.netlink, &self.config.uplink)?;
        let now = uplink::choose_again(&host, &self.config.uplink, &self.uplink)?;
        if now != self.uplink {
            info!(before = %self.uplink, now = %now, reason = now.reason, "the uplink is another now; following it");
            self.uplink = now;
            self.peers.set_means(self.means());
        }
        let uplink = &self.uplink;
        self.uplink_runs = host.links.iter().any(|link| link.index == uplink.index && link.running);
        if !self.uplink_runs {
            self.problems.push(format!("the uplink {} is down: no other node can be reached", uplink.name));
        }
        Ok(())
    }

    /// Whatever carries packets to other nodes, the host's stack has its part in it.
    fn forward(&mut self) {
        match sysctl::set(FORWARD, "1") {
            Ok(true) => info!(key = FORWARD, value = "1", "set sysctl"),
            Ok(false) => {}
            Err(error) => {
                self.problems.push(format!("{error}; the host forwards nothing for its pods until it is 1"));
            }
        }
    }

    /// What of this node changes under way is published under its lease.
    fn tell_keeper(&self) {
        self.terms.send_if_modified(|terms| {
            let before = terms.clone();
            terms.network.clone_from(&self.network);
            terms.attributes.public_ip = self.uplink.public_ip;
            *terms != before
        });
    }

    /// Hooks, then sets, then policies, then endpoints, then routes; then what is left over.
    fn apply_policy(&mut self) -> Result<(), NodeError> {
        if let Some(error) = self.links.read(&mut self.netlink)? {
            self.problems.push(format!("{error}; limits on pods' interfaces may be without effect"));
        }
        self.locals = self.find_locals();
        let mut wanted: BTreeSet<_> =
            self.overlay().map(|overlay| (Place::Overlay, overlay.name())).into_iter().collect();
        if self.judges_uplink() {
            wanted.insert((Place::Uplink, self.uplink.name.clone()));
        }
        if self.judges_in_driver() {
            wanted.insert((Place::Driver, self.uplink.name.clone()));
        }
        let guarded: Vec<(String, u32)> =
            self.locals.guarded().map(|(interface, ifindex)| (interface.to_owned(), ifindex)).collect();
        let (hooked, bare): (Vec<_>, Vec<_>) = guarded
            .into_iter()
            .partition(|(interface, ifindex)| self.hooks.are_on(Place::Pod, interface, *ifindex));
        // Where nothing judges yet, hooks before tables: until its policy stands, the endpoint is closed. Where an earlier
        // process's programs judge, tables before hooks: these two may read other tables.
        self.attach_pods(bare, &mut wanted);
        self.judge()?;
        self.attach_pods(hooked, &mut wanted);
        // By the new programs, which are in place by now.
        if self.judge_anew {
            self.policy.judge_all_again()?;
            self.judge_anew = false;
        }
        self.problems.extend(self.locals.connect(&mut self.netlink)?);
        self.hooks.sweep(&wanted)?;
        for other in self.pins.remove_other_layouts()? {
            info!(layout = other, "removed the tables of another layout");
        }
        Ok(())
    }

    fn attach_pods(&mut self, interfaces: Vec<(String, u32)>, wanted: &mut BTreeSet<(Place, String)>) {
        for (interface, ifindex) in interfaces {
            self.health.beat();
            match self.hooks.attach(&mut self.object, Place::Pod, &interface, ifindex) {
                Ok(()) => drop(wanted.insert((Place::Pod, interface))),
                Err(error) => self.locals.close_interface(&interface, &error.to_string()),
            }
        }
    }

    fn find_locals(&self) -> Locals {
        let parameters = self.steering.parameters();
        let terms = Terms {
            prefixes: &parameters.interface_prefixes,
            uplink: self.uplink.index,
            may_spoof: parameters.may_spoof,
        };
        Locals::find(&self.cluster, &self.registry, &terms, &self.compiler, &self.links)
    }

    /// Has the kernel judge as policy says.
    fn judge(&mut self) -> Result<(), NodeError> {
        let problems = self.policy.apply(self.compiler.census(), &self.locals.desired())?;
        self.health.beat();
        self.of_endpoints.clear();
        for (addr, Problem { reason, keeps_last }) in problems {
            let effect = if keeps_last { "keeps its last policy" } else { "is closed" };
            self.of_endpoints.push(format!("endpoint {addr} {effect}: {reason}"));
            if keeps_last { self.locals.degrade(addr, reason) } else { self.locals.close(addr, reason) }
        }
        if let Err(error) = self.spoofing.apply(&self.locals.borrowed()) {
            self.of_endpoints.push(error.to_string());
        }
        self.spoofing.judge_lost(|addr| self.policy.judge_again(addr))?;
        if let Err(error) = self.write_status_files() {
            self.of_endpoints.push(error.to_string());
        }
        Ok(())
    }

    /// What the programs know of this node is constant in them: when an interface was made anew, or a parameter changed,
    /// so must they be. The tables stay.
    fn reload_if_changed(&mut self, overlay_ifindex: u32) -> Result<(), NodeError> {
        let settings = Settings {
            overlay_ifindex,
            ..settings(
                &self.config,
                self.steering.parameters(),
                &self.network,
                &self.territory(),
                &self.uplink,
                self.vtep_mac,
                self.defrag.is_some(),
            )
        };
        if settings != self.settings {
            self.object = Object::load(&settings, Some(&self.pins), &self.config.sizes.by_name())?;
            self.judge_anew |= settings.flags != self.settings.flags;
            self.settings = settings;
            self.hooks.renew();
        }
        Ok(())
    }

    /// True when some endpoint was refused.
    fn answer_waiting(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return false;
        }
        let mut refused = false;
        for (endpoint, reply) in waiting {
            let result = self.verdict(&endpoint);
            match &result {
                Ok(()) => {
                    info!(container = endpoint.container_id, addresses = ?endpoint.addresses, "endpoint is up");
                }
                Err(error) => {
                    warn!(container = endpoint.container_id, %error, "endpoint refused");
                    self.withdraw(&endpoint);
                    refused = true;
                }
            }
            let _ = reply.send(result);
        }
        self.publishing.now();
        refused
    }

    fn write_status_files(&mut self) -> Result<(), StatusFileError> {
        let wanted = self.locals.enforced().into_iter().filter_map(|key| {
            let endpoint = self.cluster.endpoint(key)?;
            Some((status_files::name(key, endpoint), status_files::content(endpoint)))
        });
        let wanted = wanted.collect();
        self.status_files.apply(self.steering.parameters().status_files.as_deref(), &wanted)
    }

    fn write_subnet_file(&self) -> Result<(), SubnetFileError> {
        let env = SubnetEnv {
            network: self.network.network,
            subnet: self.lease.subnet,
            mtu: self.mtu(),
            ipmasq: self.config.ip_masq.is_some(),
        };
        if env.write(&self.config.subnet_file)? {
            info!(file = %self.config.subnet_file.display(), subnet = %self.lease.subnet, "wrote the subnet file");
        }
        Ok(())
    }
}
