//! The composition root of `canal-agent run`: finds out where it is, takes the lease, wires the tasks to the node's
//! thread, and stops them again. The first file to read.
//!
//! | task | does |
//! |---|---|
//! | two mirrors | etcd → [`Message::Store`] |
//! | lease keeper | etcd ↔ [`Message::Lease`] |
//! | publisher | endpoints → etcd |
//! | initialiser | objects that Calico's tools expect → etcd; the nodename file |
//! | API server | local socket ↔ messages |
//! | metrics | [`Message::Ask`] → a TCP port, if one is wanted |
//! | health (two) | [`Health`] → a TCP port each, if they are wanted |
//! | watchdog | [`Health`] → the service manager |
//! | event watch | event ring → [`Message::Ring`] |
//! | kernel monitor (thread) | netlink → [`Message::Kernel`] |
//! | node (thread) | all state, all kernel writes |

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::Context as _;
use canal_common::Mac;
use futures::{Stream, StreamExt as _, stream};
use ipnet::Ipv4Net;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{health, metrics, port, server},
    config::{Config, Parameters, parameters},
    dataplane::{events, flannel::device, overlay, pins::Pins, routes},
    endpoint::publish::{self, Wanted},
    lock::AgentLock,
    netlink::{Monitor, Netlink},
    node::{
        Groundwork, Initial, Memory, Message, Node, Ports, Published, Start,
        health::Health,
        takeover,
        uplink::{self, Host, Uplink},
        waiting::{self, Progress},
    },
    store::{
        Attributes, EtcdPrefix, Lease, LeaseManager, Listing, Mirror, NetworkConfig, Owner, Past, Prefix,
        RESOURCES, Store, StoreEvent, Terms, VxlanOptions, initial, machine, own_mac, retry::Backoff,
        subnet_file::read_previous_subnet,
    },
};

/// How often the node is told that time has passed.
const TICK: Duration = Duration::from_secs(1);

pub fn run(config: Config) -> anyhow::Result<()> {
    let shown = serde_json::to_string(&config).unwrap_or_default();
    info!(version = env!("CANAL_VERSION"), config = shown, "canal-agent starts");
    config.notices.iter().for_each(|notice| warn!("{notice}"));
    let _lock = AgentLock::take()?;
    Pins::open(&config.bpffs)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = CancellationToken::new();
    let stopped = {
        let cancel = cancel.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
            cancel.cancel();
        }
    };
    let signals = tokio::spawn(stopped);
    let result = match cancel.run_until_cancelled(Box::pin(start(config))).await {
        None => Ok(()), // Asked to stop before everything was up.
        Some(Err(error)) => Err(error),
        Some(Ok(running)) => running.until(cancel).await,
    };
    signals.abort();
    result
}

struct Running {
    messages: mpsc::UnboundedSender<Message>,
    node: std::thread::JoinHandle<()>,
    tasks: JoinSet<()>,
    stop_tasks: CancellationToken,
    _monitor: Monitor,
}

impl Running {
    async fn until(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let died = tokio::select! {
            () = cancel.cancelled() => false,
            _ = self.tasks.join_next() => true,
            () = self.messages.closed() => true,
        };
        self.stop_tasks.cancel();
        let _ = self.messages.send(Message::Stop);
        let node = tokio::task::spawn_blocking(move || self.node.join()).await?;
        self.tasks.shutdown().await;
        if node.is_err() || died {
            anyhow::bail!("the agent must be started again; the data path goes on as it was");
        }
        info!("stopped");
        Ok(())
    }
}

