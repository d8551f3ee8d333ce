//! Events from the kernel, told as soon as they come: with the names that rules and endpoints have then, since ids and
//! addresses are given to others later.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use canal_common::{
    event::{self, Kind},
    reason::{Hook, Reason},
};
use nix::{
    net::if_::if_indextoname,
    time::{ClockId, clock_gettime},
};
use tokio::sync::oneshot;
use tracing::info;

use super::{Node, names};
use crate::{
    api::{
        events::{Event, EventEnd, Events},
        wire::RuleName,
    },
    compile::Final,
    logging::POLICY_LOG,
    model::Cluster,
};

/// How many of the latest are remembered of either sort: drops do not push out what Log rules told.
const KEPT: usize = 512;

/// Events that were told, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    last: u64,
    dropped: VecDeque<Event>,
    logged: VecDeque<Event>,
    followers: Vec<Follower>,
    /// By kind, also of those forgotten.
    counts: [u64; Kind::ALL.len()],
}

#[derive(Debug)]
struct Follower {
    /// Waits for what comes after this number; without one for nothing.
    after: Option<u64>,
    reply: oneshot::Sender<Events>,
}

impl EventLog {
    /// How many were told since the agent started.
    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    fn remember(&mut self, mut event: Event, kind: Kind) {
        self.last += 1;
        self.counts[kind as usize] += 1;
        event.number = self.last;
        let latest = if kind.is_logged() { &mut self.logged } else { &mut self.dropped };
        if latest.len() == KEPT {
            latest.pop_front();
        }
        latest.push_back(event);
    }

    /// What came after a number; one of an earlier agent means nothing here.
    fn after(&self, number: Option<u64>, lost: u64) -> Events {
        let number = number.filter(|number| *number <= self.last).unwrap_or_default();
        let both = [&self.dropped, &self.logged];
        let mut events: Vec<Event> =
            both.into_iter().flatten().filter(|event| event.number > number).cloned().collect();
        events.sort_by_key(|event| event.number);
        let forgotten = self.last - number - events.len() as u64;
        Events { events, last: self.last, forgotten, lost }
    }

    /// Those who have what they wait for. Who has given up is forgotten.
    fn served(&mut self) -> Vec<Follower> {
        self.followers.retain(|follower| !follower.reply.is_closed());
        let last = self.last;
        let (waiting, served) = self.followers.drain(..).partition(|follower| follower.after == Some(last));
        self.followers = waiting;
        served
    }
}

impl Node {
    /// Tells of what the kernel has written since.
    pub(super) fn drain_events(&mut self) {
        let events = self.events.drain();
        if !events.is_empty() {
            let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
            let now = SystemTime::now();
            for event in events {
                let age = since_boot.saturating_sub(Duration::from_nanos(event.time_ns));
                self.tell(&event, now.checked_sub(age).unwrap_or(now));
            }
        }
        self.answer_followers();
    }

    /// Answers at once, or with `after` as soon as something has come after that.
    pub(super) fn give_events(&mut self, after: Option<u64>, reply: oneshot::Sender<Events>) {
        self.event_log.followers.push(Follower { after, reply });
        self.drain_events();
    }

    fn answer_followers(&mut self) {
        let served = self.event_log.served();
        if served.is_empty() {
            return;
        }
        let lost = self.hits.lost_without_decision().unwrap_or_default();
        for Follower { after, reply } in served {
            let _ = reply.send(self.event_log.after(after, lost));
        }
    }

    fn tell(&mut self, event: &event::Event, time: SystemTime) {
        let Some(kind) = Kind::from_index(event.kind) else { return };
        let mut told = describe(
            &self.cluster,
            kind,
            event,
            self.policy.decided(event.decision).map(|decided| &**decided),
            time,
        );
        if event.decision != 0 {
            told.lost = self.hits.of(event.decision).lost;
        }
        if kind.is_logged() {
            log(&told, &self.steering.parameters().log_prefix);
        }
        self.event_log.remember(told, kind);
    }
}

