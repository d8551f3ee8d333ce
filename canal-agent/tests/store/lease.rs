use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use canal_agent::store::{
    Attributes, BackendKind, LeaseError, LeaseEvent, LeaseManager, NetworkConfig, Owner, Store, Terms,
    VxlanData,
};
use etcd_client::{Client, PutOptions};
use ipnet::Ipv4Net;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::etcd::{DEADLINE, Etcd, PREFIX, dump, lease_count};

fn network(fields: &str) -> NetworkConfig {
    let text = format!(r#"{{{fields},"Backend":{{"Type":"vxlan"}}}}"#);
    NetworkConfig::parse(text.as_bytes()).unwrap()
}

fn wide() -> NetworkConfig {
    network(r#""Network":"10.100.0.0/16""#)
}

fn vtep_mac(number: u8) -> canal_common::Mac {
    canal_common::Mac::new([2, 0, 0, 0, 0, number])
}

fn node(number: u8) -> Attributes {
    Attributes {
        public_ip: Ipv4Addr::new(192, 0, 2, number),
        backend: BackendKind::Vxlan(VxlanData { vni: 1, vtep_mac: vtep_mac(number) }),
        node: format!("node{number}"),
        machine: format!("machine{number}"),
    }
}

fn subnet_key(subnet: Ipv4Net) -> String {
    format!("{PREFIX}/subnets/{}-{}", subnet.addr(), subnet.prefix_len())
}

fn value(attributes: &Attributes) -> String {
    let BackendKind::Vxlan(data) = attributes.backend else { unreachable!("all nodes here speak vxlan") };
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}},"Canal":{{"Node":"{}","Machine":"{}"}}}}"#,
        attributes.public_ip, data.vtep_mac, attributes.node, attributes.machine
    )
}

async fn subnets(admin: &mut Client) -> Vec<(String, String, i64, i64)> {
    dump(admin, &format!("{PREFIX}/subnets/")).await
}

/// A manager at work.
struct Held {
    terms: watch::Sender<Terms>,
    events: mpsc::Receiver<LeaseEvent>,
    cancel: CancellationToken,
    task: JoinHandle<LeaseManager>,
}

impl Held {
    async fn start(mut manager: LeaseManager, want: Attributes) -> Self {
        manager.acquire(want.clone()).await.unwrap();
        let (terms, following) = watch::channel(Terms { network: wide(), attributes: want });
        let (sender, events) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let task = tokio::spawn(async move {
            manager.maintain(following, sender, stop).await;
            manager
        });
        Self { terms, events, cancel, task }
    }

    async fn next(&mut self) -> LeaseEvent {
        timeout(DEADLINE, self.events.recv()).await.expect("an event within the deadline").unwrap()
    }

