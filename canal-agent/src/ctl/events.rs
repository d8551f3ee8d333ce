//! `canalctl events` and `canalctl drops`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;

use super::{Cli, Output, PATIENCE, protocol};
use crate::api::{
    client::Client,
    events::{Event, EventEnd, Events},
    server::FOLLOW,
    wire::RuleName,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on with what happens from now on, until interrupted; with -o json one object a line
    #[arg(short, long)]
    follow: bool,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Which of the events are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    All,
    Drops,
}

impl Filter {
    fn takes(self, event: &Event) -> bool {
        self == Self::All || event.is_drop()
    }
}

pub(super) fn run(cli: &Cli, arguments: &Arguments, filter: Filter) -> anyhow::Result<u8> {
    let client = Client::new(&cli.socket);
    let mut events: Events = client.clone().timeout(PATIENCE).get("/v1/events")?;
    events.events.retain(|event| filter.takes(event));
    let done = if arguments.follow {
        follow(&client.timeout(FOLLOW + PATIENCE), events, arguments.output, filter)
    } else {
        show(&events, arguments.output)
    };
    match done {
        // Whoever reads us has had enough.
        Err(error) if is_broken_pipe(&error) => Ok(0),
        other => other.map(|()| 0),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn show(events: &Events, output: Output) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(events)?)?,
        Output::Table => {
            for event in &events.events {
                writeln!(out, "{}", line(event))?;
            }
            if events.events.is_empty() {
                eprintln!("canalctl: nothing of this kind since the agent started");
            }
            if events.lost > 0 {
                eprintln!(
                    "canalctl: {} drops without a rule were not told of: too many at a time",
                    events.lost
                );
            }
        }
    }
    Ok(())
}

fn follow(client: &Client, mut known: Events, output: Output, filter: Filter) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    loop {
        for event in known.events.iter().filter(|event| filter.takes(event)) {
            match output {
                Output::Json => writeln!(out, "{}", serde_json::to_string(event)?)?,
                Output::Table => writeln!(out, "{}", line(event))?,
            }
        }
        out.flush()?;
        let next: Events = client.get(&format!("/v1/events/after/{}", known.last))?;
        if next.last < known.last {
            eprintln!("canalctl: the agent was restarted");
        } else if next.forgotten > 0 {
            eprintln!("canalctl: {} events came too fast to be shown", next.forgotten);
        }
        known = next;
    }
}

/// `12:30:01.250Z deny ingress TCP 10.100.1.5:40000 (default/web) → 10.100.1.6:80 on cali1: why`
fn line(event: &Event) -> String {
    let ends = [&event.src, &event.dst].map(|end| name(end, event.protocol));
    format!(
        "{} {:<5} {:<7} {} {} → {} on {}: {}",
        time_of_day(event.unix_ms),
        event.verdict,
        event.direction.as_deref().unwrap_or("-"),
        protocol::name(event.protocol),
        ends[0],
        ends[1],
        event.interface.as_deref().unwrap_or("-"),
        why(event)
    )
}

/// UTC.
fn time_of_day(unix_ms: u64) -> String {
    let of_day = Duration::from_millis(unix_ms % 86_400_000);
    let (seconds, ms) = (of_day.as_secs(), of_day.subsec_millis());
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn name(end: &EventEnd, number: u8) -> String {
    if end.address.is_unspecified() {
        return "-".to_owned();
    }
    let mut text = end.address.to_string();
    if protocol::has_ports(number) {
        text = format!("{text}:{}", end.port);
    }
    match &end.pod {
        Some(pod) => format!("{text} ({})", short(pod)),
        None => text,
    }
}

/// A container id is known by its beginning; `canalctl explain` takes it, too.
fn short(pod: &str) -> &str {
    const WHOLE: usize = 64;
    const BEGINNING: usize = 12;
    let at = pod.rfind('/').map_or(0, |slash| slash + 1);
    let id = &pod[at..];
    let is_id = id.len() == WHOLE && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &pod[..at + BEGINNING] } else { pod }
}

