//! Owns: which compiler builds for the kernel, and how it must be called.
//!
//! The kernel object needs `core` for `bpfel-unknown-none`, which no stable toolchain ships. Two ways lead to it:
//! a nightly with the `rust-src` component, which compiles `core` by itself (`-Zbuild-std`), and Debian's
//! `rustc-web` with `libstd-rust-web-dev-bpf`, which holds a compiled `core`. The nightly is preferred because it
//! is the same on every distribution. `bpf-linker` must know the LLVM of the compiler: LLVM reads the bitcode of
//! older releases only.
//!
//! Promises: what is missing is named in the terms of how to get it. Does not: install anything (`setup` does).

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{run, version::Version};

/// Canal's only kernel target: every supported machine is little-endian.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// The LLVM that `setup` builds bpf-linker with.
pub(crate) const LINKER_LLVM: u32 = 22;

/// Debian's `core` is compiled by exactly this compiler, so its place is part of the recipe.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
const DEBIAN_RUSTLIB: &str = "/usr/lib/rustlib";

/// aya-ebpf 0.2 and what it generates are tested with this release and later ones.
const OLDEST_RUSTC: Version = Version(1, 96, 0);

/// The crates that use unstable features (BPF inline assembly), and the only ones that may.
const UNSTABLE_CRATES: &str = "aya_ebpf";

/// A compiler that can build for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BpfToolchain {
    /// A nightly of rustup's with the sources of `core`.
    Nightly { rustup: PathBuf, name: String },
    /// Debian's compiler with a compiled `core`.
    Debian { rustc: PathBuf },
}

/// Why no compiler fits: one reason per way, in the order in which they were tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoToolchain {
    pub(crate) reasons: Vec<String>,
}

impl BpfToolchain {
    pub(crate) fn detect() -> Result<Self, NoToolchain> {
        let mut reasons = Vec::new();
        for attempt in [detect_nightly, detect_debian] {
            match attempt() {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(NoToolchain { reasons })
    }

    /// What it is, in a few words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Nightly { name, .. } => format!("{name}, compiling core from its sources"),
            Self::Debian { rustc } => {
                format!("{} with Debian's core for {BPF_TARGET}", rustc.display())
            }
        }
    }

    /// `cargo <verb>` for the kernel target in `root`, with its output under `target_dir`. The caller adds the
    /// package.
    pub(crate) fn cargo(&self, verb: &str, root: &Path, target_dir: &Path) -> Command {
        let mut command = match self {
            Self::Nightly { rustup, name } => {
                let mut command = run::command(rustup, root);
                command.args(["run", name, "cargo", verb, "-Zbuild-std=core"]);
                command.env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Self::Debian { rustc } => {
                let mut command = run::cargo(root);
                command.arg(verb).env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
                command
            }
        };
        command
            .args(["--release", "--target", BPF_TARGET])
            .env("CARGO_TARGET_DIR", target_dir)
            // Stronger than a user's RUSTFLAGS or [build] table, which are meant for this machine's code.
            .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(ARCH).join("\x1f"))
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        if let Some(linker) = run::find_program("bpf-linker") {
            prepend_path(&mut command, linker.parent());
        }
        command
    }

    /// The same, with clippy's lints instead of code; `None` where this toolchain has no clippy.
    pub(crate) fn clippy(&self, root: &Path, target_dir: &Path) -> Option<Command> {
        match self {
            Self::Nightly { rustup, name } => {
                let found = run::answer(
                    run::command(rustup, root)
                        .args(["run", name, "cargo-clippy", "--version"])
                        .env_remove("RUSTUP_TOOLCHAIN"),
                );
                found.ok().map(|_| self.cargo("clippy", root, target_dir))
            }
            Self::Debian { .. } => Path::new(DEBIAN_CLIPPY).exists().then(|| {
                let mut command = self.cargo("check", root, target_dir);
                command.env("RUSTC_WORKSPACE_WRAPPER", DEBIAN_CLIPPY);
                command
            }),
        }
    }
}

/// BTF comes from debug information and is written by the linker; the architecture decides where a probed
/// function's arguments lie, and follows the machine that the object is for.
fn rust_flags(arch: &str) -> [String; 3] {
    [format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()]
}

fn prepend_path(command: &mut Command, directory: Option<&Path>) {
    let current = std::env::var_os("PATH").unwrap_or_default();
    let all = directory.map(Path::to_owned).into_iter().chain(std::env::split_paths(&current));
    // A PATH that cannot be joined holds a colon inside a directory's name: leave it as it is.
    if let Ok(joined) = std::env::join_paths(all) {
        command.env("PATH", joined);
    }
}

/// The first nightly that fits, whatever its date.
fn detect_nightly() -> Result<BpfToolchain, String> {
    let rustup = run::find_program("rustup").ok_or("no rustup")?;
    let list = run::answer(run::command(&rustup, Path::new("/")).args(["toolchain", "list"]))
        .map_err(|error| format!("{error:#}"))?;
    let mut reasons = Vec::new();
    for name in nightlies(&list) {
        match check_nightly(&rustup, name) {
            Ok(()) => return Ok(BpfToolchain::Nightly { rustup, name: name.to_owned() }),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        reasons.push("rustup has no nightly toolchain".to_owned());
    }
    Err(reasons.join("; "))
}

/// The nightlies in the output of `rustup toolchain list`, whose lines may go on with ` (active)`.
fn nightlies(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with("nightly"))
}