async fn start(config: Config) -> anyhow::Result<Running> {
    // The socket first: whoever asks is told what the agent waits for.
    let listener = server::bind(&config.socket).with_context(|| {
        format!("cannot listen on {}; name another socket with --socket", config.socket.display())
    })?;
    let (messages, inbox) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(server::serve(listener, messages.clone()));
    let (health, ports) = (Health::new(), Ports::default());
    serve_health(&mut tasks, &config, &health, &ports);
    tokio::spawn(health.clone().feed_watchdog());
    let (progress, stop_waiting) = (Progress::new(health.clone()), CancellationToken::new());
    let waiting = tokio::spawn(waiting::answer(
        inbox,
        progress.clone(),
        config.node_name.clone(),
        stop_waiting.clone(),
    ));

    let store =
        Store::connect_patiently(&config.etcd, |error| progress.waits("etcd", &error.to_string())).await;
    let initial = initialise(&mut tasks, &store, &config);
    let network = network_config(&store, &progress).await;
    let look = |(config, network): (Config, NetworkConfig)| choose_uplink(&config, &network);
    let uplink = blocking(look, (config.clone(), network.clone())).await?;
    let (machine, memory) = (machine::read_or_make(&config.state_dir)?, Memory::read(&config.state_dir));
    let leases = list_leases(&store, &progress).await;
    let owner = Owner { node: &config.node_name, machine: &machine, public_ip: Some(uplink.public_ip) };
    let vtep_mac = vtep_mac(&leases, &network, &config.etcd.prefix, owner).await?;
    let (previous, has_pods) = blocking(earlier_run, config.clone()).await?;
    let mut keeper = LeaseManager::new(store.clone(), network.clone(), previous).with_pods(has_pods);
    let want = Attributes {
        public_ip: uplink.public_ip,
        backend: network.backend.in_lease(vtep_mac),
        node: config.node_name.clone(),
        machine,
    };
    // Nothing takes longer than the kernel's look at the programs; the lease is taken and the store is read meanwhile.
    let groundwork = {
        let (config, network, uplink) = (config.clone(), network.clone(), uplink.clone());
        blocking(move |()| Groundwork::lay(&config, &network, &uplink, vtep_mac), ())
    };
    let stop_tasks = CancellationToken::new();
    let taken = async {
        let (lease, leases) = acquire(&mut keeper, want.clone(), leases, &progress).await;
        Ok((lease, mirrors(&mut tasks, &store, leases, memory.past(), &stop_tasks)))
    };
    let (groundwork, (lease, mirrored)) = tokio::try_join!(groundwork, taken)?;

    let (terms, terms_rx) = watch::channel(Terms { network: network.clone(), attributes: want });
    let (wanted, wanted_rx) = watch::channel(Wanted::default());
    let metrics_at = ports.metrics.subscribe();
    let (ready, ready_rx) = oneshot::channel();
    let start = Start {
        config: config.clone(),
        network,
        uplink,
        vtep_mac,
        lease,
        terms,
        wanted,
        ports,
        health,
        initial,
        memory,
        ready,
    };
    let node = blocking(move |start| Node::start(groundwork, start), start).await?;
    let monitor = {
        let messages = messages.clone();
        Monitor::start(move |change| drop(messages.send(Message::Kernel(change))))?
    };
    let ring = node.ring().context("cannot wait for events of the kernel")?;
    stop_waiting.cancel();
    let inbox = waiting.await?;
    let node = std::thread::Builder::new()
        .name("node".to_owned())
        .spawn(move || node.run(inbox))
        .context("cannot start the node's thread")?;

    for mut received in mirrored {
        forward(&mut tasks, &messages, stream::poll_fn(move |cx| received.poll_recv(cx)).map(Message::Store));
    }
    let (events, mut received) = mpsc::channel(8);
    let stop_keeper = stop_tasks.clone();
    tasks.spawn(async move { keeper.maintain(terms_rx, events, stop_keeper).await });
    forward(&mut tasks, &messages, stream::poll_fn(move |cx| received.poll_recv(cx)).map(Message::Lease));
    let (gone, mut left) = mpsc::unbounded_channel();
    tasks.spawn(publish::run(store, wanted_rx, gone));
    forward(
        &mut tasks,
        &messages,
        stream::poll_fn(move |cx| left.poll_recv(cx)).map(|(id, key)| Message::Published(Published(id, key))),
    );
    tasks.spawn(port::follow("metrics", metrics_at, metrics::router(messages.clone())));
    tasks.spawn(watch_ring(ring, messages.clone()));
    let mut tick = tokio::time::interval(TICK);
    forward(
        &mut tasks,
        &messages,
        stream::poll_fn(move |cx| tick.poll_tick(cx).map(|_| Some(Message::Tick))),
    );
    tokio::spawn(announce(ready_rx));
    Ok(Running { messages, node, tasks, stop_tasks, _monitor: monitor })
}

async fn watch_ring(ring: OwnedFd, messages: mpsc::UnboundedSender<Message>) {
    if let Err(error) = events::watch(ring, || messages.send(Message::Ring).is_ok()).await {
        warn!(%error, "cannot wait for events of the kernel");
    }
}

