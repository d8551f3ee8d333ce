//! Where pinned objects live.
//!
//! ```text
//! <bpffs>/canal/v<LAYOUT>/<TABLE>            maps, by the layout that they were made with
//! <bpffs>/canal/v<LAYOUT>/judge              the program that answers questions about them
//! <bpffs>/canal/defrag                       see [`super::defrag`]
//! <bpffs>/canal/links/<interface>-<program>  attachments: they survive the agent, and an upgrade swaps their program
//! ```
//!
//! Whatever lies below `canal/` is ours; nothing else on the bpffs is touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use canal_common::{
    LAYOUT,
    names::{self, PIN_DIR},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{} is not a bpf filesystem; mount one there with `mount -t bpf bpf {}`, or name another with --bpffs", .0.display(), .0.display())]
    NotBpffs(PathBuf),
    #[error("cannot {operation} {}: {source}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Checks the mount; makes nothing.
    pub fn open(bpffs: &Path) -> Result<Self, PinError> {
        let stat = statfs(bpffs).map_err(|errno| PinError::Io {
            operation: "look at",
            path: bpffs.to_owned(),
            source: errno.into(),
        })?;
        if stat.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs(bpffs.to_owned()));
        }
        Ok(Self { root: bpffs.join(PIN_DIR) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn prepare(&self) -> Result<(), PinError> {
        for dir in [self.tables_dir(), self.links_dir()] {
            fs::create_dir_all(&dir).map_err(|source| PinError::Io {
                operation: "make",
                path: dir,
                source,
            })?;
        }
        Ok(())
    }

    fn tables_dir(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT}"))
    }

    pub fn links_dir(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn table(&self, name: &str) -> PathBuf {
        self.tables_dir().join(name)
    }

    /// Beside the tables that it reads.
    pub fn judge(&self) -> PathBuf {
        self.tables_dir().join(names::JUDGE)
    }

    pub fn defrag(&self) -> PathBuf {
        self.root.join("defrag")
    }

    pub fn link(&self, interface: &str, program: &str) -> PathBuf {
        // A bpffs file name may not hold a dot, an interface name may; it may not hold a colon (Linux dev_valid_name).
        self.links_dir().join(format!("{}-{program}", interface.replace('.', ":")))
    }

    /// The pinned attachments, as (file name, path).
    pub fn links(&self) -> Result<Vec<(String, PathBuf)>, PinError> {
        let dir = self.links_dir();
        let io = |source| PinError::Io { operation: "list", path: dir.clone(), source };
        let mut found = Vec::new();
        match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(e)),
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(io)?;
                    found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Tables that another layout left: read by nobody once the programs are swapped.
    pub fn remove_other_layouts(&self) -> Result<Vec<String>, PinError> {
        let mine = self.tables_dir();
        let io = |source| PinError::Io { operation: "remove", path: self.root.clone(), source };
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('v') && entry.path() != mine {
                fs::remove_dir_all(entry.path()).map_err(io)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    pub fn unpin(path: &Path) -> Result<(), PinError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { operation: "unpin", path: path.to_owned(), source: e })
            }
            _ => Ok(()),
        }
    }

    /// Takes the place of what is pinned at `to`, without a moment of neither.
    pub fn replace(from: &Path, to: &Path) -> Result<(), PinError> {
        fs::rename(from, to).map_err(|source| PinError::Io {
            operation: "replace",
            path: to.to_owned(),
            source,
        })
    }

    /// Removes every pin: the kernel detaches the programs and frees the tables.
    pub fn remove_all(&self) -> Result<bool, PinError> {
        match fs::remove_dir_all(&self.root) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(PinError::Io { operation: "remove", path: self.root.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_whose_names_differ_have_pins_that_differ() {
        let pins = Pins { root: PathBuf::from("/bpf/canal") };
        let names = ["cali1.1", "cali1_1", "cali1-1", "cali11"];
        let files: std::collections::BTreeSet<_> =
            names.iter().map(|name| pins.link(name, "from_pod")).collect();
        assert_eq!(files.len(), names.len());
        // The kernel refuses dots in names of a bpffs.
        assert!(files.iter().all(|file| !file.to_string_lossy().contains('.')));
    }
}
