//! The node daemon: arguments and exit codes only.

use std::{path::PathBuf, process::ExitCode};

use canal_agent::{
    app, cleanup,
    config::{CommandLine, Config, RunArgs, command_line},
    dataplane::inspect,
    install::{self, InstallArgs, Places},
    logging, one_line, preflight, release, rollback,
};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "canal-agent", version = env!("CANAL_VERSION"), about = "Canal's node daemon: overlay network and policy")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon until SIGTERM, which leaves the data path in place
    Run(Box<RunArgs>),
    /// Remove every trace of Canal from this node: programs, tables, device, routes, files
    Cleanup {
        #[command(flatten)]
        args: Box<RunArgs>,
        /// For flanneld to go on: put its device in the place of ours, keep the lease, the subnet file and the pods' endpoints.
        /// Policy ends until Felix runs
        #[arg(long)]
        for_flannel: bool,
    },
    /// This node's subnet in etcd
    #[command(subcommand)]
    Lease(LeaseVerb),
    /// The CNI plugin, for container runtimes
    #[command(subcommand)]
    Cni(CniVerb),
    /// Attach and pin on one interface, to look at programs and tables with bpftool
    DebugLoad(DebugArgs),
    /// Take away what debug-load left
    DebugUnload(DebugArgs),
}

#[derive(Debug, Subcommand)]
enum LeaseVerb {
    /// Give it back for other nodes to take, when this one leaves for good and its agent is stopped
    Release {
        #[command(flatten)]
        args: Box<RunArgs>,
        /// Although pods have addresses from it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum CniVerb {
    /// Put plugin and configuration in place, the latter once the agent is ready
    Install(InstallArgs),
    /// Remove configuration and plugin
    Uninstall(Places),
}

#[derive(Debug, clap::Args)]
struct DebugArgs {
    #[arg(long, value_name = "NAME")]
    iface: String,
    /// Mounted BPF file system for pins
    #[arg(long, value_name = "FOLDER", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

fn main() -> ExitCode {
    let CommandLine { args, notice } = command_line(std::env::args_os());
    match perform(Cli::parse_from(args).verb, notice) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("canal-agent: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// `notice`: about the command line, for the daemon's log.
fn perform(verb: Verb, notice: Option<String>) -> anyhow::Result<()> {
    match verb {
        Verb::Run(args) => {
            if args.wants_version()? {
                eprintln!("{}", env!("CANAL_VERSION"));
                return Ok(());
            }
            logging::init();
            preflight::check()?;
            preflight::raise_file_limit();
            let mut config = Config::from_args(*args)?;
            config.notices.extend(notice);
            app::run(config)
        }
        Verb::Cleanup { args, for_flannel } => {
            preflight::check()?;
            let config = Config::from_args(*args)?;
            let mut done = if for_flannel { rollback::run(&config)? } else { cleanup::run(&config)? };
            if done.is_empty() {
                done.push("nothing to remove".to_owned());
            }
            print(&done);
            Ok(())
        }
        Verb::Lease(LeaseVerb::Release { args, force }) => {
            let mut done = release::run(&Config::from_args(*args)?, force)?;
            if done.is_empty() {
                done.push("this node has no lease".to_owned());
            }
            print(&done);
            Ok(())
        }
        Verb::Cni(CniVerb::Install(args)) => {
            print(&install::install(&args)?);
            Ok(())
        }
        Verb::Cni(CniVerb::Uninstall(places)) => {
            let mut done = install::uninstall(&places)?;
            if done.is_empty() {
                done.push("nothing to remove".to_owned());
            }
            print(&done);
            Ok(())
        }
        Verb::DebugLoad(DebugArgs { iface, bpffs }) => {
            print(&inspect::load(&bpffs, &iface)?);
            Ok(())
        }
        Verb::DebugUnload(DebugArgs { iface, bpffs }) => {
            print(&inspect::unload(&bpffs, &iface)?);
            Ok(())
        }
    }
}

fn print(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}
