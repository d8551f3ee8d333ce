//! Owns: `cargo xtask demo`.

use anyhow::{Result, bail};

use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// How many nodes the cluster has
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Leave the cluster up, and say how to enter it and how to stop it
    #[arg(long)]
    keep: bool,
}

pub(crate) fn demo(_workspace: &Workspace, _arguments: &DemoArguments) -> Result<()> {
    bail!("the demo is not written yet")
}
