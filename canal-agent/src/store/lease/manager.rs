//! Taking a lease and giving it back.
//!
//! Promises that each write of our key is a compare-and-swap, that a restart neither leaks an etcd lease nor wakes
//! the peers, and that a reservation stays one. Keeping what was taken is in `keep`.

use std::borrow::Cow;

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp};
use ipnet::Ipv4Net;
use tracing::{debug, info, warn};

use super::{
    Attributes, Lease, LeaseError,
    choose::{Choice, Held, Request, choose},
    guard::guards,
};
use crate::store::{
    NetworkConfig, Owner, Store, StoreError, SubnetKey,
    client::{Listing, unchanged},
    error::Cause,
    lease_value::LeaseValue,
    publish,
    retry::Backoff,
};

/// Flannel's, for parity: dead nodes are forgotten after a day.
const TTL_SECONDS: i64 = 86_400;

#[derive(Debug)]
pub struct LeaseManager {
    pub(super) store: Store,
    network: NetworkConfig,
    previous: Option<Ipv4Net>,
    pub(super) held: Option<(Lease, Attributes)>,
    /// It has held a subnet since it began.
    is_running: bool,
    /// An etcd lease that was granted and lost its race: the next attempt uses it.
    spare: Option<(i64, i64)>,
}

impl LeaseManager {
    /// `previous` is the subnet of an earlier run, from `subnet.env`.
    pub fn new(store: Store, network: NetworkConfig, previous: Option<Ipv4Net>) -> Self {
        Self { store, network, previous, held: None, is_running: false, spare: None }
    }

    /// Pods may live in the subnet of the earlier run: it is not given up for one that is reserved.
    #[must_use]
    pub fn with_pods(self, there_are: bool) -> Self {
        Self { is_running: there_are, ..self }
    }

    /// For the next [`acquire`](Self::acquire).
    pub fn set_network(&mut self, network: NetworkConfig) {
        self.network = network;
    }

    pub fn held(&self) -> Option<&Lease> {
        self.held.as_ref().map(|(lease, _)| lease)
    }

    /// Takes a subnet, or takes ours again; publishes `want` under it. Lost races are retried.
    pub async fn acquire(&mut self, want: Attributes) -> Result<Lease, LeaseError> {
        self.acquire_by(want, None).await
    }

    /// The same, with the leases as they were listed a moment ago. Whoever wrote one since then makes this list them anew.
    pub async fn acquire_by(
        &mut self,
        want: Attributes,
        listing: Option<&Listing>,
    ) -> Result<Lease, LeaseError> {
        let taken = self.take(&want, listing).await;
        if let Some((unused, _)) = self.spare.take() {
            drop_unused(&self.store, unused).await;
        }
        let lease = taken?;
        let before = self.previous.replace(lease.subnet).filter(|before| *before != lease.subnet);
        if let Some(before) = before.filter(|_| lease.reservation) {
            warn!(
                %before,
                now = %lease.subnet,
                "this node has another subnet because that one is reserved for it; pods with addresses of the old one are not \
                 reached from other nodes: make them anew"
            );
        }
        self.is_running = true;
        info!(subnet = %lease.subnet, reservation = lease.reservation, "holding the subnet lease");
        self.held = Some((lease.clone(), want));
        Ok(lease)
    }

    /// Gives the subnet back for others to take. A reservation stays.
    pub async fn release(&mut self) -> Result<(), StoreError> {
        let Some((lease, want)) = self.held.take() else { return Ok(()) };
        if lease.reservation {
            return Ok(());
        }
        let ours = |value: &[u8]| LeaseValue::parse(value).is_ok_and(|value| value.belongs_to(want.owner()));
        publish::delete_if(&self.store, &lease.key, ours).await?;
        drop_unused(&self.store, lease.etcd_lease).await;
        info!(subnet = %lease.subnet, "released the subnet lease");
        Ok(())
    }

