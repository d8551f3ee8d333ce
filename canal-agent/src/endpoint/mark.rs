//! The alias of a pod's host interface, by which plugin and agent know whose it is, and a person reads it in
//! `ip -d link`: `canal <container> <interface> <network> [<namespace>/<pod>]`.

use crate::api::wire::{AddEndpoint, AttachmentId};

/// The kernel's limit for an alias, in bytes.
const ALIAS_MAX: usize = 255;
const WORD: &str = "canal";

/// The alias for an endpoint's interface.
pub fn mark(endpoint: &AddEndpoint) -> String {
    let mut mark = format!("{WORD} {} {}", endpoint.container_id, endpoint.interface);
    let pod = endpoint.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
    // What does not fit is only for people, or for GC, which then finds the endpoint by its record.
    for word in [Some(endpoint.network.clone()), pod].into_iter().flatten() {
        if mark.len() + 1 + word.len() > ALIAS_MAX {
            break;
        }
        mark = format!("{mark} {word}");
    }
    mark
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked<'a> {
    pub container_id: &'a str,
    pub interface: &'a str,
    pub network: Option<&'a str>,
}

/// Reads an alias; `None`: somebody else's, or no mark.
pub fn read(alias: &str) -> Option<Marked<'_>> {
    let mut words = alias.split(' ');
    if words.next() != Some(WORD) {
        return None;
    }
    Some(Marked { container_id: words.next()?, interface: words.next()?, network: words.next() })
}

/// Whether an alias is the attachment's mark.
pub fn is_of(alias: Option<&str>, id: &AttachmentId) -> bool {
    alias.and_then(read).is_some_and(|m| m.container_id == id.container_id && m.interface == id.interface)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::registry::tests::endpoint;
    use crate::model::Pod;

    #[test]
    fn a_mark_names_the_pod_and_is_read_back_and_nothing_else_is_one() {
        let mut pod = endpoint("c0ffee");
        assert_eq!(mark(&pod), "canal c0ffee eth0 canal");
        pod.pod = Some(Pod { namespace: "shop".into(), name: "web-0".into(), ..Pod::default() });
        assert_eq!(mark(&pod), "canal c0ffee eth0 canal shop/web-0");
        let wanted = Marked { container_id: "c0ffee", interface: "eth0", network: Some("canal") };
        assert_eq!(read(&mark(&pod)), Some(wanted));
        assert!(is_of(Some("canal c0ffee eth0"), &pod.id()), "as earlier versions wrote it");
        assert!(!is_of(Some("canal c0ffee eth01 canal"), &pod.id()));
        for alias in ["", "canal", "canal c0ffee", "canalx c0ffee eth0", "uplink of rack 7"] {
            assert!(!is_of(Some(alias), &pod.id()), "{alias}");
        }
        pod.network = "n".repeat(240);
        assert_eq!(mark(&pod), "canal c0ffee eth0", "what does not fit is left out");
    }
}
