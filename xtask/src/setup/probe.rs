//! Owns: looking whether a requirement is met. Promises: changes nothing, and takes milliseconds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::Uid,
};

use super::requirement::Probe;
use crate::{run, toolchain::BpfToolchain, version::Version};

pub(super) const BPFFS: &str = "/sys/fs/bpf";
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What was found, or what is wrong.
pub(super) fn look(probe: Probe) -> Result<String, String> {
    match probe {
        Probe::Programs(names) => programs(names),
        Probe::AnyFile(paths) => any_file(paths),
        Probe::Tool { program, arguments, oldest } => tool(program, arguments, oldest),
        Probe::KernelCompiler => BpfToolchain::detect()
            .map(|toolchain| toolchain.describe())
            .map_err(|missing| missing.reasons.join("; ")),
        Probe::KernelClippy => kernel_clippy(),
        Probe::Root => is_root().then(|| "yes".to_owned()).ok_or_else(|| "not root".to_owned()),
        Probe::Kernel(oldest) => kernel(oldest),
        Probe::Bpffs => bpffs(),
    }
}

pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

fn programs(names: &[&str]) -> Result<String, String> {
    let found: Vec<(&str, Option<PathBuf>)> =
        names.iter().map(|name| (*name, run::find_program(name))).collect();
    let missing: Vec<&str> = found.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        return Err(format!("not found: {}", missing.join(", ")));
    }
    Ok(found
        .into_iter()
        .filter_map(|(_, path)| path)
        .map(|path| path.display().to_string())
        .next()
        .unwrap_or_default())
}

fn any_file(paths: &[&str]) -> Result<String, String> {
    paths
        .iter()
        .find(|path| Path::new(path).exists())
        .map(|path| (*path).to_owned())
        .ok_or_else(|| format!("none of: {}", paths.join(", ")))
}

fn tool(program: &str, arguments: &[&str], oldest: Version) -> Result<String, String> {
    let path = run::find_program(program).ok_or("not found")?;
    let said = run::answer(run::command(&path, Path::new("/")).args(arguments))
        .map_err(|error| format!("{error:#}"))?;
    match Version::find(&said) {
        Some(version) if version >= oldest => Ok(format!("{version}, {}", path.display())),
        Some(version) => Err(format!("{version} is older than {oldest}")),
        None => Err(format!("{} does not tell its version", path.display())),
    }
}

fn kernel_clippy() -> Result<String, String> {
    let toolchain = BpfToolchain::detect().map_err(|_| "no kernel compiler yet".to_owned())?;
    toolchain
        .clippy(Path::new("/"), Path::new("/"))
        .map(|_| format!("beside {}", toolchain.describe()))
        .ok_or_else(|| format!("{} has no clippy", toolchain.describe()))
}

fn kernel(oldest: Version) -> Result<String, String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    let release = release.trim();
    let version = Version::find(release).ok_or_else(|| format!("unknown release {release}"))?;
    if version < oldest {
        return Err(format!("{release} is older than {oldest}"));
    }
    if !Path::new(KERNEL_BTF).exists() {
        return Err(format!("{release} has no BTF ({KERNEL_BTF})"));
    }
    Ok(release.to_owned())
}

fn bpffs() -> Result<String, String> {
    match statfs(BPFFS) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(BPFFS.to_owned()),
        Ok(_) => Err(format!("{BPFFS} is not a mounted BPF file system")),
        Err(error) => Err(format!("{BPFFS}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_and_a_present_one_is_not() {
        let missing = look(Probe::Programs(&["sh", "no-such-program-here"])).unwrap_err();
        assert_eq!(missing, "not found: no-such-program-here");
        assert!(look(Probe::Programs(&["sh"])).unwrap().ends_with("/sh"));
    }

    #[test]
    fn a_tool_that_is_too_old_is_told_from_one_that_is_missing() {
        let ask = |oldest| look(Probe::Tool { program: "cargo", arguments: &["--version"], oldest });
        assert!(ask(Version(1, 0, 0)).is_ok());
        assert!(ask(Version(999, 0, 0)).unwrap_err().contains("older than 999.0.0"));
    }

    #[test]
    fn a_kernel_from_the_future_is_required_in_vain() {
        assert!(kernel(Version(999, 0, 0)).unwrap_err().contains("older than"));
    }
}