    async fn stop(self) -> LeaseManager {
        self.cancel.cancel();
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_node_writes_what_flanneld_would_and_its_name() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let mut manager = LeaseManager::new(etcd.store().await, wide(), None);
    let lease = manager.acquire(node(1)).await.unwrap();
    let all = subnets(&mut admin).await;
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0].0, &all[0].1), (&subnet_key(lease.subnet), &value(&node(1))));
    let ttl = admin.lease_time_to_live(all[0].3, None).await.unwrap();
    assert_eq!(ttl.granted_ttl(), 86_400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_the_same_subnet_with_no_write_and_no_new_etcd_lease() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let store = etcd.store().await;
    let first = LeaseManager::new(store.clone(), wide(), None).acquire(node(1)).await.unwrap();
    let before = subnets(&mut admin).await;
    for _ in 0..3 {
        let again = LeaseManager::new(store.clone(), wide(), None).acquire(node(1)).await.unwrap();
        assert_eq!(again.subnet, first.subnet);
    }
    assert_eq!(subnets(&mut admin).await, before);
    assert_eq!(lease_count(&mut admin).await, 1);

    let moved = Attributes { public_ip: Ipv4Addr::new(192, 0, 2, 99), ..node(1) };
    let again = LeaseManager::new(store.clone(), wide(), None).acquire(moved.clone()).await.unwrap();
    assert_eq!(again.subnet, first.subnet, "a new address keeps the subnet");
    assert_eq!(subnets(&mut admin).await[0].1, value(&moved));
    assert_eq!(lease_count(&mut admin).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_flanneld_on_this_node_is_taken_over_in_place() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let granted = admin.lease_grant(86_400, None).await.unwrap().id();
    let key = format!("{PREFIX}/subnets/10.100.30.0-24");
    let flanneld = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"82:d2:48:77:ea:cf"},"Rack":7}"#;
    admin.put(key.as_str(), flanneld, Some(PutOptions::new().with_lease(granted))).await.unwrap();
    let lease = LeaseManager::new(etcd.store().await, wide(), None).acquire(node(1)).await.unwrap();
    assert_eq!((lease.key.as_str(), lease.etcd_lease, lease.reservation), (key.as_str(), granted, false));
    let all = subnets(&mut admin).await;
    let want = value(&node(1)).replace(r#""machine1"}"#, r#""machine1"},"Rack":7"#);
    assert_eq!((all.len(), &all[0].1, all[0].3), (1, &want, granted));
    assert_eq!(lease_count(&mut admin).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_share_out_the_last_subnets_without_a_leak() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let store = etcd.store().await;
    let few = network(r#""Network":"10.100.0.0/24","SubnetLen":27,"SubnetMin":"10.100.0.0""#);
    let nodes: Vec<_> = (1..=8)
        .map(|number| {
            let mut manager = LeaseManager::new(store.clone(), few.clone(), None);
            tokio::spawn(async move { manager.acquire(node(number)).await.unwrap().subnet })
        })
        .collect();
    let mut taken = BTreeSet::new();
    for node in nodes {
        assert!(taken.insert(node.await.unwrap()), "two nodes with one subnet");
    }
    assert_eq!(subnets(&mut admin).await.len(), 8);
    assert_eq!(lease_count(&mut admin).await, 8);

    let ninth = LeaseManager::new(store.clone(), few, None).acquire(node(9)).await.unwrap_err();
    assert!(matches!(ninth, LeaseError::OutOfSubnets { total: 8, .. }), "{ninth}");
    assert!(ninth.to_string().contains("no free /27 subnet in 10.100.0.0/24"), "{ninth}");
    assert_eq!(lease_count(&mut admin).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_different_ideas_of_the_subnet_length_never_overlap() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let nodes: Vec<_> = (1..=12)
        .map(|number| {
            let len = if number % 2 == 0 { 24 } else { 26 };
            let network = network(&format!(r#""Network":"10.100.0.0/20","SubnetLen":{len}"#));
            let mut manager = LeaseManager::new(store.clone(), network, None);
            tokio::spawn(async move { manager.acquire(node(number)).await.unwrap().subnet })
        })
        .collect();
    let mut taken: Vec<Ipv4Net> = Vec::new();
    for node in nodes {
        let subnet = node.await.unwrap();
        let clash = taken.iter().find(|other| other.contains(&subnet) || subnet.contains(*other));
        assert_eq!(clash, None, "{subnet}");
        taken.push(subnet);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_stays_one_at_the_start_and_while_running() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let key = format!("{PREFIX}/subnets/10.100.77.0-24");
    admin.put(key.as_str(), r#"{"PublicIP":"192.0.2.1"}"#, None).await.unwrap();
    let mut held = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };
    assert!(lease.reservation && lease.key == key, "{lease:?}");
    let all = subnets(&mut admin).await;
    assert_eq!((all[0].1.as_str(), all[0].3), (value(&node(1)).as_str(), 0));
    assert_eq!(lease_count(&mut admin).await, 0);
    let mut manager = held.stop().await;
    manager.release().await.unwrap();
    assert_eq!(subnets(&mut admin).await, all, "releasing a reservation leaves it");

    let mut held = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(2)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };
    assert!(!lease.reservation);
    admin.put(lease.key.as_str(), value(&node(2)), None).await.unwrap();
    let LeaseEvent::Held(reserved) = held.next().await else { panic!() };
    assert!(reserved.reservation && reserved.subnet == lease.subnet, "{reserved:?}");
    assert_eq!(
        subnets(&mut admin).await.iter().map(|key| key.3).sum::<i64>(),
        0,
        "no etcd lease is attached"
    );
    assert_eq!(lease_count(&mut admin).await, 0, "the etcd lease it had is revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_for_a_node_that_holds_another_subnet_is_taken_when_it_starts_again() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let store = etcd.store().await;
    let mut held = Held::start(LeaseManager::new(store.clone(), wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };
    let key = format!("{PREFIX}/subnets/10.100.200.0-24");
    let foreign = (
        format!("{PREFIX}/subnets/10.100.201.0-24"),
        r#"{"PublicIP":"192.0.2.1","Canal":{"Node":"x","Machine":"y"}}"#,
    );
    admin.put(foreign.0.as_str(), foreign.1, None).await.unwrap();
    admin.put(key.as_str(), r#"{"PublicIP":"192.0.2.1","Rack":7}"#, None).await.unwrap();
    // Its pods have addresses of the subnet that it holds.
    admin.delete(lease.key.as_str(), None).await.unwrap();
    assert!(matches!(held.next().await, LeaseEvent::Lost { .. }));
    let LeaseEvent::Held(again) = held.next().await else { panic!() };
    assert_eq!(again.key, lease.key);
    held.stop().await;

    let previous = Some(lease.subnet);
    let reserved = LeaseManager::new(store.clone(), wide(), previous).acquire(node(1)).await.unwrap();
    assert!(reserved.reservation && reserved.key == key, "{reserved:?}");
    let all = subnets(&mut admin).await;
    let want = value(&node(1)).replace(r#""machine1"}"#, r#""machine1"},"Rack":7"#);
    assert_eq!((all[0].0.as_str(), &all[0].1, all[0].3), (key.as_str(), &want, 0));
    assert_eq!(
        (all.len(), &all[1].0, all[1].1.as_str()),
        (2, &foreign.0, foreign.1),
        "the former lease alone is gone"
    );
    assert_eq!(lease_count(&mut admin).await, 0, "the etcd lease it had is revoked");
    LeaseManager::new(store, wide(), Some(reserved.subnet)).acquire(node(1)).await.unwrap();
    assert_eq!(subnets(&mut admin).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_taken_again_with_the_same_subnet_and_no_other_key_is_touched() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let foreign = [
        (format!("{PREFIX}/subnets/junk"), "{"),
        (format!("{PREFIX}/subnets/10.100.5.0-24"), "garbage"),
        (format!("{PREFIX}/subnets/10.100.6.0-24"), r#"{"PublicIP":"192.0.2.66","BackendType":"host-gw"}"#),
        (format!("{PREFIX}/subnets/10.100.7.0-24&fd00::-64"), r#"{"PublicIP":"192.0.2.67"}"#),
        (format!("{PREFIX}/subnets-old/10.100.8.0-24"), r#"{"PublicIP":"192.0.2.1"}"#),
    ];
    for (key, value) in &foreign {
        admin.put(key.as_str(), *value, None).await.unwrap();
    }
    let untouched = dump(&mut admin, &format!("{PREFIX}/subnets")).await;

    let mut held = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };

    admin.delete(lease.key.as_str(), None).await.unwrap();
    let LeaseEvent::Lost { reason } = held.next().await else { panic!() };
    assert!(reason.contains("deleted"), "{reason}");
    let LeaseEvent::Held(again) = held.next().await else { panic!() };
    assert_eq!(again.subnet, lease.subnet);

    admin.lease_revoke(again.etcd_lease).await.unwrap();
    assert!(matches!(held.next().await, LeaseEvent::Lost { .. }));
    let LeaseEvent::Held(again) = held.next().await else { panic!() };
    assert_eq!(again.subnet, lease.subnet);

    admin.put(again.key.as_str(), "{ spoilt", Some(PutOptions::new().with_ignore_lease())).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while subnets(&mut admin).await.iter().find(|key| key.0 == again.key).unwrap().1 != value(&node(1)) {
        assert!(Instant::now() < deadline, "the value was not repaired");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut manager = held.stop().await;
    manager.release().await.unwrap();
    assert_eq!(dump(&mut admin, &format!("{PREFIX}/subnets")).await, untouched);
    assert_eq!(lease_count(&mut admin).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_taken_over_by_another_node_is_left_to_it() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let mut held = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };
    // The worst kind of takeover: the key still hangs on our etcd lease, which must not be revoked now.
    let attached = PutOptions::new().with_ignore_lease();
    admin.put(lease.key.as_str(), value(&node(2)), Some(attached)).await.unwrap();
    let LeaseEvent::Lost { reason } = held.next().await else { panic!() };
    assert!(reason.contains("node2 at 192.0.2.2"), "{reason}");
    let LeaseEvent::Moved(moved) = held.next().await else { panic!() };
    assert_ne!(moved.subnet, lease.subnet);
    let all = subnets(&mut admin).await;
    let find = |key: &str| all.iter().find(|found| found.0 == key).unwrap().1.clone();
    assert_eq!((all.len(), find(&lease.key), find(&moved.key)), (2, value(&node(2)), value(&node(1))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_restarts_or_loses_its_disk_does_not_move_the_node() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    let mut held = Held::start(LeaseManager::new(store, wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };

    etcd.restart();
    etcd.ready().await;
    let mut admin = etcd.admin().await;
    assert_eq!(subnets(&mut admin).await[0].0, lease.key);
    assert!(held.events.try_recv().is_err(), "a restart of etcd is no loss");

    etcd.wipe();
    etcd.restart();
    let LeaseEvent::Lost { .. } = held.next().await else { panic!() };
    let again = loop {
        match held.next().await {
            LeaseEvent::Lost { .. } => {}
            LeaseEvent::Held(lease) => break lease,
            LeaseEvent::Moved(lease) => panic!("{lease:?}"),
        }
    };
    assert_eq!(again.subnet, lease.subnet);
    let mut admin = etcd.admin().await;
    assert_eq!(subnets(&mut admin).await[0].0, lease.key);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_subnet_of_the_file_is_preferred_when_it_is_free() {
    let etcd = Etcd::start().await;
    let store: Store = etcd.store().await;
    let previous = "10.100.200.0/24".parse().ok();
    let mut manager = LeaseManager::new(store.clone(), wide(), previous);
    assert_eq!(Some(manager.acquire(node(1)).await.unwrap().subnet), previous);
    let mut manager = LeaseManager::new(store, wide(), previous);
    assert_ne!(Some(manager.acquire(node(2)).await.unwrap().subnet), previous);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_older_than_anothers_lease_gives_nobody_the_same_subnet() {
    let etcd = Etcd::start().await;
    let store: Store = etcd.store().await;
    let previous = "10.100.200.0/24".parse().ok();
    let listing = store.list(&store.options().prefix.all()).await.unwrap();
    let mut first = LeaseManager::new(store.clone(), wide(), previous);
    assert_eq!(Some(first.acquire_by(node(1), Some(&listing)).await.unwrap().subnet), previous);
    let mut second = LeaseManager::new(store, wide(), previous);
    assert_ne!(Some(second.acquire_by(node(2), Some(&listing)).await.unwrap().subnet), previous);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_does_not_fit_a_changed_network_is_replaced_in_one_step() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let mut manager = LeaseManager::new(etcd.store().await, wide(), None);
    let before = manager.acquire(node(1)).await.unwrap();
    manager.set_network(network(r#""Network":"10.200.0.0/16""#));
    let after = manager.acquire(node(1)).await.unwrap();
    assert!(after.subnet.to_string().starts_with("10.200."), "{after:?}");
    let all = subnets(&mut admin).await;
    assert_eq!((all.len(), &all[0].0), (1, &after.key));
    assert_ne!(before.key, after.key);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_machine_of_our_name_takes_another_subnet_and_neither_writes_again() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let twin = Attributes { node: "node1".into(), ..node(2) };
    let first = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let second = Held::start(LeaseManager::new(etcd.store().await, wide(), None), twin.clone()).await;
    let all = subnets(&mut admin).await;
    let values: BTreeSet<_> = all.iter().map(|key| key.1.clone()).collect();
    assert_eq!(values, [value(&node(1)), value(&twin)].into());
    // Its successor finds its own again.
    second.stop().await;
    let again = LeaseManager::new(etcd.store().await, wide(), None).acquire(twin.clone()).await.unwrap();
    assert_eq!(subnets(&mut admin).await, all);
    assert!(all.iter().any(|key| key.0 == again.key && key.1 == value(&twin)));
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_node_do_not_flood_etcd() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    // Two machines of one name and address: both take the lease for their own.
    let twin = Attributes { machine: "other".into(), backend: node(2).backend, ..node(1) };
    let first = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let second = Held::start(LeaseManager::new(etcd.store().await, wide(), None), twin).await;
    let (started, before) = (Instant::now(), subnets(&mut admin).await[0].2);
    while subnets(&mut admin).await[0].2 < before + 8 {
        assert!(started.elapsed() < DEADLINE, "the two do not even notice each other");
        tokio::task::yield_now().await;
    }
    assert!(started.elapsed() > Duration::from_millis(200), "{:?}", started.elapsed());
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_is_published_in_place_also_when_it_changed_during_an_outage() {
    let mut etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let mut held = Held::start(LeaseManager::new(etcd.store().await, wide(), None), node(1)).await;
    let LeaseEvent::Held(lease) = held.next().await else { panic!() };
    let before = subnets(&mut admin).await;
    let moved = |last| Attributes { public_ip: Ipv4Addr::new(198, 51, 100, last), ..node(1) };
    held.terms.send_modify(|terms| terms.attributes = moved(1));
    published(&mut admin, &value(&moved(1))).await;
    etcd.kill();
    held.terms.send_modify(|terms| terms.attributes = moved(2));
    held.terms.send_modify(|terms| terms.attributes = moved(3));
    etcd.restart();
    etcd.ready().await;
    let mut admin = etcd.admin().await;
    published(&mut admin, &value(&moved(3))).await;
    let after = subnets(&mut admin).await;
    assert_eq!(
        (after.len(), &after[0].0, after[0].3),
        (1, &lease.key, before[0].3),
        "same key, same etcd lease"
    );
    // A lost key comes back with what is true now.
    admin.delete(lease.key.as_str(), None).await.unwrap();
    published(&mut admin, &value(&moved(3))).await;
    held.stop().await;
}

async fn published(admin: &mut Client, value: &str) {
    let deadline = Instant::now() + DEADLINE;
    while subnets(admin).await.first().is_none_or(|key| key.1 != value) {
        assert!(Instant::now() < deadline, "{value} is not published: {:?}", subnets(admin).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_gives_back_what_is_its_own_and_nothing_else() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let store = etcd.store().await;
    let mut others = Vec::new();
    for other in
        [Attributes { node: "node1".into(), ..node(2) }, Attributes { machine: "machine1".into(), ..node(3) }]
    {
        LeaseManager::new(store.clone(), wide(), None).acquire(other).await.unwrap();
    }
    admin.put(format!("{PREFIX}/subnets/junk"), "{", None).await.unwrap();
    admin.put(format!("{PREFIX}/subnets/10.100.200.0-24"), value(&node(1)), None).await.unwrap();
    others.extend(subnets(&mut admin).await);
    let mut apart = LeaseManager::new(store.clone(), network(r#""Network":"10.200.0.0/16""#), None);
    let lease =
        apart.acquire(Attributes { public_ip: Ipv4Addr::new(192, 0, 2, 77), ..node(1) }).await.unwrap();
    let want = node(1);
    let unknown = Owner { public_ip: None, ..want.owner() };
    let said = LeaseManager::release_all(&store, unknown).await.unwrap();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("10.100.200.0-24 stays: it is reserved"), "{said:?}");
    assert_eq!(said[1], format!("released {}", lease.key));
    assert_eq!(subnets(&mut admin).await, others);
    assert_eq!(lease_count(&mut admin).await, 2, "the etcd lease is revoked too");
    assert_eq!(LeaseManager::release_all(&store, unknown).await.unwrap().len(), 1);
}
