//! A live copy of one range of keys, as a stream of events.
//!
//! Owns the loop *list at one revision, watch from the next*: any end of the stream → back off → resume behind the
//! last event; a revision that is gone, or another history than the one we followed (a wiped or restored store) →
//! list again. Promises that a snapshot is always a complete, successful list and never made up from an error,
//! and that a silent connection is given up within 12 seconds. Does not look into values, and does not
//! compare snapshots: the consumer diffs, and never clears.

use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Store, StoreError,
    client::{Entry, Keys, Listing, key_text},
    error::Cause,
    history::Past,
    retry::Backoff,
};

/// A watch without events is asked for a sign of life this often …
const ASK_EVERY: Duration = Duration::from_secs(4);
/// … and torn down when nothing at all came for this long.
const SILENCE: Duration = Duration::from_secs(12);
/// A watch that lived this long starts the back-off anew when it ends.
const SETTLED: Duration = Duration::from_secs(10);

/// Which of the agent's two ranges an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// Flannel's config and leases.
    Network,
    /// Calico's resources.
    Resources,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// Everything there is. Follows a start, a compaction, or a store with another history: `forgetful` says that this one does
    /// not go on from what was told before (to this process, or to the one that remembered a [`Past`]), as after a loss of
    /// data or a backup that was put back.
    Snapshot { prefix: Prefix, entries: Vec<Entry>, past: Past, forgetful: bool },
    /// What changed since the last snapshot or changes, in order.
    Changes { prefix: Prefix, changes: Vec<Change>, revision: i64 },
    /// Events flow. Comes before the snapshot or changes that it makes possible.
    Connected { prefix: Prefix },
    /// Events do not flow, and why; what was said before stays true as far as anybody knows. Once per reason.
    Disconnected { prefix: Prefix, error: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Delete { key: String, mod_revision: i64 },
}

/// The consumer is gone, or asked to stop.
struct Stop;