fn describe(
    cluster: &Cluster,
    kind: Kind,
    event: &event::Event,
    decided: Option<&Final>,
    time: SystemTime,
) -> Event {
    let reason = kind.is_drop().then(|| Reason::from_index(event.reason)).flatten();
    let slug = |known: Option<&'static str>| known.unwrap_or("unknown").to_owned();
    let rule = decided.and_then(|decided| decided.rule.as_ref());
    let logs = decided.map(|decided| &decided.logs[..]).unwrap_or_default();
    let direction = rule.or(logs.first()).map(|rule| rule.direction.to_string()).or_else(|| match reason {
        Some(Reason::PolicyIngress) => Some("ingress".to_owned()),
        Some(Reason::PolicyEgress | Reason::ToHost) => Some("egress".to_owned()),
        _ => None,
    });
    let verdict = match (kind, reason) {
        (Kind::LoggedAllowed, _) => "allow",
        (_, Some(Reason::PolicyIngress | Reason::PolicyEgress)) => "deny",
        _ => "drop",
    };
    Event {
        number: 0,
        unix_ms: time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        kind: kind.slug().to_owned(),
        hook: slug(Hook::from_index(event.hook).map(Hook::slug)),
        reason: kind.is_drop().then(|| slug(reason.map(Reason::slug))),
        sentence: reason.map(|reason| reason.sentence().to_owned()),
        protocol: event.proto,
        src: end(cluster, event.src.into(), event.src_port),
        dst: end(cluster, event.dst.into(), event.dst_port),
        interface: if_indextoname(event.ifindex).ok().map(|name| name.to_string_lossy().into_owned()),
        bytes: event.len,
        direction,
        verdict: verdict.to_owned(),
        rule: rule.map(|rule| names::rule(cluster, rule)),
        logs: logs.iter().map(|rule| names::rule(cluster, rule)).collect(),
        lost: 0,
    }
}

fn end(cluster: &Cluster, address: Ipv4Addr, port: u16) -> EventEnd {
    let found = cluster.endpoints_at(address).next();
    EventEnd {
        address,
        port,
        endpoint: found.map(|(key, _)| key.to_string()),
        pod: found.map(|(key, endpoint)| format!("{}/{}", key.namespace, endpoint.workload)),
    }
}

/// A line for each Log rule that the flow met.
fn log(event: &Event, template: &str) {
    let known = |endpoint: &Option<String>| endpoint.clone().unwrap_or_default();
    for rule in &event.logs {
        info!(
            target: POLICY_LOG,
            tier = rule.tier,
            policy = format!("{} {}", rule.kind, rule.qualified_name()),
            rule = rule.index,
            direction = rule.direction,
            verdict = event.verdict,
            protocol = event.protocol,
            src = %event.src.address,
            src_port = event.src.port,
            src_endpoint = known(&event.src.endpoint),
            dst = %event.dst.address,
            dst_port = event.dst.port,
            dst_endpoint = known(&event.dst.endpoint),
            interface = event.interface,
            "{}",
            prefix(template, rule)
        );
    }
}

