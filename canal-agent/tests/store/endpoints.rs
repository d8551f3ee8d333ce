//! What the agent's publisher makes of a node's endpoints in a real etcd.

use std::{path::Path, time::Duration};

use canal_agent::{
    api::wire::{AddEndpoint, AttachmentId},
    endpoint::{
        Phase, Registry,
        publish::{self, Wanted},
    },
    model::{EndpointKey, Pod},
    store::Store,
};
use tokio::sync::{mpsc, watch};

use crate::etcd::{DEADLINE, Etcd};

fn pod(container: &str) -> AddEndpoint {
    AddEndpoint {
        container_id: container.to_owned(),
        interface: "eth0".to_owned(),
        host_interface: format!("cali{container}"),
        addresses: vec!["10.100.30.2".parse().unwrap()],
        network: "canal".to_owned(),
        ..AddEndpoint::default()
    }
}

fn registry(folder: &Path, node: &str) -> Registry {
    Registry::open(folder, node).unwrap().0
}

/// As a node has it told.
fn wanted(registry: &Registry, node: &str) -> Wanted {
    let past = registry.leaving().map(|(key, record)| (key, record.clone()));
    let former = registry.former().map(|(key, record)| (key.clone(), record.clone()));
    Wanted {
        present: registry.present().map(|(key, record)| (key.clone(), record.clone())).collect(),
        past: past.chain(former).collect(),
        node: node.to_owned(),
        ..Wanted::default()
    }
}

struct Publisher {
    etcd: Etcd,
    store: Store,
    wanted: watch::Sender<Wanted>,
    gone: mpsc::UnboundedReceiver<(AttachmentId, EndpointKey)>,
}

