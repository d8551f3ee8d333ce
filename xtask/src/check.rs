//! Owns: `cargo xtask check`, which is what CI asks of a change before it is merged.
//! Promises: each check runs, also after another one failed, so one run shows all that is wrong.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    object, run,
    setup::{self, Purpose},
    test::{self, TestArguments},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// Leave out the tests
    #[arg(long)]
    fast: bool,
}

pub(crate) fn check(workspace: &Workspace, arguments: &CheckArguments) -> Result<()> {
    let purposes: &[Purpose] = if arguments.fast {
        &[Purpose::Build, Purpose::Check]
    } else {
        &[Purpose::Build, Purpose::Check, Purpose::Test]
    };
    setup::require(workspace, purposes)?;
    // The agent embeds the object, so not even a lint of the agent works without it.
    object::build_ebpf(workspace)?;
    let mut results = Vec::new();
    for (name, mut command) in commands(workspace)? {
        run::say(format!("{name}: {}", run::shown(&command)));
        results.push(timed(name, || run::visible(&mut command)));
    }
    if !arguments.fast {
        results.push(timed("test", || test::test(workspace, &TestArguments::default())));
    }
    report(&results)
}

struct CheckResult {
    name: &'static str,
    outcome: Result<()>,
    took: Duration,
}

fn timed(name: &'static str, check: impl FnOnce() -> Result<()>) -> CheckResult {
    let start = Instant::now();
    let outcome = check();
    CheckResult { name, outcome, took: start.elapsed() }
}

/// Cheap ones first.
fn commands(workspace: &Workspace) -> Result<Vec<(&'static str, Command)>> {
    let root = workspace.root();
    let cargo = |arguments: &[&str]| {
        let mut command = run::cargo(root);
        command.args(arguments);
        command
    };
    let tool = |program: &str| {
        run::find_program(program)
            .map(|path| run::command(path, root))
            .with_context(|| format!("{program} is gone since the check of the requirements"))
    };
    let mut machete = tool("cargo-machete")?;
    machete.arg(".");
    let mut deny = tool("cargo-deny")?;
    deny.args(["--workspace", "check", "licenses", "bans", "sources"]);
    let mut clippy = cargo(&["clippy"]);
    clippy.args(test::SELECTION).args(["--all-targets", "--", "-D", "warnings"]);
    let mut docs = cargo(&["doc", "--no-deps", "--document-private-items"]);
    docs.args(test::SELECTION).env("RUSTDOCFLAGS", "-D warnings");
    Ok(vec![
        ("form", cargo(&["fmt", "--all", "--check"])),
        ("unused dependencies", machete),
        ("licences", deny),
        ("lints", clippy),
        ("kernel lints", kernel_clippy(workspace)?),
        ("documentation", docs),
    ])
}

fn kernel_clippy(workspace: &Workspace) -> Result<Command> {
    let toolchain = object::detected()?;
    let mut command = toolchain
        .clippy(workspace.root(), &workspace.bpf_target())
        .with_context(|| format!("{} has no clippy", toolchain.describe()))?;
    command
        .args(["--package", "canal-ebpf", "--bin", "canal"])
        // What `cargo clippy -- -D warnings` passes on; the words are clippy's own.
        .env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    Ok(command)
}

fn report(results: &[CheckResult]) -> Result<()> {
    eprintln!();
    for CheckResult { name, outcome, took } in results {
        let word = if outcome.is_ok() { "ok    " } else { "FAILED" };
        eprintln!("  {word}  {name:20} {}", run::seconds(*took));
    }
    let failed: Vec<&str> =
        results.iter().filter(|result| result.outcome.is_err()).map(|result| result.name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
