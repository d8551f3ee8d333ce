//! Pods coming: what the CNI plugin asks for, and what the cluster is told of it.
//!
//! An attachment is *begun* before the plugin touches anything, *present* once its policy is enforced, and *leaving* from
//! the end of its pod until everything is given back (`departures`). Whatever no record explains is told and left alone:
//! a registry that was lost must cost no living pod anything.

use std::net::Ipv4Addr;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Node, departures::release, endpoints::Local};
use crate::{
    api::wire::{AddEndpoint, ApiError, AttachmentId, EndpointReport, Goodbye, Readiness, Standing},
    endpoint::{Phase, RegistryError, mark, publish},
    model::{
        EndpointKey, Pod,
        endpoint::{Birth, EndpointName},
        profile,
    },
};

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
            self.publishing.now();
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

    /// Whether an end can be taken in: what no record knows may be in etcd, which has to be read first.
    pub(super) fn can_hear(&self, id: &AttachmentId) -> Result<(), ApiError> {
        if self.registry.records().contains_key(id) { Ok(()) } else { self.accepts() }
    }

    pub(super) fn leave(&mut self, id: &AttachmentId) -> Result<bool, RegistryError> {
        // Many may leave at once, and each is written down.
        self.health.beat();
        let Some(key) = self.registry.leave(id)? else { return Ok(false) };
        info!(endpoint = %key, container = id.container_id, "endpoint leaves");
        self.missing.remove(id);
        self.follow_holder(key);
        self.publishing.now();
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
            return self.made_by_calico(id, &Goodbye::default()).map(|endpoint| self.judged(endpoint));
        };
        let unended = |standing, why: &str| {
            let endpoint = record.endpoint.clone();
            Some(EndpointReport { endpoint, standing, reason: Some(why.to_owned()) })
        };
        match record.phase {
            Phase::Begun => unended(Standing::Begun, "its ADD has not ended"),
            Phase::Leaving => unended(Standing::Leaving, "it was deleted"),
            Phase::Present => Some(self.judged(record.endpoint.clone())),
        }
    }

    fn judged(&self, endpoint: AddEndpoint) -> EndpointReport {
        let reason = self.verdict(&endpoint).err().map(|error| error.message);
        let standing = match &reason {
            None => Standing::Ready,
            Some(reason) if self.failure.as_ref() == Some(reason) => Standing::Unsettled,
            Some(_) => Standing::Closed,
        };
        EndpointReport { endpoint, standing, reason }
    }

    /// What an ADD would meet.
    pub(super) fn can_attach(&self) -> Readiness {
        let reason = self.accepts().err().map(|error| error.message).or_else(|| self.not_ready());
        Readiness { limited: self.failure.is_some(), reason: reason.or_else(|| self.failure.clone()) }
    }

    /// The cluster's view of an endpoint is that of who holds it now.
    pub(super) fn follow_holder(&mut self, key: EndpointKey) {
        if let Some(record) = self.registry.holder(&key) {
            let workload = record.workload(&key, &self.config.node_name);
            self.cluster.set_local_endpoint(key, Some(workload));
        } else if let Some(record) = self.registry.past(&key) {
            let container = record.endpoint.container_id.clone();
            self.cluster.retire_endpoint(key, &container);
        } else {
            self.cluster.set_local_endpoint(key, None);
        }
        self.all_is_due = true;
    }

    pub(super) fn overlay_registry(&mut self) {
        for key in self.registry.keys() {
            self.follow_holder(key);
        }
        self.publishing.now();
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