/// Felix's `LogPrefix`: `%t` is the tier, `%k` the kind in short, `%n` the name, `%p` the name with its namespace.
fn prefix(template: &str, rule: &RuleName) -> String {
    let mut text = String::new();
    let mut rest = template.chars();
    while let Some(next) = rest.next() {
        if next != '%' {
            text.push(next);
            continue;
        }
        match rest.next() {
            Some('t') => text.push_str(&rule.tier),
            Some('k') => text.push_str(match rule.kind.as_str() {
                "GlobalNetworkPolicy" => "gnp",
                "NetworkPolicy" => "np",
                _ => "pro",
            }),
            Some('n') => text.push_str(&rule.name),
            Some('p') => text.push_str(&rule.qualified_name()),
            other => {
                text.push('%');
                text.extend(other);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::sync::Arc;

    use super::*;
    use crate::{
        compile::{RuleId, tests::World},
        model::{
            resource::{Kind as Kinds, Resource},
            rule::Direction,
        },
    };

    fn world() -> World {
        let mut world = World::default();
        world.pod("web", "10.0.0.1", "", &[]);
        world.policy("shop", "default.p", &json!({ "tier": "default" }));
        world
    }

    fn raw(kind: Kind, reason: u8) -> event::Event {
        event::Event {
            src: Ipv4Addr::new(10, 0, 0, 1).into(),
            dst: Ipv4Addr::new(8, 8, 8, 8).into(),
            src_port: 40000,
            dst_port: 53,
            proto: 17,
            hook: Hook::FromPod as u8,
            reason,
            kind: kind as u8,
            len: 99,
            ..event::Event::default()
        }
    }

    fn rule(index: u32, direction: Direction) -> Arc<RuleId> {
        let policy = Resource::new(Kinds::NetworkPolicy, "shop", "default.p");
        Arc::new(RuleId { tier: "default".to_owned(), policy, direction, index })
    }

    fn described(kind: Kind, reason: u8, decision: Option<&Final>) -> Event {
        let time = UNIX_EPOCH + Duration::from_millis(1234);
        describe(&world().cluster, kind, &raw(kind, reason), decision, time)
    }

    #[test]
    fn an_event_has_the_names_of_its_ends_and_of_the_rules_that_it_met() {
        let [log, allow] = [0, 1].map(|index| rule(index, Direction::Egress));
        let decision = Final { allow: true, rule: Some(allow), logs: vec![log] };
        let event = described(Kind::LoggedAllowed, 0, Some(&decision));
        let ends = (event.src.endpoint.as_deref(), event.src.pod.as_deref(), event.dst.endpoint.as_deref());
        assert_eq!(ends, (Some("shop/n1-cni-web-eth0"), Some("shop/web"), None));
        assert_eq!((event.unix_ms, event.bytes, event.protocol, event.dst.port), (1234, 99, 17, 53));
        assert_eq!((event.verdict.as_str(), event.direction.as_deref()), ("allow", Some("egress")));
        assert_eq!(event.rule.unwrap().to_string(), "NetworkPolicy shop/p (tier default) egress rule 1");
        assert_eq!(event.logs[0].index, 0);
        assert_eq!((event.reason, event.sentence), (None, None), "nothing is known of its fate");
    }

    #[test]
    fn the_prefix_of_a_log_line_names_the_rule_where_it_is_asked_to() {
        let rule = names::rule(&world().cluster, &rule(0, Direction::Egress));
        for (template, text) in [
            ("calico-packet", "calico-packet"),
            ("%t/%k/%n %p: ", "default/np/p shop/p: "),
            ("100%% %x %", "100%% %x %"),
            ("", ""),
        ] {
            assert_eq!(prefix(template, &rule), text);
        }
    }

    #[test]
    fn verdict_and_direction_are_those_of_policy_where_it_was_asked() {
        let by = |direction| Final { allow: false, rule: Some(rule(0, direction)), logs: Vec::new() };
        let (ingress, egress) = (by(Direction::Ingress), by(Direction::Egress));
        for (kind, reason, decision, verdict, direction) in [
            (Kind::Dropped, Reason::PolicyIngress, None, "deny", Some("ingress")),
            (Kind::Dropped, Reason::PolicyEgress, None, "deny", Some("egress")),
            (Kind::Dropped, Reason::PolicyIngress, Some(&ingress), "deny", Some("ingress")),
            (Kind::LoggedDenied, Reason::PolicyEgress, Some(&egress), "deny", Some("egress")),
            (Kind::LoggedDenied, Reason::ToHost, Some(&egress), "drop", Some("egress")),
            (Kind::Dropped, Reason::Malformed, None, "drop", None),
        ] {
            let event = described(kind, reason as u8, decision);
            assert_eq!((event.verdict.as_str(), event.direction.as_deref()), (verdict, direction));
            assert_eq!(event.reason.as_deref(), Some(reason.slug()));
            assert!(event.is_drop());
        }
        assert_eq!(described(Kind::Dropped, 255, None).reason.as_deref(), Some("unknown"));
    }

    /// Numbers of what an answer holds, and how many are forgotten.
    fn numbers(log: &EventLog, after: Option<u64>) -> (Vec<u64>, u64) {
        let answer = log.after(after, 0);
        assert_eq!(answer.last, log.last);
        (answer.events.iter().map(|event| event.number).collect(), answer.forgotten)
    }

    #[test]
    fn a_flood_of_drops_pushes_out_drops_and_nothing_else() {
        let mut log = EventLog::default();
        let drop = described(Kind::Dropped, 23, None);
        log.remember(drop.clone(), Kind::LoggedDenied);
        for _ in 0..KEPT + 3 {
            log.remember(drop.clone(), Kind::Dropped);
        }
        let (numbers, forgotten) = numbers(&log, None);
        assert_eq!((numbers.len(), numbers[..2].to_vec(), forgotten), (KEPT + 1, vec![1, 5], 3));
        assert_eq!((log.count(Kind::LoggedDenied), log.count(Kind::Dropped)), (1, KEPT as u64 + 3));
    }

    #[test]
    fn a_follower_gets_what_is_new_and_waits_when_nothing_is() {
        let mut log = EventLog::default();
        let drop = described(Kind::Dropped, 23, None);
        for _ in 0..3 {
            log.remember(drop.clone(), Kind::Dropped);
        }
        assert_eq!(numbers(&log, Some(1)), (vec![2, 3], 0));
        assert_eq!(numbers(&log, Some(3)), (vec![], 0));
        assert_eq!(numbers(&log, Some(99)), (vec![1, 2, 3], 0), "that was an earlier agent's");

        let follow = |log: &mut EventLog, after| {
            let (reply, answer) = oneshot::channel();
            log.followers.push(Follower { after, reply });
            answer
        };
        let _now = [None, Some(1), Some(99)].map(|after| follow(&mut log, after));
        let _later = follow(&mut log, Some(3));
        let gone = follow(&mut log, Some(3));
        assert_eq!(log.served().len(), 3);
        assert_eq!(log.followers.len(), 2);
        std::mem::drop(gone);
        assert_eq!((log.served().len(), log.followers.len()), (0, 1), "who has given up is forgotten");
        log.remember(drop, Kind::Dropped);
        assert_eq!((log.served().len(), log.followers.len()), (1, 0));
    }
}
