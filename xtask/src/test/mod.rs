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
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
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
const SELECTION: [&str; 5] = ["--workspace", "--exclude", "canal-ebpf", "--features", "canal-common/user"];

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
        let outcome = run_program(&mut command).with_context(|| format!("{program}"))?;
        counts += outcome.counts;
        if !outcome.success {
            summary.fail(format!("{program}"));
        }
    }
    if layer == Layer::Unit {
        let mut command = run::cargo(workspace.root());
        command.args(["test", "--quiet", "--doc"]).args(SELECTION).arg("--").args(filter);
        let outcome = run_program(&mut command).context("documentation examples")?;
        counts += outcome.counts;
        if !outcome.success {
            summary.fail("documentation examples".to_owned());
        }
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

struct ProgramOutcome {
    counts: Counts,
    success: bool,
}

/// Shows the output as it comes, and counts the results in it. Tests that print nothing but dots and names go to
/// stdout; what they say about failures as well.
fn run_program(command: &mut Command) -> Result<ProgramOutcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", run::shown(command)))?;
    let stdout = child.stdout.take().context("the test program's output is piped")?;
    let reader = thread::spawn(move || -> std::io::Result<Counts> {
        let mut counts = Counts::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            counts += Counts::in_line(&line);
        }
        Ok(counts)
    });
    let status = child.wait().context("cannot wait for the test program")?;
    let counts = reader
        .join()
        .ok()
        .context("the reader of test output panicked")?
        .context("cannot read test output")?;
    Ok(ProgramOutcome { counts, success: status.success() && counts.failed == 0 })
}
