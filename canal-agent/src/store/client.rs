//! The calls to etcd. Owns the choice of the member, deadlines and the translation of errors. Every call
//! has a deadline; half-open connections are noticed by HTTP/2 pings within 15 s; a member that lost its leader
//! refuses instead of going silent. Streams are not resumed here: see `watch`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Client, Compare, DeleteOptions, GetOptions, GetResponse, KvClient, LeaseTimeToLiveOptions,
    LeaseTimeToLiveResponse, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::{sync::OnceCell, time::timeout};
use tracing::info;

use super::{
    dial::dial,
    error::{Cause, StoreError},
    history::{Mark, Now, Past},
    options::EtcdOptions,
    retry::Backoff,
};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Well above any page of ours, and above one transaction of events: watches are not fragmented, because the
/// client library does not show where a fragmented revision ends.
const MESSAGE_LIMIT: usize = 256 << 20;
/// Keys per page of a list.
const PAGE: i64 = 1000;

/// One key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub mod_revision: i64,
    /// Id of the etcd lease, 0 if the key never expires.
    pub lease: i64,
}

impl From<&etcd_client::KeyValue> for Entry {
    fn from(kv: &etcd_client::KeyValue) -> Self {
        Self {
            key: key_text(kv.key()),
            value: kv.value().to_vec(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// A key as text. Bytes that are not UTF-8 are escaped: no writer we know makes such keys, and two of them must
/// not look like one.
pub(super) fn key_text(key: &[u8]) -> String {
    std::str::from_utf8(key).map_or_else(|_| key.escape_ascii().to_string(), str::to_owned)
}

/// All keys of a range at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub revision: i64,
    pub cluster_id: u64,
    /// Who answered.
    member_id: u64,
    /// How far the log of the cluster was before.
    index: Option<u64>,
}

impl Listing {
    pub fn past(&self) -> Past {
        let mark = self.index.map(|index| Mark { revision: self.revision, index });
        Past { cluster_id: self.cluster_id, revision: self.revision, mark }
    }
}

/// A range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keys {
    Under(String),
    Exactly(String),
}

impl Keys {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Under(key) | Self::Exactly(key) => key,
        }
    }

    /// First key after the range.
    pub(super) fn end(&self) -> Vec<u8> {
        match self {
            Self::Exactly(key) => successor(key.as_bytes()),
            Self::Under(prefix) => {
                let mut end = prefix.clone().into_bytes();
                while let Some(last) = end.pop() {
                    if last < 0xff {
                        end.push(last + 1);
                        return end;
                    }
                }
                vec![0]
            }
        }
    }
}

fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Handle to etcd; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Shared>);

