//! An agent that starts with policy tables of another size than its predecessor's: it fills new ones, beside those by which
//! packets are judged, and then puts its programs in their places.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use aya::maps::MapInfo;
use bpf_tests::{Host, LiveConnection, Node, Pod, World, policy};
use canal_agent::dataplane::{
    object::{Object, Sizes},
    pins::Pins,
};
use canal_common::{names, settings::Settings};
use serde_json::json;

use crate::{SOON, soon};

/// Ports of the server, by what policy says of them, in both protocols.
const ALLOWED: u16 = 7000;
const DENIED: u16 = 7001;

/// Flags and sizes, each start with another one than the start before.
const STARTS: [(&str, &str, &str); 4] = [
    ("--max-peers", "2048", "PEERS"),
    ("--max-nets", "2048", "NETS"),
    ("--max-rows", "4096", "ROWS"),
    ("--max-rows", "2048", "ROWS"),
];

/// How long an echo may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
const BRIEFLY: Duration = Duration::from_millis(50);
/// So many exchanges of each sort are made before and after a start.
const ENOUGH: u64 = 50;

fn allow_one_port() -> serde_json::Value {
    let rule = |protocol: &str| json!({"action": "Allow", "protocol": protocol, "destination": {"ports": [ALLOWED]}});
    policy::ingress(1, "app == 'server'", json!([rule("TCP"), rule("UDP")]))
}

/// Kills the agent and starts one with tables of another size.
fn restart_with(node: &Node, (flag, size, table): (&str, &str, &str)) {
    let told = |log: &str| log.matches("has another layout or size").count();
    let before = told(&node.agent().log());
    node.agent().kill_9();
    node.agent().set_flag(flag, size);
    node.agent().start().unwrap();
    let log = node.agent().log();
    assert!(told(&log) > before && log.contains(&format!("table=\"{table}\"")), "{log}");
}

