//! The node's state and its apply cycle.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::Instant,
};

use canal_common::{Mac, event::EVENTS_PER_DECISION, settings::Settings};
use ipnet::Ipv4Net;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info};

use super::{
    attachments,
    burst::{self, Burst},
    departures::Missing,
    endpoints::{Links, Locals},
    events::EventLog,
    groundwork::Groundwork,
    health::Health,
    memory::Memory,
    message::{Message, Published, Question},
    metrics::Cycles,
    peers::{Means, Own, Peers},
    publishing::Publishing,
    steering::Steering,
    store::StoreState,
    takeover::Takeover,
    territory::Territory,
    told::Told,
    uplink::{self, Uplink, UplinkError},
};
use crate::{
    api::{
        port::Address,
        wire::{AddEndpoint, ApiError, AttachmentId},
    },
    compile::Compiler,
    config::{
        Config, Established, Gear, Parameters,
        parameters::{Rate, ToHost},
    },
    dataplane::{
        counters::Counters,
        defrag::Defrag,
        events::Events,
        hits::HitCounters,
        hooks::{HookError, Hooks},
        host::HostAddresses,
        masquerade::Masquerade,
        nodes::Nodes,
        object::{Object, ObjectError},
        overlay::{Device, Overlay, OverlayError, ROUTE_PROTOCOL},
        pins::{PinError, Pins},
        policy::{Limits, PolicyTables},
        spoofing::Spoofing,
        tables::KernelTables,
    },
    endpoint::{Registry, RegistryError, publish::Wanted, status_files::StatusFiles},
    model::{Cluster, EndpointKey},
    netlink::{self, Netlink, Route},
    store::{EtcdPrefix, Lease, NetworkConfig, Terms, initial},
};

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error("cannot use the kernel tables: {0}")]
    Tables(#[from] aya::maps::MapError),
}

/// What the composition root has found out before the node starts.
#[derive(Debug)]
pub struct Start {
    pub config: Config,
    pub network: NetworkConfig,
    pub uplink: Uplink,
    pub vtep_mac: Mac,
    pub lease: Lease,
    /// What the lease's keeper publishes.
    pub terms: watch::Sender<Terms>,
    pub wanted: watch::Sender<Wanted>,
    pub ports: Ports,
    pub health: Health,
    pub initial: Initial,
    pub memory: Memory,
    /// Told once the first complete state is in the kernel.
    pub ready: oneshot::Sender<()>,
}

/// Where Felix's parameters want something to be served.
#[derive(Debug, Default)]
pub struct Ports {
    pub metrics: watch::Sender<Option<Address>>,
    pub health: watch::Sender<Option<Address>>,
}

impl Ports {
    /// Whoever follows hears of changes only.
    pub fn follow(&self, parameters: &Parameters) {
        let wanted = [
            (&self.metrics, parameters.metrics, &parameters.metrics_host, parameters.metrics_port),
            (&self.health, parameters.health, &parameters.health_host, parameters.health_port),
        ];
        for (sender, is_on, host, port) in wanted {
            let address = is_on.then(|| Address { host: host.clone(), port });
            sender.send_if_modified(|known| {
                let changed = *known != address;
                *known = address;
                changed
            });
        }
    }
}

/// The way to the task that initialises the datastore, and back.
#[derive(Debug)]
pub struct Initial {
    pub request: initial::Request,
    pub problems: watch::Receiver<Vec<String>>,
}

/// After so many ticks everything is looked at without a reason.
const TICKS_TO_EVERYTHING: u32 = 10;

/// All of it lives on one thread.
pub struct Node {
    pub(super) config: Config,
    pub(super) network: NetworkConfig,
    pub(super) uplink: Uplink,
    pub(super) vtep_mac: Mac,
    pub(super) lease: Lease,
    pub(super) terms: watch::Sender<Terms>,
    pub(super) lease_problem: Option<String>,
    pub(super) drift: Option<String>,

    pub(super) pins: Pins,
    pub(super) object: Object,
    /// What `object` was loaded with.
    pub(super) settings: Settings,
    pub(super) hooks: Hooks,
    pub(super) nodes: Nodes,
    pub(super) host_addresses: HostAddresses,
    pub(super) spoofing: Spoofing,
    pub(super) policy: PolicyTables<KernelTables>,
    pub(super) events: Events,
    pub(super) event_log: EventLog,
    pub(super) counters: Counters,
    pub(super) hits: HitCounters,
    pub(super) cycles: Cycles,
    pub(super) netlink: Netlink,

