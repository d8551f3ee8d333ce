//! `canalctl status`.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::{Cli, Output, PATIENCE, duration, table::table};
use crate::{
    api::{
        client::Client,
        wire::{CounterStatus, Status},
    },
    dataplane::counters::Counters,
};

pub(super) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let status = match Client::new(&cli.socket).timeout(PATIENCE).status() {
        Ok(status) => status,
        Err(error) => return without_agent(cli, output, &error.to_string()),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => print!("{}", render(&status)),
    }
    Ok(u8::from(!status.problems.is_empty()))
}

/// The data path goes on without an agent: show what it counts.
fn without_agent(cli: &Cli, output: Output, error: &str) -> anyhow::Result<u8> {
    let counters = Counters::open(&cli.bpffs)
        .and_then(|c| c.read())
        .with_context(|| format!("{error}; and there are no pinned tables below {}", cli.bpffs.display()))?;
    match output {
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(&Status {
                problems: vec![error.to_owned()],
                counters,
                ..Status::default()
            })?
        ),
        Output::Table => {
            eprintln!("canalctl: {error}; the data path is still there:");
            print!("{}", counters_table(&counters));
        }
    }
    Ok(2)
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<11}{value}");
    };
    line("Agent", format!("{} on {}, up {}", status.version, status.node, duration(status.uptime_seconds)));
    line(
        "Store",
        format!(
            "{}, {}, revision {}",
            status.store.endpoints.join(" "),
            if status.store.connected { "connected" } else { "AWAY" },
            status.store.revision
        ),
    );
    if let Some(uplink) = &status.uplink {
        line(
            "Uplink",
            format!(
                "{}, {}, MTU {}, VXLAN taken off by {}",
                uplink.interface, uplink.address, uplink.mtu, uplink.decap_gear
            ),
        );
    }
    if let Some(lease) = &status.lease {
        line(
            "Lease",
            format!(
                "{} of {}{}, published as {}",
                lease.subnet,
                lease.network,
                if lease.reservation { " (reserved)" } else { "" },
                lease.public_ip
            ),
        );
        let mut backend = format!("{}, MTU {} for pods", lease.backend, lease.mtu);
        if let (Some(vni), Some(port), Some(mac)) = (lease.vni, lease.port, lease.vtep_mac) {
            let _ = write!(backend, ", VNI {vni}, UDP {port}, MAC {mac}");
        }
        line("Backend", backend);
    }
    if status.problems.is_empty() {
        let health = match status.invalid.len() {
            0 => "ok".to_owned(),
            n => format!("ok, but {n} objects cannot be used"),
        };
        line("Health", health);
    }
    for problem in &status.problems {
        line("PROBLEM", problem.clone());
    }
    for (key, reason) in &status.invalid {
        line("INVALID", format!("{key}: {reason}"));
    }
    for notice in &status.notices {
        line("NOTICE", notice.clone());
    }
    text.push('\n');
    let mut peers = table(["PEER SUBNET", "NODE", "ADDRESS", "VTEP MAC", "WAY"]);
    for peer in &status.peers {
        peers.add_row([
            peer.subnet.to_string(),
            peer.node.clone().unwrap_or_else(|| "-".to_owned()),
            peer.public_ip.to_string(),
            peer.vtep_mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string()),
            peer.reason.as_ref().map_or_else(|| peer.way.to_string(), |reason| format!("NONE: {reason}")),
        ]);
    }
    let mut endpoints = table(["ENDPOINT", "ADDRESS", "INTERFACE", "STATE", "INGRESS", "EGRESS"]);
    for endpoint in &status.endpoints {
        let mut state = endpoint.state.clone();
        if let Some(shaped) = &endpoint.shaped {
            let _ = write!(state, ", shaped {shaped}");
        }
        if let Some(reason) = &endpoint.reason {
            let _ = write!(state, ": {reason}");
        }
        endpoints.add_row([
            endpoint.key.clone(),
            endpoint.address.to_string(),
            endpoint.host_interface.clone(),
            state,
            endpoint.ingress.join("\n"),
            endpoint.egress.join("\n"),
        ]);
    }
    let mut programs = table(["PROGRAM", "INTERFACE", "ID"]);
    for program in &status.programs {
        programs.add_row([program.program.clone(), program.interface.clone(), program.id.to_string()]);
    }
    let mut tables = table(["TABLE", "ENTRIES", "CAPACITY"]);
    for row in &status.tables {
        tables.add_row([row.table.clone(), row.entries.to_string(), row.capacity.to_string()]);
    }
    for part in [peers, endpoints, programs, tables] {
        let _ = writeln!(text, "{part}\n");
    }
    text + &counters_table(&status.counters)
}

fn counters_table(counters: &[CounterStatus]) -> String {
    let mut rows = table(["HOOK", "REASON", "PACKETS", "BYTES", "MEANING"]);
    for counter in counters {
        rows.add_row([
            counter.hook.clone(),
            format!("{}{}", if counter.drop { "DROP " } else { "" }, counter.reason),
            counter.packets.to_string(),
            counter.bytes.to_string(),
            counter.sentence.clone(),
        ]);
    }
    format!("{rows}\n")
}