/// What clients outside and inside the node did, and what the server saw.
#[derive(Debug, Default)]
struct Traffic {
    done: AtomicBool,
    /// Exchanges that policy allows, over one flow and over a new one each, by client.
    live: [AtomicU64; 2],
    new: [AtomicU64; 2],
    /// Datagrams that policy denies, by client.
    denied: [AtomicU64; 2],
    arrived: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        !self.done.load(Ordering::Relaxed)
    }

    fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    /// Sends back what comes to the first socket, and counts what comes to the second.
    fn serve(&self, [allowed, denied]: [UdpSocket; 2]) {
        allowed.set_read_timeout(Some(BRIEFLY)).unwrap();
        denied.set_nonblocking(true).unwrap();
        while self.goes_on() {
            if let Ok((_, from)) = allowed.recv_from(&mut [0]) {
                allowed.send_to(&[0], from).ok();
            }
            while denied.recv(&mut [0]).is_ok() {
                self.arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn exchange(&self, socket: &UdpSocket, server: Ipv4Addr) -> bool {
        socket.send_to(&[0], (server, ALLOWED)).unwrap();
        // At the end the server may have gone first.
        socket.recv(&mut [0]).is_ok() || !self.goes_on()
    }

    fn one_flow(&self, client: usize, server: Ipv4Addr) {
        let socket = socket();
        while self.goes_on() {
            if !self.exchange(&socket, server) {
                self.fault(format!("client {client}: a live flow that policy allows lost a packet"));
            }
            self.live[client].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn new_flows(&self, client: usize, server: Ipv4Addr) {
        while self.goes_on() {
            let socket = socket();
            if !self.exchange(&socket, server) {
                self.fault(format!("client {client}: a new flow that policy allows was refused"));
            }
            self.new[client].fetch_add(1, Ordering::Relaxed);
            socket.send_to(&[0], (server, DENIED)).unwrap();
            self.denied[client].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every client has done enough of everything since now.
    fn flows(&self) {
        let all =
            || [&self.live, &self.new, &self.denied].map(|c| c.each_ref().map(|n| n.load(Ordering::Relaxed)));
        let begin = all();
        let enough =
            || all().iter().flatten().zip(begin.iter().flatten()).all(|(now, then)| now - then > ENOUGH);
        assert!(soon(enough), "{begin:?} {:?} {:?}", all(), self.faults.lock().unwrap());
    }
}

/// Ends servers and clients, after a panic too.
struct Closing<'a>(&'a Traffic);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A server on node 2, a client beside it and one on node 1, which let nobody in.
fn server_and_clients() -> (World, Pod, [Pod; 2]) {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let server = world.node(2).add_pod("server", &[("app", "server")]).unwrap();
    let near = world.node(2).add_pod("near", &[("app", "client")]).unwrap();
    let far = world.node(1).add_pod("far", &[("app", "client")]).unwrap();
    world.etcd().put_global_policy("server", allow_one_port()).unwrap();
    world.etcd().put_global_policy("clients", policy::ingress(1, "app == 'client'", json!([]))).unwrap();
    (world, server, [near, far])
}

#[test]
fn tables_of_another_size_take_over_without_a_moment_that_opens_or_refuses() {
    let (world, server, clients) = server_and_clients();
    let node = world.node(2);
    let _servers = [ALLOWED, DENIED].map(|port| server.serve_tcp(port).unwrap());
    let verdicts = || {
        clients
            .iter()
            .all(|client| client.reaches(server.ip(), ALLOWED) && !client.reaches(server.ip(), DENIED))
            && !server.pings(clients[0].ip())
    };
    assert!(soon(verdicts));
    let live = clients.each_ref().map(|c| LiveConnection::open(c.netns(), server.ip(), ALLOWED).unwrap());
    let traffic = Traffic::default();
    thread::scope(|scope| {
        let (traffic, address) = (&traffic, server.ip());
        let _closing = Closing(traffic);
        // Before the first client asks.
        let bind = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let sockets = server.netns().run(|| [ALLOWED, DENIED].map(bind)).unwrap();
        scope.spawn(move || traffic.serve(sockets));
        for (number, client) in clients.iter().enumerate() {
            for work in [Traffic::one_flow, Traffic::new_flows] {
                let host = client.netns();
                scope.spawn(move || host.run(|| work(traffic, number, address)).unwrap());
            }
        }
        traffic.flows();
        for start in STARTS {
            restart_with(node, start);
            traffic.flows();
        }
    });
    assert_eq!(*traffic.faults.lock().unwrap(), Vec::<String>::new());
    assert_eq!(traffic.arrived.load(Ordering::Relaxed), 0, "what policy denies passed");
    assert!(live.iter().all(LiveConnection::is_alive));
    assert!(soon(verdicts));
}

/// In new tables endpoints count their changes from the beginning again, as the tables before them did.
#[test]
fn a_flow_that_policy_denies_meanwhile_is_not_taken_for_one_that_the_new_tables_allowed() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[("app", "server")]).unwrap());
    let _server = b.serve_tcp(ALLOWED).unwrap();
    restart_with(node, STARTS[0]);
    let live = LiveConnection::open(a.netns(), b.ip(), ALLOWED).unwrap();
    node.agent().kill_9();
    world.etcd().put_global_policy("server", policy::ingress(1, "app == 'server'", json!([]))).unwrap();
    assert!(live.is_alive());
    restart_with(node, STARTS[1]);
    assert!(soon(|| !a.reaches(b.ip(), ALLOWED)));
    live.cut_within(SOON).unwrap();
}

#[test]
fn what_verdicts_are_made_of_is_replaced_as_a_whole_and_the_rest_stays() {
    let world = World::builder().nodes(1).build().unwrap();
    let pins = Pins::open(&world.node(1).bpffs()).unwrap();
    let load = |sizes: &Sizes| {
        drop(Object::load(&Settings::default(), Some(&pins), sizes).unwrap());
        let id = |name: &'static str| (name, MapInfo::from_pin(pins.table(name)).unwrap().id());
        names::MAPS.iter().map(|name| id(name)).collect::<BTreeMap<_, _>>()
    };
    let replaced = |before: &BTreeMap<&'static str, u32>, after: &BTreeMap<&'static str, u32>| {
        before
            .iter()
            .filter(|(name, id)| after[*name] != **id)
            .map(|(name, _)| *name)
            .collect::<BTreeSet<_>>()
    };
    let mut sizes = Sizes::from([(names::FLOWS, 1024), (names::FLOWS_NEW, 1024)]);
    let mut before = load(&sizes);
    assert_eq!(replaced(&before, &load(&sizes)), BTreeSet::new(), "the same sizes");
    let policy = [
        names::ENDPOINTS,
        names::POLICY,
        names::GENERATIONS,
        names::PEERS,
        names::NETS,
        names::SETS,
        names::ROWS,
    ];
    for (table, expected) in [
        (names::PEERS, BTreeSet::from(policy)),
        (names::NETS, BTreeSet::from(policy)),
        (names::ROWS, BTreeSet::from(policy)),
        (names::FLOWS, BTreeSet::from([names::FLOWS])),
    ] {
        sizes.insert(table, 2048);
        let after = load(&sizes);
        assert_eq!(replaced(&before, &after), expected, "another size of {table}");
        before = after;
    }
}
