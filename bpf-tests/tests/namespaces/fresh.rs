//! New pods under traffic: closed from the moment their interface is up until their tables stand, whatever the pod that
//! had the address before was allowed.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use bpf_tests::Host;
use canal_agent::model::resource::Kind;
use serde_json::json;

use crate::{
    soon,
    stage::{Guest, OUTSIDE, Stage},
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 3);
const LATE: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 9);
/// Pods of odd rounds may use the odd one, in either direction, and the others the other one.
const PORTS: [u16; 2] = [7100, 7101];
const KINDS: [&str; 2] = ["even", "odd"];
const ROUNDS: u8 = 12;
/// So many packets of the pod, and to it, are refused before its tables are written.
const REFUSED: u64 = 200;
const BRIEFLY: Duration = Duration::from_millis(5);

/// By port: at the late pod from near and from outside, then from the late pod at near and outside.
#[derive(Default)]
struct Arrived([[AtomicU64; PORTS.len()]; 4]);

impl Arrived {
    fn at(&self, way: usize, port: usize) -> u64 {
        self.0[way][port].load(Ordering::Relaxed)
    }

    fn on(&self, port: usize) -> [u64; 4] {
        [0, 1, 2, 3].map(|way| self.at(way, port))
    }
}

/// Sends to both ports of `to`, each datagram from another port.
fn send(done: &AtomicBool, to: &[Ipv4Addr], tag: [u8; 2]) {
    while !done.load(Ordering::Relaxed) {
        for (to, port) in to.iter().flat_map(|to| PORTS.map(|port| (*to, port))) {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            // While nobody is plugged in, there is no way there.
            socket.send_to(&tag, (to, port)).ok();
        }
    }
}

/// Tells which way what comes has come; what another round sent does not count.
fn receive(done: &AtomicBool, round: u8, port: usize, arrived: &Arrived, way: impl Fn(u8) -> usize) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORTS[port])).unwrap();
    socket.set_read_timeout(Some(BRIEFLY)).unwrap();
    let mut tag = [0; 2];
    while !done.load(Ordering::Relaxed) {
        if let Ok((2, _)) = socket.recv_from(&mut tag)
            && tag[1] == round
        {
            arrived.0[way(tag[0])][port].fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What has been dropped on its way from a pod that nobody knows, and to one.
fn refusals(stage: &Stage) -> [u64; 2] {
    let counters = stage.counters();
    ["from_pod spoofed-ip", "to_pod unknown-endpoint"].map(|name| counters.get(name).copied().unwrap_or(0))
}

/// One pod's life, from its interface on.
fn live(stage: &mut Stage, round: u8, near: &Guest, outside: &Guest) {
    let before = refusals(stage);
    let late = stage.plug("late", LATE);
    let (arrived, done) = (Arrived::default(), AtomicBool::new(false));
    let (open, shut) = (usize::from(round % 2), usize::from(round % 2 + 1) % 2);
    thread::scope(|scope| {
        let _ends = Done(&done);
        let (arrived, done) = (&arrived, &done);
        for port in 0..PORTS.len() {
            let late = late.netns();
            scope.spawn(move || late.run(|| receive(done, round, port, arrived, usize::from)).unwrap());
            for (way, host) in [(2, near.netns()), (3, outside.netns())] {
                scope.spawn(move || host.run(|| receive(done, round, port, arrived, |_| way)).unwrap());
            }
        }
        for (number, host, to) in
            [(0_u8, near, &[LATE][..]), (1, outside, &[LATE]), (2, &late, &[NEAR, OUTSIDE])]
        {
            let host = host.netns();
            scope.spawn(move || host.run(|| send(done, to, [number, round])).unwrap());
        }
        let refused = || refusals(stage).into_iter().zip(before).all(|(now, before)| now > before + REFUSED);
        assert!(soon(refused), "round {round}: {:?}", stage.counters());
        for port in 0..PORTS.len() {
            assert_eq!(arrived.on(port), [0; 4], "round {round}: through a pod without tables");
        }
        stage.put_pod("late", LATE, &json!({ "round": KINDS[open] }));
        stage.apply();
        let opened = || arrived.on(open).iter().all(|count| *count > 20);
        assert!(soon(opened), "round {round}: {:?}", arrived.on(open));
        assert_eq!(arrived.on(shut), [0; 4], "round {round}: what its policy denies");
    });
    stage.delete_pod("late");
    stage.apply();
    stage.unplug("late", late);
}

#[test]
fn a_pod_is_closed_from_its_first_packet_until_its_tables_stand() {
    let mut stage = Stage::new();
    let allow = json!([{ "action": "Allow" }]);
    stage.put(Kind::Profile, "", "open", &json!({ "spec": { "ingress": allow, "egress": allow } }));
    for (port, round) in PORTS.iter().zip(KINDS) {
        let rules = json!([{ "action": "Allow", "protocol": "UDP", "destination": { "ports": [port] } }]);
        let spec = json!({ "selector": format!("round == '{round}'"), "ingress": rules, "egress": rules });
        stage.put(Kind::GlobalNetworkPolicy, "", round, &json!({ "spec": spec }));
    }
    let near = stage.plug("near", NEAR);
    stage.put_pod("near", NEAR, &json!({}));
    stage.apply();
    let outside = stage.outside();
    for round in 0..ROUNDS {
        live(&mut stage, round, &near, &outside);
    }
}
