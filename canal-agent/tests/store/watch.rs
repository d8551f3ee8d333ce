use std::time::Instant;

use canal_agent::store::{Change, Listing, Mirror, Past, Prefix, RESOURCES, Store, StoreEvent};
use etcd_client::{Client, Txn, TxnOp};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    etcd::{DEADLINE, Etcd, options},
    proxy::Proxy,
};

struct Following {
    events: mpsc::Receiver<StoreEvent>,
    _stop: DropGuard,
}

impl Following {
    fn start(store: Store) -> Self {
        Self::start_with(store, None, None)
    }

    fn start_with(store: Store, listed: Option<Listing>, left: Option<Past>) -> Self {
        let (sender, events) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let mirror = Mirror::new(store, Prefix::Resources, RESOURCES, sender);
        let mirror = mirror.beginning_with(listed).remembering(left);
        tokio::spawn(mirror.run(cancel.clone()));
        Self { events, _stop: cancel.drop_guard() }
    }

    async fn next(&mut self) -> StoreEvent {
        timeout(DEADLINE, self.events.recv()).await.expect("an event within the deadline").unwrap()
    }

    /// The next event that carries keys, with those before it for the record.
    async fn next_content(&mut self) -> (StoreEvent, Vec<StoreEvent>) {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                event @ (StoreEvent::Snapshot { .. } | StoreEvent::Changes { .. }) => return (event, before),
                other => before.push(other),
            }
        }
    }

    async fn disconnected(&mut self) -> String {
        loop {
            if let StoreEvent::Disconnected { error, .. } = self.next().await {
                return error;
            }
        }
    }

    /// Names of the next snapshot.
    async fn snapshot(&mut self) -> (Vec<String>, i64) {
        match self.next_content().await.0 {
            StoreEvent::Snapshot { entries, past, .. } => {
                (entries.into_iter().map(|entry| name(&entry.key)).collect(), past.revision)
            }
            other => panic!("want a snapshot, got {other:?}"),
        }
    }

    /// The same, and whether it is of another history than what was told before.
    async fn history(&mut self) -> (usize, bool) {
        match self.next_content().await.0 {
            StoreEvent::Snapshot { entries, forgetful, .. } => (entries.len(), forgetful),
            other => panic!("want a snapshot, got {other:?}"),
        }
    }

    /// Changes until `count` have come, as `+name` and `-name`.
    async fn changes(&mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let (event, _) = self.next_content().await;
            let StoreEvent::Changes { changes, revision, .. } = event else {
                panic!("want changes: {event:?}")
            };
            for change in changes {
                seen.push(match change {
                    Change::Put(entry) => {
                        assert!(entry.mod_revision <= revision);
                        format!("+{}", name(&entry.key))
                    }
                    Change::Delete { key, .. } => format!("-{}", name(&key)),
                });
            }
        }
        seen
    }
}

fn name(key: &str) -> String {
    key.strip_prefix(RESOURCES).expect("keys of the prefix only").to_owned()
}

async fn put(admin: &mut Client, name: &str) {
    admin.put(format!("{RESOURCES}{name}"), name, None).await.unwrap();
}

