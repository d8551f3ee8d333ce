//! Owns: `cargo xtask bench`.

use anyhow::{Result, bail};

use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArguments {}

pub(crate) fn bench(_workspace: &Workspace, _arguments: &BenchArguments) -> Result<()> {
    bail!("the benchmarks are not written yet")
}