    pub(super) steering: Steering,
    pub(super) cluster: Cluster,
    pub(super) compiler: Compiler,
    pub(super) registry: Registry,
    pub(super) status_files: StatusFiles,
    pub(super) broken_records: BTreeMap<String, String>,
    pub(super) peers: Peers,
    pub(super) locals: Locals,
    /// The host's interfaces when they were last listed.
    pub(super) links: Links,
    /// Its routes, but for ours to other nodes, when the uplink was last up.
    pub(super) ways: Vec<Route>,
    pub(super) uplink_runs: bool,
    pub(super) store: StoreState,
    pub(super) memory: Memory,
    /// What is no policy decides about flows, and has changed.
    pub(super) judge_anew: bool,
    ticks: u32,
    /// Not only policy is to be looked at.
    pub(super) all_is_due: bool,
    /// The host's stack puts fragments together, see [`Defrag`].
    pub(super) defrag: Option<Defrag>,
    /// Subnets of peers with another network.
    pub(super) elsewhere: Vec<Ipv4Net>,
    /// The masquerade table is to be looked at: it costs a process.
    pub(super) masquerade_due: bool,
    pub(super) masquerade: Masquerade,
    pub(super) takeover: Takeover,
    pub(super) problems: Vec<String>,
    /// What went wrong for some endpoint when its policy was last followed.
    pub(super) of_endpoints: Vec<String>,
    /// What the log has been told of.
    pub(super) told: Told,
    /// Why the last cycle did not end well.
    pub(super) failure: Option<String>,
    pub(super) started: Instant,

    pub(super) publishing: Publishing,
    pub(super) ports: Ports,
    pub(super) health: Health,
    pub(super) initial: Initial,
    pub(super) ready: Option<oneshot::Sender<()>>,
    /// Pods whose interface is missed.
    pub(super) missing: Missing,
    /// Pods that are gone and cannot be noted as such, with the reason.
    pub(super) unended: BTreeMap<AttachmentId, String>,
    /// What has left etcd and has something that could not be given back, with the reason.
    pub(super) unfinished: BTreeMap<AttachmentId, String>,
    /// Endpoints that etcd was told the end of, and when.
    pub(super) told_gone: Vec<(EndpointKey, Instant)>,
    pub(super) waiting: Vec<(AddEndpoint, oneshot::Sender<Result<(), ApiError>>)>,
    /// To be answered once the kernel has followed what came before.
    asked: Vec<Question>,
}

impl Node {
    /// Adopts what an earlier process left. Attaches and writes nothing yet.
    pub fn start(groundwork: Groundwork, start: Start) -> Result<Self, NodeError> {
        let Groundwork { pins, netlink, steering, settings, mut object, tables, leftovers, defrag } =
            groundwork;
        let Start { config, network, uplink, vtep_mac, lease, terms, wanted, ports, .. } = start;
        let Start { health, initial, memory, ready, .. } = start;
        let nodes = Nodes::adopt(&mut object.ebpf)?;
        let host_addresses = HostAddresses::adopt(&mut object.ebpf)?;
        let spoofing = Spoofing::adopt(&mut object.ebpf)?;
        if !leftovers.endpoints.is_empty() || !nodes.is_empty() {
            info!(
                endpoints = leftovers.endpoints.len(),
                peers = nodes.len(),
                "adopted what an earlier agent programmed"
            );
        }
        let events = Events::adopt(&mut object.ebpf)?;
        let counters = Counters::open(&config.bpffs)?;
        let hits = HitCounters::open(&config.bpffs)?;
        let (registry, broken_records) = Registry::open(&config.state_dir, &config.node_name)?;
        for (file, reason) in &broken_records {
            error!(file, reason, "cannot read the record of an endpoint; it is closed");
        }
        let peers = Peers::new(config.etcd.prefix.clone(), means(&config, &network, &uplink, &[]));
        let mut node = Self {
            network,
            uplink,
            vtep_mac,
            lease,
            terms,
            lease_problem: None,
            drift: None,
            hooks: Hooks::new(pins.clone()),
            pins,
            object,
            settings,
            nodes,
            host_addresses,
            spoofing,
            policy: PolicyTables::new(tables.beating(health.pulse()), leftovers, limits(&config)),
            events,
            event_log: EventLog::default(),
            counters,
            hits,
            cycles: Cycles::default(),
            netlink,
            steering,
            cluster: Cluster::default(),
            compiler: Compiler::new(&config.node_name),
            registry,
            status_files: StatusFiles::default(),
            broken_records,
            peers,
            locals: Locals::default(),
            links: Links::default(),
            ways: Vec::new(),
            uplink_runs: true,
            store: StoreState::default(),
            memory,
            judge_anew: false,
            ticks: 0,
            all_is_due: true,
            defrag,
            elsewhere: Vec::new(),
            masquerade_due: true,
            masquerade: Masquerade::default(),
            takeover: Takeover::default(),
            problems: Vec::new(),
            of_endpoints: Vec::new(),
            told: Told::default(),
            failure: None,
            started: Instant::now(),
            publishing: Publishing::new(wanted),
            ports,
            health,
            initial,
            ready: Some(ready),
            waiting: Vec::new(),
            missing: Missing::default(),
            unended: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            told_gone: Vec::new(),
            asked: Vec::new(),
            config,
        };
        node.write_again();
        node.overlay_registry();
        node.sweep(true);
        node.publish();
        node.follow_parameters();
        Ok(node)
    }