async fn announce(ready: oneshot::Receiver<()>) {
    if ready.await.is_ok() {
        info!("ready: lease held, peers and policies in the kernel, subnet file written");
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
}

/// From the beginning: probes come while the agent waits for etcd, too.
fn serve_health(tasks: &mut JoinSet<()>, config: &Config, health: &Health, ports: &Ports) {
    let router = health::router(health.clone());
    if let Some(address) = config.health.clone() {
        let router = router.clone();
        tasks.spawn(async move { port::keep_serving("health", &address, &router).await });
    }
    // What etcd has to say about it comes later.
    ports.follow(&parameters::merge(&config.felix, &Parameters::default()).parameters);
    tasks.spawn(port::follow("health", ports.health.subscribe(), router));
}

/// Begins to follow the store, with what was listed of the network if that is fresh, and with how far an earlier process
/// has followed that. What comes waits until somebody receives it.
fn mirrors(
    tasks: &mut JoinSet<()>,
    store: &Store,
    listed: Option<Listing>,
    past: Option<Past>,
    stop: &CancellationToken,
) -> [mpsc::Receiver<StoreEvent>; 2] {
    let network = store.options().prefix.all();
    let ranges =
        [(Prefix::Network, network, listed, past), (Prefix::Resources, RESOURCES.to_owned(), None, None)];
    ranges.map(|(prefix, under, listed, past)| {
        let (events, received) = mpsc::channel(64);
        let mirror = Mirror::new(store.clone(), prefix, under, events).beginning_with(listed);
        let mirror = mirror.remembering(past);
        tasks.spawn(mirror.run(stop.clone()));
        received
    })
}

/// Beside everything else: an etcd that lets us read only costs no pod anything.
fn initialise(tasks: &mut JoinSet<()>, store: &Store, config: &Config) -> Initial {
    let own = initial::Own {
        node: config.node_name.clone(),
        kubernetes_node: config.kubernetes_node.clone(),
        cluster_type: config.cluster_type.clone(),
    };
    let (request, problems) = (initial::Request::default(), watch::Sender::default());
    let known = problems.subscribe();
    tasks.spawn(initial::run(store.clone(), own, config.nodename_file.clone(), request.clone(), problems));
    Initial { request, problems: known }
}

/// Feeds the node from a source until either ends.
fn forward(
    tasks: &mut JoinSet<()>,
    messages: &mpsc::UnboundedSender<Message>,
    mut source: impl Stream<Item = Message> + Unpin + Send + 'static,
) {
    let messages = messages.clone();
    tasks.spawn(async move {
        while let Some(message) = source.next().await {
            if messages.send(message).is_err() {
                return;
            }
        }
    });
}

async fn blocking<I, T, E>(
    work: impl FnOnce(I) -> Result<T, E> + Send + 'static,
    input: I,
) -> anyhow::Result<T>
where
    I: Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
    anyhow::Error: From<E>,
{
    Ok(tokio::task::spawn_blocking(move || work(input)).await??)
}

/// Until there is one that can be used: somebody may be writing it right now.
async fn network_config(store: &Store, progress: &Progress) -> NetworkConfig {
    let key = store.options().prefix.config();
    loop {
        let problem = match store.get(&key).await {
            Ok(Some(entry)) => match NetworkConfig::parse(&entry.value) {
                Ok(config) => {
                    config.notes.iter().for_each(|note| warn!("{key}: {note}"));
                    info!(network = %config.network, "read the network configuration");
                    return config;
                }
                Err(error) => format!("{key}: {error}"),
            },
            Ok(None) => format!(
                "{key} does not exist; write it, for example: etcdctl put {key} \
                 '{{\"Network\":\"10.100.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'"
            ),
            Err(error) => error.to_string(),
        };
        progress.waits("a network configuration", &problem);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The configuration with them: all that there is of the network, for those who follow it.
async fn list_leases(store: &Store, progress: &Progress) -> Listing {
    let network = store.options().prefix.all();
    let mut backoff = Backoff::default();
    loop {
        match store.list(&network).await {
            Ok(listing) => return listing,
            Err(error) => progress.waits("the leases", &error.to_string()),
        }
        backoff.wait().await;
    }
}

/// The subnet of an earlier run, and whether pods live there, whoever made them: the host has ways to them.
fn earlier_run(Config { subnet_file, .. }: Config) -> anyhow::Result<(Option<Ipv4Net>, bool)> {
    let Some(subnet) = read_previous_subnet(&subnet_file) else { return Ok((None, false)) };
    let mut netlink = Netlink::open()?;
    Ok((Some(subnet), routes::lead_to_pods(&netlink.routes()?, &netlink.links()?, subnet)))
}

/// Where this node's place is, if nobody else has it.
fn choose_uplink(config: &Config, network: &NetworkConfig) -> anyhow::Result<Uplink> {
    let mut netlink = Netlink::open()?;
    takeover::check(&mut netlink, network)?;
    let uplink = uplink::choose(&Host::read(&mut netlink, &config.uplink)?, &config.uplink)?;
    info!(interface = uplink.name, address = %uplink.address, public_ip = %uplink.public_ip, mtu = uplink.mtu, reason = uplink.reason, "chose the uplink");
    uplink.suits(&network.backend)?;
    Ok(uplink)
}

/// The MAC that peers know stays ours: that of the device, or of the one that flanneld left, else that of our lease, else a
/// new one.
async fn vtep_mac(
    leases: &Listing,
    network: &NetworkConfig,
    prefix: &EtcdPrefix,
    owner: Owner<'_>,
) -> anyhow::Result<Mac> {
    let Some(&VxlanOptions { vni, port, .. }) = network.backend.vxlan() else { return Ok(Mac::default()) };
    let existing = blocking(move |()| device::known_mac(&mut Netlink::open()?, vni, port), ()).await?;
    if let Some(mac) = existing {
        return Ok(mac);
    }
    Ok(own_mac(&leases.entries, prefix, owner).unwrap_or_else(overlay::random_mac))
}

/// Gives the list back unless time has passed over it.
async fn acquire(
    keeper: &mut LeaseManager,
    want: Attributes,
    leases: Listing,
    progress: &Progress,
) -> (Lease, Option<Listing>) {
    let mut backoff = Backoff::default();
    let mut leases = Some(leases);
    loop {
        match keeper.acquire_by(want.clone(), leases.as_ref()).await {
            Ok(lease) => return (lease, leases),
            Err(error) => progress.waits("a subnet lease", &error.to_string()),
        }
        leases = None;
        backoff.wait().await;
    }
}
