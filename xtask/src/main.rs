//! `cargo xtask`: the verbs of the workspace, in the order in which one needs them. Argument parsing and exit codes
//! only; each verb lives in the module of its name (`build` in `object`).

mod bench;
mod check;
mod demo;
mod elf;
mod load;
mod object;
mod room;
mod run;
mod setup;
mod test;
mod toolchain;
mod version;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{object::Profile, workspace::Workspace};

/// Build, load, show, test, check and measure Canal.
///
/// Each verb first looks for what it needs on this machine. What is missing is installed where that is possible
/// (root and apt), and named where it is not.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find or install everything that the other verbs need
    Setup {
        /// Only say what is there, what is missing, and what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the kernel object and the three binaries that users get, in target/release
    Build {
        /// Unoptimised binaries, in target/debug (the kernel object is always optimised)
        #[arg(long)]
        debug: bool,
        /// Optimised binaries, in target/release: the default
        #[arg(long, conflicts_with = "debug")]
        release: bool,
    },
    /// Show Canal at work: a cluster of network namespaces with pods, policy and a real etcd
    Demo(demo::DemoArguments),
    /// Build, then load, attach and pin the kernel programs on one interface, to look at with bpftool
    Load(load::LoadArguments),
    /// Run all tests, or one layer, or those whose name contains a word
    Test(test::TestArguments),
    /// Everything that a change must pass: form, lints, documentation, dependencies, licences, tests
    Check(check::CheckArguments),
    /// Measure the data path against what it replaces
    Bench(bench::BenchArguments),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(hint) = Workspace::find().ok().as_ref().and_then(room::hint) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    let workspace = Workspace::find()?;
    match verb {
        Verb::Setup { dry_run } => setup::setup(&workspace, *dry_run),
        Verb::Build { debug, release: _ } => {
            object::build(&workspace, if *debug { Profile::Debug } else { Profile::Release })
        }
        Verb::Demo(arguments) => demo::demo(&workspace, arguments),
        Verb::Load(arguments) => load::load(&workspace, arguments),
        Verb::Test(arguments) => test::test(&workspace, arguments),
        Verb::Check(arguments) => check::check(&workspace, arguments),
        Verb::Bench(arguments) => bench::bench(&workspace, arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
