//! Files that other programs read.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

/// What the names of files begin with that are being written.
pub(crate) const TEMPORARY: &str = ".canal.";
/// No file is written for this long.
const ABANDONED: Duration = Duration::from_mins(1);

/// Puts `content` in the place of the file, mode 0644, in a folder that is made if need be. A reader sees the old
/// content or the new, also across a power loss.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o644, 0o755)
}

/// The same for what only the owner may read.
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o600, 0o700)
}

fn replace_with(path: &Path, content: &[u8], mode: u32, folder_mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(folder_mode).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}

/// Removes a temporary file of a writer that was killed, and leaves one that is being written.
pub(crate) fn remove_if_abandoned(path: &Path) -> io::Result<()> {
    let age = path.symlink_metadata()?.modified()?;
    let age = SystemTime::now().duration_since(age).unwrap_or_default();
    if age > ABANDONED { fs::remove_file(path) } else { Ok(()) }
}