impl Publisher {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let store = etcd.store().await;
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, gone) = mpsc::unbounded_channel();
        tokio::spawn(publish::run(store.clone(), receiver, sender));
        Self { etcd, store, wanted, gone }
    }

    async fn value(&self, key: &EndpointKey) -> Option<String> {
        let found = self.store.get(&key.store_key()).await.unwrap();
        found.map(|found| String::from_utf8(found.value).unwrap())
    }

    async fn until(&self, key: &EndpointKey, test: impl Fn(Option<&str>) -> bool) {
        let reached = async {
            while !test(self.value(key).await.as_deref()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, reached).await.is_ok(), "{key}: {:?}", self.value(key).await);
    }

    async fn put(&self, key: &EndpointKey, value: &str) {
        self.etcd.admin().await.put(key.store_key(), value, None).await.unwrap();
    }

    async fn next_gone(&mut self) -> EndpointKey {
        tokio::time::timeout(DEADLINE, self.gone.recv()).await.unwrap().unwrap().1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_refuses_of_one_pod_keeps_no_other_from_coming_or_going() {
    let (mut publisher, folder) = (Publisher::start().await, tempfile::tempdir().unwrap());
    let mut registry = registry(folder.path(), "n");
    // The first in the order of keys, and more than etcd takes in one value.
    let labels = [("app".to_owned(), "x".repeat(2 << 20))].into();
    let large = registry.insert(AddEndpoint { labels, ..pod("aa") }, Phase::Present).unwrap();
    let goes = registry.insert(pod("bb"), Phase::Present).unwrap();
    let stays = registry.insert(pod("cc"), Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    publisher.until(&stays, |value| value.is_some()).await;
    publisher.until(&goes, |value| value.is_some()).await;
    registry.leave(&pod("bb").id()).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    assert_eq!(publisher.next_gone().await, goes);
    publisher.until(&goes, |value| value.is_none()).await;
    registry.leave(&pod("aa").id()).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    while publisher.next_gone().await != large {}
    assert_eq!(publisher.value(&large).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_was_told_is_looked_at_again_only_where_it_is_in_doubt() {
    let (publisher, folder) = (Publisher::start().await, tempfile::tempdir().unwrap());
    let mut registry = registry(folder.path(), "n");
    let first = registry.insert(pod("aa"), Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    publisher.until(&first, |value| value.is_some()).await;
    publisher.put(&first, "{").await;
    let second = registry.insert(pod("bb"), Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    publisher.until(&second, |value| value.is_some()).await;
    assert_eq!(publisher.value(&first).await.as_deref(), Some("{"), "nobody has said so");
    publisher.wanted.send_replace(Wanted { doubt: 1, ..wanted(&registry, "n") });
    publisher.until(&first, |value| value.is_some_and(|value| value.contains(r#""containerID":"aa""#))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_takes_its_edited_endpoint_along_and_no_other_pods() {
    let (mut publisher, folder) = (Publisher::start().await, tempfile::tempdir().unwrap());
    let mut registry = registry(folder.path(), "n");
    let keys = ["aa", "bb"].map(|container| registry.insert(pod(container), Phase::Present).unwrap());
    publisher.wanted.send_replace(wanted(&registry, "n"));
    let [mine, anothers] = &keys;
    publisher.until(anothers, |value| value.is_some()).await;
    // One is edited, the other is another pod's by now, in the same object, as Calico's plugin keeps it.
    let [edited, taken] = [publisher.value(mine).await.unwrap(), publisher.value(anothers).await.unwrap()];
    publisher.put(mine, &edited.replace("10.", "11.")).await;
    publisher.put(anothers, &taken.replace(r#""containerID":"bb""#, r#""containerID":"new""#)).await;
    for container in ["aa", "bb"] {
        registry.leave(&pod(container).id()).unwrap();
    }
    publisher.wanted.send_replace(wanted(&registry, "n"));
    assert_eq!([publisher.next_gone().await, publisher.next_gone().await], keys);
    assert_eq!(publisher.value(mine).await, None);
    assert!(publisher.value(anothers).await.unwrap().contains("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_goes_takes_nothing_from_the_one_that_has_its_endpoint_by_now() {
    let (mut publisher, folder) = (Publisher::start().await, tempfile::tempdir().unwrap());
    let mut registry = registry(folder.path(), "n");
    let web = Pod { namespace: "shop".to_owned(), name: "web-0".to_owned(), ..Pod::default() };
    let [old, new] = ["aa", "bb"].map(|id| AddEndpoint { pod: Some(web.clone()), ..pod(id) });
    let key = registry.insert(old.clone(), Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    publisher.until(&key, |value| value.is_some()).await;
    let first = publisher.value(&key).await.unwrap();
    registry.insert(new, Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    publisher.until(&key, |value| value.is_some_and(|value| value.contains(r#""containerID":"bb""#))).await;
    // In the object that the old one had, as Calico's tools keep it.
    let kept = first.replace(r#""containerID":"aa""#, r#""containerID":"bb""#);
    publisher.put(&key, &kept).await;
    registry.leave(&old.id()).unwrap();
    publisher.wanted.send_replace(wanted(&registry, "n"));
    assert_eq!(publisher.next_gone().await, key);
    assert_eq!(publisher.value(&key).await, Some(kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_name_has_its_pods_in_etcd_under_that_only() {
    let (mut publisher, folder) = (Publisher::start().await, tempfile::tempdir().unwrap());
    let old = registry(folder.path(), "old").insert(pod("aa"), Phase::Present).unwrap();
    publisher.wanted.send_replace(wanted(&registry(folder.path(), "old"), "old"));
    publisher.until(&old, |value| value.is_some()).await;
    let renamed = registry(folder.path(), "new");
    let new = renamed.present().next().unwrap().0.clone();
    assert_ne!(new, old);
    publisher.wanted.send_replace(wanted(&renamed, "new"));
    assert_eq!(publisher.next_gone().await, old);
    publisher.until(&new, |value| value.is_some_and(|value| value.contains(r#""node":"new""#))).await;
    assert_eq!(publisher.value(&old).await, None);
}
