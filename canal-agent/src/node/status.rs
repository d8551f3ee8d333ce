//! What `canalctl status` is told.

use std::{collections::BTreeMap, sync::Arc};

use aya::programs::{SchedClassifier, TcAttachType};
use canal_common::names;
use tracing::debug;

use super::Node;
use crate::{
    api::wire::{EndpointStatus, LeaseStatus, ProgramStatus, Status, StoreStatus, TableStatus, UplinkStatus},
    compile::PolicySet,
    model::resource::Resource,
};

impl Node {
    pub(super) fn status(&self) -> Status {
        let vxlan = self.network.backend.vxlan();
        let on_link = |ip| self.is_on_link(ip);
        Status {
            version: env!("CANAL_VERSION").to_owned(),
            node: self.config.node_name.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            problems: self.all_problems(),
            store: StoreStatus {
                endpoints: self.config.etcd.endpoints.clone(),
                connected: self.store.disconnected.is_empty() && self.store.in_sync(),
                revision: self.store.revision,
                in_sync: self.store.in_sync(),
                last_error: self.store.disconnected.values().next().cloned(),
            },
            uplink: Some(UplinkStatus {
                interface: self.uplink.name.clone(),
                address: self.uplink.address,
                mtu: self.uplink.mtu,
                decap_gear: self.config.gear.to_string(),
            }),
            lease: Some(LeaseStatus {
                network: self.network.network,
                subnet: self.lease.subnet,
                public_ip: self.uplink.public_ip,
                backend: self.network.backend.to_string(),
                vtep_mac: vxlan.map(|_| self.vtep_mac),
                vni: vxlan.map(|options| options.vni),
                port: vxlan.map(|options| options.port),
                mtu: self.mtu(),
                reservation: self.lease.reservation,
            }),
            peers: self.peers.status(self.own(), on_link),
            endpoints: self.endpoints_status(),
            programs: self.programs(),
            tables: self.tables_status(),
            invalid: self.invalid(),
            notices: self.notices(),
            counters: self.counters.read().unwrap_or_default(),
        }
    }

