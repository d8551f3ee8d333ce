//! The lease in motion: takes it, keeps it alive, notices its loss and gets it back, in process and for ever.
//!
//! Promises that each write of our key is a compare-and-swap, that a restart neither leaks an etcd lease nor wakes
//! the peers, and that a reservation stays one. It stops only when asked; etcd being away is no loss.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp};
use ipnet::Ipv4Net;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Attributes, Lease, LeaseError, LeaseEvent,
    choose::{Choice, Held, Request, choose},
    guard::guards,
    hold::{Verdict, judge},
};
use crate::store::{
    Change, Mirror, NetworkConfig, Prefix, Store, StoreError, StoreEvent, SubnetKey,
    client::{Entry, Keys, unchanged},
    error::Cause,
    lease_value::LeaseValue,
    retry::Backoff,
};

/// Flannel's, for parity: dead nodes are forgotten after a day.
const TTL_SECONDS: i64 = 86_400;
/// Refresh at a third of the TTL, or this often if that is sooner: a refresh costs etcd next to nothing.
const REFRESH_AT_MOST: Duration = Duration::from_secs(600);
/// A lease held this long ends the back-off between losses.
const SETTLED: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct LeaseManager {
    store: Store,
    network: NetworkConfig,
    previous: Option<Ipv4Net>,
    held: Option<(Lease, Attributes)>,
    /// An etcd lease that was granted and lost its race: the next attempt uses it.
    spare: Option<(i64, i64)>,
}

/// Why [`LeaseManager::hold`] returned.
enum End {
    Cancelled,
    Lost(String),
}

impl LeaseManager {
    /// `previous` is the subnet of an earlier run, from `subnet.env`.
    pub fn new(store: Store, network: NetworkConfig, previous: Option<Ipv4Net>) -> Self {
        Self { store, network, previous, held: None, spare: None }
    }

    /// For the next [`acquire`](Self::acquire).
    pub fn set_network(&mut self, network: NetworkConfig) {
        self.network = network;
    }

    pub fn held(&self) -> Option<&Lease> {
        self.held.as_ref().map(|(lease, _)| lease)
    }

    /// Takes a subnet, or takes ours again; publishes `want` under it. Lost races are retried. To publish other
    /// attributes, end [`maintain`](Self::maintain), call this again, and go on: the subnet stays.
    pub async fn acquire(&mut self, want: Attributes) -> Result<Lease, LeaseError> {
        let taken = self.take(&want).await;
        if let Some((unused, _)) = self.spare.take() {
            self.revoke_quietly(unused).await;
        }
        let lease = taken?;
        self.previous = Some(lease.subnet);
        info!(subnet = %lease.subnet, reservation = lease.reservation, "holding the subnet lease");
        self.held = Some((lease.clone(), want));
        Ok(lease)
    }

    /// Keeps the lease until cancelled, telling what becomes of it. Begins by telling that it is held.
    pub async fn maintain(&mut self, events: mpsc::Sender<LeaseEvent>, cancel: CancellationToken) {
        let Some((mut lease, want)) = self.held.clone() else { return };
        let mut backoff = Backoff::default();
        let mut event = LeaseEvent::Held(lease.clone());
        loop {
            if events.send(event).await.is_err() {
                return;
            }
            let since = Instant::now();
            let reason = match self.hold(&mut lease, &want, &events, &cancel).await {
                End::Cancelled => return,
                End::Lost(reason) => reason,
            };
            warn!(subnet = %lease.subnet, reason, "lost the subnet lease; taking it again");
            self.held = None;
            if since.elapsed() > SETTLED {
                backoff.reset();
            }
            let before = lease.subnet;
            let regained =
                cancel.run_until_cancelled(self.regain(&want, reason, &events, &mut backoff)).await;
            let Some(Some(again)) = regained else { return };
            lease = again;
            event = match lease.subnet == before {
                true => LeaseEvent::Held(lease.clone()),
                false => LeaseEvent::Moved(lease.clone()),
            };
        }
    }

    /// Gives the subnet back for others to take. A reservation stays.
    pub async fn release(&mut self) -> Result<(), StoreError> {
        let Some((lease, _)) = self.held.take() else { return Ok(()) };
        if lease.reservation {
            return Ok(());
        }
        self.store.delete(&lease.key, lease.mod_revision).await?;
        self.revoke_quietly(lease.etcd_lease).await;
        info!(subnet = %lease.subnet, "released the subnet lease");
        Ok(())
    }

