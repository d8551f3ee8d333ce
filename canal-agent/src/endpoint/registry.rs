//! The endpoints of this node's CNI plugin, one file each below `<state-dir>/endpoints`.
//!
//! A file is written before ADD answers, and goes only when the endpoint has left etcd: what must be finished later is
//! finished by whichever agent runs then. A file that cannot be read is reported and left alone.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    api::wire::AddEndpoint,
    model::{EndpointKey, WorkloadEndpoint, endpoint::EndpointName},
};

/// Namespace of endpoints that no orchestrator put into one, as the Calico plugin has it.
pub const NAMESPACE: &str = "default";
const ORCHESTRATOR: &str = "cni";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub endpoint: AddEndpoint,
    /// The pod is gone; etcd has yet to be told.
    #[serde(default)]
    pub leaving: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot {operation} {}: {source}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{field} {value:?} is not allowed: {wanted}")]
    Invalid { field: &'static str, value: String, wanted: &'static str },
}

#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    node: String,
    records: BTreeMap<EndpointKey, Record>,
}

/// What was read, and the files that could not be used, with the reason.
pub type Opened = (Registry, BTreeMap<String, String>);

impl Registry {
    /// Where the records are.
    pub fn folder(state_dir: &Path) -> PathBuf {
        state_dir.join("endpoints")
    }

    /// As [`open`](Self::open), without making anything where there is none.
    pub fn open_existing(state_dir: &Path, node: &str) -> Result<Option<Opened>, RegistryError> {
        Self::folder(state_dir).exists().then(|| Self::open(state_dir, node)).transpose()
    }

    /// Reads what is on disk.
    pub fn open(state_dir: &Path, node: &str) -> Result<Opened, RegistryError> {
        let dir = Self::folder(state_dir);
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| RegistryError::Io { operation, path, source }
        };
        fs::create_dir_all(&dir).map_err(io("make", &dir))?;
        let mut registry = Self { dir: dir.clone(), node: node.to_owned(), records: BTreeMap::new() };
        let mut broken = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(io("list", &dir))? {
            let path = entry.map_err(io("list", &dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue; // A temporary file of a write that did not end.
            }
            match read(&path)
                .and_then(|record| Ok((registry.key(&record.endpoint).map_err(|e| e.to_string())?, record)))
            {
                Ok((key, record)) => {
                    registry.records.insert(key, record);
                }
                Err(reason) => {
                    broken.insert(path.display().to_string(), reason);
                }
            }
        }
        Ok((registry, broken))
    }

    pub fn records(&self) -> &BTreeMap<EndpointKey, Record> {
        &self.records
    }

    /// The endpoint's key in the store; checks what becomes part of names.
    pub fn key(&self, endpoint: &AddEndpoint) -> Result<EndpointKey, RegistryError> {
        let invalid =
            |field, value: &str, wanted| RegistryError::Invalid { field, value: value.to_owned(), wanted };
        let legal = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        for (field, value) in [("container id", &endpoint.container_id), ("network", &endpoint.network)] {
            if !legal(value) {
                return Err(invalid(field, value, "letters, digits, dots, dashes and underscores"));
            }
        }
        for (field, value) in
            [("interface", &endpoint.interface), ("host interface", &endpoint.host_interface)]
        {
            if value.is_empty()
                || value.len() > 15
                || value.bytes().any(|b| b == b'/' || b.is_ascii_whitespace())
            {
                return Err(invalid(field, value, "1 to 15 characters without slashes and spaces"));
            }
        }
        let name = EndpointName::cni(&self.node, &endpoint.container_id, &endpoint.interface)
            .format()
            .map_err(|bad| invalid("endpoint name part", &bad.0, "no dash at its beginning or end"))?;
        Ok(EndpointKey::new(NAMESPACE, &name))
    }

    pub fn insert(&mut self, endpoint: AddEndpoint) -> Result<EndpointKey, RegistryError> {
        let key = self.key(&endpoint)?;
        self.put(&key, Record { endpoint, leaving: false })?;
        Ok(key)
    }

    /// The pod is gone. `None`: it was not known.
    pub fn leave(
        &mut self,
        container_id: &str,
        interface: &str,
    ) -> Result<Option<EndpointKey>, RegistryError> {
        let found = self.records.iter().find(|(_, record)| {
            record.endpoint.container_id == container_id
                && record.endpoint.interface == interface
                && !record.leaving
        });
        let Some((key, record)) = found.map(|(key, record)| (key.clone(), record.clone())) else {
            return Ok(None);
        };
        self.put(&key, Record { leaving: true, ..record })?;
        Ok(Some(key))
    }

