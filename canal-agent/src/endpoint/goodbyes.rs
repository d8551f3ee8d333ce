//! Ends of pods that the CNI plugin could not tell the agent: one file each in the folder `goodbyes` beside the socket.
//!
//! The agent takes them in when it starts and now and then. Most are of pods that it has a record of, whose missing
//! interface tells the same; of a pod that Calico's plugin made, this is the only word.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::registry::milliseconds;
use crate::{
    api::wire::{AttachmentId, Goodbye},
    file,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    #[serde(flatten)]
    pub id: AttachmentId,
    #[serde(flatten)]
    pub goodbye: Goodbye,
    /// When it was left, in milliseconds since 1970: what was begun later has nothing to do with it.
    pub at: u64,
}

/// Beside this socket.
pub fn folder(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join("goodbyes")
}

/// Leaves word.
pub fn leave(folder: &Path, id: &AttachmentId, goodbye: &Goodbye) -> io::Result<()> {
    let unheard = Unheard { id: id.clone(), goodbye: goodbye.clone(), at: milliseconds(SystemTime::now()) };
    file::replace(&path(folder, id), &serde_json::to_vec(&unheard)?)
}

/// What was left. A file that cannot be read says nothing, and goes.
/// Only from a folder that nobody but root can write to: what is in it removes pods.
pub fn read(folder: &Path) -> io::Result<Vec<Unheard>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        let why = "others than root can write there; remove it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "json") {
            // It is being written, or was when its plugin was killed.
            file::remove_if_abandoned(&path).ok();
            continue;
        }
        // An ADD of the container may just remove it.
        let Ok(text) = fs::read(&path) else { continue };
        match serde_json::from_slice::<Unheard>(&text) {
            // The name is made of checked parts.
            Ok(unheard) if self::path(folder, &unheard.id) == path => found.push(unheard),
            _ => drop(fs::remove_file(&path)),
        }
    }
    Ok(found)
}

/// It was heard, or the container is back.
pub fn forget(folder: &Path, id: &AttachmentId) -> io::Result<()> {
    match fs::remove_file(path(folder, id)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Both parts are checked by whoever calls: letters, digits, dots, dashes and underscores, and an interface's name.
fn path(folder: &Path, id: &AttachmentId) -> PathBuf {
    folder.join(format!("{}@{}.json", id.container_id, id.interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_read_until_it_is_forgotten_and_nonsense_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(&dir.path().join("agent.sock"));
        assert!(read(&folder).unwrap().is_empty());
        let (id, goodbye) = (
            AttachmentId::new("c0ffee", "eth0"),
            Goodbye { network: "canal".into(), leases: Some("/x".into()), node: None },
        );
        leave(&folder, &id, &goodbye).unwrap();
        fs::write(folder.join("broken@eth0.json"), "{").unwrap();
        let now = SystemTime::now();
        for (name, time) in [(".canal.young", now), (".canal.old", now - std::time::Duration::from_mins(2))] {
            fs::File::create(folder.join(name)).unwrap().set_modified(time).unwrap();
        }
        let left = read(&folder).unwrap();
        assert_eq!(left.iter().map(|u| (&u.id, &u.goodbye)).collect::<Vec<_>>(), [(&id, &goodbye)]);
        assert!(!folder.join("broken@eth0.json").exists());
        let is_there = |name| folder.join(name).exists();
        assert!(is_there(".canal.young") && !is_there(".canal.old"), "only what is being written");
        forget(&folder, &id).unwrap();
        forget(&folder, &id).unwrap();
        assert!(read(&folder).unwrap().is_empty());
    }
}
