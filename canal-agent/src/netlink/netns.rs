//! Network namespaces as open files.
//!
//! Owns: entering one. Promises: the calling thread never changes its namespace; visits happen on a fresh
//! thread that ends with the visit. Does not: create, name or delete namespaces.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
};

use super::Error;

/// An open network namespace; it exists at least as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    id: (u64, u64),
}

impl Netns {
    /// `path` is a bind mount such as `/run/netns/x`, or a `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail =
            |source| Error::File { operation: "open network namespace", path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        Ok(Self { id: (metadata.dev(), metadata.ino()), path: path.to_owned(), file })
    }

    /// The calling thread's.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Held by one process at a time, for as long as the returned value lives; waits for another to let go.
    pub fn lock(&self) -> Result<Flock<File>, Error> {
        let fail =
            |source| Error::File { operation: "lock network namespace", path: self.path.clone(), source };
        // A file of its own: a lock belongs to the opening of a file.
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).map_err(fail)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))
    }

    /// Two names of one namespace have the same device and inode number.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Runs `visit` inside, on a thread of its own, and returns what it returned.
    pub fn run<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| self.cannot_enter(e.into()))?;
                Ok(visit())
            });
            match thread.map_err(|e| self.cannot_enter(e))?.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn cannot_enter(&self, source: io::Error) -> Error {
        Error::File { operation: "enter network namespace", path: self.path.clone(), source }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
