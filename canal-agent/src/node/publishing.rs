//! What the cluster is told of this node's pods, and when; and what it says of them.

use tokio::sync::watch;
use tracing::warn;

use super::Node;
use crate::{
    endpoint::{
        Heard,
        publish::{self, Wanted},
    },
    model::{
        EndpointKey,
        resource::{Kind, Resource},
    },
};

/// When the publisher is to hear of what has changed: once, however much that is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    #[default]
    Nothing,
    /// When it looks next: there is nothing to tell.
    Quietly,
    Now,
}

/// The way to the publisher.
#[derive(Debug)]
pub(super) struct Publishing {
    wanted: watch::Sender<Wanted>,
    due: Due,
    doubt: u64,
    /// Etcd holds something else under a key of ours.
    foreign: bool,
}

impl Publishing {
    pub(super) fn new(wanted: watch::Sender<Wanted>) -> Self {
        Self { wanted, due: Due::Nothing, doubt: 0, foreign: false }
    }

    pub(super) fn now(&mut self) {
        self.due = Due::Now;
    }

    pub(super) fn quietly(&mut self) {
        self.due = self.due.max(Due::Quietly);
    }

    /// Etcd may not hold any more what it was told.
    pub(super) fn doubt(&mut self) {
        self.doubt += 1;
    }

    /// Whoever writes under our keys may write again: now and then is often enough to write over it.
    pub(super) fn look(&mut self) {
        if std::mem::take(&mut self.foreign) {
            self.doubt();
            self.now();
        }
    }

    /// Tells what is due.
    fn tell(&mut self, wanted: impl FnOnce() -> Wanted) {
        let due = std::mem::take(&mut self.due);
        if due != Due::Nothing {
            let now = Wanted { doubt: self.doubt, ..wanted() };
            self.wanted.send_if_modified(|wanted| {
                *wanted = now;
                due == Due::Now
            });
        }
    }
}

impl Node {
    /// What etcd has said of pods that live here counts, and is kept.
    pub(super) fn hear_said(&mut self) {
        for (key, value) in self.cluster.take_said() {
            self.health.beat();
            match self.registry.hear(&key, &value) {
                Heard::Nothing => {}
                Heard::News => {
                    self.publishing.quietly();
                    self.follow_holder(key);
                }
                Heard::Foreign => self.publishing.foreign = true,
            }
        }
    }

    /// Somebody deleted this key from etcd.
    pub(super) fn hear_deleted(&mut self, key: &str) {
        let Some(Resource { kind, namespace, name }) = Resource::parse(key) else { return };
        match kind {
            // The next pod of its network needs it.
            Kind::Profile => self.publishing.doubt(),
            Kind::WorkloadEndpoint
                if self.registry.holder(&EndpointKey::new(&namespace, &name)).is_some() =>
            {
                warn!(key, "somebody deleted an endpoint of ours from etcd; publishing it again");
                self.publishing.doubt();
                self.publishing.now();
            }
            _ => {}
        }
    }

    /// Tells the publisher what is due. After the kernel has followed: what it refused is not told.
    pub(super) fn publish(&mut self) {
        let Self { publishing, registry, config, cluster, .. } = self;
        publishing.tell(|| Wanted {
            present: registry.present().map(|(key, record)| (key.clone(), record.clone())).collect(),
            past: registry
                .leaving()
                .chain(registry.former().map(|(key, record)| (key.clone(), record)))
                .map(|(key, record)| (key, record.clone()))
                .collect(),
            node: config.node_name.clone(),
            without_profile: publish::made_otherwise(cluster),
            ..Wanted::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::default()
    }

    #[test]
    fn however_much_changes_the_publisher_hears_once_and_of_what_is_no_news_to_etcd_when_it_looks() {
        let (sender, mut heard) = watch::channel(wanted());
        let mut publishing = Publishing::new(sender);
        publishing.tell(|| unreachable!("nothing is due"));
        for _ in 0..3 {
            publishing.now();
            publishing.quietly();
        }
        let mut made = 0;
        for _ in 0..2 {
            publishing.tell(|| {
                made += 1;
                wanted()
            });
        }
        assert_eq!(made, 1);
        assert!(heard.has_changed().unwrap());
        heard.mark_unchanged();
        publishing.quietly();
        publishing.tell(|| Wanted { node: "n".to_owned(), ..wanted() });
        assert!(!heard.has_changed().unwrap());
        assert_eq!(heard.borrow_and_update().node, "n");
    }

    #[test]
    fn what_others_write_under_our_keys_is_looked_at_only_now_and_then() {
        let (sender, mut heard) = watch::channel(wanted());
        let mut publishing = Publishing::new(sender);
        publishing.look();
        publishing.foreign = true;
        publishing.tell(|| unreachable!("not at once"));
        publishing.look();
        publishing.tell(wanted);
        assert_eq!((heard.has_changed().unwrap(), heard.borrow_and_update().doubt), (true, 1));
        publishing.look();
        publishing.tell(|| unreachable!("once"));
    }
}
