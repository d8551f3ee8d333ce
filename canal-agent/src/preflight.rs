//! What must be true before anything is touched: privileges; and room for file descriptors.

use std::fs;

#[derive(Debug, thiserror::Error)]
#[error("missing {}; run as root, or grant it (systemd: AmbientCapabilities=)", .0.join(", "))]
pub struct MissingCapabilities(Vec<&'static str>);

/// Bit, name (linux/capability.h).
const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Implies the last two.
const SYS_ADMIN: u32 = 21;

/// Comes first: without them much else fails in ways that say less.
pub fn check() -> Result<(), MissingCapabilities> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing(effective(&status).unwrap_or(u64::MAX));
    if missing.is_empty() { Ok(()) } else { Err(MissingCapabilities(missing)) }
}

/// A policy set in the kernel is an array, and an open file here: as many as the process is allowed at all, where the
/// usual first limit of 1,024 (getrlimit(2)) would end at some 400 pods with policies of their own.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes this one structure.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::warn!("cannot raise the limit of open files; many policies may find no room");
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    NEEDED
        .into_iter()
        .filter(|(bit, _)| !has(*bit) && (*bit < 38 || !has(SYS_ADMIN)))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(missing(0x1ff_ffff_ffff), Vec::<&str>::new());
        assert_eq!(missing(1 << 12 | 1 << 21), Vec::<&str>::new(), "CAP_SYS_ADMIN stands for the new ones");
        assert_eq!(missing(1 << 39), ["CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    }
}
