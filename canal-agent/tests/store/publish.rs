use canal_agent::store::publish::{Identity, create_if_absent, delete_if, is_of_container, upsert};

use crate::etcd::Etcd;

const KEY: &str = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node1-cni-ca-eth0";

fn endpoint(existing: Option<&[u8]>, container: &str) -> Vec<u8> {
    let Identity { uid, creation_timestamp } = Identity::of(existing);
    format!(
        r#"{{"kind":"WorkloadEndpoint","metadata":{{"uid":"{uid}","creationTimestamp":"{creation_timestamp}"}},"spec":{{"containerID":"{container}"}}}}"#
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_profile_is_never_touched() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let key = "/calico/resources/v3/projectcalico.org/profiles/canal";
    assert!(create_if_absent(&store, key, b"first".to_vec()).await.unwrap());
    assert!(!create_if_absent(&store, key, b"second".to_vec()).await.unwrap());
    assert_eq!(store.get(key).await.unwrap().unwrap().value, b"first");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_keeps_the_identity_and_an_unchanged_one_writes_nothing() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let created = upsert(&store, KEY, |existing| endpoint(existing, "ca")).await.unwrap();
    let first = store.get(KEY).await.unwrap().unwrap();
    assert_eq!(upsert(&store, KEY, |existing| endpoint(existing, "ca")).await.unwrap(), created);
    assert!(upsert(&store, KEY, |existing| endpoint(existing, "cb")).await.unwrap() > created);
    let second = store.get(KEY).await.unwrap().unwrap();
    assert_eq!(Identity::of(Some(&first.value)), Identity::of(Some(&second.value)));
    assert!(is_of_container(&second.value, "cb"));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_meet_at_one_key_all_get_through() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let writers: Vec<_> = (0..6)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                upsert(&store, KEY, |existing| {
                    let mut value = existing.unwrap_or_default().to_vec();
                    value.push(b'a' + i);
                    value
                })
                .await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let mut value = store.get(KEY).await.unwrap().unwrap().value;
    value.sort_unstable();
    assert_eq!(value, b"abcdef", "no write was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_deleted_only_for_its_own_container() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    upsert(&store, KEY, |existing| endpoint(existing, "new")).await.unwrap();
    let neighbour = format!("{KEY}2");
    upsert(&store, &neighbour, |existing| endpoint(existing, "old")).await.unwrap();
    assert!(!delete_if(&store, KEY, |value| is_of_container(value, "old")).await.unwrap());
    assert!(delete_if(&store, KEY, |value| is_of_container(value, "new")).await.unwrap());
    assert!(!delete_if(&store, KEY, |_| true).await.unwrap(), "deleting what is gone is no error");
    assert!(store.get(&neighbour).await.unwrap().is_some());
}
