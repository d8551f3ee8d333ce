//! Pods coming and going: what the CNI plugin asks for, and what is left to do when it, or the pod, was cut off.
//!
//! An attachment is *begun* before the plugin touches anything, *present* once its policy is enforced, and *leaving* from
//! the end of its pod until address and interface are given back and etcd has been told. What was begun and never ended,
//! and what has lost its interface, leaves by itself. Whatever no record explains is told and left alone: a registry that
//! was lost must cost no living pod anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{Node, NodeError, endpoints::Local};
use crate::{
    api::wire::{
        AddEndpoint, ApiError, AttachmentId, Collect, Collected, EndpointReport, Goodbye, Readiness,
    },
    endpoint::{
        Leases, Phase, Record, RegistryError,
        goodbyes::{self, Unheard},
        mark,
        publish::{self, Wanted},
    },
    model::{
        EndpointKey, Pod,
        endpoint::{Birth, EndpointName},
        profile,
    },
    netlink,
};

/// No call of the plugin takes longer: what was begun before was cut off.
const ABANDONED: Duration = Duration::from_mins(2);
/// How long an interface is missed before its pod counts as gone. The runtime's DEL comes in this time, as a rule.
const MISSED: Duration = Duration::from_mins(1);

/// Since when a pod's interface has been missing.
pub(super) type Missing = BTreeMap<AttachmentId, Instant>;

impl Node {
    /// Notes what the plugin is about to make.
    pub(super) fn begin_endpoint(&mut self, endpoint: AddEndpoint) -> Result<bool, ApiError> {
        self.accepts()?;
        let id = endpoint.id();
        let again = |message: &str| Err(ApiError { message: message.to_owned(), try_again: true });
        let Some(before) = self.registry.records().get(&id).cloned() else {
            self.registry.insert(endpoint, Phase::Begun).map_err(refused)?;
            return Ok(false);
        };
        if before.phase == Phase::Leaving && before.endpoint.attempt == endpoint.attempt {
            return again("it was deleted meanwhile");
        }
        let former = self.registry.key(&before.endpoint).map_err(refused)?;
        let renamed = self.registry.key(&endpoint).map_err(refused)? != former;
        if renamed && before.former.is_some() {
            return again("etcd has yet to be told of the container's former name");
        }
        if before.endpoint.leases != endpoint.leases
            && let Err(error) = release(before.endpoint.leases.as_deref(), &id, &[])
        {
            return again(&format!("cannot give back its address of before: {error}"));
        }
        let key = self.registry.insert(endpoint, Phase::Begun).map_err(refused)?;
        // The container is made anew, and what it was is no more.
        let changed = before.phase == Phase::Present || renamed;
        if changed {
            self.follow_holder(key);
            self.follow_holder(former);
        }
        if renamed {
            self.publish();
        }
        Ok(changed)
    }

    /// Takes what was announced. What was given up meanwhile is not: its address may be another's.
    pub(super) fn add_endpoint(
        &mut self,
        endpoint: AddEndpoint,
        reply: oneshot::Sender<Result<(), ApiError>>,
    ) -> bool {
        let begun = self.registry.records().get(&endpoint.id()).is_some_and(|record| {
            record.phase == Phase::Begun && record.endpoint.attempt == endpoint.attempt
        });
        let inserted = self.accepts().and_then(|()| {
            if !begun {
                let message = "this ADD was not announced, or has been given up".to_owned();
                return Err(ApiError { message, try_again: true });
            }
            self.registry.insert(endpoint.clone(), Phase::Present).map_err(refused)
        });
        match inserted {
            Ok(key) => {
                self.assume_profile(&endpoint);
                self.follow_holder(key);
                self.waiting.push((endpoint, reply));
                true
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                false
            }
        }
    }

    /// Before the policies are known, a new pod could only be closed.
    pub(super) fn accepts(&self) -> Result<(), ApiError> {
        if self.store.in_sync() {
            return Ok(());
        }
        let message = self
            .not_ready()
            .unwrap_or_else(|| "the agent has not read the policies from etcd yet".to_owned());
        Err(ApiError { message, try_again: true })
    }

