//! Policy that flips under traffic: what both policies allow never fails, and what both deny never passes.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bpf_tests::{EchoServer, Host};
use canal_agent::model::resource::Kind;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::stage::{OUTSIDE, Stage};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 3);

/// In the tables. Policy flips each [`PERIOD`]; the tables follow as soon as no program can use what the flip before left.
const FLIPS: u32 = 1_000;
const PERIOD: Duration = Duration::from_millis(1);

/// Ports of the server, by what the two policies say about them.
const BOTH: u16 = 0;
const NONE: u16 = 1;
const FIRST: u16 = 2;
const SECOND: u16 = 3;
const PORTS: [u16; 4] = [BOTH, NONE, FIRST, SECOND];
const LOWEST: u16 = 7000;

/// How long an echo may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Shorter than the time after which a SYN is sent again, which would hide that the first one was dropped.
const ONE_SYN: Duration = Duration::from_millis(950);
const BRIEFLY: Duration = Duration::from_millis(5);

/// The policy lets in those with one label, and on one port those with the other, and in the same update the clients
/// change their labels: a new policy with old labels, or the reverse, would refuse what both allow and let in what both
/// deny. The near client is a pod, found by its address; the one outside is found by the net of a network set.
fn put(stage: &mut Stage, first: bool) {
    let (now, then, port) = if first { ("a", "b", FIRST) } else { ("b", "a", SECOND) };
    let allow = |protocol: &str, who: &str, ports: &[u16]| {
        let ports: Vec<u16> = ports.iter().map(|port| LOWEST + port).collect();
        let source = json!({ "selector": format!("who == '{who}'") });
        json!({ "action": "Allow", "protocol": protocol, "source": source, "destination": { "ports": ports } })
    };
    let ingress: Vec<_> = ["UDP", "TCP"]
        .iter()
        .flat_map(|protocol| [allow(protocol, now, &[BOTH, port]), allow(protocol, then, &[NONE])])
        .collect();
    let spec = json!({ "selector": "role == 'server'", "types": ["Ingress"], "ingress": ingress });
    stage.put(Kind::GlobalNetworkPolicy, "", "p", &json!({ "spec": spec }));
    stage.put_pod("near", NEAR, &json!({ "who": now }));
    let set =
        json!({ "metadata": { "labels": { "who": now } }, "spec": { "nets": [format!("{OUTSIDE}/30")] } });
    stage.put(Kind::GlobalNetworkSet, "", "outside", &set);
}

