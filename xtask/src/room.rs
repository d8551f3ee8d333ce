//! Owns: how much room the build has on its disk. Promises: a full disk is told as one; a linker that maps its
//! output only says "Bus error". Does not: stop anything, or delete.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::{run, workspace::Workspace};

/// MiB that a build from nothing and its tests write, rounded up (measured: 3.2 GiB).
const WHOLE_BUILD: u64 = 4 * 1024;
/// MiB below which a failure may well be for want of room: what was half written is deleted by then.
const TIGHT: u64 = 1024;

/// Says before the first build of a checkout that the disk may be too small for it.
pub(crate) fn warn(workspace: &Workspace) {
    let target = workspace.target();
    if let Some(free) = free(&target)
        && free < WHOLE_BUILD
        && !workspace.object().exists()
    {
        run::say(format!("{free} MiB are free for {}; a build needs {WHOLE_BUILD} MiB", target.display()));
    }
}

/// What to add to the report of a failure: that the disk is nearly full, if it is.
pub(crate) fn hint(workspace: &Workspace) -> Option<String> {
    let target = workspace.target();
    let free = free(&target).filter(|free| *free < TIGHT)?;
    Some(format!("only {free} MiB are free on the disk of {}: make room and try again", target.display()))
}

/// MiB that are free for us on the file system that holds `path`, or would hold it.
fn free(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|one| one.exists())?;
    let answer = statvfs(existing).ok()?;
    let bytes = answer.blocks_available().saturating_mul(answer.fragment_size());
    Some(bytes / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_that_of_the_nearest_directory_that_exists() {
        let here = free(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(here.is_some_and(|free| free > 0), "{here:?}");
        let below = free(&Path::new(env!("CARGO_MANIFEST_DIR")).join("not/there/yet"));
        assert!(below.is_some_and(|free| free > 0), "{below:?}");
    }

    #[test]
    fn a_file_system_without_room_says_none() {
        // The process table has no blocks at all.
        assert_eq!(free(Path::new("/proc")), Some(0));
    }
}
