//! What the agent remembers of etcd from one process to the next: `<state-dir>/peers.json`. etcd may lose its data, or get a
//! backup put back, while no agent runs or shortly before one ends; without a memory the next one would take the short list that
//! it finds for the truth, and cut the way to all who have not written their leases again.
//!
//! A list that goes on from what is remembered counts as it is: who is not in it has left.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hasher as _},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    Node,
    peers::{Known, Records},
};
use crate::{file, store::Past};

const FILE: &str = "peers.json";
/// Between two times that it is written.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    /// What an earlier process has left, until it is asked for.
    found: Option<Content>,
    past: Option<Past>,
    /// Of what the file says; `None` before this process has written it.
    said: Option<u64>,
    /// When etcd was found to have lost its past, as the file says.
    forgot: Option<u64>,
    /// The file may not say it all any more.
    is_due: bool,
    kept: Option<Instant>,
    problem: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The list and the changes behind it that the leases are from.
    past: Option<Past>,
    /// When etcd was found to have lost its past, in seconds since 1970.
    forgot: Option<u64>,
    leases: BTreeMap<String, Known>,
    /// Of before that, and not written again since.
    remembered: BTreeMap<String, Known>,
}

impl Memory {
    /// What an earlier process has left, if that can be used.
    pub fn read(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Content>(&text)?));
        let found = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(file = %path.display(), %error, "cannot read what was known of other nodes; going by etcd alone");
            }
            Content::default()
        });
        Self {
            path,
            past: found.past,
            said: None,
            forgot: found.forgot,
            found: Some(found),
            is_due: false,
            kept: None,
            problem: None,
        }
    }

    /// For a node that leaves; true when there was something.
    pub fn forget(state_dir: &Path) -> bool {
        fs::remove_file(state_dir.join(FILE)).is_ok()
    }

    /// How far an earlier process has followed the network's keys.
    pub fn past(&self) -> Option<Past> {
        self.past
    }

    /// The leases of a list are known now.
    pub(super) fn note(&mut self, past: Past) {
        (self.past, self.is_due) = (Some(past), true);
    }

    /// What changed up to this revision is known, too.
    pub(super) fn note_changes(&mut self, revision: i64) {
        if let Some(past) = &mut self.past {
            past.revision = revision;
        }
        self.is_due = true;
    }

    pub(super) fn note_change(&mut self) {
        self.is_due = true;
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone()
    }

    /// What an earlier process knew, once: both kinds of peers, and how long ago etcd had lost its past.
    fn recall(&mut self) -> Option<(Records, Option<Duration>)> {
        let Content { forgot, leases, remembered, .. } = self.found.take()?;
        let ago = forgot.map(|forgot| {
            let then = UNIX_EPOCH + Duration::from_secs(forgot);
            SystemTime::now().duration_since(then).unwrap_or_default()
        });
        Some(([leases, remembered], ago))
    }

    /// Writes the file if it says something else. A later revision of the same peers is nothing else: from an earlier one, too,
    /// it shows whether a history goes on.
    fn keep(&mut self, [leases, remembered]: Records, forgot: Option<Duration>) {
        self.is_due = false;
        self.forgot = forgot.and_then(|ago| {
            let then = SystemTime::now().checked_sub(ago)?.duration_since(UNIX_EPOCH).ok()?.as_secs();
            // The same moment, but for rounding.
            self.forgot.filter(|known| known.abs_diff(then) < 60).or(Some(then))
        });
        let list = self.past.map(|past| Past { revision: 0, ..past });
        let mut content = Content { past: list, forgot: self.forgot, leases, remembered };
        let outcome = content.digest().and_then(|digest| {
            if self.said != Some(digest) {
                content.past = self.past;
                file::replace(&self.path, &serde_json::to_vec(&content)?)?;
                self.said = Some(digest);
            }
            Ok(())
        });
        self.problem = outcome.err().map(|error| {
            self.is_due = true;
            format!(
                "cannot write {}: {error}; should etcd lose its data, an agent that starts then would not know the other nodes",
                self.path.display()
            )
        });
    }
}

