//! Telling etcd about this node's endpoints: WorkloadEndpoints and network Profiles in Calico's format.
//!
//! A task that is handed the wanted state and works until etcd agrees; it starts over whenever it is poked. An etcd
//! that is away costs nothing but time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{publisher::Publisher, record::birth};
use crate::{
    api::wire::AttachmentId,
    endpoint::Record,
    model::{
        Cluster, EndpointKey,
        profile::{self, Profile},
        reading::Reading,
        resource::Kind,
    },
    store::{RESOURCES, Store, retry::Backoff},
};

/// What etcd should hold for this node.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub present: BTreeMap<EndpointKey, Arc<Record>>,
    /// Whose pod is gone, and what has another name by now.
    pub past: Vec<(EndpointKey, Arc<Record>)>,
    pub node: String,
    /// Networks of which no profile is to be made (see [`made_otherwise`]).
    pub without_profile: BTreeSet<String>,
    /// Another number than before: etcd may not hold any more what it was told.
    pub doubt: u64,
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
    let mut publisher = Publisher::new(store, wanted.clone(), gone);
    let mut backoff = Backoff::default();
    let mut complaint = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        match publisher.publish(&now).await {
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
