//! The endpoints of this node's CNI plugin, one file each below `<state-dir>/endpoints`.
//!
//! A file is written before the plugin touches anything, and goes only when address and interface are given back and the
//! endpoint has left etcd: what was cut off, or must be finished later, is finished by whichever agent runs then. A file
//! that cannot be read is reported and left alone.
//!
//! Two containers can claim one WorkloadEndpoint, when Kubernetes makes a pod anew before the old one is gone: both are
//! kept, and the one that came last holds the endpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::record::{Phase, Record};
use crate::{
    api::wire::{AddEndpoint, AttachmentId},
    file,
    model::{EndpointKey, Pod, endpoint::EndpointName, name},
};

/// Namespace of endpoints that no orchestrator put into one, as the Calico plugin has it.
pub const NAMESPACE: &str = "default";
/// Longest identifier that is taken, in bytes; runtimes use 64.
const ID_MAX: usize = 128;

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
    records: BTreeMap<AttachmentId, Record>,
    /// Whose endpoint it is, or was, by its key.
    claims: BTreeMap<EndpointKey, BTreeSet<AttachmentId>>,
    /// When this process first saw what was begun: the clock may jump.
    seen: BTreeMap<AttachmentId, Instant>,
    /// Those that an earlier process has written.
    found: BTreeSet<AttachmentId>,
    /// When the youngest record was begun.
    latest: u64,
    /// What is newer here than in its file, and why.
    unwritten: BTreeMap<AttachmentId, String>,
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
        let mut registry = Self {
            dir: dir.clone(),
            node: node.to_owned(),
            records: BTreeMap::new(),
            claims: BTreeMap::new(),
            seen: BTreeMap::new(),
            found: BTreeSet::new(),
            latest: 0,
            unwritten: BTreeMap::new(),
        };
        let mut broken = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(io("list", &dir))? {
            let path = entry.map_err(io("list", &dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                // Of a write that did not end.
                file::remove_if_abandoned(&path).ok();
                continue;
            }
            match read(&path)
                .and_then(|record| Ok((registry.key(&record.endpoint).map_err(|e| e.to_string())?, record)))
            {
                Ok((key, record)) => {
                    registry.latest = registry.latest.max(record.since);
                    registry.found.insert(record.endpoint.id());
                    registry.keep(key, record);
                }
                Err(reason) => {
                    broken.insert(path.display().to_string(), reason);
                }
            }
        }
        Ok((registry, broken))
    }

    pub fn records(&self) -> &BTreeMap<AttachmentId, Record> {
        &self.records
    }

    /// Those that are pods', by endpoint.
    pub fn present(&self) -> impl Iterator<Item = (&EndpointKey, &Record)> {
        self.claims.keys().filter_map(|key| Some((key, self.holder(key)?)))
    }

    /// Those whose pod is gone.
    pub fn leaving(&self) -> impl Iterator<Item = (EndpointKey, &Record)> {
        let leaving = self.records.values().filter(|record| record.phase == Phase::Leaving);
        leaving.filter_map(|record| Some((self.key(&record.endpoint).ok()?, record)))
    }

    /// Endpoints that a container had under another name before, and that etcd has yet to forget.
    pub fn former(&self) -> impl Iterator<Item = (&EndpointKey, &AttachmentId)> {
        self.records.iter().filter_map(|(id, record)| Some((record.former.as_ref()?, id)))
    }

    /// Which pod's the endpoint is.
    pub fn holder(&self, key: &EndpointKey) -> Option<&Record> {
        let claims = self.claims.get(key)?.iter().filter_map(|id| self.records.get(id));
        claims.filter(|record| record.phase == Phase::Present).max_by_key(|record| record.since)
    }

    /// Whose end is not told yet, of those that had the endpoint.
    pub fn leaver(&self, key: &EndpointKey) -> Option<&Record> {
        let claims = self.claims.get(key)?.iter().filter_map(|id| self.records.get(id));
        claims.filter(|record| record.phase == Phase::Leaving).max_by_key(|record| record.since)
    }

    /// For how long it has been so, as far as can be told: of what this process has seen begin, by a clock that never
    /// jumps; of what it found, by the time that is written there, if that can be.
    pub fn age(&self, id: &AttachmentId) -> Duration {
        let here = self.seen.get(id).map(Instant::elapsed).unwrap_or_default();
        let begun = self.records.get(id).map(|record| UNIX_EPOCH + Duration::from_millis(record.since));
        let written = begun.and_then(|begun| SystemTime::now().duration_since(begun).ok());
        if self.found.contains(id) { here.max(written.unwrap_or_default()) } else { here }
    }

    /// The endpoint's key in the store; checks what becomes part of names.
    pub fn key(&self, endpoint: &AddEndpoint) -> Result<EndpointKey, RegistryError> {
        let invalid =
            |field, value: &str, wanted| RegistryError::Invalid { field, value: value.to_owned(), wanted };
        let legal = |text: &str| {
            !text.is_empty()
                && text.len() <= ID_MAX
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        for (field, value) in [("container id", &endpoint.container_id), ("network", &endpoint.network)] {
            if !legal(value) {
                return Err(invalid(
                    field,
                    value,
                    "at most 128 letters, digits, dots, dashes and underscores",
                ));
            }
        }
        // An endpoint that somebody else wrote may name no host interface.
        let host = Some(("host interface", &endpoint.host_interface)).filter(|(_, name)| !name.is_empty());
        for (field, value) in [("interface", &endpoint.interface)].into_iter().chain(host) {
            if value.is_empty()
                || value.len() > 15
                || value.bytes().any(|b| b == b'/' || b.is_ascii_whitespace())
            {
                return Err(invalid(field, value, "1 to 15 characters without slashes and spaces"));
            }
        }
        let namespace = match &endpoint.pod {
            None => NAMESPACE,
            Some(Pod { namespace, name, .. }) => {
                for (field, value) in [("namespace", namespace), ("pod", name)] {
                    if !name::is_subdomain(value) {
                        return Err(invalid(field, value, "a name as Kubernetes gives it"));
                    }
                }
                namespace
            }
        };
        let name = self
            .name(endpoint)
            .format()
            .map_err(|bad| invalid("endpoint name part", &bad.0, "no dash at its beginning or end"))?;
        Ok(EndpointKey::new(namespace, &name))
    }

    fn name(&self, endpoint: &AddEndpoint) -> EndpointName {
        let node = endpoint.node.as_ref().unwrap_or(&self.node);
        match &endpoint.pod {
            None => EndpointName::cni(node, &endpoint.container_id, &endpoint.interface),
            Some(pod) => EndpointName::kubernetes(node, &pod.name, &endpoint.interface),
        }
    }

    /// Keeps what is about to be made, or was made.
    pub fn insert(&mut self, endpoint: AddEndpoint, phase: Phase) -> Result<EndpointKey, RegistryError> {
        let key = self.key(&endpoint)?;
        // What was begun goes on being as old as it is.
        let begun = self.records.get(&endpoint.id()).filter(|record| record.phase == Phase::Begun);
        let begun = begun.filter(|_| phase == Phase::Present).map(|record| record.since);
        // Of two the later one is known as such, whatever the clock says.
        let since = begun.unwrap_or_else(|| milliseconds(SystemTime::now()).max(self.latest + 1));
        self.latest = self.latest.max(since);
        let former = self.records.get(&endpoint.id()).and_then(|record| {
            let before = self.key(&record.endpoint).ok().filter(|before| *before != key);
            before.or_else(|| record.former.clone())
        });
        let known = self.records.get(&endpoint.id());
        let record = Record { former, ..Record::new(endpoint, phase, since, known) };
        self.put(&key, record)?;
        Ok(key)
    }

    /// The pod is gone. `None`: it was not known, or is leaving already.
    pub fn leave(&mut self, id: &AttachmentId) -> Result<Option<EndpointKey>, RegistryError> {
        let found = self.records.get(id).filter(|record| record.phase != Phase::Leaving);
        let Some(record) = found.cloned() else { return Ok(None) };
        let key = self.key(&record.endpoint)?;
        self.put(&key, Record { phase: Phase::Leaving, ..record })?;
        Ok(Some(key))
    }

    /// Etcd says this of the endpoint. True: it is another than before. It counts also where it cannot be written down; see
    /// [`write_again`](Self::write_again).
    pub fn hear(&mut self, key: &EndpointKey, value: &[u8]) -> bool {
        let heard = self.holder(key).and_then(|record| record.hear(key, value));
        let Some(heard) = heard else { return false };
        let id = heard.endpoint.id();
        self.keep(key.clone(), heard);
        self.unwritten.insert(id, String::new());
        self.write_again();
        true
    }

    /// Tries to write down what could not be.
    pub fn write_again(&mut self) {
        let unwritten = std::mem::take(&mut self.unwritten).into_keys();
        let written = unwritten.filter_map(|id| {
            let path = self.path(&id);
            let error = write(&path, self.records.get(&id)?).err()?;
            let path = path.display();
            let problem =
                format!("cannot write {path}: {error}; a restart would forget what etcd says of the pod");
            Some((id, problem))
        });
        self.unwritten = written.collect();
    }

    /// What could not be written down, a line each.
    pub fn unwritten(&self) -> impl Iterator<Item = &String> {
        self.unwritten.values()
    }

    /// Everything is given back and etcd has been told: the record is not needed any more.
    pub fn forget(&mut self, id: &AttachmentId) -> Result<(), RegistryError> {
        // Whoever came back meanwhile stays.
        let Some(record) = self.records.get(id).filter(|record| record.phase == Phase::Leaving) else {
            return Ok(());
        };
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RegistryError::Io { operation: "remove", path, source });
            }
            _ => {}
        }
        let key = self.key(&record.endpoint)?;
        self.records.remove(id);
        self.seen.remove(id);
        self.found.remove(id);
        if let Some(claims) = self.claims.get_mut(&key) {
            claims.remove(id);
            if claims.is_empty() {
                self.claims.remove(&key);
            }
        }
        Ok(())
    }

    /// Etcd has forgotten the endpoint that it had under another name.
    pub fn forget_former(&mut self, id: &AttachmentId) -> Result<(), RegistryError> {
        let Some(record) = self.records.get(id).filter(|record| record.former.is_some()).cloned() else {
            return Ok(());
        };
        let key = self.key(&record.endpoint)?;
        self.put(&key, Record { former: None, ..record })
    }

    fn put(&mut self, key: &EndpointKey, record: Record) -> Result<(), RegistryError> {
        let id = record.endpoint.id();
        let path = self.path(&id);
        write(&path, &record).map_err(|source| RegistryError::Io { operation: "write", path, source })?;
        self.unwritten.remove(&id);
        // What this process has written is timed by it.
        self.found.remove(&id);
        self.keep(key.clone(), record);
        Ok(())
    }

    fn keep(&mut self, key: EndpointKey, record: Record) {
        let id = record.endpoint.id();
        let earlier = self.records.get(&id);
        if earlier.is_none_or(|earlier| earlier.since != record.since) {
            self.seen.insert(id.clone(), Instant::now());
        }
        if let Some(before) =
            earlier.and_then(|earlier| self.key(&earlier.endpoint).ok()).filter(|k| *k != key)
            && let Some(claims) = self.claims.get_mut(&before)
        {
            claims.remove(&id);
        }
        self.claims.entry(key).or_default().insert(id.clone());
        self.records.insert(id, record);
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.dir.join(format!("{}@{}.json", id.container_id, id.interface))
    }
}