enum End {
    /// Resume behind the last event.
    Broken(StoreError),
    /// List again.
    Gone(&'static str),
    /// The same, and what was known is not this store's past.
    Forgotten(&'static str),
    Stop,
}

impl From<Stop> for End {
    fn from(_: Stop) -> Self {
        Self::Stop
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        if error.cause == Cause::RevisionGone {
            Self::Gone("its revision was compacted away, or the store went back in time")
        } else {
            Self::Broken(error)
        }
    }
}

/// Where we are in the store's history: all events up to there were delivered.
struct Position {
    past: Past,
    /// A key and the revision that wrote it: another history does not have this pair.
    anchor: Option<(String, i64)>,
}

/// The last thing that the consumer heard about the connection.
#[derive(PartialEq, Eq)]
enum Said {
    Nothing,
    Connected,
    Disconnected(String),
}

pub struct Mirror {
    store: Store,
    prefix: Prefix,
    keys: Keys,
    events: mpsc::Sender<StoreEvent>,
    position: Option<Position>,
    /// Where we, or an earlier process, were before the list that is to come.
    left: Option<Past>,
    /// That list is of another history.
    forgotten: bool,
    /// A list that somebody made already, to begin with.
    listed: Option<Listing>,
    said: Said,
}

impl Mirror {
    /// A mirror of all keys under `under`, which ends in a slash.
    pub fn new(
        store: Store,
        prefix: Prefix,
        under: impl Into<String>,
        events: mpsc::Sender<StoreEvent>,
    ) -> Self {
        Self::of(store, prefix, Keys::Under(under.into()), events)
    }

    pub(super) fn of(store: Store, prefix: Prefix, keys: Keys, events: mpsc::Sender<StoreEvent>) -> Self {
        Self {
            store,
            prefix,
            keys,
            events,
            position: None,
            left: None,
            forgotten: false,
            listed: None,
            said: Said::Nothing,
        }
    }

    /// Begins with this list of its keys, and watches from the revision behind it, instead of listing them once more.
    #[must_use]
    pub fn beginning_with(self, listed: Option<Listing>) -> Self {
        Self { listed, ..self }
    }

    /// Tells of the first list, too, whether it goes on from what is remembered.
    #[must_use]
    pub fn remembering(self, left: Option<Past>) -> Self {
        Self { left, ..self }
    }

    /// Runs until cancelled, or until nobody listens.
    pub async fn run(mut self, cancel: CancellationToken) {
        let _ = cancel.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let end = self.session().await;
            self.forgotten |= matches!(end, End::Forgotten(_));
            let error = match end {
                End::Stop => return,
                End::Gone(reason) | End::Forgotten(reason) => {
                    info!(keys = self.keys.name(), reason, "listing the keys again");
                    self.left = self.position.take().map(|position| position.past).or(self.left.take());
                    None
                }
                End::Broken(error) => Some(error),
            };
            if began.elapsed() > SETTLED {
                backoff.reset();
            }
            if let Some(error) = error
                && self.say(Said::Disconnected(error.to_string())).await.is_err()
            {
                return;
            }
            backoff.wait().await;
        }
    }

    /// One connection's worth of events.
    async fn session(&mut self) -> End {
        match self.try_session().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_session(&mut self) -> Result<std::convert::Infallible, End> {
        let (from, cluster_id) = if let Some(position) = &self.position {
            self.check_history(position).await?;
            (position.past.revision + 1, position.past.cluster_id)
        } else {
            let listing = match self.listed.take() {
                Some(listing) => listing,
                None => self.store.list_keys(&self.keys).await?,
            };
            let at = (listing.revision + 1, listing.cluster_id);
            self.say(Said::Connected).await?;
            self.snapshot(listing).await?;
            at
        };
        let (mut stream, member) = self.open(from).await?;
        loop {
            let answer = match self.next(&mut stream).await {
                Ok(answer) => answer,
                Err(cause) => {
                    self.store.avoid(member);
                    return Err(self.broken(cause));
                }
            };
            if answer.header().is_some_and(|header| header.cluster_id() != cluster_id) {
                return Err(End::Forgotten("another etcd cluster answers"));
            }
            if answer.canceled() {
                // The creation itself was refused, for instance for want of permission.
                return Err(if answer.compact_revision() > 0 {
                    End::Gone("its revision was compacted away")
                } else {
                    self.broken(Cause::Other(format!("etcd ended the watch: {}", answer.cancel_reason())))
                });
            }
            self.say(Said::Connected).await?;
            self.changes(&answer).await?;
        }
    }

    /// A store that was wiped or restored accepts a watch from a revision of its future, and is silent until then.
    /// So ask whether the past that we remember is its past.
    async fn check_history(&self, position: &Position) -> Result<(), End> {
        let Some((key, revision)) = &position.anchor else {
            // Cheap, as there were no keys.
            return Err(End::Gone("nothing is known that could tell this history from another"));
        };
        let (entry, now) = self.store.get_at(key, *revision).await?;
        if let Some(reason) = position.past.breaks_off(now) {
            return Err(End::Forgotten(reason));
        }
        if entry.is_none_or(|entry| entry.mod_revision != *revision) {
            return Err(End::Forgotten("the store has another history"));
        }
        Ok(())
    }

    async fn open(&self, from: i64) -> Result<(WatchStream, usize), StoreError> {
        let options =
            WatchOptions::new().with_range(self.keys.end()).with_start_revision(from).with_progress_notify();
        debug!(keys = self.keys.name(), from, "watching");
        self.store.watch(&self.keys, options).await
    }

    /// The next answer of any kind. In silence, asks the server for a sign of life through the same stream.
    async fn next(&self, stream: &mut WatchStream) -> Result<WatchResponse, Cause> {
        let deadline = Instant::now() + SILENCE;
        let mut ask = Instant::now() + ASK_EVERY;
        loop {
            tokio::select! {
                answer = timeout_at(deadline, stream.message()) => {
                    return match answer {
                        Ok(Ok(Some(answer))) => Ok(answer),
                        Ok(Ok(None)) => Err(Cause::Broken("etcd closed the stream".into())),
                        Ok(Err(error)) => Err(Cause::of(&error, self.store.options())),
                        Err(_) => Err(Cause::TimedOut),
                    };
                }
                () = sleep_until(ask) => {
                    ask += ASK_EVERY;
                    // A full queue means that the connection takes nothing; the deadline deals with it.
                    let _ = timeout(ASK_EVERY / 4, stream.request_progress()).await;
                }
            }
        }
    }

    async fn snapshot(&mut self, listing: Listing) -> Result<(), Stop> {
        let newest = listing.entries.iter().max_by_key(|entry| entry.mod_revision);
        let anchor = newest.map(|entry| (entry.key.clone(), entry.mod_revision));
        let broken_off = match &self.left {
            Some(left) => left.breaks_off(self.store.now(&listing).await),
            None => None,
        };
        if let Some(reason) = broken_off {
            warn!(keys = self.keys.name(), reason, "etcd has lost its past");
        }
        let forgetful = self.forgotten || broken_off.is_some();
        let past = listing.past();
        self.position = Some(Position { past, anchor });
        (self.left, self.forgotten) = (None, false);
        let (prefix, entries) = (self.prefix, listing.entries);
        self.send(StoreEvent::Snapshot { prefix, entries, past, forgetful }).await
    }

    async fn changes(&mut self, answer: &WatchResponse) -> Result<(), Stop> {
        let mut changes = Vec::with_capacity(answer.events().len());
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            changes.push(match event.event_type() {
                EventType::Put => Change::Put(Entry::from(kv)),
                EventType::Delete => {
                    Change::Delete { key: key_text(kv.key()), mod_revision: kv.mod_revision() }
                }
            });
        }
        // The header's revision may be ahead of the events when a watch catches up; the events themselves are not.
        let last = answer
            .events()
            .iter()
            .filter_map(etcd_client::Event::kv)
            .map(etcd_client::KeyValue::mod_revision);
        let (Some(revision), Some(position)) = (last.max(), self.position.as_mut()) else { return Ok(()) };
        position.past.revision = revision;
        let newest_put = changes.iter().rev().find_map(|change| match change {
            Change::Put(entry) => Some((entry.key.clone(), entry.mod_revision)),
            Change::Delete { .. } => None,
        });
        if newest_put.is_some() {
            position.anchor = newest_put;
        }
        self.send(StoreEvent::Changes { prefix: self.prefix, changes, revision }).await
    }

    /// Tells a change of the connection's state.
    async fn say(&mut self, state: Said) -> Result<(), Stop> {
        if self.said == state {
            return Ok(());
        }
        let (prefix, keys) = (self.prefix, self.keys.name());
        let event = match &state {
            Said::Nothing => return Ok(()),
            Said::Connected => {
                info!(keys, "following etcd");
                StoreEvent::Connected { prefix }
            }
            Said::Disconnected(error) => {
                warn!(keys, error, "not following etcd; what is known stays in force");
                StoreEvent::Disconnected { prefix, error: error.clone() }
            }
        };
        self.said = state;
        self.send(event).await
    }

    async fn send(&self, event: StoreEvent) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop)
    }

    fn broken(&self, cause: Cause) -> End {
        self.store.error(format!("watch {}", self.keys.name()), cause).into()
    }
}
