//! flanneld itself, among the processes of this machine.

use std::{fs, os::unix::fs::MetadataExt as _};

/// As the kernel calls the process, which is by the file that it runs.
const NAME: &str = "flanneld";

/// The id of a flanneld in this network namespace.
pub fn running() -> Option<u32> {
    let here = network(&"thread-self")?;
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id()).find(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_flanneld(&status))
            && network(pid) == Some(here)
    })
}

/// Alive, and root's: anybody may call a process like this.
fn is_flanneld(status: &str) -> bool {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let effective_user = value("Uid:").split_whitespace().nth(1);
    let state = value("State:").trim_start();
    value("Name:").trim() == NAME && effective_user == Some("0") && !state.starts_with(['Z', 'X'])
}

/// Which network namespace a process is in: each has files of its own below `/proc/<pid>/net`. The link
/// `/proc/<pid>/ns/net` says it too, but only to those who may trace the process.
fn network(pid: &dyn std::fmt::Display) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/net/dev")).ok().map(|file| file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::in_new_netns;

    #[test]
    fn a_flanneld_is_a_living_process_of_root_with_this_name() {
        let status = |name: &str, state: &str, uid: &str| {
            format!("Name:\t{name}\nUmask:\t0022\nState:\t{state}\nUid:\t{uid}\nGid:\t0\t0\t0\t0\n")
        };
        let root = "0\t0\t0\t0";
        assert!(is_flanneld(&status("flanneld", "S (sleeping)", root)));
        assert!(!is_flanneld(&status("flanneld", "Z (zombie)", root)));
        assert!(!is_flanneld(&status("flanneld", "S (sleeping)", "1000\t1000\t0\t1000")));
        assert!(!is_flanneld(&status("flanneld2", "S (sleeping)", root)));
        assert!(!is_flanneld(""));
    }

    #[test]
    fn a_thread_knows_the_network_of_others() {
        let own = network(&"thread-self").unwrap();
        assert_eq!(network(&std::process::id()), Some(own));
        assert_ne!(in_new_netns(|| network(&"thread-self").unwrap()), own);
        assert_eq!(network(&u32::MAX), None);
    }
}