/// Since 1970.
pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
    let is_new = !path.exists();
    file.persist(path)?;
    // After a power loss no pod is left: that there is a record matters then, and not which of its phases.
    if is_new { fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use canal_common::Mac;

    use super::*;

    pub(crate) fn endpoint(container: &str) -> AddEndpoint {
        AddEndpoint {
            container_id: container.to_owned(),
            interface: "eth0".to_owned(),
            host_interface: format!("cali{}", &container[..container.len().min(11)]),
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
            addresses: vec!["10.100.30.2".parse().unwrap()],
            network: "canal".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..AddEndpoint::default()
        }
    }

    pub(crate) fn of_pod(container: &str, name: &str) -> AddEndpoint {
        let pod = Pod { namespace: "shop".to_owned(), name: name.to_owned(), ..Pod::default() };
        AddEndpoint { pod: Some(pod), ..endpoint(container) }
    }

    #[test]
    fn a_restart_finds_the_endpoints_and_what_has_yet_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "node-a").unwrap();
        let stays = registry.insert(endpoint("c0ffee"), Phase::Present).unwrap();
        let goes = registry.insert(endpoint("dead-beef"), Phase::Present).unwrap();
        assert_eq!(goes.to_string(), "default/node--a-cni-dead--beef-eth0");
        let id = endpoint("dead-beef").id();
        assert_eq!(registry.leave(&id).unwrap(), Some(goes.clone()));
        assert_eq!(registry.leave(&id).unwrap(), None, "already leaving");

        let (mut again, broken) = Registry::open(dir.path(), "node-a").unwrap();
        assert!(broken.is_empty());
        assert_eq!(again.present().map(|(key, _)| key).collect::<Vec<_>>(), [&stays]);
        assert_eq!(again.leaving().map(|(key, _)| key).collect::<Vec<_>>(), [goes]);
        again.forget(&endpoint("c0ffee").id()).unwrap();
        again.forget(&id).unwrap();
        assert_eq!(again.records().len(), 1, "only what has left is forgotten");
        assert_eq!(Registry::open(dir.path(), "node-a").unwrap().0.records().len(), 1);
    }

    #[test]
    fn what_was_begun_is_no_pods_yet_and_is_found_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        registry.insert(endpoint("c0ffee"), Phase::Begun).unwrap();
        assert_eq!(registry.present().count(), 0);
        let begun = registry.records()[&endpoint("c0ffee").id()].clone();
        let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
        let found = &again.records()[&endpoint("c0ffee").id()];
        assert_eq!((&found.endpoint, found.phase, found.since), (&begun.endpoint, Phase::Begun, begun.since));
        again.insert(endpoint("c0ffee"), Phase::Present).unwrap();
        let present = &again.records()[&endpoint("c0ffee").id()];
        assert_eq!((present.phase, present.since), (Phase::Present, begun.since));
    }

    #[test]
    fn a_pod_that_was_made_anew_holds_the_endpoint_and_the_old_container_leaves_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let key = registry.insert(of_pod("aa", "web-0"), Phase::Present).unwrap();
        assert_eq!(key.to_string(), "shop/n-k8s-web--0-eth0");
        assert_eq!(registry.insert(of_pod("bb", "web-0"), Phase::Present).unwrap(), key);
        let holder = |registry: &Registry| registry.holder(&key).map(|r| r.endpoint.container_id.clone());
        assert_eq!(holder(&registry).as_deref(), Some("bb"));
        let (again, _) = Registry::open(dir.path(), "n").unwrap();
        assert_eq!(holder(&again).as_deref(), Some("bb"));
        registry.leave(&of_pod("aa", "web-0").id()).unwrap();
        registry.forget(&of_pod("aa", "web-0").id()).unwrap();
        assert_eq!(holder(&registry).as_deref(), Some("bb"));
        registry.leave(&of_pod("bb", "web-0").id()).unwrap();
        assert_eq!(holder(&registry), None);
    }

    #[test]
    fn a_container_that_is_announced_under_another_name_gives_up_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let first = registry.insert(of_pod("aa", "web-0"), Phase::Present).unwrap();
        let second = registry.insert(of_pod("aa", "web-1"), Phase::Begun).unwrap();
        assert_eq!((registry.holder(&first), registry.holder(&second)), (None, None));
        registry.insert(of_pod("aa", "web-1"), Phase::Present).unwrap();
        let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
        let id = of_pod("aa", "web-1").id();
        assert_eq!(again.former().collect::<Vec<_>>(), [(&first, &id)]);
        again.forget_former(&id).unwrap();
        assert_eq!(again.former().count(), 0);
        assert!(again.holder(&second).is_some());
    }

    #[test]
    fn age_is_told_by_a_clock_that_does_not_jump_or_by_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        registry.insert(endpoint("aa"), Phase::Begun).unwrap();
        let id = endpoint("aa").id();
        let path = dir.path().join("endpoints/aa@eth0.json");
        let text = fs::read_to_string(&path).unwrap();
        let since = registry.records()[&id].since;
        assert!(registry.age(&id) < Duration::from_mins(1));
        for (written, is_old) in [(since - 300_000, true), (since + 300_000, false)] {
            fs::write(&path, text.replace(&since.to_string(), &written.to_string())).unwrap();
            let (again, _) = Registry::open(dir.path(), "n").unwrap();
            assert_eq!(again.age(&id) > Duration::from_mins(4), is_old, "{written}");
        }
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("endpoints")).unwrap();
        let old = r#"{"endpoint":{"container_id":"ca","interface":"eth0","host_interface":"calica",
            "mac":"02:00:00:00:00:01","addresses":["10.1.0.2"],"network":"canal","labels":{}},"leaving":LEAVING}"#;
        for (name, leaving) in [("ca", "false"), ("cb", "true")] {
            let text = old.replace("\"ca\"", &format!("{name:?}")).replace("LEAVING", leaving);
            fs::write(dir.path().join(format!("endpoints/{name}@eth0.json")), text).unwrap();
        }
        let (registry, broken) = Registry::open(dir.path(), "n").unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        let phases: Vec<_> = registry.records().values().map(|record| record.phase).collect();
        assert_eq!(phases, [Phase::Present, Phase::Leaving]);
    }

    #[test]
    fn a_broken_file_is_reported_and_costs_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        registry.insert(endpoint("c0ffee"), Phase::Present).unwrap();
        fs::write(dir.path().join("endpoints/broken@eth0.json"), "{").unwrap();
        let (again, broken) = Registry::open(dir.path(), "n").unwrap();
        assert_eq!((again.records().len(), broken.len()), (1, 1));
        assert!(dir.path().join("endpoints/broken@eth0.json").exists());
    }

    #[test]
    fn names_that_would_leave_the_folder_or_the_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        for id in ["", "../x", "a/b", "-x", &"x".repeat(129)] {
            assert!(registry.insert(endpoint(id), Phase::Present).is_err(), "{id}");
        }
        let long = AddEndpoint { host_interface: "cali-0123456789ab".to_owned(), ..endpoint("ok") };
        assert!(registry.insert(long, Phase::Present).is_err());
        for name in ["", "a/b", "Web", "-a"] {
            assert!(registry.insert(of_pod("ok", name), Phase::Present).is_err(), "{name}");
        }
    }
}