    /// Gives back what an agent that is gone held; a line for each key.
    pub async fn release_all(store: &Store, owner: Owner<'_>) -> Result<Vec<String>, StoreError> {
        let prefix = &store.options().prefix;
        let held = Held::all(prefix, &store.list(&prefix.subnets()).await?.entries);
        let ours = |held: &&Held| held.value.as_ref().is_some_and(|value| value.belongs_to(owner));
        let mut done = Vec::new();
        for held in held.iter().filter(ours) {
            if held.is_reservation() {
                done.push(format!(
                    "{} stays: it is reserved for this node; delete it to take that back",
                    held.key
                ));
            } else if store.delete(&held.key, held.mod_revision).await? {
                done.push(format!("released {}", held.key));
                drop_unused(store, held.etcd_lease).await;
            } else {
                done.push(format!("NOT released {}: somebody changed it just now; run this again", held.key));
            }
        }
        Ok(done)
    }

    async fn take(&mut self, want: &Attributes, mut known: Option<&Listing>) -> Result<Lease, LeaseError> {
        let mut backoff = Backoff::short();
        let prefix = self.store.options().prefix.clone();
        loop {
            let listing = match known.take() {
                Some(listing) => Cow::Borrowed(listing),
                None => Cow::Owned(self.store.list(&prefix.subnets()).await?),
            };
            let held = Held::all(&prefix, &listing.entries);
            let request = Request {
                network: &self.network,
                owner: want.owner(),
                previous: self.previous,
                is_running: self.is_running,
            };
            let choice = choose(request, &held, &mut rand::rng());
            let taken = match choice {
                Some(Choice::Retake { held, replaces }) => self.retake(held, &replaces, want).await?,
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
            if let Some(lease) = taken {
                return Ok(lease);
            }
            debug!("another node was faster; choosing again");
            backoff.wait().await;
        }
    }

    /// Our key again, with the etcd lease that it has if that still lives. `None`: somebody changed it meanwhile.
    async fn retake(
        &mut self,
        held: &Held,
        replaces: &[&Held],
        want: &Attributes,
    ) -> Result<Option<Lease>, StoreError> {
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
        let revision = if right && replaces.is_empty() {
            Some(held.mod_revision)
        } else {
            let when = vec![unchanged(&held.key, held.mod_revision)];
            self.write(&held.key, &value, etcd_lease, when, replaces).await?
        };
        let Some(mod_revision) = revision else { return Ok(None) };
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
        let value = want.value(Vec::new());
        let Some(mod_revision) = self.write(&key, &value, etcd_lease, when, replaces).await? else {
            return Ok(None);
        };
        Ok(Some(Lease { subnet, key, reservation: false, mod_revision, etcd_lease, ttl_seconds }))
    }

    /// Writes our key and gives up what it replaces, in one step; its revision. `None`: somebody changed one of them, or `when` is
    /// not so.
    async fn write(
        &mut self,
        key: &str,
        value: &LeaseValue,
        etcd_lease: i64,
        mut when: Vec<Compare>,
        replaces: &[&Held],
    ) -> Result<Option<i64>, StoreError> {
        when.extend(replaces.iter().map(|held| unchanged(&held.key, held.mod_revision)));
        let put = PutOptions::new().with_lease(etcd_lease);
        let mut then = vec![TxnOp::put(key, value.render(), Some(put))];
        then.extend(replaces.iter().map(|held| TxnOp::delete(held.key.as_str(), None)));
        let revision = self.store.transact(&format!("take the subnet {key}"), when, then).await?;
        if revision.is_some() {
            self.spare = self.spare.filter(|(id, _)| *id != etcd_lease);
            for held in replaces {
                drop_unused(&self.store, held.etcd_lease).await;
            }
        }
        Ok(revision)
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
}

/// Best effort: an unused etcd lease ends by itself, a day later.
pub(super) async fn drop_unused(store: &Store, id: i64) {
    if let Err(error) = store.revoke_unused(id).await {
        debug!(%error, "an unused etcd lease stays until it expires");
    }
}
