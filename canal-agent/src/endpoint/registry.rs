//! The endpoints of this node's CNI plugin, one file each below `<state-dir>/endpoints`.
//!
//! A file is written before the plugin touches anything, and goes only when address and interface are given back and the
//! endpoint has left etcd: what was cut off, or must be finished later, is finished by whichever agent runs then. A file
//! that cannot be read is reported and left alone.
//!
//! Two containers can claim one WorkloadEndpoint, when Kubernetes makes a pod anew before the old one is gone: both are
//! kept, and the one that came last holds the endpoint.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
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
const FORGOTTEN: &str = "a restart would forget what has changed about the pod";

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot {operation} {}: {source}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{field} {value:?} is not allowed: {wanted}")]
    Invalid { field: &'static str, value: String, wanted: &'static str },
}

/// What a value in etcd says of the pod whose endpoint has its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// What is known.
    Nothing,
    News,
    /// It is not about that pod, or cannot be read.
    Foreign,
}

#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    node: String,
    /// Another record is another pointer.
    records: BTreeMap<AttachmentId, Arc<Record>>,
    /// Whose endpoint it is, or was, by its key.
    claims: BTreeMap<EndpointKey, BTreeSet<AttachmentId>>,
    /// Endpoints that records had under other names.
    former: BTreeSet<(EndpointKey, AttachmentId)>,
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
            former: BTreeSet::new(),
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
                    registry.keep_found(key, record);
                }
                Err(reason) => {
                    broken.insert(path.display().to_string(), reason);
                }
            }
        }
        Ok((registry, broken))
    }

    pub fn records(&self) -> &BTreeMap<AttachmentId, Arc<Record>> {
        &self.records
    }

    /// Those that are pods', by endpoint.
    pub fn present(&self) -> impl Iterator<Item = (&EndpointKey, &Arc<Record>)> {
        self.claims.keys().filter_map(|key| Some((key, self.holder(key)?)))
    }

    /// Those whose pod is gone.
    pub fn leaving(&self) -> impl Iterator<Item = (EndpointKey, &Arc<Record>)> {
        let leaving = self.records.values().filter(|record| record.phase == Phase::Leaving);
        leaving.filter_map(|record| Some((self.key(&record.endpoint).ok()?, record)))
    }

    /// Endpoints that a container had under another name before, and that etcd has yet to forget.
    pub fn former(&self) -> impl Iterator<Item = (&EndpointKey, &Arc<Record>)> {
        self.former.iter().filter_map(|(key, id)| Some((key, self.records.get(id)?)))
    }

    /// Every endpoint that some record has, or had.
    pub fn keys(&self) -> BTreeSet<EndpointKey> {
        self.claims.keys().chain(self.former().map(|(key, _)| key)).cloned().collect()
    }

    /// Which pod's the endpoint is.
    pub fn holder(&self, key: &EndpointKey) -> Option<&Arc<Record>> {
        self.last_claim(key, |record| record.phase == Phase::Present)
    }

    /// Whose value in etcd, if it is there, is of a life that is over: that of a pod that has gone, of a container that is being
    /// attached again, or of one that has another name by now.
    pub fn past(&self, key: &EndpointKey) -> Option<&Arc<Record>> {
        let is_over = |record: &Record| match record.phase {
            Phase::Begun => record.lived_before(),
            Phase::Present => false,
            Phase::Leaving => true,
        };
        let renamed = || {
            let mut from = self.former.range((key.clone(), AttachmentId::new("", ""))..);
            from.next().filter(|(former, _)| former == key).and_then(|(_, id)| self.records.get(id))
        };
        self.last_claim(key, is_over).or_else(renamed)
    }

    fn last_claim(&self, key: &EndpointKey, test: impl Fn(&Record) -> bool) -> Option<&Arc<Record>> {
        let claims = self.claims.get(key)?.iter().filter_map(|id| self.records.get(id));
        claims.filter(|record| test(record)).max_by_key(|record| record.since)
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
        let name = name(endpoint, &self.node)
            .format()
            .map_err(|bad| invalid("endpoint name part", &bad.0, "no dash at its beginning or end"))?;
        Ok(EndpointKey::new(namespace, &name))
    }

    /// Keeps what is about to be made, or was made.
    pub fn insert(&mut self, endpoint: AddEndpoint, phase: Phase) -> Result<EndpointKey, RegistryError> {
        let key = self.key(&endpoint)?;
        // What was begun goes on being as old as it is.
        let begun = self.records.get(&endpoint.id()).filter(|record| record.phase == Phase::Begun);
        let begun = begun.filter(|_| phase == Phase::Present).map(|record| record.since);
        // Of two the later one is known as such, whatever the clock says.
        let since =
            begun.unwrap_or_else(|| milliseconds(SystemTime::now()).max(self.latest.saturating_add(1)));
        self.latest = self.latest.max(since);
        let known = self.records.get(&endpoint.id()).map(Arc::as_ref);
        let former = known.and_then(|record| {
            let before = self.key(&record.endpoint).ok().filter(|before| *before != key);
            before.or_else(|| record.former.clone())
        });
        let node = known.map_or_else(|| Some(self.node.clone()), |known| known.node.clone());
        let record = Record { former, node, ..Record::new(endpoint, phase, since, known) };
        self.put(&key, record)?;
        Ok(key)
    }

    /// The pod is gone. `None`: it was not known, or is leaving already.
    pub fn leave(&mut self, id: &AttachmentId) -> Result<Option<EndpointKey>, RegistryError> {
        let found = self.records.get(id).filter(|record| record.phase != Phase::Leaving);
        let Some(record) = found else { return Ok(None) };
        let key = self.key(&record.endpoint)?;
        self.put(&key, Record { phase: Phase::Leaving, ..Record::clone(record) })?;
        Ok(Some(key))
    }

    /// Etcd says this of the endpoint. News count also where they cannot be written down; see
    /// [`write_again`](Self::write_again).
    pub fn hear(&mut self, key: &EndpointKey, value: &[u8]) -> Heard {
        let Some(record) = self.holder(key) else { return Heard::Nothing };
        let Some(there) = record.recognise(key, value) else { return Heard::Foreign };
        let Some(after) = record.heed(key, value, &there) else { return Heard::Nothing };
        let id = after.endpoint.id();
        self.keep(key.clone(), after);
        self.write_down(&id);
        Heard::News
    }

    /// Tries to write down what could not be, as far as that goes: where one does not fit, the others do not either. Each is a
    /// sign of life.
    pub fn write_again(&mut self, beat: impl Fn()) {
        for id in self.unwritten.keys().cloned().collect::<Vec<_>>() {
            beat();
            if !self.write_down(&id) {
                return;
            }
        }
    }

    /// False: its file says something older, or nothing.
    fn write_down(&mut self, id: &AttachmentId) -> bool {
        let path = self.path(id);
        let problem = self.records.get(id).and_then(|record| write(&path, record).err());
        match &problem {
            None => self.unwritten.remove(id),
            Some(error) => {
                let problem = format!("cannot write {}: {error}; {FORGOTTEN}", path.display());
                self.unwritten.insert(id.clone(), problem)
            }
        };
        problem.is_none()
    }

    /// What could not be written down, a line each.
    pub fn unwritten(&self) -> impl Iterator<Item = &String> {
        self.unwritten.values()
    }

    /// Everything is given back and etcd has been told: the record is not needed any more.
    pub fn forget(&mut self, id: &AttachmentId) -> Result<(), RegistryError> {
        // Whoever came back meanwhile stays.
        if self.records.get(id).is_none_or(|record| record.phase != Phase::Leaving) {
            return Ok(());
        }
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RegistryError::Io { operation: "remove", path, source });
            }
            _ => {}
        }
        if let Some(record) = self.records.remove(id) {
            self.unclaim(&record);
        }
        self.unwritten.remove(id);
        self.seen.remove(id);
        self.found.remove(id);
        Ok(())
    }

    /// Etcd has forgotten the endpoint that it had under another name.
    pub fn forget_former(&mut self, id: &AttachmentId) -> Result<(), RegistryError> {
        let Some(record) = self.records.get(id).filter(|record| record.former.is_some()) else {
            return Ok(());
        };
        let key = self.key(&record.endpoint)?;
        let record = Record { former: None, ..Record::clone(record) };
        self.put(&key, self.on_this_node(&key, record))
    }

    /// As it goes on where the node may have got another name.
    fn on_this_node(&self, key: &EndpointKey, record: Record) -> Record {
        let endpoint = record.endpoint.clone();
        let key_on =
            |node: &str| Some(EndpointKey::new(&key.namespace, &name(&endpoint, node).format().ok()?));
        record.on_node(&self.node, key_on)
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

    /// Of an earlier process. What that changes is written down before etcd is told.
    fn keep_found(&mut self, key: EndpointKey, found: Record) {
        let (id, before) = (found.endpoint.id(), found.node.clone());
        let record = self.on_this_node(&key, found);
        if record.node != before {
            let problem = format!("{} is yet to be written; {FORGOTTEN}", self.path(&id).display());
            self.unwritten.insert(id, problem);
        }
        self.keep(key, record);
    }

    fn keep(&mut self, key: EndpointKey, record: Record) {
        let id = record.endpoint.id();
        let earlier = self.records.remove(&id);
        if earlier.as_ref().is_none_or(|earlier| earlier.since != record.since) {
            self.seen.insert(id.clone(), Instant::now());
        }
        if let Some(earlier) = earlier {
            self.unclaim(&earlier);
        }
        self.former.extend(record.former.clone().map(|former| (former, id.clone())));
        self.claims.entry(key).or_default().insert(id.clone());
        self.records.insert(id, Arc::new(record));
    }

    fn unclaim(&mut self, record: &Record) {
        let id = record.endpoint.id();
        if let Ok(key) = self.key(&record.endpoint)
            && let Entry::Occupied(mut claims) = self.claims.entry(key)
        {
            claims.get_mut().remove(&id);
            if claims.get().is_empty() {
                claims.remove();
            }
        }
        if let Some(former) = record.former.clone() {
            self.former.remove(&(former, id));
        }
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.dir.join(format!("{}@{}.json", id.container_id, id.interface))
    }
}

/// The endpoint's name on a node of this name.
fn name(endpoint: &AddEndpoint, node: &str) -> EndpointName {
    let node = endpoint.node.as_deref().unwrap_or(node);
    match &endpoint.pod {
        None => EndpointName::cni(node, &endpoint.container_id, &endpoint.interface),
        Some(pod) => EndpointName::kubernetes(node, &pod.name, &endpoint.interface),
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
pub(crate) mod tests;