    /// What [`crate::dataplane::events::watch`] waits on.
    pub fn ring(&self) -> std::io::Result<OwnedFd> {
        self.events.ring()
    }

    /// Runs until told to stop, or until nobody can send messages any more. The data path stays as it is.
    pub fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        self.health.beat();
        while let Some(first) = messages.blocking_recv() {
            match burst::take_in(first, &mut messages, |message| self.handle(message)) {
                Burst::Stop => {
                    info!("stopping; the data path stays as it is");
                    return;
                }
                Burst::Changed => self.reconcile(),
                Burst::Quiet => {}
            }
            self.publish();
            for question in std::mem::take(&mut self.asked) {
                self.answer(question);
            }
            self.health.beat();
        }
    }

    /// Takes a message in; true when the kernel may have to follow.
    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Store(event) => self.store_event(event),
            Message::Lease(event) => self.lease_event(event),
            Message::Kernel(change) => {
                debug!(?change, "the host's network changed");
                self.all_is_due = true;
                true
            }
            // Whoever asked has been killed: its runtime's DEL may have come and gone.
            Message::BeginEndpoint { reply, .. } | Message::AddEndpoint { reply, .. }
                if reply.is_closed() =>
            {
                false
            }
            Message::BeginEndpoint { endpoint, reply } => {
                let begun = self.begin_endpoint(endpoint);
                let changed = matches!(begun, Ok(true));
                let _ = reply.send(begun.map(drop));
                changed
            }
            Message::AddEndpoint { endpoint, reply } => self.add_endpoint(endpoint, reply),
            Message::DeleteEndpoint { id, goodbye, reply } => {
                let heard = self
                    .can_hear(&id)
                    .and_then(|()| self.delete_endpoint(&id, &goodbye).map_err(attachments::refused));
                let changed = matches!(heard, Ok(true));
                let _ = reply.send(heard.map(drop));
                changed
            }
            Message::Collect { asked, reply } => {
                let _ = reply.send(self.accepts().map(|()| self.collect(&asked)));
                true
            }
            Message::Published(Published(id, key)) => {
                self.hear_gone(&id, &key);
                false
            }
            Message::Ask(question) => {
                self.asked.push(question);
                false
            }
            Message::Events { after, reply } => {
                self.give_events(after, reply);
                false
            }
            Message::Ring => {
                self.drain_events();
                false
            }
            Message::Tick => {
                self.ticks = (self.ticks + 1) % TICKS_TO_EVERYTHING;
                let everything = self.ticks == 0;
                if everything {
                    self.drain_events();
                    self.forget_the_lost();
                    self.masquerade_due |= self.config.ip_masq.is_some();
                    self.takeover.retry();
                    self.hear_goodbyes();
                    self.finish_the_unfinished();
                    self.write_again();
                    self.forget_the_retired();
                    self.sweep(false);
                    self.publishing.look();
                }
                // What failed is tried again with everything, and not at each tick.
                let changed = self.peers.look() || everything;
                self.all_is_due |= changed;
                changed
            }
            Message::Stop => false,
        }
    }

    fn write_again(&mut self) {
        self.registry.write_again(|| self.health.beat());
    }

    /// Who asked may have gone; the answer is nobody's then.
    fn answer(&mut self, question: Question) {
        match question {
            Question::Status { reply } => drop(reply.send(self.status())),
            Question::Endpoint { id, reply } => drop(reply.send(Ok(self.report(&id)))),
            Question::Ready { reply } => drop(reply.send(self.can_attach())),
            Question::Explain { ask, reply } => drop(reply.send(self.explain(&ask))),
            Question::Metrics { reply } => drop(reply.send(self.metrics())),
            Question::Rules { reply } => drop(reply.send(self.rules())),
        }
    }

    pub(super) fn own(&self) -> Own<'_> {
        Own {
            key: &self.lease.key,
            subnet: self.lease.subnet,
            public_ip: self.uplink.public_ip,
            vtep_mac: self.vtep_mac,
        }
    }

    /// `None`: this backend has no device.
    pub(super) fn overlay(&self) -> Option<Overlay> {
        let device = device(&self.network, &self.uplink, self.vtep_mac)?;
        let (network, subnet) = (self.network.network, self.lease.subnet);
        Some(Overlay { device, network, subnet, routed: self.territory().nets() })
    }

    /// Of the pods, in bytes.
    pub(super) fn mtu(&self) -> u16 {
        self.network.backend.pod_mtu(self.uplink.mtu)
    }

    pub(super) fn territory(&self) -> Territory {
        let strangers = strangers(&self.config, &self.uplink);
        Territory::new(&self.network, Some(self.lease.subnet), strangers)
    }

    pub(super) fn means(&self) -> Means {
        means(&self.config, &self.network, &self.uplink, &self.ways)
    }

    /// Whether the uplink leads straight to `ip`.
    pub(super) fn is_on_link(&self, ip: Ipv4Addr) -> bool {
        uplink::leads_straight(&self.ways, self.uplink.index, ip)
    }

    /// Whether our program belongs on the uplink.
    pub(super) fn judges_uplink(&self) -> bool {
        let backend = &self.network.backend;
        backend.carries() && (self.config.gear != Gear::Kernel || backend.vxlan().is_none())
    }

    /// Whether one belongs in its driver.
    pub(super) fn judges_in_driver(&self) -> bool {
        self.config.gear == Gear::Xdp && self.network.backend.vxlan().is_some()
    }

    pub(super) fn prefix(&self) -> &EtcdPrefix {
        &self.config.etcd.prefix
    }
}

