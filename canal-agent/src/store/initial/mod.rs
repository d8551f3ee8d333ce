//! The datastore as Calico's tools expect to find it. Where Canal is the only daemon, nobody else makes these: without
//! the ClusterInformation Calico's CNI plugin refuses every pod, and without the tier `default` calicoctl refuses every
//! policy.
//!
//! Owns: creating them if absent, completing a ClusterInformation that lacks something, and the nodename file
//! (`nodename`). Promises: an object that exists keeps its identity, its unknown fields and every decision in it; an
//! etcd that refuses costs the pods nothing, is told, and is asked again. Does not: create an IPPool (masquerading is
//! flannel's business here), or wait for anything.
//!
//! All of it is done at the start. ClusterInformation and tier `default` are made again as soon as somebody deletes
//! them ([`Request`]), since the whole cluster's tools fail without them; with them whatever else is missing. A deletion
//! of anything else stands until the next start, as with Calico: the node object goes when a node is taken out of
//! service, and who deletes `FelixConfiguration node.<name>` wants the cluster's own defaults.

mod nodename;
mod objects;

use std::{path::PathBuf, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::info;

use self::objects::Object;
use super::{Cause, RESOURCES, Store, StoreError, publish::upsert, retry::Backoff};

pub use nodename::read as read_nodename;

/// Every node's agent sees the same deletion; whoever comes first makes the object for all.
const SPREAD: Duration = Duration::from_secs(2);
/// How often the nodename file is looked at.
const FILE: Duration = Duration::from_mins(1);

/// What is particular to this node.
#[derive(Debug, Clone)]
pub struct Own {
    pub node: String,
    /// Its name in Kubernetes, if it is told to have one. Not guessed: kube-controllers deletes a node, with all its
    /// endpoints, of whose name there in it finds nothing.
    pub kubernetes_node: Option<String>,
    /// Members of the cluster's type beside `k8s` and `canal`.
    pub cluster_type: Vec<String>,
}

/// Asks for another look, from whoever sees that something is missing.
#[derive(Debug, Clone, Default)]
pub struct Request(Arc<Notify>);

impl Request {
    pub fn send(&self) {
        self.0.notify_one();
    }
}

/// Is this the key of an object that is made again when it is deleted?
pub fn is_vital(key: &str) -> bool {
    vital().any(|vital| vital == key)
}

/// Keys without which Calico's tools do not work anywhere in the cluster.
pub fn vital() -> impl Iterator<Item = String> {
    ["clusterinformations/default", "tiers/default"].into_iter().map(|rest| format!("{RESOURCES}{rest}"))
}

/// Works until all is there, then when asked. What stands in the way is kept in `problems`, one line each.
pub async fn run(
    store: Store,
    own: Own,
    nodename_file: PathBuf,
    request: Request,
    problems: watch::Sender<Vec<String>>,
) {
    let objects = objects::all(&own);
    let mut backoff = Backoff::patient();
    let mut objects_due = true;
    let mut of_objects = None;
    loop {
        if objects_due {
            of_objects = make(&store, &objects).await.err();
            objects_due = of_objects.is_some();
        }
        let of_file = nodename::ensure(&nodename_file, &own.node).err();
        let file_is_well = of_file.is_none();
        let now: Vec<String> = of_objects.iter().cloned().chain(of_file).collect();
        problems.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let pause = if objects_due || !file_is_well {
            backoff.delay()
        } else {
            backoff.reset();
            FILE
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = request.0.notified() => {
                let when = SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
                sleep(when).await;
                objects_due = true;
            }
        }
    }
}

/// Makes what is missing. One refusal keeps the rest from nothing; without a connection there is no point in going on.
async fn make(store: &Store, objects: &[Object]) -> Result<(), String> {
    let mut failures: Vec<StoreError> = Vec::new();
    for object in objects {
        match ensure(store, object).await {
            Ok(()) => {}
            Err(error) => {
                let refused = error.cause == Cause::PermissionDenied;
                failures.push(error);
                if !refused {
                    break;
                }
            }
        }
    }
    let Some(first) = failures.first() else { return Ok(()) };
    let more = match failures.len() {
        1 => String::new(),
        n => format!(" (and {} more objects)", n - 1),
    };
    Err(format!("the datastore is not initialised for Calico's tools: {first}{more}"))
}

async fn ensure(store: &Store, object: &Object) -> Result<(), StoreError> {
    let before = store.get(&object.key).await?;
    if before.as_ref().is_some_and(|entry| object.value(Some(&entry.value)) == entry.value) {
        return Ok(());
    }
    upsert(store, &object.key, |existing| object.value(existing)).await?;
    info!(key = object.key, "{}", if before.is_some() { "completed what was lacking" } else { "created" });
    Ok(())
}
