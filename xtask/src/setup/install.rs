//! Owns: the order of what is done about missing requirements, and doing it.
//! Promises: one apt call for all packages, before what is built with them; a step that cannot be done is reported
//! with its reason, and the other steps are done all the same.

use std::path::Path;

use anyhow::Result;

use super::{
    Missing, apt, probe,
    requirement::{CargoTool, PINNED_NIGHTLY, Remedy},
};
use crate::{run, workspace::Workspace};

/// One thing to do.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Apt(Vec<&'static str>),
    Nightly,
    Cargo(CargoTool),
    Rustup(&'static str),
    MountBpffs,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Impossible(String),
}

pub(super) fn plan(missing: &[Missing]) -> Vec<Step> {
    plan_for(missing, apt::present(), probe::is_root())
}

/// What can be done on a system with or without apt and root.
pub(super) fn plan_for(missing: &[Missing], apt: bool, root: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let packages = packages_of(missing);
    if apt && root && !packages.is_empty() {
        steps.push(Step::Apt(packages));
    }
    for Missing { requirement, .. } in missing {
        match requirement.remedy {
            Remedy::KernelCompiler(_) if !(apt && root) => steps.push(Step::Nightly),
            Remedy::Cargo(tool) => steps.push(Step::Cargo(tool)),
            Remedy::Rustup(component) => steps.push(Step::Rustup(component)),
            Remedy::MountBpffs if root => steps.push(Step::MountBpffs),
            Remedy::Apt(_) | Remedy::KernelCompiler(_) | Remedy::MountBpffs | Remedy::Tell => {}
        }
    }
    steps
}

/// Whether any step of a plan is about this thing.
pub(super) fn can_help(missing: &Missing) -> bool {
    !plan(std::slice::from_ref(missing)).is_empty()
}

/// The Debian packages that would help, each once, in the table's order.
pub(super) fn packages_of(missing: &[Missing]) -> Vec<&'static str> {
    let mut packages: Vec<&'static str> = Vec::new();
    for Missing { requirement, .. } in missing {
        let wanted = match requirement.remedy {
            Remedy::Apt(packages) | Remedy::KernelCompiler(packages) => packages,
            Remedy::Cargo(tool) => tool.packages,
            Remedy::Rustup(_) | Remedy::MountBpffs | Remedy::Tell => &[],
        };
        for package in wanted {
            if !packages.contains(package) {
                packages.push(package);
            }
        }
    }
    packages
}

impl Step {
    /// The step as the command that one would type.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Apt(packages) => format!("apt-get install {}", packages.join(" ")),
            Self::Nightly => nightly_arguments().join(" "),
            Self::Cargo(tool) => {
                let variables = tool.environment.iter().map(|(name, value)| format!("{name}={value}"));
                let words = ["cargo"].into_iter().chain(cargo_arguments(tool)).map(str::to_owned);
                variables.chain(words).collect::<Vec<_>>().join(" ")
            }
            Self::Rustup(component) => format!("rustup component add {component}"),
            Self::MountBpffs => format!("mount -t bpf bpf {}", probe::BPFFS),
        }
    }

    pub(super) fn run(&self, workspace: &Workspace) -> Result<Outcome> {
        run::say(self.describe());
        let result = match self {
            Self::Apt(packages) => return install_packages(workspace, packages),
            Self::Nightly => nightly(workspace),
            Self::Cargo(tool) => cargo_install(workspace, tool),
            Self::Rustup(component) => rustup(workspace, &["component", "add", component], component),
            Self::MountBpffs => mount_bpffs(),
        };
        Ok(outcome(result))
    }
}

fn outcome(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Impossible(format!("{error:#}")),
    }
}

/// Installs what the distribution has. What it lacks goes without, and is found missing afterwards.
fn install_packages(workspace: &Workspace, packages: &[&'static str]) -> Result<Outcome> {
    let mut updated = false;
    let mut absent = apt::without_candidate(packages)?;
    if !absent.is_empty() {
        if let Err(error) = apt::update(workspace) {
            return Ok(Outcome::Impossible(format!("{error:#}")));
        }
        updated = true;
        absent = apt::without_candidate(packages)?;
    }
    // Debian's compiler for the kernel target takes the place of Debian's ordinary one: that is not ours to remove.
    let conflict = packages.contains(&"rustc-web") && apt::is_installed("rustc");
    let wanted: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !absent.iter().any(|missing| missing == name))
        .filter(|name| !(conflict && COMPILER_PACKAGES.contains(name)))
        .collect();
    if !absent.is_empty() {
        run::say(format!("this distribution has no {}", absent.join(", ")));
    }
    let mut result = install_or_update_first(workspace, &wanted, updated);
    if result.is_ok()
        && COMPILER_PACKAGES.iter().any(|name| packages.contains(name) && !wanted.contains(name))
    {
        run::say(Step::Nightly.describe());
        result = nightly(workspace);
    }
    Ok(outcome(result))
}

const COMPILER_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// Package lists that are days old name versions that the mirror has no longer.
fn install_or_update_first(workspace: &Workspace, packages: &[&str], updated: bool) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    match apt::install(workspace, packages) {
        Err(_) if !updated => {
            apt::update(workspace)?;
            apt::install(workspace, packages)
        }
        result => result,
    }
}

fn nightly_arguments() -> [&'static str; 10] {
    [
        "rustup",
        "toolchain",
        "install",
        PINNED_NIGHTLY,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--component",
        "clippy",
    ]
}

fn nightly(workspace: &Workspace) -> Result<()> {
    rustup(workspace, &nightly_arguments()[1..], PINNED_NIGHTLY)
}

fn rustup(workspace: &Workspace, arguments: &[&str], what: &str) -> Result<()> {
    let mut command = run::command("rustup", workspace.root());
    command.args(arguments);
    run::logged(what, &mut command, &workspace.log("rustup"))
}

fn cargo_arguments(tool: &CargoTool) -> Vec<&'static str> {
    let mut arguments = vec!["install", tool.package, "--version", tool.version, "--locked"];
    arguments.extend(tool.arguments);
    arguments
}

/// `--force`, because cargo takes a program that it once installed as present, also when it no longer runs.
fn cargo_install(workspace: &Workspace, tool: &CargoTool) -> Result<()> {
    let mut command = run::cargo(Path::new("/"));
    command
        .args(cargo_arguments(tool))
        .arg("--force")
        .envs(tool.environment.iter().copied())
        .env_remove("CARGO_TARGET_DIR");
    run::logged(
        &format!("cargo install {}, some minutes", tool.package),
        &mut command,
        &workspace.log(tool.package),
    )
}

fn mount_bpffs() -> Result<()> {
    run::answer(run::command("mount", Path::new("/")).args(["-t", "bpf", "bpf", probe::BPFFS])).map(drop)
}