    /// The first pod of a network need not wait for the profile that is about to be published. What the store says of
    /// it later stands.
    fn assume_profile(&mut self, endpoint: &AddEndpoint) {
        let Some(network) = endpoint.own_profile() else { return };
        let key = publish::profile_key(network);
        if self.cluster.profile(network).is_none() && !self.cluster.invalid().contains_key(&key) {
            let birth = Birth { uid: String::new(), creation_timestamp: String::new() };
            self.cluster.apply(&key, Some(profile::network_profile_json(network, &birth).as_bytes()));
        }
    }

    /// The pod is gone. One that Calico's plugin made is known from its WorkloadEndpoint. False: nothing was known.
    pub(super) fn delete_endpoint(
        &mut self,
        id: &AttachmentId,
        goodbye: &Goodbye,
    ) -> Result<bool, RegistryError> {
        if self.registry.records().contains_key(id) {
            return self.leave(id);
        }
        let Some(foreign) = self.made_by_calico(id, goodbye) else { return Ok(false) };
        let interface = foreign.host_interface.clone();
        self.registry.insert(foreign, Phase::Begun)?;
        let left = self.leave(id)?;
        // Now or never: etcd says whose it is, and later the name may be another pod's.
        if let Err(error) = self.remove_unmarked(id, &interface) {
            warn!(%error, interface, "cannot remove the interface of a pod of Calico's plugin");
        }
        Ok(left)
    }

