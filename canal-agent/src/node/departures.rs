//! Pods going, by whatever way: what is left to do when the plugin, the pod or this agent was cut off.
//!
//! What was begun and never ended, and what has lost its interface, leaves by itself; an attachment that leaves keeps its
//! record until address and interface are given back and etcd has been told. Whatever no record explains is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::Node;
use crate::{
    api::wire::{AttachmentId, Collect, Collected, Goodbye},
    endpoint::{
        Leases, Phase, RegistryError,
        goodbyes::{self, Unheard},
        mark,
    },
    model::EndpointKey,
    netlink::{self, Link},
};

/// No call of the plugin takes longer: what was begun before was cut off.
const ABANDONED: Duration = Duration::from_mins(2);
/// How long an interface is missed before its pod counts as gone. The runtime's DEL comes in this time, as a rule.
const MISSED: Duration = Duration::from_mins(1);
/// How long the store's mirror may take to hear what the store was told.
const HEARD: Duration = Duration::from_mins(1);

/// Since when a pod's interface has been missing.
pub(super) type Missing = BTreeMap<AttachmentId, Instant>;

impl Node {
    /// Calico's plugin marks nothing. What is another's of ours is announced before it is made.
    pub(super) fn remove_unmarked(
        &mut self,
        id: &AttachmentId,
        interface: &str,
    ) -> Result<(), netlink::Error> {
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
    pub(super) fn sweep(&mut self, at_start: bool) {
        match self.netlink.links() {
            // There is always one, the loopback's: none at all is no answer to act upon.
            Ok(links) if links.is_empty() => {}
            Ok(links) => {
                let gone = self.gone(&links, at_start);
                self.give_up(gone);
            }
            Err(error) => warn!(%error, "cannot look for pods that are gone; trying again"),
        }
    }

    /// Whose pods are gone, and how that is known.
    fn gone(&mut self, links: &[Link], at_start: bool) -> Vec<(AttachmentId, &'static str)> {
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
                    let is_known = at_start || self.unended.contains_key(id);
                    if is_known || now.duration_since(since) > MISSED {
                        gone.push((id.clone(), "its interface is gone"));
                    }
                }
            }
        }
        gone
    }

    /// One whose record cannot be written is tried again, and keeps no other.
    fn give_up(&mut self, gone: Vec<(AttachmentId, &'static str)>) {
        let known = std::mem::take(&mut self.unended);
        for (id, why) in gone {
            let is_known = known.contains_key(&id);
            if !is_known {
                info!(container = id.container_id, interface = id.interface, why, "an endpoint is given up");
            }
            match self.leave(&id).map_err(|error| error.to_string()) {
                Ok(_) => {
                    if let Err(problem) = self.give_back(&id) {
                        warn!(problem, "the rest is tried again");
                    }
                }
                Err(problem) => {
                    if !is_known {
                        warn!(container = id.container_id, problem, "an endpoint cannot be given up yet");
                    }
                    self.unended.insert(id, problem);
                }
            }
        }
    }

    /// What keeps pods that are gone from leaving, if there are any.
    pub(super) fn kept_from_leaving(&self) -> Option<String> {
        let problem = self.unended.values().next()?;
        Some(format!("{} pods that are gone cannot be given up yet: {problem}", self.unended.len()))
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
            self.publishing.now();
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
                self.publishing.quietly();
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
            let is_held = self.registry.holder(key).is_some() || self.registry.past(key).is_some();
            !is_held && (at.elapsed() < HEARD || !self.cluster.forget_retired(key))
        });
        self.told_gone.append(&mut told);
    }

    /// Those that could not be ended are tried again; interface and address go also while etcd cannot be told.
    pub(super) fn finish_the_unfinished(&mut self) {
        let leaving = self.registry.leaving().map(|(_, record)| record.endpoint.id());
        let untried: Vec<_> = leaving.filter(|id| !self.unfinished.contains_key(id)).collect();
        for id in untried {
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
        match link.flatten() {
            Some(link) if link.kind == "veth" && mark::is_of(link.alias.as_deref(), id) => {
                self.netlink.delete_link(&link).map_err(|e| e.to_string())?;
            }
            // Its plugin was cut off before it could mark it; ours are down until they are handed over.
            Some(link) if endpoint.mac.is_none() && !link.up => {
                self.remove_unmarked(id, &link.name).map_err(|e| e.to_string())?;
            }
            _ => {}
        }
        release(endpoint.leases.as_deref(), id, &endpoint.addresses)
            .map_err(|e| format!("cannot give back the address of {id}: {e}"))
    }
}

/// While `host-local` works in the folder, it fails without waiting.
pub(super) fn release(leases: Option<&Path>, id: &AttachmentId, addresses: &[Ipv4Addr]) -> io::Result<()> {
    match leases {
        Some(folder) => Leases::new(folder).release(id, addresses).map(drop),
        None => Ok(()),
    }
}
