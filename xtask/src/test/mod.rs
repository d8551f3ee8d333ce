//! Owns: `cargo xtask test`: all tests in four layers, cheapest first.
//!
//! | layer        | is                                                         | needs              |
//! |--------------|------------------------------------------------------------|--------------------|
//! | `unit`       | every crate's own tests and examples in documentation      | nothing            |
//! | `programs`   | the kernel programs, packet by packet, by BPF_PROG_RUN      | root               |
//! | `namespaces` | the data path between nodes made of network namespaces     | root               |
//! | `binaries`   | agent, CNI plugin and command line against a real etcd     | root, etcd         |
//!
//! A test file belongs to the layer whose name it starts with; the rest of a crate's tests are `unit`, those of
//! bpf-tests `namespaces`.
//!
//! Promises: a failed test, a layer without tests and a test program that dies all end in a non-zero status; the
//! last line is the sum. Does not: decide what a test needs beyond its layer.

mod layer;
mod summary;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::layer::Layer;
use self::{
    layer::TestProgram,
    summary::{Counts, Summary},
};
use crate::{
    object::{self, Profile},
    run,
    setup::{self, Purpose},
    workspace::Workspace,
};

/// Everything but the kernel's crate, which does not compile for this machine; one selection for every cargo call,
/// so that the features, and with them the dependencies, are compiled once.
pub(crate) const SELECTION: [&str; 5] =
    ["--workspace", "--exclude", "canal-ebpf", "--features", "canal-common/user"];

#[derive(Debug, Default, clap::Args)]
pub(crate) struct TestArguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this layer
    #[arg(long, value_name = "LAYER")]
    only: Option<Layer>,
}

pub(crate) fn test(workspace: &Workspace, arguments: &TestArguments) -> Result<()> {
    let start = Instant::now();
    let layers: Vec<Layer> =
        Layer::ALL.into_iter().filter(|layer| arguments.only.is_none_or(|only| only == *layer)).collect();
    let purposes: &[Purpose] =
        if layers == [Layer::Unit] { &[Purpose::Build] } else { &[Purpose::Build, Purpose::Test] };
    setup::require(workspace, purposes)?;
    object::build(workspace, Profile::Release)?;
    run::say("building the tests");
    let programs = build_tests(workspace)?;
    let mut summary = Summary::default();
    for layer in layers {
        let counts = run_layer(workspace, layer, &programs, arguments.filter.as_deref(), &mut summary)?;
        if counts.total() == 0 && arguments.filter.is_none() {
            summary.fail(format!("layer {layer} ran no test"));
        }
    }
    if summary.counts().total() == 0 {
        summary.fail("no test matches".to_owned());
    }
    summary.print(start.elapsed());
    if summary.is_failure() {
        bail!("tests failed");
    }
    Ok(())
}

/// Compiles all test programs, and learns from cargo where they are.
fn build_tests(workspace: &Workspace) -> Result<Vec<TestProgram>> {
    let mut cargo = run::cargo(workspace.root());
    cargo
        .arg("test")
        .args(SELECTION)
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let output = cargo
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot run `{}`", run::shown(&cargo)))?;
    if !output.status.success() {
        bail!("the tests do not compile (see above)");
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message = serde_json::from_str(line)
            .with_context(|| format!("cargo wrote a line that is not JSON: {line}"))?;
        programs.extend(TestProgram::from_message(&message));
    }
    // Cargo finishes them in any order; a person wants the same order each time.
    programs.sort();
    Ok(programs)
}

fn run_layer(
    workspace: &Workspace,
    layer: Layer,
    programs: &[TestProgram],
    filter: Option<&str>,
    summary: &mut Summary,
) -> Result<Counts> {
    let start = Instant::now();
    run::say(format!("layer {layer}: {}", layer.describe()));
    let mut counts = Counts::default();
    for program in programs.iter().filter(|program| program.layer() == layer) {
        let mut command = test_command(program);
        command.args(filter).arg(format!("--test-threads={}", layer.threads()));
        if layer == Layer::Unit {
            command.arg("--quiet");
        }
        counts += run_program(&program.to_string(), &mut command, summary)?;
    }
    if layer == Layer::Unit {
        let mut command = run::cargo(workspace.root());
        command.args(["test", "--quiet", "--doc"]).args(SELECTION).arg("--").args(filter);
        counts += run_program("examples in documentation", &mut command, summary)?;
    }
    summary.add(layer, counts, start.elapsed());
    Ok(counts)
}

/// A test program as cargo would start it: in its crate's directory, knowing its crate.
fn test_command(program: &TestProgram) -> Command {
    let manifest = Path::new(&program.manifest);
    let directory: PathBuf = manifest.parent().map(Path::to_owned).unwrap_or_default();
    let mut command = run::command(&program.executable, &directory);
    command.env("CARGO_MANIFEST_DIR", &directory).env("CARGO_PKG_NAME", &program.package);
    command
}

/// Shows the output as it comes, and counts the results in it.
fn run_program(name: &str, command: &mut Command, summary: &mut Summary) -> Result<Counts> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start the tests of {name}: `{}`", run::shown(command)))?;
    let stdout = child.stdout.take().context("the test program's output is piped")?;
    let counts =
        relay(BufReader::new(stdout), name).with_context(|| format!("cannot read the tests of {name}"))?;
    let status = child.wait().with_context(|| format!("cannot wait for the tests of {name}"))?;
    if !status.success() {
        // Without a failed test: it died, or was killed, before it could say more.
        summary.fail(format!("{name} ({status})"));
    }
    Ok(counts)
}

/// Passes output on line by line. A program without tests, of which a workspace has many, says nothing worth
/// reading: its output starts only once it says that it runs some.
fn relay(output: impl BufRead, name: &str) -> std::io::Result<Counts> {
    let mut counts = Counts::default();
    let mut empty = true;
    for line in output.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let added = Counts::in_line(&line);
        let starts_empty = line == "running 0 tests";
        let says_nothing =
            line.is_empty() || starts_empty || (line.starts_with("test result: ") && added.total() == 0);
        if empty && !says_nothing {
            println!("\n{name}");
            empty = false;
        }
        if !empty && !starts_empty {
            println!("{line}");
        }
        counts += added;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_in_one_output_are_added_up() {
        let output = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                      \nrunning 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                      \nrunning 1 test\nF\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let counts = relay(output.as_bytes(), "it").unwrap();
        assert_eq!(counts, Counts { passed: 2, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_program_that_dies_without_a_result_is_a_failure() {
        let mut summary = Summary::default();
        let mut dying = run::command("sh", Path::new("/"));
        dying.args(["-c", "echo running 3 tests; kill -9 $$"]);
        let counts = run_program("it", &mut dying, &mut summary).unwrap();
        assert_eq!(counts, Counts::default());
        assert!(summary.is_failure());
    }
}
