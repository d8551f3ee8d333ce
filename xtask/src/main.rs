//! `cargo xtask`: the verbs of the workspace, in the order in which one needs them. Argument parsing and exit codes
//! only; each verb lives in the module of its name.

mod elf;
mod object;
mod run;
mod setup;
mod toolchain;
mod version;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{object::Profile, workspace::Workspace};

/// Build, load, show, test, check and measure Canal.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the kernel object and the three binaries that users get, in target/release
    Build {
        /// Unoptimised binaries, in target/debug (the kernel object is optimised always)
        #[arg(long)]
        debug: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    match arguments.verb {
        Verb::Build { debug } => {
            object::build(&workspace, if debug { Profile::Debug } else { Profile::Release }).map(drop)
        }
    }
}
