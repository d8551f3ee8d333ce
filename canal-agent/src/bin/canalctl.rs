//! The command line for operators: arguments and exit codes only.

use std::process::ExitCode;

use canal_agent::ctl::{Cli, run};
use clap::Parser as _;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("canalctl: {error:#}");
            ExitCode::from(2)
        }
    }
}
