//! `canalctl drops`.

use std::net::Ipv4Addr;

use super::{Cli, Output, PATIENCE, protocol, table::table};
use crate::api::{client::Client, wire::DropStatus};

pub(super) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let drops = Client::new(&cli.socket).timeout(PATIENCE).status()?.drops;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&drops)?),
        Output::Table if drops.is_empty() => {
            eprintln!("canalctl: nothing was dropped since the agent started");
        }
        Output::Table => println!("{}", render(&drops)),
    }
    Ok(0)
}

fn render(drops: &[DropStatus]) -> comfy_table::Table {
    let mut rows = table(["AGO", "HOOK", "REASON", "PROTO", "FROM", "TO", "INTERFACE", "RULE, OR MEANING"]);
    for drop in drops {
        rows.add_row([
            format!("{:.1} s", drop.seconds_ago),
            drop.hook.clone(),
            drop.reason.clone(),
            protocol::name(drop.protocol),
            end(drop.protocol, drop.src, drop.src_port),
            end(drop.protocol, drop.dst, drop.dst_port),
            drop.interface.clone().unwrap_or_else(|| "-".to_owned()),
            drop.rule.clone().unwrap_or_else(|| drop.sentence.clone()),
        ]);
    }
    rows
}

/// Ports where the protocol has them, nothing where the packet was not IPv4.
fn end(number: u8, addr: Ipv4Addr, port: u16) -> String {
    match number {
        _ if addr.is_unspecified() => "-".to_owned(),
        _ if protocol::has_ports(number) => format!("{addr}:{port}"),
        _ => addr.to_string(),
    }
}