fn etcd(config: &Config) -> impl Iterator<Item = Ipv4Addr> {
    config.etcd.hosts().filter_map(|host| host.parse().ok())
}

/// Addresses that are no pod's for certain: this node's, and etcd's.
pub(super) fn strangers(config: &Config, uplink: &Uplink) -> BTreeSet<Ipv4Addr> {
    etcd(config).chain([uplink.address, uplink.public_ip]).collect()
}

fn means(config: &Config, network: &NetworkConfig, uplink: &Uplink, ways: &[Route]) -> Means {
    let is_others = |way: &&Route| way.protocol != ROUTE_PROTOCOL && way.dst.prefix_len() != 0;
    Means {
        backend: network.backend.clone(),
        uplink_mtu: uplink.mtu,
        network: network.network,
        addresses: BTreeSet::from([uplink.address, uplink.public_ip]),
        etcd: etcd(config).collect(),
        ways: ways.iter().filter(is_others).cloned().collect(),
    }
}

pub(super) fn device(network: &NetworkConfig, uplink: &Uplink, mac: Mac) -> Option<Device> {
    let options = network.backend.vxlan()?;
    Some(Device { vni: options.vni, port: options.port, mac, mtu: network.backend.pod_mtu(uplink.mtu) })
}

/// What the programs are to be loaded with; the overlay device is known later.
pub(super) fn settings(
    config: &Config,
    parameters: &Parameters,
    network: &NetworkConfig,
    territory: &Territory,
    uplink: &Uplink,
    vtep_mac: Mac,
    defragments: bool,
) -> Settings {
    let options = network.backend.vxlan();
    // Where others carry what pods of different nodes say, the network's addresses come by any way.
    let (pods_first, pods_last) = if network.backend.carries() {
        (territory.first.to_bits(), territory.last.to_bits())
    } else {
        (u32::MAX, 0)
    };
    let flags = [
        (network.backend.reaches_directly(), Settings::DIRECT_NODES),
        (config.outer_checksum, Settings::OUTER_CHECKSUM),
        (config.gear == Gear::Xdp, Settings::XDP),
        (defragments, Settings::DEFRAGMENTS),
        (config.established == Established::Keep, Settings::KEEP_ESTABLISHED),
        (parameters.pods_may_vxlan, Settings::ALLOW_POD_VXLAN),
        (parameters.pods_may_ipip, Settings::ALLOW_POD_IPIP),
        (parameters.to_host == ToHost::Drop, Settings::DROP_TO_HOST),
    ];
    Settings {
        node_ip: uplink.address.into(),
        vtep_mac,
        vxlan_port: options.map_or(0, |options| options.port),
        vni: options.map_or(0, |options| options.vni),
        uplink_ifindex: uplink.index,
        overlay_ifindex: 0,
        pods_first,
        pods_last,
        limits: config.flow_timeouts.into(),
        events_per_tick: parameters.log_rate.map_or(EVENTS_PER_DECISION, Rate::per_second),
        flags: flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag),
        calico_vxlan_port: parameters.vxlan_port,
        _pad: [0; 2],
    }
}

/// How much the tables hold, as they are made.
pub(super) fn limits(config: &Config) -> Limits {
    let sizes = &config.sizes;
    Limits { peers: sizes.peers, nets: sizes.nets, rows: sizes.rows, ..Limits::default() }
}
