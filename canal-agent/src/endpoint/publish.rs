//! Telling etcd about this node's endpoints: WorkloadEndpoints and network Profiles in Calico's format.
//!
//! A task that is handed the wanted state and works until etcd agrees; it starts over whenever it is poked. An etcd
//! that is away costs nothing but time.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::record::birth;
use crate::{
    api::wire::AttachmentId,
    endpoint::Record,
    model::{
        Cluster, EndpointKey,
        profile::{self, Profile},
        reading::Reading,
        resource::Kind,
    },
    store::{
        RESOURCES, Store, StoreError,
        publish::{create_if_absent, delete_if, is_of_container, upsert},
        retry::Backoff,
    },
};

/// What etcd should hold for this node. A new value (even an equal one) makes the publisher check everything.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub present: Vec<(EndpointKey, Record)>,
    /// Whose pod is gone, and the endpoint that it had.
    pub leaving: Vec<(AttachmentId, EndpointKey)>,
    /// What containers had under other names before.
    pub former: Vec<(AttachmentId, EndpointKey)>,
    pub node: String,
    /// Networks of which no profile is to be made (see [`made_otherwise`]).
    pub without_profile: BTreeSet<String>,
}

/// Profiles that etcd has lost, and that somebody had made otherwise than we would: ours in their place would open what they close.
pub fn made_otherwise(cluster: &Cluster) -> BTreeSet<String> {
    let lost = cluster.remembered().iter().filter(|lost| lost.kind == Kind::Profile);
    let otherwise = lost.filter(|lost| {
        let made = Profile::read(profile::network_profile_json(&lost.name, &birth(None)).as_bytes());
        !matches!((made, cluster.profile(&lost.name)), (Reading::Good(made), Some(known)) if made == **known)
    });
    otherwise.map(|lost| lost.name.clone()).collect()
}

/// Runs until the sender of `wanted` is gone. Endpoints that have left are told on `gone`.
pub async fn run(
    store: Store,
    mut wanted: watch::Receiver<Wanted>,
    gone: mpsc::UnboundedSender<(AttachmentId, EndpointKey)>,
) {
    let mut backoff = Backoff::default();
    let mut complaint = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        match publish(&store, &now, &wanted, &gone).await {
            Ok(()) => {
                if complaint.take().is_some() {
                    info!("endpoints are published");
                }
                backoff.reset();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if complaint.as_ref() != Some(&text) {
                    warn!(
                        error = text,
                        "cannot publish endpoints yet; their pods work, other nodes do not see their labels"
                    );
                    complaint = Some(text);
                }
                tokio::select! {
                    () = backoff.wait() => {}
                    changed = wanted.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

async fn publish(
    store: &Store,
    wanted: &Wanted,
    current: &watch::Receiver<Wanted>,
    gone: &mpsc::UnboundedSender<(AttachmentId, EndpointKey)>,
) -> Result<(), StoreError> {
    // What is somebody else's now is written over, and not deleted in between. The others leave first, so that what cannot
    // be written keeps nobody.
    let held: BTreeSet<&EndpointKey> = wanted.present.iter().map(|(key, _)| key).collect();
    let (later, first): (Vec<_>, Vec<_>) =
        wanted.leaving.iter().chain(&wanted.former).partition(|(_, key)| held.contains(key));
    forget(store, first, gone).await?;
    let networks: BTreeSet<&str> =
        wanted.present.iter().filter_map(|(_, record)| record.endpoint.own_profile()).collect();
    for network in networks.into_iter().filter(|network| !wanted.without_profile.contains(*network)) {
        let key = profile_key(network);
        let value = profile::network_profile_json(network, &birth(None));
        if create_if_absent(store, &key, value.into_bytes()).await? {
            info!(profile = network, "created the network's profile");
        }
    }
    for (key, record) in &wanted.present {
        let build = |existing: Option<&[u8]>| {
            if existing.is_none() {
                // What etcd has lost is written as others had last made it, also since this round began.
                let newer = current.borrow().present.iter().find(|(other, _)| other == key).cloned();
                return newer.as_ref().map_or(record, |(_, newer)| newer).to_json(key, &wanted.node, None);
            }
            record.to_json(key, &wanted.node, existing)
        };
        upsert(store, &key.store_key(), build).await?;
    }
    forget(store, later, gone).await
}

async fn forget(
    store: &Store,
    endpoints: Vec<&(AttachmentId, EndpointKey)>,
    gone: &mpsc::UnboundedSender<(AttachmentId, EndpointKey)>,
) -> Result<(), StoreError> {
    for (id, key) in endpoints {
        delete_if(store, &key.store_key(), |value| is_of_container(value, &id.container_id)).await?;
        // The agent is gone only when it stops; the record stays for the next one.
        let _ = gone.send((id.clone(), key.clone()));
    }
    Ok(())
}

pub fn profile_key(network: &str) -> String {
    format!("{RESOURCES}profiles/{network}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_profile_is_made_again_unless_somebody_had_made_it_otherwise() {
        let mut cluster = Cluster::default();
        let usual = profile::network_profile_json("usual", &birth(None));
        cluster.apply(&profile_key("usual"), Some(usual.as_bytes()));
        cluster.apply(&profile_key("strict"), Some(br#"{"spec":{"egress":[{"action":"Allow"}]}}"#));
        cluster.apply(&profile_key("bad"), Some(b"{"));
        assert!(made_otherwise(&cluster).is_empty(), "nothing is lost");
        cluster.begin_again(std::iter::empty());
        assert_eq!(made_otherwise(&cluster), ["strict".to_owned()].into());
    }
}