    pub(super) fn all_problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        problems.extend(self.failure.clone());
        problems.extend(self.of_endpoints.clone());
        problems.extend(self.lease_problem.clone());
        problems.extend(self.drift.clone());
        problems.extend(self.remembered());
        problems.extend(self.lost());
        problems.extend(self.memory.problem());
        problems.extend(self.registry.unwritten().cloned());
        problems.extend(self.kept_from_leaving());
        problems.extend(self.not_ready());
        problems.extend(self.initial.problems.borrow().iter().cloned());
        let unpublished = self.unpublished();
        if unpublished > 0 {
            problems
                .push(format!("{unpublished} endpoints are not in etcd yet: other nodes do not know them"));
        }
        if !self.store.in_sync() && self.steering.waiting().is_none() {
            problems.push("not everything was read from etcd yet; nothing is changed until then".to_owned());
        }
        for (prefix, error) in &self.store.disconnected {
            problems.push(format!("etcd is away ({prefix:?}): {error}"));
        }
        problems
    }

    /// Why what etcd says is not followed, if so.
    pub(super) fn not_ready(&self) -> Option<String> {
        let waiting = self.steering.waiting()?;
        let meanwhile = if self.store.in_sync() {
            format!("what was known before stays in force, and {waiting} later changes wait")
        } else {
            "this agent has started since, and leaves everything as it is; no pod can be added".to_owned()
        };
        Some(format!(
            "the datastore is not ready (ClusterInformation default says datastoreReady: false): {meanwhile}; set it to \
             true when the datastore may be used again"
        ))
    }

    /// What has no effect, or not the one that it might be thought to have. Nothing is wrong with these.
    fn notices(&self) -> Vec<String> {
        let lists = [&self.config.notices, &self.steering.merged().notices];
        let hosts = self.cluster.host_endpoints().filter(|(_, host)| host.node == self.config.node_name);
        let hosts = hosts.map(|(resource, _)| {
            format!("{resource}: not enforced yet; its addresses and ports count where selectors name it")
        });
        let bare = self.locals.addressless.iter();
        let bare = bare.map(|key| format!("WorkloadEndpoint {key}: it has no IPv4 address; nothing passes"));
        lists.into_iter().flatten().cloned().chain(hosts).chain(bare).chain(self.unexplained()).collect()
    }

    fn unpublished(&self) -> usize {
        if self.steering.waiting().is_some() {
            return 0; // What we publish comes back with the rest.
        }
        self.registry.present().filter(|(key, _)| !self.cluster.is_stored(key)).count()
    }

    pub(super) fn invalid(&self) -> BTreeMap<String, String> {
        let lists = [self.cluster.invalid(), self.peers.invalid(), &self.broken_records];
        let all = lists.into_iter().flatten().chain(self.steering.invalid());
        all.map(|(key, reason)| (key.clone(), reason.clone())).collect()
    }

    fn endpoints_status(&self) -> Vec<EndpointStatus> {
        let names = self.policy_names();
        let policies = |set: Option<&Arc<PolicySet>>| -> Vec<String> {
            let policies = set.map(|set| set.policies()).unwrap_or_default();
            policies.into_iter().map(|policy| names.get(&policy).cloned().unwrap_or(policy)).collect()
        };
        self.locals
            .all()
            .map(|(address, local)| EndpointStatus {
                key: local.key.to_string(),
                address,
                host_interface: local.interface.clone(),
                labels: local.labels.clone().into_iter().collect(),
                state: local.state.slug().to_owned(),
                reason: local.state.reason().map(str::to_owned),
                shaped: local.shape.map(|shape| shape.slug().to_owned()),
                ingress: policies(local.judgement.as_ref().map(|judgement| &judgement.ingress)),
                egress: policies(local.judgement.as_ref().map(|judgement| &judgement.egress)),
            })
            .collect()
    }

    /// What policies are called by their authors, where their keys say something else.
    fn policy_names(&self) -> BTreeMap<String, String> {
        let named = self.cluster.policies().filter_map(|(resource, policy)| {
            let name = policy.display_name(resource);
            let shown = Resource { name: name.to_owned(), ..resource.clone() };
            (*name != resource.name).then(|| (resource.to_string(), shown.to_string()))
        });
        named.collect()
    }

    /// As the kernel says, not as we remember. `bpftool net` of most distributions does not know tcx.
    fn programs(&self) -> Vec<ProgramStatus> {
        let mut interfaces: Vec<String> =
            self.locals.guarded().map(|(interface, _)| interface.to_owned()).collect();
        interfaces.push(self.uplink.name.clone());
        interfaces.extend(self.overlay().map(|overlay| overlay.name()));
        let mut found = Vec::new();
        for interface in interfaces {
            for kind in [TcAttachType::Ingress, TcAttachType::Egress] {
                match SchedClassifier::query_tcx(&interface, kind) {
                    Ok((_, programs)) => found.extend(programs.into_iter().filter_map(|program| {
                        let name = program.name_as_str()?.to_owned();
                        names::PROGRAMS.contains(&name.as_str()).then(|| ProgramStatus {
                            program: name,
                            interface: interface.clone(),
                            id: program.id(),
                        })
                    })),
                    Err(error) => debug!(interface, %error, "cannot list the attached programs"),
                }
            }
        }
        let driver = self.hooks.in_driver(&self.uplink.name).map(|id| ProgramStatus {
            program: names::XDP_WIRE.to_owned(),
            interface: self.uplink.name.clone(),
            id,
        });
        found.extend(driver);
        found.sort();
        found
    }

    pub(super) fn tables_status(&self) -> Vec<TableStatus> {
        let capacities: BTreeMap<&str, u32> = names::MAPS
            .iter()
            .filter_map(|name| {
                Some((*name, aya::maps::MapInfo::from_pin(self.pins.table(name)).ok()?.max_entries()))
            })
            .collect();
        let mut sizes = self.policy.sizes().to_vec();
        sizes.push((names::NODES, self.nodes.len()));
        sizes
            .into_iter()
            .map(|(table, entries)| TableStatus {
                table: table.to_owned(),
                entries: entries as u64,
                capacity: capacities.get(table).copied().unwrap_or_default().into(),
            })
            .collect()
    }
}
