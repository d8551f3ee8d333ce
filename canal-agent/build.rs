//! Embeds the kernel object into the agent and names the version it was built from.
//!
//! The object comes from the first of
//! 1. `CANAL_BPF_OBJECT`, the path of a prebuilt object: for packagers, and for builds without the kernel toolchain;
//! 2. `<workspace>/target/bpf/canal.o`, where `cargo xtask build` puts it.
//!
//! It is copied to `OUT_DIR/canal.o`. The library reads it with `aya::include_bytes_aligned!`, and
//! `env!("CANAL_VERSION")` for `--version`. This script compiles nothing: the kernel's target needs another
//! compiler, and `cargo xtask build` knows which.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const OBJECT_VARIABLE: &str = "CANAL_BPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=CANAL_VERSION={}", version());
    match embed_object() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn embed_object() -> Result<(), String> {
    let object = object_path();
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).map_err(|error| {
        format!(
            "no kernel object to embed: {}: {error}; run `cargo xtask build`, which makes it, or set \
             {OBJECT_VARIABLE} to a prebuilt one",
            object.display()
        )
    })?;
    if !is_bpf_object(&bytes) {
        return Err(format!(
            "{} is not an eBPF object; run `cargo xtask build` to make it anew",
            object.display()
        ));
    }
    let copy = out_dir().join("canal.o");
    fs::write(&copy, bytes).map_err(|error| format!("cannot write {}: {error}", copy.display()))
}

fn object_path() -> PathBuf {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies inside the workspace");
    // A relative path means the directory from which cargo was called most often: the workspace.
    env::var_os(OBJECT_VARIABLE)
        .map_or_else(|| workspace.join("target/bpf/canal.o"), |path| workspace.join(path))
}

/// An ELF file of machine type 247. What is inside is the loader's to judge.
fn is_bpf_object(bytes: &[u8]) -> bool {
    const EM_BPF: u8 = 247;
    bytes.starts_with(b"\x7fELF") && bytes.get(18..20).is_some_and(|machine| machine.contains(&EM_BPF))
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"))
}

/// `0.1.0` from a source archive or a development build, `0.1.0 (1a2b3c4)` from a release build inside a
/// checkout. A development build does not look at git: a commit would compile the whole agent anew.
fn version() -> String {
    let package = env!("CARGO_PKG_VERSION");
    if env::var("PROFILE").as_deref() != Ok("release") {
        return package.to_owned();
    }
    match git(&["describe", "--always", "--dirty", "--tags"]) {
        Some(described) => {
            rerun_on_commit();
            format!("{package} ({described})")
        }
        None => package.to_owned(),
    }
}

/// HEAD says which branch, the branch's file which commit. Only existing files may be named: cargo takes a
/// missing one as changed each time.
fn rerun_on_commit() {
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name]) else { continue };
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
