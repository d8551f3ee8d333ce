use std::{path::PathBuf, time::Duration};

use canal_agent::store::{
    RESOURCES, Store,
    initial::{self, Own, Request, is_vital},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::etcd::{DEADLINE, Etcd, dump};

struct Initialiser {
    request: Request,
    problems: watch::Receiver<Vec<String>>,
    task: JoinHandle<()>,
    folder: tempfile::TempDir,
}

fn start(store: Store, node: &str) -> Initialiser {
    let folder = tempfile::tempdir().unwrap();
    let own = Own { node: node.to_owned(), kubernetes_node: None, cluster_type: Vec::new() };
    let (request, sender) = (Request::default(), watch::Sender::new(vec!["not looked yet".to_owned()]));
    let problems = sender.subscribe();
    let file: PathBuf = folder.path().join("nodename");
    let task = tokio::spawn(initial::run(store, own, file, request.clone(), sender));
    Initialiser { request, problems, task, folder }
}

impl Initialiser {
    async fn is_well(&mut self) {
        let well = self.problems.wait_for(Vec::is_empty);
        drop(timeout(DEADLINE, well).await.expect("in time").unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_that_come_up_at_once_make_one_cluster() {
    let etcd = Etcd::start().await;
    let mut nodes = Vec::new();
    for n in 0..8 {
        nodes.push(start(etcd.store().await, &format!("node{n}")));
    }
    for node in &mut nodes {
        node.is_well().await;
    }
    let objects = dump(&mut etcd.admin().await, RESOURCES).await;
    // ClusterInformation, three tiers, the cluster's parameters; and two of each node.
    assert_eq!(objects.len(), 5 + 2 * 8);
    assert_eq!(std::fs::read_to_string(nodes[3].folder.path().join("nodename")).unwrap(), "node3");
    // Each key was written once.
    let mut revisions: Vec<_> = objects.iter().map(|(_, _, revision, _)| *revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), objects.len());
    assert_eq!(etcd.store().await.list(RESOURCES).await.unwrap().revision, *revisions.last().unwrap());
    for node in nodes {
        node.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_others_change_meanwhile_keeps_both_changes() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let key = format!("{RESOURCES}clusterinformations/default");
    let value = |n: usize| format!(r#"{{"spec":{{"clusterGUID":"g","new":{n}}}}}"#).into_bytes();
    store.create(&key, value(0)).await.unwrap();
    let writer = {
        let (store, key) = (store.clone(), key.clone());
        tokio::spawn(async move {
            for n in 1..=20 {
                // As a client that reads and writes back, with its own change.
                while let Some(entry) = store.get(&key).await.unwrap() {
                    let text = String::from_utf8(entry.value.clone()).unwrap();
                    let new = text.replace(&format!("\"new\":{}", n - 1), &format!("\"new\":{n}"));
                    if store.replace(&key, entry.mod_revision, new.into_bytes(), 0).await.unwrap().is_some() {
                        break;
                    }
                }
            }
        })
    };
    let mut node = start(store.clone(), "a");
    node.is_well().await;
    writer.await.unwrap();
    let text = String::from_utf8(store.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!(
        text,
        r#"{"spec":{"clusterGUID":"g","new":20,"clusterType":"k8s,canal","datastoreReady":true}}"#
    );
    node.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_away_is_a_problem_until_it_is_back() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    etcd.kill();
    let mut node = start(store, "a");
    let is_told = |problems: &Vec<String>| {
        problems.iter().any(|p| p.contains("not initialised") && p.contains("connection refused"))
    };
    let said = node.problems.wait_for(is_told);
    drop(timeout(DEADLINE, said).await.expect("in time").unwrap());
    // The file needs no etcd.
    assert!(node.folder.path().join("nodename").exists());
    etcd.restart();
    node.is_well().await;
    // A request makes what is missing, and only that.
    let store = etcd.store().await;
    let key = initial::vital().next().unwrap();
    assert!(is_vital(&key) && !is_vital(&format!("{RESOURCES}tiers/kube-admin")));
    let entry = store.get(&key).await.unwrap().unwrap();
    assert!(store.delete(&key, entry.mod_revision).await.unwrap());
    node.request.send();
    let made = async {
        while store.get(&key).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, made).await.expect("it is made again");
    node.task.abort();
}
