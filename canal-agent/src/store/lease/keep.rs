//! Keeping a lease: follows our own key, refreshes its etcd lease, notices a loss and takes the subnet again, in
//! process and for ever. etcd being away is no loss. It stops only when asked.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Attributes, Lease, LeaseEvent, LeaseManager, Terms,
    hold::{Verdict, judge},
    manager::drop_unused,
};
use crate::store::{
    Change, Mirror, Prefix, StoreEvent,
    client::{Entry, Keys},
    error::Cause,
    lease_value::LeaseValue,
    retry::Backoff,
};

/// Refresh at a third of the TTL, or this often if that is sooner: a refresh costs etcd next to nothing.
const REFRESH_AT_MOST: Duration = Duration::from_mins(10);
/// What happens again within this time is a fight, and is slowed down.
const SETTLED: Duration = Duration::from_secs(30);

/// Slows down what repeats: nobody may write to etcd at the speed of a round trip.
struct Damper {
    backoff: Backoff,
    last: Option<Instant>,
}

impl Damper {
    fn new() -> Self {
        Self { backoff: Backoff::default(), last: None }
    }

    /// Returns at once the first time, and after a quiet while.
    async fn pass(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() < SETTLED) {
            self.backoff.wait().await;
        } else {
            self.backoff.reset();
        }
        self.last = Some(Instant::now());
    }
}

impl LeaseManager {
    /// Keeps the acquired lease until cancelled, telling what becomes of it. Begins by telling that it is held. What changes
    /// in `terms` is published under the subnet that is held; another network counts when a subnet is to be found again.
    pub async fn maintain(
        &mut self,
        mut terms: watch::Receiver<Terms>,
        events: mpsc::Sender<LeaseEvent>,
        cancel: CancellationToken,
    ) {
        let _ = cancel.run_until_cancelled(self.keep(&mut terms, &events)).await;
    }

    /// Returns when nobody listens, or nobody can change the terms any more.
    async fn keep(
        &mut self,
        terms: &mut watch::Receiver<Terms>,
        events: &mpsc::Sender<LeaseEvent>,
    ) -> Option<()> {
        let (mut lease, mut want) = self.held.clone()?;
        // What changed since the lease was taken counts too.
        terms.mark_changed();
        let mut losses = Damper::new();
        let mut event = LeaseEvent::Held(lease.clone());
        loop {
            events.send(event).await.ok()?;
            let reason = self.hold(&mut lease, &mut want, terms, events).await?;
            warn!(subnet = %lease.subnet, reason, "lost the subnet lease; taking it again");
            self.held = None;
            let (before, left) = (lease.subnet, lease.etcd_lease);
            lease = self.regain(terms, reason, events, &mut losses).await?;
            want = self.held.as_ref()?.1.clone();
            if left != 0 && left != lease.etcd_lease {
                drop_unused(&self.store, left).await;
            }
            let moved = lease.subnet != before;
            event = if moved { LeaseEvent::Moved(lease.clone()) } else { LeaseEvent::Held(lease.clone()) };
        }
    }

    /// Acquires for as long as it takes, telling each new reason for the wait.
    async fn regain(
        &mut self,
        terms: &mut watch::Receiver<Terms>,
        mut reason: String,
        events: &mpsc::Sender<LeaseEvent>,
        losses: &mut Damper,
    ) -> Option<Lease> {
        events.send(LeaseEvent::Lost { reason: reason.clone() }).await.ok()?;
        losses.pass().await;
        let mut backoff = Backoff::default();
        loop {
            let Terms { network, attributes } = terms.borrow_and_update().clone();
            self.set_network(network);
            match self.acquire(attributes).await {
                Ok(lease) => return Some(lease),
                Err(error) if error.to_string() == reason => {}
                Err(error) => {
                    reason = error.to_string();
                    warn!(reason, "cannot take a subnet; trying again");
                    events.send(LeaseEvent::Lost { reason: reason.clone() }).await.ok()?;
                }
            }
            backoff.wait().await;
        }
    }