    /// Etcd has been told: the record is not needed any more.
    pub fn forget(&mut self, key: &EndpointKey) -> Result<(), RegistryError> {
        if self.records.get(key).is_none_or(|record| !record.leaving) {
            return Ok(()); // Came back meanwhile.
        }
        self.remove(key)
    }

    /// An endpoint that was never announced.
    pub fn remove(&mut self, key: &EndpointKey) -> Result<(), RegistryError> {
        if let Some(record) = self.records.remove(key) {
            let path = self.path(&record.endpoint);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(RegistryError::Io { operation: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &EndpointKey, record: Record) -> Result<(), RegistryError> {
        let path = self.path(&record.endpoint);
        write(&path, &record).map_err(|source| RegistryError::Io { operation: "write", path, source })?;
        self.records.insert(key.clone(), record);
        Ok(())
    }

    fn path(&self, endpoint: &AddEndpoint) -> PathBuf {
        self.dir.join(format!("{}@{}.json", endpoint.container_id, endpoint.interface))
    }
}

impl Record {
    /// As the cluster sees it.
    pub fn workload(&self, node: &str) -> WorkloadEndpoint {
        let AddEndpoint { container_id, interface, host_interface, mac, addresses, network, labels } =
            self.endpoint.clone();
        WorkloadEndpoint {
            node: node.to_owned(),
            orchestrator: ORCHESTRATOR.to_owned(),
            workload: container_id.clone(),
            endpoint: interface,
            container_id,
            interface_name: host_interface,
            addresses,
            mac: Some(mac),
            labels: labels.into_iter().collect(),
            profiles: vec![network],
            ports: Vec::new(),
            spoofed: Vec::new(),
        }
    }
}

fn read(path: &Path) -> Result<Record, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| format!("{e}; remove the file if its pod is gone"))
}

/// All or nothing, also across a power loss.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    use io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, record)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use canal_common::Mac;

    use super::*;

    fn endpoint(container: &str) -> AddEndpoint {
        AddEndpoint {
            container_id: container.to_owned(),
            interface: "eth0".to_owned(),
            host_interface: format!("cali{}", &container[..container.len().min(11)]),
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.100.30.2".parse().unwrap()],
            network: "canal".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
        }
    }

    #[test]
    fn a_restart_finds_the_endpoints_and_what_has_yet_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "node-a").unwrap();
        let stays = registry.insert(endpoint("c0ffee")).unwrap();
        let goes = registry.insert(endpoint("dead-beef")).unwrap();
        assert_eq!(goes.to_string(), "default/node--a-cni-dead--beef-eth0");
        assert_eq!(registry.leave("dead-beef", "eth0").unwrap(), Some(goes.clone()));
        assert_eq!(registry.leave("dead-beef", "eth0").unwrap(), None, "already leaving");

        let (mut again, broken) = Registry::open(dir.path(), "node-a").unwrap();
        assert!(broken.is_empty());
        assert!(!again.records()[&stays].leaving && again.records()[&goes].leaving);
        again.forget(&stays).unwrap();
        again.forget(&goes).unwrap();
        assert_eq!(again.records().keys().collect::<Vec<_>>(), [&stays], "only what has left is forgotten");
        assert_eq!(Registry::open(dir.path(), "node-a").unwrap().0.records().len(), 1);
    }

    #[test]
    fn a_broken_file_is_reported_and_costs_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        registry.insert(endpoint("c0ffee")).unwrap();
        fs::write(dir.path().join("endpoints/broken@eth0.json"), "{").unwrap();
        let (again, broken) = Registry::open(dir.path(), "n").unwrap();
        assert_eq!((again.records().len(), broken.len()), (1, 1));
        assert!(dir.path().join("endpoints/broken@eth0.json").exists());
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        for id in ["", "../x", "a/b", "-x", &"x".repeat(129)] {
            assert!(registry.insert(endpoint(id)).is_err(), "{id}");
        }
        let long = AddEndpoint { host_interface: "cali-0123456789ab".to_owned(), ..endpoint("ok") };
        assert!(registry.insert(long).is_err());
    }
}
