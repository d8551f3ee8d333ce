//! `canalctl`: what the agent of this node does, for people and for scripts.

mod events;
mod explain;
mod protocol;
mod rules;
mod status;
mod table;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use self::events::Filter;
use crate::api::client::Client;

#[derive(Debug, Parser)]
#[command(name = "canalctl", version = env!("CANAL_VERSION"), about = "Shows what Canal does on this node")]
pub struct Cli {
    /// The agent's socket
    #[arg(
        long,
        global = true,
        env = "CANAL_SOCKET",
        default_value = "/run/canal/agent.sock",
        value_name = "FILE"
    )]
    socket: PathBuf,
    /// Where the agent pins its tables: counters are shown from there when it is down
    #[arg(long, global = true, env = "CANAL_BPFFS", default_value = "/sys/fs/bpf", value_name = "FOLDER")]
    bpffs: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Agent, store, lease, peers, endpoints, attached programs, counters by reason.
    /// Exit status: 0 all is well, 1 something is degraded, 2 the agent does not answer
    Status {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Dropped packets, and new connections that met a Log rule, with the rules and who was concerned: a sample, not all
    Events(events::Arguments),
    /// The dropped packets among the events, and why
    Drops(events::Arguments),
    /// New connections by the rule that decided or logged them
    Rules {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Figures for monitoring, in Prometheus' text format
    Metrics,
    /// Why a connection is allowed or denied: policies and rules in the order in which they are asked, and what the loaded
    /// program answers. Exit status: 0 explained, 2 it cannot be, 3 the kernel does not do what policy says
    Explain(explain::Arguments),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// An agent that does not answer a question within this time hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Performs the verb; the answer is the exit status.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    match &cli.verb {
        Verb::Status { output } => status::run(cli, *output),
        Verb::Events(arguments) => events::run(cli, arguments, Filter::All),
        Verb::Drops(arguments) => events::run(cli, arguments, Filter::Drops),
        Verb::Rules { output } => rules::run(cli, *output),
        Verb::Metrics => {
            print!("{}", Client::new(&cli.socket).timeout(PATIENCE).metrics()?);
            Ok(0)
        }
        Verb::Explain(arguments) => explain::run(cli, arguments),
    }
}

fn duration(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min"),
        _ => format!("{hours} h {minutes} min"),
    }
}