    /// Calico's plugin marks nothing. What is another's of ours is announced before it is made.
    fn remove_unmarked(&mut self, id: &AttachmentId, interface: &str) -> Result<(), netlink::Error> {
        // A pod of Calico's plugin that has the name by now.
        let mut pods = self.cluster.endpoints_of(&self.config.node_name);
        if pods.any(|(_, pod)| pod.interface_name == interface && pod.container_id != id.container_id) {
            return Ok(());
        }
        let mut others = self.registry.records().iter().filter(|(other, _)| *other != id);
        if interface.is_empty() || others.any(|(_, record)| record.endpoint.host_interface == interface) {
            return Ok(());
        }
        match self.netlink.link_by_name(interface)? {
            Some(link) if link.kind == "veth" && link.alias.is_none() => {
                self.netlink.delete_link(&link).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether an end can be taken in: what no record knows may be in etcd, which has to be read first.
    pub(super) fn can_hear(&self, id: &AttachmentId) -> Result<(), ApiError> {
        if self.registry.records().contains_key(id) { Ok(()) } else { self.accepts() }
    }

    fn leave(&mut self, id: &AttachmentId) -> Result<bool, RegistryError> {
        let Some(key) = self.registry.leave(id)? else { return Ok(false) };
        info!(endpoint = %key, container = id.container_id, "endpoint leaves");
        self.missing.remove(id);
        self.follow_holder(key);
        self.publish();
        Ok(true)
    }

    /// An endpoint of this node that etcd has and no record explains.
    fn made_by_calico(&self, id: &AttachmentId, goodbye: &Goodbye) -> Option<AddEndpoint> {
        let node = goodbye.node.as_ref().unwrap_or(&self.config.node_name);
        let (key, workload) = self.cluster.endpoints().find(|(_, workload)| {
            workload.node == *node
                && workload.container_id == id.container_id
                && workload.endpoint == id.interface
        })?;
        let pod = match workload.orchestrator.as_str() {
            EndpointName::CNI => None,
            EndpointName::KUBERNETES => Some(Pod {
                namespace: key.namespace.clone(),
                name: workload.workload.clone(),
                ..Pod::default()
            }),
            _ => return None,
        };
        Some(AddEndpoint {
            container_id: id.container_id.clone(),
            interface: id.interface.clone(),
            host_interface: workload.interface_name.clone(),
            addresses: workload.addresses.clone(),
            mac: workload.mac,
            network: goodbye.network.clone(),
            node: goodbye.node.clone(),
            leases: goodbye.leases.clone(),
            pod,
            ..AddEndpoint::default()
        })
    }

    /// How the attachment stands; `None`: it is not known.
    pub(super) fn report(&self, id: &AttachmentId) -> Option<EndpointReport> {
        let Some(record) = self.registry.records().get(id) else {
            let endpoint = self.made_by_calico(id, &Goodbye::default())?;
            let reason = self.verdict(&endpoint).err().map(|error| error.message);
            let state = if reason.is_none() { "ready" } else { "closed" };
            return Some(EndpointReport { endpoint, state: state.to_owned(), reason });
        };
        let (state, reason) = match record.phase {
            Phase::Begun => ("begun".to_owned(), Some("its ADD has not ended".to_owned())),
            Phase::Leaving => ("leaving".to_owned(), Some("it was deleted".to_owned())),
            Phase::Present => match self.verdict(&record.endpoint) {
                Ok(()) => ("ready".to_owned(), None),
                Err(error) if self.failure.as_ref() == Some(&error.message) => {
                    ("unsettled".to_owned(), Some(error.message))
                }
                Err(error) => ("closed".to_owned(), Some(error.message)),
            },
        };
        Some(EndpointReport { endpoint: record.endpoint.clone(), state, reason })
    }

    /// What an ADD would meet.
    pub(super) fn can_attach(&self) -> Readiness {
        let reason = self.accepts().err().map(|error| error.message).or_else(|| self.not_ready());
        Readiness { limited: self.failure.is_some(), reason: reason.or_else(|| self.failure.clone()) }
    }

    /// Everything of a network that the runtime does not list leaves: records, endpoints that Calico's plugin made, and
    /// interfaces.
    pub(super) fn collect(&mut self, asked: &Collect) -> Collected {
        let mut collected = Collected::default();
        let mut gone: BTreeSet<AttachmentId> = self
            .registry
            .records()
            .iter()
            .filter(|(id, record)| {
                record.endpoint.network == asked.network
                    && record.phase != Phase::Leaving
                    && !asked.valid.contains(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        gone.extend(asked.stale.iter().filter(|id| !asked.valid.contains(id)).cloned());
        // What is being made is not on the runtime's list yet.
        gone.retain(|id| {
            let record = self.registry.records().get(id);
            let is_young = record.is_some_and(|record| record.phase == Phase::Begun)
                && self.registry.age(id) <= ABANDONED;
            if is_young {
                collected.kept.insert(id.clone());
            }
            !is_young
        });
        let goodbye = Goodbye {
            network: asked.network.clone(),
            leases: asked.leases.clone(),
            node: asked.node.clone(),
        };
        for id in &gone {
            match self.delete_endpoint(id, &goodbye) {
                Ok(true) => {
                    collected.removed.push(id.to_string());
                    collected.problems.extend(self.give_back(id).err());
                }
                Ok(false) => {}
                Err(error) => collected.problems.push(error.to_string()),
            }
        }
        match self.netlink.links() {
            Ok(links) => {
                for link in links {
                    let Some(marked) = link.alias.as_deref().and_then(mark::read) else { continue };
                    let id = AttachmentId::new(marked.container_id, marked.interface);
                    let known = self.registry.records().contains_key(&id) || asked.valid.contains(&id);
                    if known || link.kind != "veth" || marked.network != Some(asked.network.as_str()) {
                        continue;
                    }
                    match self.netlink.delete_link(&link) {
                        Ok(_) => collected.removed.push(format!("{id} ({})", link.name)),
                        Err(error) => collected.problems.push(error.to_string()),
                    }
                }
            }
            Err(error) => collected.problems.push(error.to_string()),
        }
        collected
    }

    /// Looks for what was cut off: attachments that nobody goes on with, and pods without interface. At the start nobody
    /// is about to delete these any more.
    pub(super) fn sweep(&mut self, at_start: bool) -> Result<(), NodeError> {
        let links = self.netlink.links()?;
        // There is always one, the loopback's: none at all is no answer to act upon.
        if links.is_empty() {
            return Ok(());
        }
        let there: BTreeMap<&str, Option<&str>> =
            links.iter().map(|link| (link.name.as_str(), link.alias.as_deref())).collect();
        let now = Instant::now();
        let mut gone = Vec::new();
        for (id, record) in self.registry.records() {
            let name = record.endpoint.host_interface.as_str();
            // Without a mark it is an earlier version's, or somebody took it off.
            let has_interface = there.get(name).is_some_and(|alias| {
                alias.is_none_or(|alias| mark::read(alias).is_none() || mark::is_of(Some(alias), id))
            });
            match record.phase {
                Phase::Begun if self.registry.age(id) > ABANDONED => {
                    gone.push((id.clone(), "its ADD was cut off"));
                }
                Phase::Begun | Phase::Leaving => {}
                Phase::Present if has_interface => drop(self.missing.remove(id)),
                Phase::Present => {
                    let since = *self.missing.entry(id.clone()).or_insert(now);
                    if at_start || now.duration_since(since) > MISSED {
                        gone.push((id.clone(), "its interface is gone"));
                    }
                }
            }
        }
        for (id, why) in gone {
            info!(container = id.container_id, interface = id.interface, why, "an endpoint is given up");
            self.leave(&id)?;
            if let Err(problem) = self.give_back(&id) {
                warn!(problem, "the rest is tried again");
            }
        }
        Ok(())
    }

    /// What DELs left word of while nobody listened. It waits until etcd has been read: some are known only there.
    pub(super) fn hear_goodbyes(&mut self) {
        if !self.store.in_sync() {
            return;
        }
        let folder = goodbyes::folder(&self.config.socket);
        let unheard = goodbyes::read(&folder).unwrap_or_else(|error| {
            warn!(%error, folder = %folder.display(), "cannot read what DELs left word of");
            Vec::new()
        });
        for Unheard { id, goodbye, at } in unheard {
            let heard = if self.came_back(&id, at) { Ok(()) } else { self.end_of_the_past(&id, &goodbye) };
            let heard =
                heard.and_then(|()| goodbyes::forget(&folder, &id).map_err(|error| error.to_string()));
            if let Err(problem) = heard {
                warn!(container = id.container_id, problem, "a DEL of the past cannot be ended yet");
            }
        }
    }

    fn end_of_the_past(&mut self, id: &AttachmentId, goodbye: &Goodbye) -> Result<(), String> {
        match self.delete_endpoint(id, goodbye) {
            // No record and no endpoint can have such a name.
            Ok(_) | Err(RegistryError::Invalid { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        release(goodbye.leases.as_deref(), id, &[]).map_err(|error| error.to_string())
    }

    /// Whether the container was attached again after that time, so that the word of its end is of an earlier life. Where
    /// the clock has jumped, its interface tells.
    fn came_back(&mut self, id: &AttachmentId, at: u64) -> bool {
        let Some(record) = self.registry.records().get(id).filter(|record| record.since > at) else {
            return false;
        };
        let (phase, name) = (record.phase, record.endpoint.host_interface.clone());
        // Who cannot be asked may be there.
        let mut has_interface = || {
            let link = self.netlink.link_by_name(&name);
            link.map_or(true, |link| link.is_some_and(|link| mark::is_of(link.alias.as_deref(), id)))
        };
        phase == Phase::Begun || (phase == Phase::Present && has_interface())
    }

    /// Etcd holds this endpoint of the container no longer.
    pub(super) fn hear_gone(&mut self, id: &AttachmentId, key: &EndpointKey) {
        let Some(record) = self.registry.records().get(id) else { return };
        let is_own = self.registry.key(&record.endpoint).is_ok_and(|own| own == *key);
        if record.former.as_ref() == Some(key) {
            if let Err(error) = self.registry.forget_former(id) {
                warn!(%error, "cannot note that an endpoint's former name is gone");
                return;
            }
            self.told_gone.push((key.clone(), Instant::now()));
            // Its present name may have been told of before this one.
            self.publish();
        } else if is_own && record.phase == Phase::Leaving && record.former.is_none() {
            self.finish(id);
        }
    }

    /// What it had is given back, then the record goes.
    fn finish(&mut self, id: &AttachmentId) {
        let Some(record) = self.registry.records().get(id) else { return };
        let key = self.registry.key(&record.endpoint).ok();
        let done =
            self.give_back(id).and_then(|()| self.registry.forget(id).map_err(|error| error.to_string()));
        match done {
            Ok(()) => {
                self.unfinished.remove(id);
                // What the store's mirror has not heard yet must not come back into force.
                self.told_gone.extend(key.map(|key| (key, Instant::now())));
            }
            Err(problem) => {
                if self.unfinished.insert(id.clone(), problem.clone()).as_ref() != Some(&problem) {
                    warn!(container = id.container_id, problem, "an endpoint cannot leave yet; trying again");
                }
            }
        }
    }

    /// The cluster need not remember for ever whose end was told.
    pub(super) fn forget_the_retired(&mut self) {
        let mut told = std::mem::take(&mut self.told_gone);
        told.retain(|(key, at)| {
            let is_held = self.registry.holder(key).is_some() || self.registry.leaver(key).is_some();
            !is_held && (at.elapsed() < MISSED || !self.cluster.forget_retired(key))
        });
        self.told_gone.append(&mut told);
    }

    /// Those that could not be ended are tried again; interface and address go also while etcd cannot be told.
    pub(super) fn finish_the_unfinished(&mut self) {
        let leaving: Vec<_> = self.registry.leaving().map(|(_, record)| record.endpoint.id()).collect();
        for id in leaving.iter().filter(|id| !self.unfinished.contains_key(id)).cloned().collect::<Vec<_>>() {
            if let Err(problem) = self.give_back(&id) {
                debug!(container = id.container_id, problem, "an endpoint's address is given back later");
            }
        }
        for id in self.unfinished.keys().cloned().collect::<Vec<_>>() {
            self.finish(&id);
        }
    }

    /// The interface and the address of an attachment that leaves. The plugin has done it, as a rule.
    fn give_back(&mut self, id: &AttachmentId) -> Result<(), String> {
        let Some(record) = self.registry.records().get(id).filter(|r| r.phase == Phase::Leaving) else {
            return Ok(());
        };
        let endpoint = record.endpoint.clone();
        // An endpoint that somebody else wrote may name none.
        let name = Some(endpoint.host_interface.as_str()).filter(|name| !name.is_empty());
        let link = name.map(|name| self.netlink.link_by_name(name)).transpose().map_err(|e| e.to_string())?;
        if let Some(link) =
            link.flatten().filter(|link| link.kind == "veth" && mark::is_of(link.alias.as_deref(), id))
        {
            self.netlink.delete_link(&link).map_err(|e| e.to_string())?;
        }
        // Its plugin was cut off before it could mark it; ours are down until they are handed over.
        let mut links = || self.netlink.link_by_name(&endpoint.host_interface);
        if endpoint.mac.is_none() && links().is_ok_and(|link| link.is_some_and(|link| !link.up)) {
            self.remove_unmarked(id, &endpoint.host_interface).map_err(|e| e.to_string())?;
        }
        release(endpoint.leases.as_deref(), id, &endpoint.addresses)
            .map_err(|e| format!("cannot give back the address of {id}: {e}"))
    }

    /// The cluster's view of an endpoint is that of who holds it now.
    fn follow_holder(&mut self, key: EndpointKey) {
        if let Some(record) = self.registry.holder(&key) {
            let workload = record.workload(&self.config.node_name);
            self.cluster.set_local_endpoint(key, Some(workload));
        } else if let Some(record) = self.registry.leaver(&key) {
            let container = record.endpoint.container_id.clone();
            self.cluster.retire_endpoint(key, &container);
        } else if let Some((_, id)) = self.registry.former().find(|(former, _)| **former == key) {
            let container = id.container_id.clone();
            self.cluster.retire_endpoint(key, &container);
        } else {
            self.cluster.set_local_endpoint(key, None);
        }
        self.all_is_due = true;
    }

    pub(super) fn overlay_registry(&mut self) {
        let present = self.registry.present().map(|(key, _)| key.clone());
        let keys: BTreeSet<_> = present.chain(self.registry.leaving().map(|(key, _)| key)).collect();
        for key in keys {
            self.follow_holder(key);
        }
        self.publish();
    }

    pub(super) fn publish(&self) {
        self.wanted.send_replace(Wanted {
            present: self
                .registry
                .present()
                .map(|(key, record)| (key.clone(), self.as_it_is(key, record)))
                .collect(),
            leaving: self.registry.leaving().map(|(key, record)| (record.endpoint.id(), key)).collect(),
            former: self.registry.former().map(|(key, id)| (id.clone(), key.clone())).collect(),
            node: self.config.node_name.clone(),
            without_profile: publish::made_otherwise(&self.cluster),
        });
    }

    /// What others have made of a living pod of Kubernetes is written again, should etcd lose it.
    fn as_it_is(&self, key: &EndpointKey, record: &Record) -> Record {
        let mut record = record.clone();
        if record.endpoint.pod.is_some()
            && let Some(pod) = self.cluster.endpoint(key)
        {
            record.endpoint.labels = pod.labels.clone().into_iter().collect();
            if !record.endpoint.profiles.is_empty() {
                record.endpoint.profiles.clone_from(&pod.profiles);
            }
        }
        record
    }

    /// Veth pairs without a record: told, and closed by the hooks unless etcd has their endpoint.
    pub(super) fn unexplained(&self) -> Vec<String> {
        let marked = self.links.iter().filter_map(|link| {
            let marked = mark::read(link.alias.as_deref()?)?;
            Some((link, AttachmentId::new(marked.container_id, marked.interface)))
        });
        let unknown = marked.filter(|(_, id)| !self.registry.records().contains_key(id));
        unknown
            .map(|(link, id)| {
                let is_open =
                    self.locals.all().any(|(_, l)| l.interface == link.name && l.state.reason().is_none());
                let why =
                    if is_open { "etcd has its endpoint, by which it goes on" } else { "nothing passes" };
                format!(
                    "{}: {id} has no record here; {why}, and DEL or GC of its runtime removes it",
                    link.name
                )
            })
            .collect()
    }

    pub(super) fn verdict(&self, endpoint: &AddEndpoint) -> Result<(), ApiError> {
        if endpoint.addresses.is_empty() {
            return Err(ApiError {
                message: "the endpoint has no IPv4 address".to_owned(),
                try_again: false,
            });
        }
        match endpoint.addresses.iter().find_map(|addr| self.refusal(endpoint, *addr)) {
            None => Ok(()),
            Some(message) => Err(ApiError { message, try_again: true }),
        }
    }

    /// Why the endpoint's address is not enforced yet, if so.
    fn refusal(&self, endpoint: &AddEndpoint, addr: Ipv4Addr) -> Option<String> {
        match self.locals.get(addr) {
            Some(Local { interface, state, .. }) if *interface == endpoint.host_interface => {
                match state.reason() {
                    None => self.failure.clone(),
                    Some(reason) => Some(reason.to_owned()),
                }
            }
            Some(other) => Some(format!("address {addr} belongs to {}", other.key)),
            None => Some(format!("interface {} is not there", endpoint.host_interface)),
        }
    }

    /// The runtime takes a failed ADD as never having happened; the plugin is undoing it. What was deleted or begun anew
    /// while it waited stays that.
    pub(super) fn withdraw(&mut self, endpoint: &AddEndpoint) {
        let record = self.registry.records().get(&endpoint.id());
        if !record.is_some_and(|record| record.phase == Phase::Present && record.endpoint == *endpoint) {
            return;
        }
        match self.registry.insert(endpoint.clone(), Phase::Begun) {
            Ok(key) => self.follow_holder(key),
            Err(error) => warn!(%error, "cannot keep the record of a refused endpoint"),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where a closure takes an error")]
pub(super) fn refused(error: RegistryError) -> ApiError {
    // A full disk may have room in a moment; a bad name stays one.
    let try_again = matches!(error, RegistryError::Io { .. });
    ApiError { message: error.to_string(), try_again }
}

fn release(leases: Option<&Path>, id: &AttachmentId, addresses: &[Ipv4Addr]) -> io::Result<()> {
    match leases {
        Some(folder) => Leases::new(folder).release(id, addresses).map(drop),
        None => Ok(()),
    }
}
