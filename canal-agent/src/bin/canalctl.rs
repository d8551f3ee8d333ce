//! The command line for operators: arguments and exit codes only.

use std::process::ExitCode;

use canal_agent::{
    ctl::{Cli, run},
    one_line,
};
use clap::Parser as _;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("canalctl: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}
