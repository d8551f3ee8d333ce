//! `canalctl drops`.

use super::{Cli, Output, table::table};
use crate::api::{client::Client, wire::DropStatus};

pub(super) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let drops = Client::new(&cli.socket).status()?.drops;
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
            protocol(drop.protocol),
            format!("{}:{}", drop.src, drop.src_port),
            format!("{}:{}", drop.dst, drop.dst_port),
            drop.interface.clone().unwrap_or_else(|| "-".to_owned()),
            drop.rule.clone().unwrap_or_else(|| drop.sentence.clone()),
        ]);
    }
    rows
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}