/// What the clients did and what the server saw, by client and port.
#[derive(Default)]
struct Traffic {
    done: AtomicBool,
    /// Behind the last client.
    closed: AtomicBool,
    sent: [[AtomicU64; PORTS.len()]; 2],
    arrived: [[AtomicU64; PORTS.len()]; 2],
    connected: AtomicU64,
    refused: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        !self.done.load(Ordering::Relaxed)
    }

    fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
        self.done.store(true, Ordering::Relaxed);
    }

    /// Sends back what comes.
    fn serve(&self, socket: &UdpSocket, port: u16) {
        socket.set_read_timeout(Some(BRIEFLY)).unwrap();
        let mut client = [0];
        while !self.closed.load(Ordering::Relaxed) {
            if let Ok((1, from)) = socket.recv_from(&mut client) {
                self.arrived[usize::from(client[0])][usize::from(port)].fetch_add(1, Ordering::Relaxed);
                socket.send_to(&client, from).ok();
            }
        }
    }

    /// One datagram; whether it came back, where it must.
    fn send(&self, socket: &UdpSocket, client: u8, port: u16) -> bool {
        self.sent[usize::from(client)][usize::from(port)].fetch_add(1, Ordering::Relaxed);
        socket.send_to(&[client], (SERVER, LOWEST + port)).unwrap();
        port != BOTH || socket.recv(&mut [0]).is_ok()
    }

    /// Each datagram from another port.
    fn new_flows(&self, client: u8) {
        while self.goes_on() {
            for port in PORTS {
                let socket = socket();
                if !self.send(&socket, client, port) {
                    self.fault(format!("client {client}: a new flow that both policies allow was refused"));
                }
            }
        }
    }

    /// Judged again after each flip.
    fn one_flow(&self, client: u8) {
        let socket = socket();
        while self.goes_on() {
            if !self.send(&socket, client, BOTH) {
                self.fault(format!("client {client}: a live flow that both policies allow was cut"));
            }
        }
    }

    fn connections(&self, client: u8) {
        let connect = |port, patience| {
            let stream =
                TcpStream::connect_timeout(&SocketAddrV4::new(SERVER, LOWEST + port).into(), patience)?;
            // A reset leaves no waiting state behind, of which the ports would run out.
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            std::io::Result::Ok(())
        };
        while self.goes_on() {
            match connect(BOTH, ONE_SYN) {
                Ok(()) => drop(self.connected.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.fault(format!("client {client}: no connection that both allow: {error}")),
            }
            match connect(NONE, BRIEFLY) {
                Err(_) => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
                Ok(()) => self.fault(format!("client {client}: a connection that both policies deny")),
            }
        }
    }

    fn check(&self) {
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        for client in 0..2 {
            let of = |counts: &[[AtomicU64; PORTS.len()]; 2]| {
                PORTS.map(|port| counts[client][usize::from(port)].load(Ordering::Relaxed))
            };
            let (sent, arrived) = (of(&self.sent), of(&self.arrived));
            println!("client {client}: sent {sent:?}, arrived {arrived:?}");
            let [both, none, first, second] = [BOTH, NONE, FIRST, SECOND].map(usize::from);
            assert_eq!(arrived[none], 0, "what both policies deny passed");
            assert!(
                sent[both] > 1_000 && arrived[both] == sent[both],
                "what both allow arrived, and was seen"
            );
            for port in [first, second] {
                let (sent, arrived) = (sent[port], arrived[port]);
                assert!(
                    arrived * 20 > sent && arrived * 20 < sent * 19,
                    "of {sent} datagrams that one policy allows and the other denies {arrived} arrived: too little flips"
                );
            }
        }
    }
}

/// Ends servers and clients, after a panic too.
struct Closing<'a>(&'a Traffic);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
        self.0.closed.store(true, Ordering::Relaxed);
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn while_policy_flips_nothing_is_judged_as_neither_policy_would() {
    let mut stage = Stage::new();
    let (server, near) = (stage.plug("server", SERVER), stage.plug("near", NEAR));
    let allow = json!([{ "action": "Allow" }]);
    stage.put(Kind::Profile, "", "open", &json!({ "spec": { "ingress": allow, "egress": allow } }));
    stage.put_pod("server", SERVER, &json!({ "role": "server" }));
    put(&mut stage, true);
    stage.apply();
    let _listening: [EchoServer; 2] = [BOTH, NONE].map(|port| server.serve_tcp(LOWEST + port).unwrap());
    let outside = stage.outside();
    let traffic = Traffic::default();
    let (flips, took) = thread::scope(|scope| {
        let traffic = &traffic;
        let closing = Closing(traffic);
        for port in PORTS {
            // Before anybody sends: what finds no socket is lost.
            let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, LOWEST + port)).unwrap();
            let socket = server.netns().run(bind).unwrap();
            scope.spawn(move || traffic.serve(&socket, port));
        }
        let mut clients = Vec::new();
        for (client, host) in [(0, near.netns()), (1, outside.netns())] {
            for work in [Traffic::new_flows, Traffic::one_flow, Traffic::connections] {
                clients.push(scope.spawn(move || host.run(|| work(traffic, client)).unwrap()));
            }
        }
        let (start, mut flips, mut changes, mut is_first) = (Instant::now(), 0, 0, true);
        while flips < FLIPS && traffic.goes_on() {
            let in_tables = is_first;
            while start + PERIOD * changes <= Instant::now() {
                changes += 1;
                is_first = !is_first;
                put(&mut stage, is_first);
            }
            stage.apply();
            flips += u32::from(is_first != in_tables);
            thread::sleep((start + PERIOD * changes).saturating_duration_since(Instant::now()));
        }
        let took = start.elapsed();
        traffic.done.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
        drop(closing);
        (flips, took)
    });
    println!("{flips} flips in {took:?}; {:?}", stage.counters());
    traffic.check();
    assert_eq!(flips, FLIPS);
}
