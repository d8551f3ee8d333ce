//! The notes of the IPAM plugin `host-local`: which address of a network belongs to whom.
//!
//! One file per address in `<dataDir>/<network>`, named by the address; its content is the container's id and the
//! interface's name, with CR LF between them (plugins before 0.8.4 wrote the id alone). Whoever changes the folder holds
//! `flock` on its file `lock`. Addresses are taken by `host-local` itself; this gives back what a call that was cut off
//! has left there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::api::wire::AttachmentId;

/// Where `host-local` keeps its folders unless its configuration has a `dataDir`.
pub const DATA_DIR: &str = "/var/lib/cni/networks";
const LOCK: &str = "lock";
const SEPARATOR: &str = "\r\n";

/// The notes of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    folder: PathBuf,
}

/// An address that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub container_id: String,
    /// Absent in notes of old plugins.
    pub interface: Option<String>,
}

impl Lease {
    pub fn is_of(&self, id: &AttachmentId) -> bool {
        self.container_id == id.container_id && self.interface.as_ref().is_none_or(|i| *i == id.interface)
    }
}

impl Leases {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn of_network(data_dir: &Path, network: &str) -> Self {
        Self::new(data_dir.join(network))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything that is taken. A folder that is not there holds nothing.
    pub fn list(&self) -> io::Result<Vec<Lease>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut leases = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            leases.extend(self.read(address)?);
        }
        Ok(leases)
    }

    /// Who has this address.
    pub fn read(&self, address: Ipv4Addr) -> io::Result<Option<Lease>> {
        let content = match fs::read_to_string(self.path(address)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (id, interface) = match content.trim().split_once(SEPARATOR) {
            Some((id, interface)) => (id.trim(), Some(interface.trim().to_owned())),
            None => (content.trim(), None),
        };
        Ok(Some(Lease { address, container_id: id.to_owned(), interface }))
    }

    /// Gives back those of these addresses that are the attachment's; without any named, all that it has, and what a
    /// `host-local` that was killed has left empty. Fails without waiting while `host-local` works in the folder. Tells
    /// how many were given back.
    pub fn release(&self, id: &AttachmentId, addresses: &[Ipv4Addr]) -> io::Result<usize> {
        self.release_where(addresses, |lease| lease.is_of(id))
    }

    /// As [`release`](Self::release), whoever's they are that the test picks.
    pub fn release_where(&self, addresses: &[Ipv4Addr], test: impl Fn(&Lease) -> bool) -> io::Result<usize> {
        // Mostly there is nothing to do, and the lock is not needed to see that.
        let test = |lease: &Lease| test(lease) || (addresses.is_empty() && lease.container_id.is_empty());
        let found = self.find(addresses, test)?;
        if found.is_empty() {
            return Ok(0);
        }
        // Whoever holds the lock meets no note that is only being written.
        let _lock = self.lock()?;
        let mut released = 0;
        for lease in self.find(&found.iter().map(|lease| lease.address).collect::<Vec<_>>(), test)? {
            fs::remove_file(self.path(lease.address))?;
            released += 1;
        }
        Ok(released)
    }

    fn find(&self, addresses: &[Ipv4Addr], test: impl Fn(&Lease) -> bool) -> io::Result<Vec<Lease>> {
        let mut found = if addresses.is_empty() {
            self.list()?
        } else {
            let read: io::Result<Vec<_>> = addresses.iter().map(|address| self.read(*address)).collect();
            read?.into_iter().flatten().collect()
        };
        found.retain(|lease| test(lease));
        Ok(found)
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let path = self.folder.join(LOCK);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let source = io::Error::from(errno);
            io::Error::new(source.kind(), format!("cannot lock {}: {source}", path.display()))
        })
    }

    fn path(&self, address: Ipv4Addr) -> PathBuf {
        self.folder.join(address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str, interface: &str) -> AttachmentId {
        AttachmentId { container_id: container.to_owned(), interface: interface.to_owned() }
    }

    fn folder() -> (tempfile::TempDir, Leases) {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::of_network(dir.path(), "canal");
        fs::create_dir(leases.folder()).unwrap();
        for (name, content) in [
            ("10.1.0.2", "aa\r\neth0"),
            ("10.1.0.3", "aa\r\neth1"),
            ("10.1.0.4", "old"),
            ("10.1.0.5", "bb\r\neth0\n"),
            ("last_reserved_ip.0", "10.1.0.5"),
        ] {
            fs::write(leases.folder().join(name), content).unwrap();
        }
        (dir, leases)
    }

    #[test]
    fn only_what_is_the_attachments_is_given_back() {
        let (_dir, leases) = folder();
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(leases.list().unwrap().len(), 4);
        assert_eq!(leases.release(&id("aa", "eth0"), &[ip("10.1.0.5"), ip("10.9.9.9")]).unwrap(), 0);
        assert_eq!(leases.release(&id("aa", "eth0"), &[]).unwrap(), 1);
        assert_eq!(leases.release(&id("old", "eth0"), &[]).unwrap(), 1, "without an interface's name");
        assert_eq!(leases.release(&id("bb", "eth0"), &[ip("10.1.0.5")]).unwrap(), 1);
        let left = leases.list().unwrap();
        assert_eq!(left.iter().map(|l| l.address).collect::<Vec<_>>(), [ip("10.1.0.3")]);
        assert!(leases.folder().join("last_reserved_ip.0").exists());
    }

    #[test]
    fn a_folder_that_host_local_works_in_is_left_for_later_and_none_is_no_error() {
        let (_dir, leases) = folder();
        let busy = leases.lock().unwrap();
        assert!(leases.release(&id("aa", "eth0"), &[]).unwrap_err().to_string().contains("cannot lock"));
        assert_eq!(leases.release(&id("nobody", "eth0"), &[]).unwrap(), 0, "there is nothing to wait for");
        drop(busy);
        assert_eq!(leases.release(&id("aa", "eth0"), &[]).unwrap(), 1);
        fs::write(leases.folder().join("10.1.0.9"), "").unwrap();
        assert_eq!(leases.release(&id("aa", "eth0"), &["10.1.0.9".parse().unwrap()]).unwrap(), 0);
        assert_eq!(leases.release(&id("aa", "eth0"), &[]).unwrap(), 1, "nobody's");
        assert_eq!(Leases::new("/no/such/folder").list().unwrap(), []);
    }
}
