//! Owns: `cargo xtask build`: the kernel object, and the binaries that embed it.
//! Promises: `target/bpf/canal.o` is replaced whole and only when its content changed, so an unchanged kernel side
//! does not compile the agent anew; an object without BTF or programs is never put there.
//! Does not: install what is missing (`setup` does, before).

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{elf, room, run, setup, toolchain::BpfToolchain, workspace::Workspace};

/// The programs that users get, in the order in which they meet them.
const BINARIES: [&str; 3] = ["canal-agent", "canal-cni", "canalctl"];

/// What the agent's binaries are optimised for. The kernel object is always a release build: the verifier refuses
/// the code of a debug build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// The verb: requirements, object, binaries, and a list of what was made.
pub(crate) fn build(workspace: &Workspace, profile: Profile) -> Result<()> {
    setup::require(workspace, &[setup::Purpose::Build])?;
    let start = Instant::now();
    let object = build_ebpf(workspace)?;
    let binaries = build_binaries(workspace, profile)?;
    run::say(format!("built in {}", run::seconds(start.elapsed())));
    for path in std::iter::once(&object).chain(&binaries) {
        eprintln!("    {:>9}  {}", size_of(path)?, relative(path, workspace.root()).display());
    }
    Ok(())
}

/// Compiles the kernel object and puts it where `canal-agent/build.rs` looks for it.
pub(crate) fn build_ebpf(workspace: &Workspace) -> Result<PathBuf> {
    let object = workspace.object();
    room::warn(workspace);
    compile(workspace, &workspace.bpf_target(), &[], &object)?;
    Ok(object)
}

/// The same without flow table and policy, where no build looks for it: for the bench, which compares the two.
pub(crate) fn build_bare_ebpf(workspace: &Workspace) -> Result<PathBuf> {
    let object = workspace.bare_object();
    compile(workspace, &workspace.bare_target(), &["--features", "bare"], &object)?;
    Ok(object)
}

fn compile(workspace: &Workspace, target: &Path, features: &[&str], object: &Path) -> Result<()> {
    let toolchain = detected()?;
    run::say(format!("kernel object: {}", toolchain.describe()));
    let mut cargo = toolchain.cargo("build", workspace.root(), target);
    cargo.args(["--package", "canal-ebpf", "--bin", "canal"]).args(features);
    run::visible(&mut cargo)?;
    let made = target.join(crate::toolchain::BPF_TARGET).join("release/canal");
    let bytes = fs::read(&made).with_context(|| format!("cannot read {}", made.display()))?;
    check_object(&bytes).with_context(|| format!("{} is unusable", made.display()))?;
    if place(&bytes, object)? {
        run::say(format!("kernel object: {} is new", relative(object, workspace.root()).display()));
    }
    Ok(())
}

/// The compiler for the kernel target, or an error that says how to get one.
pub(crate) fn detected() -> Result<BpfToolchain> {
    BpfToolchain::detect().map_err(|missing| {
        anyhow::anyhow!(
            "no compiler for the kernel object ({}); `cargo xtask setup` gets one",
            missing.reasons.join("; ")
        )
    })
}

fn build_binaries(workspace: &Workspace, profile: Profile) -> Result<Vec<PathBuf>> {
    let mut cargo = run::cargo(workspace.root());
    cargo.args(["build", "--package", "canal-agent"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    run::visible(&mut cargo)?;
    let directory = workspace.target().join(profile.directory());
    Ok(BINARIES.iter().map(|name| directory.join(name)).collect())
}

/// An object that the agent cannot use is found here and not at the first start on a node.
fn check_object(bytes: &[u8]) -> Result<()> {
    let sections = elf::section_names(bytes)?;
    let has = |name: &str| sections.iter().any(|section| section == name);
    if !has(".BTF") {
        bail!(
            "it has no BTF, so bpftool could not name any field: is bpf-linker older than `cargo xtask setup` installs?"
        );
    }
    if !has(".maps") && !has("maps") {
        bail!("it holds no maps: is canal-ebpf compiled with `#![no_main]` and its maps in use?");
    }
    Ok(())
}

/// Returns whether anything had to be written.
fn place(bytes: &[u8], object: &Path) -> Result<bool> {
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let directory = object.parent().context("the object has a directory")?;
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.persist(object)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", object.display()))?;
    Ok(true)
}

fn relative<'a>(path: &'a Path, root: &Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}

fn size_of(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).with_context(|| format!("cargo did not make {}", path.display()))?.len();
    Ok(sized(bytes))
}

fn sized(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    if bytes < MIB {
        format!("{} KiB", bytes.div_ceil(KIB))
    } else {
        format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_for_people() {
        for (bytes, text) in
            [(0, "0 KiB"), (1, "1 KiB"), (78_536, "77 KiB"), (4_299_161, "4.0 MiB"), (4_718_592, "4.5 MiB")]
        {
            assert_eq!(sized(bytes), text);
        }
    }

    #[test]
    fn an_unchanged_object_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let object = directory.path().join("bpf/canal.o");
        assert!(place(b"one", &object).unwrap());
        assert!(!place(b"one", &object).unwrap());
        assert!(place(b"two", &object).unwrap());
        assert_eq!(fs::read(&object).unwrap(), b"two");
        assert_eq!(fs::read_dir(object.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n"] {
            assert!(check_object(bytes).is_err(), "{bytes:?}");
        }
    }
}
