//! What user space is told: drops, new flows that met a Log rule, and how many of them.

use canal_common::event::{EVENTS_PER_CPU, EVENTS_PER_DECISION, Event, Kind};
use nix::time::{ClockId, clock_gettime};

use super::*;

/// Decisions of rows that log.
const LOG_ALLOW: u32 = 11;
const LOG_DENY: u32 = 12;

/// The two rows of these names log and decide.
fn log_rows(lab: &mut Lab) {
    lab.put_row(LOG_ALLOW, &row(&[(0, Verdict::new(Verdict::ALLOW, LOG_ALLOW).with_log())]));
    lab.put_row(LOG_DENY, &row(&[(0, Verdict::new(Verdict::DENY, LOG_DENY).with_log())]));
}

fn gist(event: &Event) -> (Hook, Kind, u8, u32) {
    (
        Hook::from_index(event.hook).unwrap(),
        Kind::from_index(event.kind).unwrap(),
        event.reason,
        event.decision,
    )
}

fn told(lab: &mut Lab) -> Vec<(Hook, Kind, u8, u32)> {
    lab.events().iter().map(gist).collect()
}

const ALLOWED: (Hook, Kind, u8, u32) = (Hook::FromPod, Kind::LoggedAllowed, 0, LOG_ALLOW);

#[test]
fn a_log_rule_tells_of_the_flow_and_not_of_its_packets() {
    story(|lab| {
        log_rows(lab);
        lab.put_set(A.egress_set(), &[LOG_ALLOW]);
        let (to, from) = (Packet::udp(A.at(5), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(5)));
        encapsulated(&leave(lab, A, &to));
        let events = lab.events();
        assert_eq!(events.iter().map(gist).collect::<Vec<_>>(), [ALLOWED]);
        let Event { src, dst, src_port, dst_port, proto, ifindex, len, .. } = events[0];
        assert_eq!((Ipv4Addr::from(src), Ipv4Addr::from(dst)), (A.ip, REMOTE));
        assert_eq!((src_port, dst_port, proto), (5, 53, 17));
        assert_eq!((ifindex, len as usize), (lab.links.pods[A.number], to.bytes().len()));
        for _ in 0..3 {
            delivered(&arrive(lab, &from));
            encapsulated(&leave(lab, A, &to));
        }
        assert_eq!(told(lab), []);
        // Judged again is told again.
        lab.bump(A.id);
        encapsulated(&leave(lab, A, &to));
        assert_eq!(told(lab), [ALLOWED]);
    });
}

#[test]
fn a_log_rule_tells_of_incoming_flows_at_every_hook_that_judges_them() {
    story(|lab| {
        log_rows(lab);
        lab.put_set(A.ingress_set(), &[LOG_ALLOW]);
        delivered(&arrive(lab, &Packet::udp((REMOTE, 1), A.at(53))));
        delivered(&leave(lab, B, &Packet::udp(B.at(1), A.at(53))));
        passes(&enter(lab, A, &Packet::udp((WORLD, 1), A.at(53))), NEXT, Reason::Delivered);
        let hooks = [Hook::FromWire, Hook::FromPod, Hook::ToPod];
        assert_eq!(told(lab), hooks.map(|hook| (hook, Kind::LoggedAllowed, 0, LOG_ALLOW)));
        lab.put_set(A.egress_set(), &[LOG_ALLOW]);
        let context = Context::on(lab.links.overlay).came_by(A.from(lab).ifindex);
        encapsulated(&lab.send(Hook::ToOverlay, &Packet::udp(A.at(9), (REMOTE, 9)).bytes(), context));
        assert_eq!(told(lab), [(Hook::ToOverlay, Kind::LoggedAllowed, 0, LOG_ALLOW)]);
    });
}

#[test]
fn a_flow_that_is_logged_and_denied_is_told_of_once() {
    story(|lab| {
        log_rows(lab);
        let denied = |reason| (Hook::FromPod, Kind::LoggedDenied, reason as u8, LOG_DENY);
        lab.put_set(A.egress_set(), &[LOG_DENY]);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyEgress);
        assert_eq!(told(lab), [denied(Reason::PolicyEgress)]);
        // Two ends are two decisions.
        lab.put_set(A.egress_set(), &[LOG_ALLOW]);
        lab.put_set(B.ingress_set(), &[LOG_DENY]);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyIngress);
        assert_eq!(told(lab), [ALLOWED, denied(Reason::PolicyIngress)]);
        lab.put_set(B.ingress_set(), &[LOG_ALLOW]);
        delivered(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        assert_eq!(told(lab), [ALLOWED, ALLOWED]);
    });
}

#[test]
fn a_drop_without_log_names_its_decision_or_none() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyEgress);
        lab.put_set(A.egress_set(), &[0]);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyEgress);
        dropped(&leave(lab, A, &Packet::udp(B.at(1), REMOTE_END)), Reason::SpoofedIp);
        let drop = |reason, decision| (Hook::FromPod, Kind::Dropped, reason as u8, decision);
        let (egress, spoofed) = (Reason::PolicyEgress, Reason::SpoofedIp);
        assert_eq!(told(lab), [drop(egress, DENY), drop(egress, 0), drop(spoofed, 0)]);
        // What was allowed without a log is nobody's news.
        delivered(&leave(lab, B, &Packet::udp(B.at(1), A.at(53))));
        assert_eq!(told(lab), []);
    });
}

const REMOTE_END: End = (REMOTE, 53);

/// The kernel programs' clock.
fn ticks() -> usize {
    let now = std::time::Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    (now.as_nanos() >> 30) as usize
}

/// What may be told from `since` until now by all CPUs, at so many in a tick.
fn at_most(per_tick: u32, since: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (ticks() - since + 1) * per_tick as usize * cpus
}

#[test]
fn a_decision_is_told_so_often_in_a_tick_and_does_not_silence_another() {
    story(|lab| {
        log_rows(lab);
        let since = ticks();
        lab.put_set(A.egress_set(), &[LOG_ALLOW]);
        lab.put_set(B.egress_set(), &[DENY]);
        for port in 1..=300 {
            encapsulated(&leave(lab, A, &Packet::udp(A.at(port), REMOTE_END)));
        }
        dropped(&leave(lab, B, &Packet::udp(B.at(1), REMOTE_END)), Reason::PolicyEgress);
        let told = told(lab);
        let (logged, rest): (Vec<_>, Vec<_>) = told.into_iter().partition(|event| *event == ALLOWED);
        assert!(logged.len() <= at_most(EVENTS_PER_DECISION, since), "{} events", logged.len());
        assert_eq!(logged.len() as u64 + lab.events_lost_of(LOG_ALLOW), 300);
        assert_eq!(rest, [(Hook::FromPod, Kind::Dropped, Reason::PolicyEgress as u8, DENY)]);
        assert_eq!((lab.events_lost_of(DENY), lab.events_lost()), (0, 0));
    });
}

#[test]
fn a_flood_of_drops_is_counted_in_full_and_told_in_part() {
    story(|lab| {
        let since = ticks();
        for _ in 0..1000 {
            dropped(&leave(lab, A, &Packet::udp((WORLD, 1), B.at(53))), Reason::SpoofedIp);
        }
        let told = told(lab).len();
        assert!(told <= at_most(EVENTS_PER_CPU, since), "{told} events");
        assert_eq!(told as u64 + lab.events_lost(), 1000);
    });
}