    async fn take(&mut self, want: &Attributes) -> Result<Lease, LeaseError> {
        let mut backoff = Backoff::short();
        let prefix = self.store.options().prefix.clone();
        loop {
            let listing = self.store.list(&prefix.subnets()).await?;
            let held = Held::all(&prefix, listing.entries);
            let request = Request {
                network: &self.network,
                node: &want.node,
                public_ip: want.public_ip,
                previous: self.previous,
            };
            let choice = choose(request, &held, &mut rand::rng());
            let taken = match choice {
                Some(Choice::Retake(held)) => self.retake(held, want).await?,
                Some(Choice::Create { subnet, replaces }) => {
                    self.create(subnet, &replaces, listing.revision, want).await?
                }
                None => {
                    return Err(LeaseError::OutOfSubnets {
                        network: self.network.network,
                        subnet_len: self.network.subnet_len,
                        total: self.network.subnets().count(),
                        subnets: prefix.subnets(),
                    });
                }
            };
            match taken {
                Some(lease) => return Ok(lease),
                None => debug!("another node was faster; choosing again"),
            }
            backoff.wait().await;
        }
    }

    /// Our key again, with the etcd lease that it has if that still lives. `None`: somebody changed it meanwhile.
    async fn retake(&mut self, held: &Held, want: &Attributes) -> Result<Option<Lease>, StoreError> {
        let reservation = held.etcd_lease == 0;
        let (etcd_lease, ttl_seconds) = match held.etcd_lease {
            0 => (0, 0),
            id => match self.revive(id).await? {
                Some(ttl) => (id, ttl),
                None => self.grant().await?,
            },
        };
        let extra = held.value.as_ref().map(|value| value.extra.clone()).unwrap_or_default();
        let value = want.value(extra);
        // Peers need not hear of a restart: what is right already is not written again.
        let right = held.value.as_ref() == Some(&value) && held.etcd_lease == etcd_lease;
        let revision = match right {
            true => Some(held.mod_revision),
            false => self.store.replace(&held.key, held.mod_revision, value.render(), etcd_lease).await?,
        };
        let Some(mod_revision) = revision else { return Ok(None) };
        self.used(etcd_lease);
        let (subnet, key) = (held.subnet.subnet(), held.key.clone());
        Ok(Some(Lease { subnet, key, reservation, mod_revision, etcd_lease, ttl_seconds }))
    }

    /// A new key, if nothing that overlaps it was created since `revision`. `None`: something was.
    async fn create(
        &mut self,
        subnet: Ipv4Net,
        replaces: &[&Held],
        revision: i64,
        want: &Attributes,
    ) -> Result<Option<Lease>, StoreError> {
        let prefix = &self.store.options().prefix;
        let (key, subnets) = (prefix.subnet(&SubnetKey::v4(subnet)), prefix.subnets());
        let (etcd_lease, ttl_seconds) = self.grant().await?;
        let mut when = vec![Compare::version(key.as_str(), CompareOp::Equal, 0)];
        when.extend(
            guards(&subnets, subnet)
                .into_iter()
                .map(|guard| Compare::create_revision(guard, CompareOp::Less, revision + 1).with_prefix()),
        );
        when.extend(replaces.iter().map(|held| unchanged(&held.key, held.mod_revision)));
        let put = PutOptions::new().with_lease(etcd_lease);
        let mut then = vec![TxnOp::put(key.as_str(), want.value(Vec::new()).render(), Some(put))];
        then.extend(replaces.iter().map(|held| TxnOp::delete(held.key.as_str(), None)));
        let Some(mod_revision) = self.store.transact(&format!("take the subnet {key}"), when, then).await?
        else {
            return Ok(None);
        };
        self.used(etcd_lease);
        Ok(Some(Lease { subnet, key, reservation: false, mod_revision, etcd_lease, ttl_seconds }))
    }

