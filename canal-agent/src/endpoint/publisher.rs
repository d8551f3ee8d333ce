//! One round of telling etcd, and what it was told in the rounds before: only what is new is looked at again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use tracing::info;

use super::{
    publish::{Wanted, profile_key},
    record::{Record, birth},
};
use crate::{
    api::wire::AttachmentId,
    model::{EndpointKey, profile},
    store::{
        Store, StoreError,
        publish::{create_if_absent, delete_if, upsert},
    },
};

/// What etcd was seen to hold, at [`Wanted::doubt`].
#[derive(Debug, Default)]
struct Told {
    doubt: u64,
    endpoints: BTreeMap<EndpointKey, Arc<Record>>,
    profiles: BTreeSet<String>,
}

impl Told {
    fn follow(&mut self, wanted: &Wanted) {
        if self.doubt != wanted.doubt {
            *self = Self { doubt: wanted.doubt, ..Self::default() };
        }
        self.endpoints.retain(|key, _| wanted.present.contains_key(key));
    }

    fn knows(&self, key: &EndpointKey, record: &Arc<Record>) -> bool {
        self.endpoints.get(key).is_some_and(|told| Arc::ptr_eq(told, record))
    }
}

/// The first of several errors: what is wrong with one key does not keep the others back.
#[derive(Default)]
struct Failures(Option<StoreError>);

impl Failures {
    /// Fails where etcd does not serve the other keys either.
    fn take(&mut self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        match outcome {
            Err(error) if error.cause.is_of_the_key() => {
                self.0.get_or_insert(error);
                Ok(())
            }
            other => other,
        }
    }

    fn into_result(self) -> Result<(), StoreError> {
        self.0.map_or(Ok(()), Err)
    }
}

pub(super) struct Publisher {
    store: Store,
    /// What is wanted by now, also since a round began.
    newest: watch::Receiver<Wanted>,
    gone: mpsc::UnboundedSender<(AttachmentId, EndpointKey)>,
    told: Told,
}

impl Publisher {
    pub(super) fn new(
        store: Store,
        newest: watch::Receiver<Wanted>,
        gone: mpsc::UnboundedSender<(AttachmentId, EndpointKey)>,
    ) -> Self {
        Self { store, newest, gone, told: Told::default() }
    }

    /// Works until etcd agrees. A key that cannot be written or deleted does not keep the others back.
    pub(super) async fn publish(&mut self, wanted: &Wanted) -> Result<(), StoreError> {
        let mut failures = Failures::default();
        self.told.follow(wanted);
        // What is somebody else's now is written over, and not deleted in between. The others leave first.
        let (later, first): (Vec<_>, Vec<_>) =
            wanted.past.iter().partition(|(key, _)| wanted.present.contains_key(key));
        for (key, record) in first {
            failures.take(self.forget(key, record, None).await)?;
        }
        let networks: BTreeSet<&str> =
            wanted.present.values().filter_map(|record| record.endpoint.own_profile()).collect();
        for network in networks {
            if !wanted.without_profile.contains(network) && !self.told.profiles.contains(network) {
                failures.take(self.make_profile(network).await)?;
            }
        }
        for (key, record) in &wanted.present {
            if !self.told.knows(key, record) {
                failures.take(self.write(key, record, &wanted.node).await)?;
            }
        }
        for (key, record) in later {
            let holder = wanted.present.get(key).filter(|holder| self.told.knows(key, holder));
            if holder.is_some() {
                failures.take(self.forget(key, record, holder).await)?;
            }
        }
        failures.into_result()
    }

    async fn make_profile(&mut self, network: &str) -> Result<(), StoreError> {
        let value = profile::network_profile_json(network, &birth(None));
        if create_if_absent(&self.store, &profile_key(network), value.into_bytes()).await? {
            info!(profile = network, "created the network's profile");
        }
        self.told.profiles.insert(network.to_owned());
        Ok(())
    }

    async fn write(&mut self, key: &EndpointKey, record: &Arc<Record>, node: &str) -> Result<(), StoreError> {
        let build = |existing: Option<&[u8]>| {
            // What others have made of it by now counts, also since this round began.
            let newest = self.newest.borrow().present.get(key).cloned();
            newest.as_ref().unwrap_or(record).to_json(key, node, existing)
        };
        upsert(&self.store, &key.store_key(), build).await?;
        // If that was a newer one, it has its own turn.
        self.told.endpoints.insert(key.clone(), record.clone());
        Ok(())
    }

    /// What is by now the `holder`'s stays, whose object it may have been.
    async fn forget(
        &self,
        key: &EndpointKey,
        record: &Record,
        holder: Option<&Arc<Record>>,
    ) -> Result<(), StoreError> {
        let is_over = |value: &[u8]| record.owns(value) && !holder.is_some_and(|holder| holder.owns(value));
        delete_if(&self.store, &key.store_key(), is_over).await?;
        // The agent is gone only when it stops; the record stays for the next one.
        let _ = self.gone.send((record.endpoint.id(), key.clone()));
        Ok(())
    }
}