    /// Holds the lease until it is lost; returns why, or `None` if nobody listens.
    async fn hold(
        &mut self,
        lease: &mut Lease,
        want: &mut Attributes,
        terms: &mut watch::Receiver<Terms>,
        events: &mpsc::Sender<LeaseEvent>,
    ) -> Option<String> {
        let (sender, mut own_key) = mpsc::channel(16);
        let keys = Keys::Exactly(lease.key.clone());
        let following = CancellationToken::new();
        let _ends_with_us = following.clone().drop_guard();
        tokio::spawn(Mirror::of(self.store.clone(), Prefix::Network, keys, sender).run(following));

        let mut refresh = Instant::now() + refresh_every(lease);
        let (mut failures, mut rewrites) = (Backoff::default(), Damper::new());
        loop {
            tokio::select! {
                event = own_key.recv() => {
                    let Some(now) = own_state(event?, lease.mod_revision) else { continue };
                    let verdict = judge(lease, want, now.as_ref());
                    let (entry, value) = match (verdict, now) {
                        (Verdict::Lost(reason), _) => return Some(reason),
                        (Verdict::Unchanged, _) | (_, None) => continue,
                        (Verdict::Adopt, Some(entry)) => (entry, None),
                        (Verdict::Rewrite(value), Some(entry)) => (entry, Some(value)),
                    };
                    if let Some(value) = value {
                        warn!(key = entry.key, "somebody changed our key (does another node have our name?)");
                        rewrites.pass().await;
                        // Changed again already: that change's event follows.
                        let Some(revision) = self.rewrite(&entry, &value).await else { continue };
                        lease.mod_revision = revision;
                    } else {
                        lease.mod_revision = entry.mod_revision;
                    }
                    let other = self.adopt(lease, entry.lease).await;
                    self.held = Some((lease.clone(), want.clone()));
                    if other {
                        refresh = Instant::now() + refresh_every(lease);
                        events.send(LeaseEvent::Held(lease.clone())).await.ok()?;
                    }
                }
                changed = terms.changed() => {
                    changed.ok()?;
                    let now = terms.borrow_and_update().clone();
                    self.set_network(now.network);
                    if now.attributes != *want {
                        *want = now.attributes;
                        self.republish(lease, want).await;
                        self.held = Some((lease.clone(), want.clone()));
                    }
                }
                () = sleep_until(refresh), if !lease.reservation => {
                    refresh = Instant::now() + match self.store.keep_alive(lease.etcd_lease).await {
                        Ok(()) => {
                            failures.reset();
                            refresh_every(lease)
                        }
                        Err(error) if error.cause == Cause::LeaseGone => return Some(error.to_string()),
                        Err(error) => {
                            warn!(%error, "could not refresh the subnet lease; trying again");
                            failures.delay()
                        }
                    };
                }
            }
        }
    }

    /// Writes `want` under our key. If somebody else has changed the key, that change's event follows, and is judged by
    /// `want`.
    async fn republish(&self, lease: &mut Lease, want: &Attributes) {
        let mut backoff = Backoff::default();
        let entry = loop {
            match self.store.get(&lease.key).await {
                Ok(Some(entry)) if entry.mod_revision == lease.mod_revision => break entry,
                Ok(_) => return,
                Err(error) => warn!(%error, "could not read our key to publish what changed; trying again"),
            }
            backoff.wait().await;
        };
        let extra = LeaseValue::parse(&entry.value).map(|value| value.extra).unwrap_or_default();
        if let Some(revision) = self.rewrite(&entry, &want.value(extra)).await {
            lease.mod_revision = revision;
            info!(subnet = %lease.subnet, public_ip = %want.public_ip, "published what changed under our lease");
        }
    }

    /// Our key hangs on that etcd lease now, or on none; tells whether that is another than before.
    async fn adopt(&self, lease: &mut Lease, etcd_lease: i64) -> bool {
        if lease.etcd_lease == etcd_lease {
            return false;
        }
        let left = std::mem::replace(&mut lease.etcd_lease, etcd_lease);
        lease.reservation = etcd_lease == 0;
        lease.ttl_seconds = match etcd_lease {
            0 => 0,
            id => self.store.granted_ttl(id).await.ok().flatten().unwrap_or(0),
        };
        if left != 0 {
            drop_unused(&self.store, left).await;
        }
        info!(subnet = %lease.subnet, reservation = lease.reservation, "our key has another etcd lease now");
        true
    }

    /// `None`: the key is not as it was in `entry` any more.
    async fn rewrite(&self, entry: &Entry, value: &LeaseValue) -> Option<i64> {
        let mut backoff = Backoff::default();
        loop {
            match self.store.replace(&entry.key, entry.mod_revision, value.render(), entry.lease).await {
                Ok(revision) => return revision,
                Err(error) => warn!(%error, "could not write our key again; trying again"),
            }
            backoff.wait().await;
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