    /// Refreshes an etcd lease of an earlier run; its TTL, or `None` if it is gone.
    async fn revive(&self, id: i64) -> Result<Option<i64>, StoreError> {
        match self.store.keep_alive(id).await {
            Ok(()) => self.store.granted_ttl(id).await,
            Err(error) if error.cause == Cause::LeaseGone => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn grant(&mut self) -> Result<(i64, i64), StoreError> {
        match self.spare {
            Some(spare) => Ok(spare),
            None => Ok(*self.spare.insert(self.store.grant(TTL_SECONDS).await?)),
        }
    }

    fn used(&mut self, etcd_lease: i64) {
        self.spare = self.spare.filter(|(id, _)| *id != etcd_lease);
    }

    /// Only for leases that no key hangs on; if it fails they end by themselves.
    async fn revoke_quietly(&self, id: i64) {
        if let Err(error) = self.store.revoke(id).await {
            debug!(%error, "an unused etcd lease stays until it expires");
        }
    }

    /// Acquires for as long as it takes. `None` if nobody listens any more.
    async fn regain(
        &mut self,
        want: &Attributes,
        mut reason: String,
        events: &mpsc::Sender<LeaseEvent>,
        backoff: &mut Backoff,
    ) -> Option<Lease> {
        loop {
            events.send(LeaseEvent::Lost { reason: reason.clone() }).await.ok()?;
            loop {
                match self.acquire(want.clone()).await {
                    Ok(lease) => return Some(lease),
                    Err(error) => {
                        backoff.wait().await;
                        if error.to_string() != reason {
                            reason = error.to_string();
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Holds the lease until it is lost. Follows our own key, and refreshes its etcd lease.
    async fn hold(
        &mut self,
        lease: &mut Lease,
        want: &Attributes,
        events: &mpsc::Sender<LeaseEvent>,
        cancel: &CancellationToken,
    ) -> End {
        let (sender, mut own_key) = mpsc::channel(16);
        let mirror =
            Mirror::of(self.store.clone(), Prefix::Network, Keys::Exactly(lease.key.clone()), sender);
        let following = cancel.child_token();
        let _end_with_us = following.clone().drop_guard();
        let task = tokio::spawn(mirror.run(following));
        let mut refresh = Instant::now() + refresh_every(lease);
        let mut backoff = Backoff::default();
        let end = loop {
            let verdict = tokio::select! {
                () = cancel.cancelled() => break End::Cancelled,
                event = own_key.recv() => match event {
                    None => break End::Cancelled,
                    Some(event) => match own_state(event, lease.mod_revision) {
                        None => continue,
                        Some(entry) => (judge(lease, want, entry.as_ref()), entry),
                    },
                },
                () = sleep_until(refresh), if !lease.reservation => {
                    match self.store.keep_alive(lease.etcd_lease).await {
                        Ok(()) => {
                            backoff.reset();
                            refresh = Instant::now() + refresh_every(lease);
                            continue;
                        }
                        Err(error) if error.cause == Cause::LeaseGone => break End::Lost(error.to_string()),
                        Err(error) => {
                            warn!(%error, "could not refresh the subnet lease; trying again");
                            refresh = Instant::now() + backoff.delay();
                            continue;
                        }
                    }
                }
            };
            match self.apply(verdict, lease).await {
                Ok(false) => {}
                Ok(true) => {
                    self.held = Some((lease.clone(), want.clone()));
                    refresh = Instant::now() + refresh_every(lease);
                    if events.send(LeaseEvent::Held(lease.clone())).await.is_err() {
                        break End::Cancelled;
                    }
                }
                Err(End::Lost(reason)) => break End::Lost(reason),
                Err(End::Cancelled) => break End::Cancelled,
            }
        };
        task.abort();
        end
    }

    /// Acts on a verdict about our key; tells whether the lease is another than before.
    async fn apply(&self, verdict: (Verdict, Option<Entry>), lease: &mut Lease) -> Result<bool, End> {
        let (verdict, entry) = verdict;
        let Some(entry) = entry else {
            return match verdict {
                Verdict::Lost(reason) => Err(End::Lost(reason)),
                _ => Ok(false),
            };
        };
        let mod_revision = match verdict {
            Verdict::Unchanged => return Ok(false),
            Verdict::Lost(reason) => return Err(End::Lost(reason)),
            Verdict::Adopt => entry.mod_revision,
            Verdict::Rewrite(value) => match self.rewrite(&entry, &value).await {
                Some(revision) => revision,
                // Changed again already: its event follows.
                None => return Ok(false),
            },
        };
        let left = lease.etcd_lease;
        lease.mod_revision = mod_revision;
        lease.etcd_lease = entry.lease;
        lease.reservation = entry.lease == 0;
        if left == entry.lease {
            return Ok(false);
        }
        lease.ttl_seconds = match entry.lease {
            0 => 0,
            id => self.store.granted_ttl(id).await.ok().flatten().unwrap_or(0),
        };
        if left != 0 {
            self.revoke_quietly(left).await;
        }
        info!(subnet = %lease.subnet, reservation = lease.reservation, "our key has another etcd lease now");
        Ok(true)
    }

    async fn rewrite(&self, entry: &Entry, value: &LeaseValue) -> Option<i64> {
        warn!(key = entry.key, "somebody changed our key; writing it again");
        match self.store.replace(&entry.key, entry.mod_revision, value.render(), entry.lease).await {
            Ok(revision) => revision,
            Err(error) => {
                warn!(%error, "could not write our key again");
                None
            }
        }
    }
}

/// Our key after `event`: `None` if the event says nothing about it that we do not know already.
#[expect(clippy::option_option, reason = "nothing said, said to be absent, said to be this")]
fn own_state(event: StoreEvent, known: i64) -> Option<Option<Entry>> {
    match event {
        StoreEvent::Snapshot { entries, .. } => Some(entries.into_iter().next()),
        StoreEvent::Changes { changes, .. } => match changes.into_iter().next_back()? {
            Change::Put(entry) => (entry.mod_revision >= known).then_some(Some(entry)),
            Change::Delete { mod_revision, .. } => (mod_revision >= known).then_some(None),
        },
        StoreEvent::Connected { .. } | StoreEvent::Disconnected { .. } => None,
    }
}

fn refresh_every(lease: &Lease) -> Duration {
    let third = u64::try_from(lease.ttl_seconds / 3).unwrap_or(0).max(1);
    Duration::from_secs(third).min(REFRESH_AT_MOST)
}