impl Content {
    fn digest(&self) -> io::Result<u64> {
        let mut digest = Digest::default();
        serde_json::to_writer(&mut digest, self)?;
        Ok(digest.0.finish())
    }
}

/// Of a text that is too long to be kept.
#[derive(Default)]
struct Digest(DefaultHasher);

impl io::Write for Digest {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.write(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Node {
    /// Before the first list counts. Who is not in one that goes on from what was known has left, while nobody was there to see it;
    /// who is not in another one may be there all the same.
    pub(super) fn recall(&mut self, forgetful: bool) {
        let Some(([leases, remembered], forgot)) = self.memory.recall() else { return };
        self.peers.recall([if forgetful { leases } else { BTreeMap::new() }, remembered]);
        self.store.forgot = forgot.map(|ago| {
            info!("etcd had lost its past when an earlier agent ran");
            Instant::now().checked_sub(ago).unwrap_or_else(Instant::now)
        });
    }

    /// In its time: who looks at everything comes here, too.
    pub(super) fn keep_memory(&mut self) {
        let memory = &mut self.memory;
        if memory.is_due && memory.kept.is_none_or(|kept| kept.elapsed() > PAUSE) {
            memory.kept = Some(Instant::now());
            memory.keep(self.peers.records(), self.store.forgot.map(|forgot| forgot.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::history::Mark;

    fn past(index: u64) -> Past {
        Past { cluster_id: 7, revision: 10, mark: Some(Mark { revision: 10, index }) }
    }

    fn peers(subnets: &[&str]) -> BTreeMap<String, Known> {
        let peer = |subnet: &str| {
            let value = json!({ "subnet": subnet, "ip": "192.0.2.1", "vtep_mac": "02:00:00:00:00:01" });
            serde_json::from_value(value).unwrap()
        };
        subnets.iter().map(|subnet| (format!("/k/{subnet}"), peer(subnet))).collect()
    }

    #[test]
    fn what_one_process_kept_the_next_one_knows() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Memory::read(folder.path());
        assert_eq!((memory.past(), memory.recall()), (None, Some(Default::default())));
        memory.note(past(20));
        memory.note_changes(15);
        let known = [peers(&["10.1.0.0/24", "10.2.0.0/24"]), peers(&["10.3.0.0/24"])];
        memory.keep(known.clone(), Some(Duration::from_hours(2)));
        let mut next = Memory::read(folder.path());
        assert_eq!(next.past(), Some(Past { revision: 15, ..past(20) }));
        let (peers, ago) = next.recall().unwrap();
        assert_eq!(peers, known);
        assert_eq!(next.recall(), None, "only to begin with");
        assert_eq!(ago.unwrap().as_secs() / 60, 120);
        assert!(Memory::forget(folder.path()) && !Memory::forget(folder.path()));
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(Memory::read(folder.path()).past(), None, "a file of no use is none");
    }

    #[test]
    fn the_file_is_written_when_it_would_say_something_else_and_a_failure_is_told_until_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut memory = Memory::read(&state);
        let keep = |memory: &mut Memory, subnets: &[&str], ago: Option<u64>| {
            memory.keep([peers(subnets), BTreeMap::new()], ago.map(Duration::from_secs));
            fs::remove_file(state.join(FILE)).is_ok()
        };
        memory.note(past(20));
        assert!(keep(&mut memory, &["10.1.0.0/24"], None));
        memory.note_changes(99);
        assert!(!keep(&mut memory, &["10.1.0.0/24"], None), "the same peers at a later revision");
        assert!(keep(&mut memory, &[], None));
        memory.note(past(400));
        assert!(keep(&mut memory, &[], None), "another list");
        assert!(keep(&mut memory, &[], Some(100)));
        assert!(!keep(&mut memory, &[], Some(101)), "the same moment, but for rounding");
        fs::remove_dir(&state).unwrap();
        fs::write(&state, "in the way").unwrap();
        assert!(!keep(&mut memory, &["10.9.0.0/24"], None));
        assert!(memory.problem().unwrap().contains("peers.json") && memory.is_due);
        fs::remove_file(&state).unwrap();
        assert!(keep(&mut memory, &["10.9.0.0/24"], None) && memory.problem().is_none());
    }
}
