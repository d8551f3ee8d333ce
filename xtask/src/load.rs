//! Owns: `cargo xtask load`: the kernel side on one interface of this machine, to look at with bpftool.
//! Promises: `--unload` takes away what `load` made. Does not: know how to load anything, the agent does; nor make
//! a node of this machine, for which there is `canal-agent run`.

use std::path::Path;

use anyhow::Result;

use crate::{
    object::{self, Profile},
    run,
    setup::{self, Purpose},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct LoadArguments {
    /// The interface to attach to
    #[arg(long, value_name = "IF")]
    iface: String,
    /// Detach and unpin what an earlier `load` left on the interface
    #[arg(long)]
    unload: bool,
    /// Where the BPF file system is mounted; the pins go to canal/ below it
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: String,
}

pub(crate) fn load(workspace: &Workspace, arguments: &LoadArguments) -> Result<()> {
    setup::require(workspace, &[Purpose::Build, Purpose::Load])?;
    object::build(workspace, Profile::Release)?;
    let agent = workspace.target().join("release/canal-agent");
    let verb = if arguments.unload { "debug-unload" } else { "debug-load" };
    run::visible(run::command(agent, workspace.root()).args([
        verb,
        "--iface",
        &arguments.iface,
        "--bpffs",
        &arguments.bpffs,
    ]))?;
    if !arguments.unload {
        explain(&arguments.iface, &arguments.bpffs);
    }
    Ok(())
}

fn explain(iface: &str, bpffs: &str) {
    let pins = Path::new(bpffs).join("canal");
    run::say(format!("loaded on {iface}. To look at it:"));
    eprintln!("    find {} -type f", pins.display());
    eprintln!("    bpftool prog show");
    eprintln!("    bpftool map dump pinned {}/<map>", pins.display());
    eprintln!("  and to take it away: cargo xtask load --iface {iface} --unload");
}
