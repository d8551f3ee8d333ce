//! Names for the host's end of a pod's pair: Calico's where it is free, so that every tool finds the pod, and others
//! behind it.
//!
//! Calico's name for a container that is no pod of Kubernetes is the beginning of its id, which two containers can
//! share: the second must not take the first one's interface away.

use sha1::{Digest as _, Sha1};

use super::{
    error::{CniError, Code},
    request::{Attachment, Environment, PodName},
};
use crate::netlink::NAME_MAX;

/// Host ends are called this and something of the container.
pub const HOST_PREFIX: &str = "cali";
/// Calico's plugin takes another prefix from here.
const PREFIX_VARIABLE: &str = "FELIX_INTERFACEPREFIX";
/// How much of an identifier goes into a name.
const SUFFIX_MAX: usize = 11;
/// How many names to try.
const NAMES: u8 = 8;

/// In the order in which they are tried.
pub(super) fn names(
    environment: &Environment,
    attachment: &Attachment,
    pod: Option<&PodName>,
) -> Result<Vec<String>, CniError> {
    let prefix = prefix(environment)?;
    // Everything here is ASCII, so this cuts no character.
    let name = |suffix: &str| format!("{prefix}{}", suffix.get(..SUFFIX_MAX).unwrap_or(suffix));
    let id = &attachment.container_id;
    let calicos = match pod {
        Some(PodName { namespace, name, .. }) => digest(&[namespace, ".", name]),
        None => id.clone(),
    };
    let others = (1..NAMES).map(|n| digest(&[id, "/", &attachment.interface, "/", &n.to_string()]));
    Ok(std::iter::once(calicos).chain(others).map(|suffix| name(&suffix)).collect())
}

/// What the names of host ends begin with.
pub(super) fn prefix(environment: &Environment) -> Result<&str, CniError> {
    let said = environment.get(PREFIX_VARIABLE).and_then(|list| list.split(',').next()).map(str::trim);
    let Some(prefix) = said.filter(|prefix| !prefix.is_empty()) else { return Ok(HOST_PREFIX) };
    let legal = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    // Enough of a digest that pods do not meet by chance.
    if legal && prefix.len() + SUFFIX_MAX <= NAME_MAX {
        return Ok(prefix);
    }
    let msg = format!("{PREFIX_VARIABLE} begins with {prefix:?}");
    let hint = "host interfaces have at most 15 bytes, 11 of them of the pod: want up to four letters, digits, `_`, `.` \
                and `-`, the same as the agent's InterfacePrefix";
    Err(CniError::new(Code::InvalidEnvironment, msg, hint))
}

/// In hexadecimal. Calico's choice of SHA-1; nothing here is a secret.
fn digest(parts: &[&str]) -> String {
    use std::fmt::Write as _;
    let mut sha = Sha1::new();
    for part in parts {
        sha.update(part);
    }
    sha.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(container: &str, pod: Option<(&str, &str)>, prefix: &str) -> Result<Vec<String>, CniError> {
        let attachment = Attachment {
            container_id: container.to_owned(),
            interface: "eth0".to_owned(),
            netns: None,
            path: Vec::new(),
        };
        let pod = pod.map(|(namespace, name)| PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            infra_container_id: None,
        });
        let environment = [(PREFIX_VARIABLE.to_owned(), prefix.to_owned())].into();
        names(&environment, &attachment, pod.as_ref())
    }

    #[test]
    fn the_first_name_is_calicos() {
        assert_eq!(of("0123456789abcdef", None, "").unwrap()[0], "cali0123456789a");
        assert_eq!(of("ca", None, "").unwrap()[0], "calica");
        for (namespace, name, wanted) in [
            ("shop", "web-0", "calia4fc3c48bd8"),
            ("default", "web-0", "cali0d7763386da"),
            ("kube-system", "dns-7f", "cali370a887ed0d"),
        ] {
            assert_eq!(of("0123456789abcdef", Some((namespace, name)), "").unwrap()[0], wanted);
        }
        assert_eq!(of("0123456789abcdef", None, "eni,cali").unwrap()[0], "eni0123456789a");
    }

    #[test]
    fn containers_that_share_the_beginning_of_their_ids_share_no_other_name() {
        let (one, other) = (of("0123456789a-1", None, "").unwrap(), of("0123456789a-2", None, "").unwrap());
        assert_eq!(one[0], other[0]);
        let all: std::collections::BTreeSet<_> = one.iter().chain(&other).collect();
        assert_eq!(all.len(), 15);
        assert!(all.iter().all(|name| name.len() <= 15 && name.starts_with("cali")));
    }

    #[test]
    fn a_prefix_that_leaves_no_room_is_refused() {
        for prefix in ["toolong", "a/b", "a b"] {
            let error = of("ca", None, prefix).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.msg.contains(prefix), "{error}");
        }
    }
}
