//! What a change of our own key means. Pure.

use super::{Attributes, Lease};
use crate::store::{client::Entry, lease_value::LeaseValue};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is as we wrote it.
    Unchanged,
    /// Somebody rewrote it in our name and to our liking, perhaps with another etcd lease, or as a reservation.
    Adopt,
    /// Ours, but the value is not what peers need: write it again, with the etcd lease it has now.
    Rewrite(Box<LeaseValue>),
    Lost(String),
}

/// `now` is our key as it stands in etcd.
pub(super) fn judge(lease: &Lease, want: &Attributes, now: Option<&Entry>) -> Verdict {
    let Some(now) = now else {
        return Verdict::Lost("its key was deleted, or expired".into());
    };
    if now.mod_revision == lease.mod_revision {
        return Verdict::Unchanged;
    }
    // Nobody else can claim the subnet with a value that says nothing.
    let Ok(value) = LeaseValue::parse(&now.value) else {
        return Verdict::Rewrite(Box::new(want.value(Vec::new())));
    };
    if !value.belongs_to(want.owner()) {
        let node = value.node.as_deref().unwrap_or("flanneld");
        return Verdict::Lost(format!("its key was taken over by {node} at {}", value.public_ip));
    }
    let wanted = want.value(value.extra.clone());
    if value == wanted { Verdict::Adopt } else { Verdict::Rewrite(Box::new(wanted)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BackendKind, VxlanData};

    fn want() -> Attributes {
        Attributes {
            public_ip: "192.0.2.1".parse().unwrap(),
            backend: BackendKind::Vxlan(VxlanData { vni: 1, vtep_mac: "82:d2:48:77:ea:cf".parse().unwrap() }),
            node: "n1".into(),
            machine: "m1".into(),
        }
    }

    fn judge_value(value: &[u8], mod_revision: i64) -> Verdict {
        let lease = Lease {
            subnet: "10.77.1.0/24".parse().unwrap(),
            key: "/net/subnets/10.77.1.0-24".into(),
            reservation: false,
            mod_revision: 5,
            etcd_lease: 9,
            ttl_seconds: 86_400,
        };
        let now = Entry { key: lease.key.clone(), value: value.to_vec(), mod_revision, lease: 0 };
        judge(&lease, &want(), Some(&now))
    }

    #[test]
    fn our_own_writes_and_their_echo_change_nothing() {
        assert_eq!(judge_value(b"whatever", 5), Verdict::Unchanged);
        assert_eq!(judge_value(&want().value(Vec::new()).render(), 6), Verdict::Adopt);
    }

    #[test]
    fn our_key_in_other_hands_is_lost_and_says_to_whom() {
        let named = br#"{"PublicIP":"192.0.2.1","Canal":{"Node":"n2"}}"#;
        let namesake = br#"{"PublicIP":"192.0.2.7","Canal":{"Node":"n1","Machine":"m2"}}"#;
        assert!(matches!(judge_value(namesake, 6), Verdict::Lost(why) if why.contains("n1 at 192.0.2.7")));
        let flanneld = br#"{"PublicIP":"192.0.2.7","BackendType":"vxlan"}"#;
        assert!(matches!(judge_value(named, 6), Verdict::Lost(why) if why.contains("n2 at 192.0.2.1")));
        assert!(
            matches!(judge_value(flanneld, 6), Verdict::Lost(why) if why.contains("flanneld at 192.0.2.7"))
        );
    }

    #[test]
    fn a_spoilt_value_is_written_again_and_foreign_members_stay() {
        let ours = want().value(Vec::new());
        assert_eq!(judge_value(b"{", 6), Verdict::Rewrite(Box::new(ours.clone())));
        let Verdict::Rewrite(value) = judge_value(br#"{"PublicIP":"192.0.2.1","Rack":4}"#, 6) else {
            panic!()
        };
        let text = String::from_utf8(value.render()).unwrap();
        assert!(text.ends_with(r#""Canal":{"Node":"n1","Machine":"m1"},"Rack":4}"#), "{text}");
    }
}