async fn delete(admin: &mut Client, name: &str) {
    admin.delete(format!("{RESOURCES}{name}"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_lists_everything_in_pages_and_then_follows() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    for batch in 0..25 {
        let puts: Vec<_> =
            (0..100).map(|i| TxnOp::put(format!("{RESOURCES}tiers/{batch:02}{i:02}"), "x", None)).collect();
        admin.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    admin.put(RESOURCES.trim_end_matches('/').to_owned() + "-other/x", "x", None).await.unwrap();
    let mut following = Following::start(etcd.store().await);
    assert_eq!(following.next().await, StoreEvent::Connected { prefix: Prefix::Resources });
    let (names, revision) = following.snapshot().await;
    assert_eq!(names.len(), 2500);
    assert!(names.is_sorted());
    assert_eq!(revision, 27);

    put(&mut admin, "tiers/b").await;
    put(&mut admin, "tiers/a").await;
    delete(&mut admin, "tiers/b").await;
    assert_eq!(following.changes(3).await, ["+tiers/b", "+tiers/a", "-tiers/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_given_a_list_goes_on_behind_it() {
    let etcd = Etcd::start().await;
    let (mut admin, store) = (etcd.admin().await, etcd.store().await);
    put(&mut admin, "tiers/a").await;
    let listed = store.list(RESOURCES).await.unwrap();
    put(&mut admin, "tiers/b").await;
    delete(&mut admin, "tiers/a").await;
    let revision = listed.revision;
    let mut following = Following::start_with(store, Some(listed), None);
    assert_eq!(following.snapshot().await, (vec!["tiers/a".to_owned()], revision));
    assert_eq!(following.changes(2).await, ["+tiers/b", "-tiers/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_prefix_is_an_empty_snapshot_and_then_followed() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    let mut following = Following::start(etcd.store().await);
    assert_eq!(following.snapshot().await.0, Vec::<String>::new());
    put(&mut admin, "tiers/a").await;
    assert_eq!(following.changes(1).await, ["+tiers/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_cut_is_resumed_without_a_snapshot_and_without_a_loss() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    put(&mut admin, "tiers/a").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut following = Following::start(Store::connect(&options(&proxy.endpoint())).await.unwrap());
    following.snapshot().await;
    proxy.cut();
    following.disconnected().await;
    put(&mut admin, "tiers/b").await;
    delete(&mut admin, "tiers/a").await;
    proxy.mend();
    assert_eq!(following.changes(2).await, ["+tiers/b", "-tiers/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_while_disconnected_gives_a_fresh_snapshot() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    put(&mut admin, "tiers/a").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut following = Following::start(Store::connect(&options(&proxy.endpoint())).await.unwrap());
    following.snapshot().await;
    proxy.cut();
    following.disconnected().await;
    put(&mut admin, "tiers/b").await;
    delete(&mut admin, "tiers/a").await;
    let revision = admin.get("x", None).await.unwrap().header().unwrap().revision();
    admin.compact(revision, None).await.unwrap();
    proxy.mend();
    assert_eq!(following.snapshot().await, (vec!["tiers/b".to_owned()], revision));
    put(&mut admin, "tiers/c").await;
    assert_eq!(following.changes(1).await, ["+tiers/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_etcd_is_followed_on() {
    let mut etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    put(&mut admin, "tiers/a").await;
    let mut following = Following::start(etcd.store().await);
    following.snapshot().await;
    etcd.kill();
    let error = following.disconnected().await;
    assert!(error.contains(RESOURCES) && !error.contains('\n'), "{error}");
    etcd.restart();
    etcd.ready().await;
    put(&mut admin, "tiers/b").await;
    let (event, before) = following.next_content().await;
    assert!(matches!(&event, StoreEvent::Changes { changes, .. } if changes.len() == 1), "{event:?}");
    assert_eq!(before.last(), Some(&StoreEvent::Connected { prefix: Prefix::Resources }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_etcd_is_noticed_also_when_its_revision_has_caught_up() {
    for (keys_before, writes_after) in [(20, 1), (20, 40), (0, 40)] {
        let mut etcd = Etcd::start().await;
        let mut admin = etcd.admin().await;
        for i in 0..20 {
            admin.put("/elsewhere", "x", None).await.unwrap();
            if i < keys_before {
                put(&mut admin, &format!("tiers/old{i:02}")).await;
            }
        }
        let proxy = Proxy::to(etcd.port()).await;
        let mut following = Following::start(Store::connect(&options(&proxy.endpoint())).await.unwrap());
        assert_eq!(following.history().await, (keys_before, false), "the first list has no past");
        proxy.cut();
        etcd.wipe();
        etcd.restart();
        etcd.ready().await;
        let mut admin = etcd.admin().await;
        for i in 0..writes_after {
            put(&mut admin, &format!("tiers/new{i:02}")).await;
        }
        proxy.mend();
        let (names, _) = following.snapshot().await;
        assert_eq!(names.len(), writes_after);
        assert!(names.iter().all(|name| name.starts_with("tiers/new")), "{names:?}");
        put(&mut admin, "tiers/zz").await;
        assert_eq!(following.changes(1).await, ["+tiers/zz"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_given_up_within_15_seconds() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    put(&mut admin, "tiers/0").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut following = Following::start(Store::connect(&options(&proxy.endpoint())).await.unwrap());
    following.snapshot().await;
    let frozen = Instant::now();
    proxy.freeze();
    following.disconnected().await;
    assert!(frozen.elapsed().as_secs() <= 15, "{:?}", frozen.elapsed());
    proxy.cut();
    proxy.mend();
    put(&mut admin, "tiers/a").await;
    assert_eq!(following.changes(1).await, ["+tiers/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_is_not_given_up() {
    let etcd = Etcd::start().await;
    let mut following = Following::start(etcd.store().await);
    following.snapshot().await;
    let quiet = timeout(std::time::Duration::from_secs(14), following.events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_way_to_etcd_breaks_another_is_taken() {
    let etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    put(&mut admin, "tiers/0").await;
    let (first, second) = (Proxy::to(etcd.port()).await, Proxy::to(etcd.port()).await);
    let mut wanted = options(&first.endpoint());
    wanted.endpoints.push(second.endpoint());
    let mut following = Following::start(Store::connect(&wanted).await.unwrap());
    following.snapshot().await;
    first.cut();
    following.disconnected().await;
    put(&mut admin, "tiers/a").await;
    assert_eq!(following.changes(1).await, ["+tiers/a"]);
    first.mend();
    second.cut();
    following.disconnected().await;
    put(&mut admin, "tiers/b").await;
    assert_eq!(following.changes(1).await, ["+tiers/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_whether_it_goes_on_from_what_was_known() {
    let mut etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    for i in 0..20 {
        put(&mut admin, &format!("tiers/a{i:02}")).await;
    }
    let proxy = Proxy::to(etcd.port()).await;
    let mut following = Following::start(Store::connect(&options(&proxy.endpoint())).await.unwrap());
    assert_eq!(following.history().await, (20, false));
    proxy.cut();
    put(&mut admin, "tiers/b").await;
    let revision = admin.get("x", None).await.unwrap().header().unwrap().revision();
    admin.compact(revision, None).await.unwrap();
    proxy.mend();
    assert_eq!(following.history().await, (21, false), "compacted");
    // Wiped: shorter than what was followed, then longer.
    for writes in [1, 60] {
        proxy.cut();
        etcd.wipe();
        etcd.restart();
        etcd.ready().await;
        let mut admin = etcd.admin().await;
        for i in 0..writes {
            put(&mut admin, &format!("tiers/of-{writes}-{i:02}")).await;
        }
        proxy.mend();
        assert_eq!(following.history().await, (writes, true), "wiped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_put_back_is_another_history_however_far_its_revision_is() {
    // As `etcdutl snapshot restore --bump-revision --mark-compacted` leaves it: the cluster's id is the old one, the revision is
    // ahead of all that was followed, and what lies behind it is compacted away. No key has changed, one is missing.
    let mut etcd = Etcd::start().await;
    let mut admin = etcd.admin().await;
    for i in 0..20 {
        put(&mut admin, &format!("tiers/a{i:02}")).await;
    }
    etcd.back_up();
    put(&mut admin, "tiers/b").await;
    let proxy = Proxy::to(etcd.port()).await;
    let store = || async { Store::connect(&options(&proxy.endpoint())).await.unwrap() };
    let mut following = Following::start(store().await);
    assert_eq!(following.history().await, (21, false));
    let known = store().await.list(RESOURCES).await.unwrap().past();
    proxy.cut();
    etcd.put_back();
    etcd.restart();
    etcd.ready().await;
    let mut admin = etcd.admin().await;
    for _ in 0..60 {
        admin.put("/elsewhere", "x", None).await.unwrap();
    }
    let revision = admin.get("x", None).await.unwrap().header().unwrap().revision();
    assert!(revision > known.revision);
    admin.compact(revision, None).await.unwrap();
    proxy.mend();
    assert_eq!(following.history().await, (20, true));
    // A process that starts now goes by what an earlier one knew, also with a list that it brings along.
    let list = store().await.list(RESOURCES).await.unwrap();
    for (listed, left, forgetful) in
        [(None, Some(known), true), (Some(list), Some(known), true), (None, None, false)]
    {
        let mut next = Following::start_with(store().await, listed, left);
        assert_eq!(next.history().await, (20, forgetful));
    }
}