fn check_nightly(rustup: &Path, name: &str) -> Result<(), String> {
    let ask = |arguments: &[&str]| {
        let mut rustc = run::command(rustup, Path::new("/"));
        rustc.args(["run", name, "rustc"]).args(arguments).env_remove("RUSTUP_TOOLCHAIN");
        run::answer(&mut rustc).map_err(|error| format!("{error:#}"))
    };
    // The cheap question first: most nightlies have no sources.
    let sysroot = ask(&["--print", "sysroot"])?;
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir() {
        return Err(format!("{name} has no rust-src component"));
    }
    check_compiler(name, &ask(&["-vV"])?)
}

fn detect_debian() -> Result<BpfToolchain, String> {
    let rustc = PathBuf::from(DEBIAN_RUSTC);
    if !rustc.exists() {
        return Err(format!("no {DEBIAN_RUSTC} (package rustc-web)"));
    }
    let text =
        run::answer(run::command(&rustc, Path::new("/")).arg("-vV")).map_err(|error| error.to_string())?;
    check_compiler(DEBIAN_RUSTC, &text)?;
    if !Path::new(DEBIAN_RUSTLIB).join(BPF_TARGET).is_dir() {
        return Err(format!("{DEBIAN_RUSTC} has no core for {BPF_TARGET} (package libstd-rust-web-dev-bpf)"));
    }
    Ok(BpfToolchain::Debian { rustc })
}

/// Judges the output of `rustc -vV`.
fn check_compiler(name: &str, verbose_version: &str) -> Result<(), String> {
    let release =
        Version::find(verbose_version).ok_or_else(|| format!("{name} does not tell its version"))?;
    if release < OLDEST_RUSTC {
        return Err(format!("{name} is {release}, older than {OLDEST_RUSTC}"));
    }
    let llvm = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version:"));
    match llvm.and_then(Version::find) {
        Some(llvm) if llvm.0 > LINKER_LLVM => {
            Err(format!("{name} emits LLVM {llvm} code, and bpf-linker reads LLVM {LINKER_LLVM} at most"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verbose(release: &str, llvm: &str) -> String {
        format!(
            "rustc {release} (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: {release}\nLLVM version: {llvm}\n"
        )
    }

    #[test]
    fn a_compiler_is_taken_when_it_is_new_enough_and_its_llvm_is_not_too_new() {
        for (release, llvm, refusal) in [
            ("1.96.0", "22.1.8", None),
            ("1.97.0-nightly", "22.1.4", None),
            ("1.96.0", "21.1.0", None),
            ("1.85.0", "19.1.7", Some("older than 1.96.0")),
            ("1.99.0-nightly", "23.0.0", Some("reads LLVM 22 at most")),
        ] {
            let judged = check_compiler("it", &verbose(release, llvm));
            match refusal {
                None => assert_eq!(judged, Ok(()), "{release} {llvm}"),
                Some(reason) => assert!(judged.unwrap_err().contains(reason), "{release} {llvm}"),
            }
        }
    }

    #[test]
    fn nightlies_of_any_date_are_found_in_rustups_list() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-x86_64-unknown-linux-gnu\n\
                    nightly-2026-05-20-x86_64-unknown-linux-gnu\n1.95.0-x86_64-unknown-linux-gnu\n";
        let found: Vec<&str> = nightlies(list).collect();
        assert_eq!(
            found,
            ["nightly-x86_64-unknown-linux-gnu", "nightly-2026-05-20-x86_64-unknown-linux-gnu"]
        );
        assert_eq!(nightlies("no installed toolchains\n").count(), 0);
    }

    #[test]
    fn a_compiler_that_says_nothing_is_refused() {
        assert!(check_compiler("it", "").is_err());
    }

    #[test]
    fn the_architecture_flag_follows_the_machine() {
        assert_eq!(rust_flags("aarch64")[0], "--cfg=bpf_target_arch=\"aarch64\"");
    }

    #[test]
    fn debians_compiler_may_use_unstable_features_in_named_crates_only() {
        let toolchain = BpfToolchain::Debian { rustc: DEBIAN_RUSTC.into() };
        let command = toolchain.cargo("build", Path::new("/"), Path::new("/t"));
        let value = |name: &str| {
            command
                .get_envs()
                .find(|(key, _)| *key == name)
                .and_then(|(_, value)| value)
                .map(|value| value.to_string_lossy().into_owned())
        };
        assert_eq!(value("RUSTC_BOOTSTRAP").as_deref(), Some("aya_ebpf"));
        assert_eq!(value("RUSTC").as_deref(), Some(DEBIAN_RUSTC));
        assert_eq!(value("CARGO_TARGET_DIR").as_deref(), Some("/t"));
    }
}