fn why(event: &Event) -> String {
    let list = |rules: &[RuleName]| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    if !event.logs.is_empty() {
        parts.push(format!("logged by {}", list(&event.logs)));
    }
    match (&event.rule, &event.sentence) {
        (Some(rule), _) if event.verdict == "drop" => {
            parts.push(format!("allowed by {rule}"));
            parts.extend(event.sentence.clone());
        }
        (Some(rule), _) => parts.push(format!("decided by {rule}")),
        (None, Some(sentence)) => parts.push(sentence.clone()),
        (None, None) => {}
    }
    if event.lost > 0 {
        parts.push(format!("{} more like this were not told", event.lost));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str) -> RuleName {
        RuleName {
            tier: "default".to_owned(),
            kind: "NetworkPolicy".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            key: String::new(),
            direction: "ingress".to_owned(),
            index: 2,
        }
    }

    fn event() -> Event {
        let end = |address: [u8; 4], port, pod: Option<&str>| EventEnd {
            address: address.into(),
            port,
            endpoint: None,
            pod: pod.map(str::to_owned),
        };
        let id = "shop/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        Event {
            number: 1,
            unix_ms: 1_795_000_000_250 / 86_400_000 * 86_400_000 + 45_001_250,
            kind: "dropped".to_owned(),
            hook: "from_pod".to_owned(),
            reason: Some("policy-ingress".to_owned()),
            sentence: Some("denied by policy at the receiving pod".to_owned()),
            protocol: 6,
            src: end([10, 100, 1, 5], 40000, Some(id)),
            dst: end([10, 100, 1, 6], 80, Some("shop/db-0")),
            interface: Some("cali1".to_owned()),
            bytes: 60,
            direction: Some("ingress".to_owned()),
            verdict: "deny".to_owned(),
            rule: Some(rule("web")),
            logs: Vec::new(),
            lost: 0,
        }
    }

    #[test]
    fn a_line_says_when_who_whom_where_and_why() {
        assert_eq!(
            line(&event()),
            "12:30:01.250Z deny  ingress TCP 10.100.1.5:40000 (shop/0123456789ab) → 10.100.1.6:80 (shop/db-0) on cali1: \
             decided by NetworkPolicy shop/web (tier default) ingress rule 2"
        );
        let logged = Event {
            kind: "logged-allowed".to_owned(),
            verdict: "allow".to_owned(),
            reason: None,
            sentence: None,
            logs: vec![rule("log"), rule("audit")],
            lost: 7,
            protocol: 1,
            ..event()
        };
        assert!(!logged.is_drop());
        assert_eq!(
            line(&logged),
            "12:30:01.250Z allow ingress ICMP 10.100.1.5 (shop/0123456789ab) → 10.100.1.6 (shop/db-0) on cali1: logged by \
             NetworkPolicy shop/log (tier default) ingress rule 2, NetworkPolicy shop/audit (tier default) ingress rule 2; \
             decided by NetworkPolicy shop/web (tier default) ingress rule 2; 7 more like this were not told"
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_what_no_rule_decided_has_its_sentence() {
        let nobody = EventEnd { address: [0; 4].into(), port: 0, endpoint: None, pod: None };
        let odd = Event {
            verdict: "drop".to_owned(),
            sentence: Some("neither IPv4 nor ARP".to_owned()),
            direction: None,
            interface: None,
            protocol: 0,
            src: nobody.clone(),
            dst: nobody,
            rule: None,
            ..event()
        };
        assert_eq!(line(&odd), "12:30:01.250Z drop  -       - - → - on -: neither IPv4 nor ARP");
        let to_host = Event { verdict: "drop".to_owned(), sentence: Some("not here".to_owned()), ..event() };
        assert!(
            line(&to_host)
                .ends_with(": allowed by NetworkPolicy shop/web (tier default) ingress rule 2; not here")
        );
    }
}