/// One client per member: the library's own balancing hands requests to members that are down as readily as to
/// others.
struct Shared {
    options: EtcdOptions,
    clients: Vec<OnceCell<Client>>,
    /// The member in use.
    current: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Store {
    /// Connects and makes one real call, because dialling alone proves nothing.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let store = Self(Arc::new(Shared {
            options: options.clone(),
            clients: options.endpoints.iter().map(|_| OnceCell::new()).collect(),
            current: AtomicUsize::new(0),
        }));
        store.get(&options.prefix.config()).await?;
        Ok(store)
    }

    /// [`Store::connect`], for as long as it takes. Tells each new reason for the wait once.
    pub async fn connect_patiently(options: &EtcdOptions, mut on_error: impl FnMut(&StoreError)) -> Self {
        let mut backoff = Backoff::default();
        let mut told = None;
        loop {
            match Self::connect(options).await {
                Ok(store) => {
                    info!(endpoints = options.endpoints.join(","), "connected to etcd");
                    return store;
                }
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        on_error(&error);
                        told = Some(error);
                    }
                }
            }
            backoff.wait().await;
        }
    }

    pub fn options(&self) -> &EtcdOptions {
        &self.0.options
    }

    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let rpc = |member: Member| {
            let key = key.to_owned();
            async move { member.kv().get(key, None).await }
        };
        let found = self.call(|| format!("read {key}"), rpc).await?;
        Ok(found.kvs().first().map(Entry::from))
    }

    /// Everything under `prefix` at one revision, in pages.
    pub async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.list_keys(&Keys::Under(prefix.to_owned())).await
    }

    pub(super) async fn list_keys(&self, keys: &Keys) -> Result<Listing, StoreError> {
        let index = self.log_index().await.map(|(_, index)| index);
        let mut listing = Listing { index, ..Listing::default() };
        let mut from = keys.name().as_bytes().to_vec();
        loop {
            let page =
                GetOptions::new().with_range(keys.end()).with_limit(PAGE).with_revision(listing.revision);
            let rpc = |member: Member| {
                let (from, page) = (from.clone(), page.clone());
                async move { member.kv().get(from, Some(page)).await }
            };
            let got = self.call(|| format!("list {}", keys.name()), rpc).await?;
            if listing.revision == 0 {
                (listing.revision, listing.cluster_id, listing.member_id) = header(&got);
            }
            listing.entries.extend(got.kvs().iter().map(Entry::from));
            match got.kvs().last() {
                Some(last) if got.more() => from = successor(last.key()),
                _ => return Ok(listing),
            }
        }
    }

    /// The key as it was at `revision`, and what the store says of itself.
    pub(super) async fn get_at(&self, key: &str, revision: i64) -> Result<(Option<Entry>, Now), StoreError> {
        let at = GetOptions::new().with_revision(revision);
        let rpc = |member: Member| {
            let (key, at) = (key.to_owned(), at.clone());
            async move { member.kv().get(key, Some(at)).await }
        };
        let got = self.call(|| format!("read {key} at revision {revision}"), rpc).await?;
        let (revision, cluster_id, member) = header(&got);
        let index = self.log_index_of(member).await;
        Ok((got.kvs().first().map(Entry::from), Now { cluster_id, revision, index }))
    }

    /// What the store says of itself after this list.
    pub(super) async fn now(&self, listing: &Listing) -> Now {
        let Listing { cluster_id, revision, .. } = *listing;
        Now { cluster_id, revision, index: self.log_index_of(listing.member_id).await }
    }

    /// Of that member's log: another one's may be behind what that member has told already.
    async fn log_index_of(&self, member_id: u64) -> Option<u64> {
        self.log_index().await.filter(|(who, _)| *who == member_id).map(|(_, index)| index)
    }

    /// The member that answers, and the last entry of the log that it has applied. Servers that only look like etcd, and
    /// those that keep it to themselves, have none.
    async fn log_index(&self) -> Option<(u64, u64)> {
        let rpc = |member: Member| async move { member.client.maintenance_client().status().await };
        let status = self.call(|| "ask etcd for its state".into(), rpc).await.ok()?;
        let (member, index) = (status.header()?.member_id(), status.raft_applied_index());
        (index > 0).then_some((member, index))
    }

    /// Creates the key if it is absent. `None` means that it exists; else its revision.
    pub async fn create(&self, key: &str, value: Vec<u8>) -> Result<Option<i64>, StoreError> {
        let absent = Compare::version(key, etcd_client::CompareOp::Equal, 0);
        self.transact(&format!("create {key}"), vec![absent], vec![TxnOp::put(key, value, None)]).await
    }

    /// Writes the key if nobody changed it since `mod_revision`. `None` means that somebody did.
    pub async fn replace(
        &self,
        key: &str,
        mod_revision: i64,
        value: Vec<u8>,
        lease: i64,
    ) -> Result<Option<i64>, StoreError> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        self.transact(&format!("update {key}"), vec![unchanged(key, mod_revision)], vec![put]).await
    }

    /// Deletes exactly this key if nobody changed it since `mod_revision`; tells whether it did.
    pub async fn delete(&self, key: &str, mod_revision: i64) -> Result<bool, StoreError> {
        let delete = TxnOp::delete(key, Some(DeleteOptions::new()));
        let done =
            self.transact(&format!("delete {key}"), vec![unchanged(key, mod_revision)], vec![delete]).await?;
        Ok(done.is_some())
    }

    /// One transaction; its revision, or `None` if a comparison failed.
    pub(super) async fn transact(
        &self,
        operation: &str,
        when: Vec<Compare>,
        then: Vec<TxnOp>,
    ) -> Result<Option<i64>, StoreError> {
        let txn = Txn::new().when(when).and_then(then);
        let rpc = |member: Member| {
            let txn = txn.clone();
            async move { member.kv().txn(txn).await }
        };
        let done = self.call(|| operation.to_owned(), rpc).await?;
        Ok(done.succeeded().then(|| done.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    /// Grants an etcd lease; its id and TTL in seconds.
    pub(super) async fn grant(&self, ttl_seconds: i64) -> Result<(i64, i64), StoreError> {
        let rpc =
            move |member: Member| async move { member.client.lease_client().grant(ttl_seconds, None).await };
        let granted = self.call(|| "grant an etcd lease".into(), rpc).await?;
        Ok((granted.id(), granted.ttl()))
    }

    /// Ends an etcd lease that no key hangs on. One with keys stays: they would go with it.
    pub(super) async fn revoke_unused(&self, id: i64) -> Result<(), StoreError> {
        let found = self.look_up(id).await?;
        if found.ttl() <= 0 || !found.keys().is_empty() {
            return Ok(());
        }
        let rpc = move |member: Member| async move { member.client.lease_client().revoke(id).await };
        self.call(|| format!("revoke etcd lease {id:x}"), rpc).await.map(drop)
    }

    /// Refreshes the lease once; `Cause::LeaseGone` if it does not exist.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<(), StoreError> {
        let rpc =
            move |member: Member| async move { member.client.lease_client().keep_alive(id).await.map(drop) };
        self.call(|| format!("keep etcd lease {id:x} alive"), rpc).await
    }

    /// Seconds that the lease was granted for; `None` if it does not exist.
    pub(super) async fn granted_ttl(&self, id: i64) -> Result<Option<i64>, StoreError> {
        let found = self.look_up(id).await?;
        Ok((found.ttl() > 0).then(|| found.granted_ttl()))
    }

    async fn look_up(&self, id: i64) -> Result<LeaseTimeToLiveResponse, StoreError> {
        let rpc = move |member: Member| async move {
            let with_keys = LeaseTimeToLiveOptions::new().with_keys();
            member.client.lease_client().time_to_live(id, Some(with_keys)).await
        };
        self.call(|| format!("look up etcd lease {id:x}"), rpc).await
    }

    /// Opens a watch, and tells which member serves it.
    pub(super) async fn watch(
        &self,
        keys: &Keys,
        options: WatchOptions,
    ) -> Result<(WatchStream, usize), StoreError> {
        let rpc = |member: Member| {
            let (key, options) = (keys.name().to_owned(), options.clone());
            let mut client = member.client.watch_client().max_decoding_message_size(MESSAGE_LIMIT);
            async move { Ok((client.watch(key, Some(options)).await?, member.index)) }
        };
        self.call(|| format!("watch {}", keys.name()), rpc).await
    }

    /// That member is not well: use another from now on.
    pub(super) fn avoid(&self, member: usize) {
        let next = (member + 1) % self.0.clients.len();
        // If it fails, somebody noticed before us.
        let _ = self.0.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes one call with a deadline, on the next member if this one cannot be reached.
    async fn call<T, F>(
        &self,
        operation: impl Fn() -> String,
        rpc: impl Fn(Member) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let options = &self.0.options;
        let mut members = 1..=self.0.clients.len();
        loop {
            let index = self.0.current.load(Ordering::Relaxed);
            let attempt = async {
                let client = self.0.clients[index].get_or_try_init(|| dial(options, index)).await?.clone();
                rpc(Member { index, client }).await.map_err(|e| Cause::of(&e, options))
            };
            // Boxed: the library's futures are some 15 kB, and every caller's would be.
            let cause = match timeout(CALL_TIMEOUT, Box::pin(attempt)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(cause)) => cause,
                Err(_) => Cause::TimedOut,
            };
            if cause.is_of_the_member() {
                self.avoid(index);
            }
            members.next();
            if members.is_empty() || !cause.was_not_sent() {
                return Err(self.error(operation(), cause));
            }
        }
    }

    pub(super) fn error(&self, operation: impl Into<String>, cause: Cause) -> StoreError {
        StoreError::new(operation, &self.0.options, cause)
    }
}

/// The member that a call goes to.
struct Member {
    index: usize,
    client: Client,
}

impl Member {
    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_LIMIT)
    }
}

pub(super) fn unchanged(key: &str, mod_revision: i64) -> Compare {
    Compare::mod_revision(key, etcd_client::CompareOp::Equal, mod_revision)
}

/// Revision, cluster and member.
fn header(answer: &GetResponse) -> (i64, u64, u64) {
    answer.header().map_or((0, 0, 0), |header| (header.revision(), header.cluster_id(), header.member_id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_its_last_key() {
        assert_eq!(Keys::Under("/a/".into()).end(), b"/a0");
        assert_eq!(Keys::Exactly("/a".into()).end(), b"/a\0");
    }

    #[test]
    fn keys_that_are_not_text_stay_apart() {
        assert_eq!(key_text(b"/a/b"), "/a/b");
        assert_ne!(key_text(b"/a/\xff"), key_text(b"/a/\xfe"));
    }
}
