//! Owns: Debian packages.
//! Promises: nothing that is installed is removed; no service of a new package is started, now or at boot; Ctrl-C
//! waits until dpkg is done, so no package stays half configured.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use crate::{run, workspace::Workspace};

/// Debian asks this program before it starts a service from a package.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n\
    # Made by `cargo xtask setup` while it installs packages, so that none of their services starts.\n\
    # Safe to delete when no installation is running.\n\
    exit 101\n";

/// Packages of ours that come with a service: tests start their own copies of these programs.
const SERVICES: &[(&str, &str)] = &[("etcd-server", "etcd")];

/// Packages with services that only systemd knows.
const UNITS: &[(&str, &[&str])] = &[(
    "podman",
    &[
        "podman.service",
        "podman.socket",
        "podman-auto-update.service",
        "podman-auto-update.timer",
        "podman-restart.service",
    ],
)];

pub(super) fn present() -> bool {
    run::find_program("apt-get").is_some() && run::find_program("dpkg").is_some()
}

pub(super) fn is_installed(package: &str) -> bool {
    let mut query = run::command("dpkg-query", Path::new("/"));
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    run::answer(&mut query).is_ok_and(|status| status == "installed")
}

/// The packages of which apt knows no version to install.
pub(super) fn without_candidate(packages: &[&str]) -> Result<Vec<String>> {
    let mut policy = run::command("apt-cache", Path::new("/"));
    policy.arg("policy").args(packages).env("LC_ALL", "C");
    let known = candidates(&run::answer(&mut policy)?);
    Ok(packages.iter().filter(|name| !known.contains(**name)).map(|name| (*name).to_owned()).collect())
}

/// Reads `apt-cache policy`: a line `name:` starts a package, `Candidate: (none)` means that there is none.
fn candidates(policy: &str) -> BTreeSet<String> {
    let mut current = None;
    let mut found = BTreeSet::new();
    for line in policy.lines() {
        if !line.starts_with(' ') {
            current = line.strip_suffix(':');
        } else if let (Some(name), Some(candidate)) = (current, line.trim().strip_prefix("Candidate:"))
            && candidate.trim() != "(none)"
        {
            found.insert(name.to_owned());
        }
    }
    found
}

pub(super) fn update(workspace: &Workspace) -> Result<()> {
    run::logged("apt-get update", &mut apt_get(&["update"]), &workspace.log("apt-update"))
}

pub(super) fn install(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let is_fresh = |package: &str| packages.contains(&package) && !is_installed(package);
    let fresh: Vec<&(&str, &str)> = SERVICES.iter().filter(|(package, _)| is_fresh(package)).collect();
    let units: Vec<&&[&str]> =
        UNITS.iter().filter(|(package, _)| is_fresh(package)).map(|(_, units)| units).collect();
    let _uninterrupted = Uninterrupted::begin()?;
    let quiet = NoServices::begin()?;
    let mut command = apt_get(&["install", "--yes", "--no-install-recommends", "--no-remove"]);
    command.args(packages);
    let what = format!("apt-get install ({} packages)", packages.len());
    run::logged(&what, &mut command, &workspace.log("apt-install"))?;
    for (_, service) in fresh {
        keep_from_boot(service)?;
    }
    for units in units {
        disable(units)?;
    }
    drop(quiet);
    Ok(())
}

fn apt_get(arguments: &[&str]) -> std::process::Command {
    let mut command = run::command("apt-get", Path::new("/"));
    command
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    command
}

fn keep_from_boot(service: &str) -> Result<()> {
    run::say(format!("the package's own {service} service stays off (update-rc.d {service} disable)"));
    run::answer(run::command("update-rc.d", Path::new("/")).args([service, "disable"])).map(drop)
}

/// Where there is no systemd, nobody starts them.
fn disable(units: &[&str]) -> Result<()> {
    if run::find_program("systemctl").is_none() {
        return Ok(());
    }
    run::say(format!("the package's own services stay off (systemctl disable {})", units.join(" ")));
    // It also runs in a container or an image, where systemd does not.
    let mut command = run::command("systemctl", Path::new("/"));
    run::answer(command.arg("disable").args(units).env("SYSTEMD_OFFLINE", "1")).map(drop)
}

/// While it lives, no package starts a service. A policy of the operator stays in force instead.
struct NoServices {
    made: Option<PathBuf>,
}

impl NoServices {
    fn begin() -> Result<Self> {
        let path = Path::new(POLICY);
        // One left by a killed setup is ours to take over.
        if path.exists() && fs::read_to_string(path).is_ok_and(|text| text != POLICY_TEXT) {
            return Ok(Self { made: None });
        }
        let write = || -> std::io::Result<()> {
            fs::write(path, POLICY_TEXT)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| format!("cannot write {POLICY}"))?;
        Ok(Self { made: Some(path.to_owned()) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.made
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("warning: cannot remove {}: {error}; please delete it", path.display());
        }
    }
}

/// While it lives, Ctrl-C is remembered, and it takes effect at the end. Programs started meanwhile inherit this.
struct Uninterrupted {
    before: SigSet,
}

impl Uninterrupted {
    fn begin() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))
            .context("cannot hold back Ctrl-C")?;
        Ok(Self { before })
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        // It restores a mask that was valid before; there is nothing else to do if the kernel disagreed.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_without_a_candidate_and_unknown_ones_are_not_offered() {
        let policy = "etcd-server:\n  Installed: (none)\n  Candidate: 3.4.23-4+b4\n  Version table:\n     3.4.23-4+b4 500\n\
                      rustc-mozilla:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(candidates(policy), BTreeSet::from(["etcd-server".to_owned()]));
        assert!(candidates("").is_empty());
    }
}
