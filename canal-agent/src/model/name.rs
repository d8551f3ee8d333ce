//! What names may look like. Calico's clients check before they write; other writers may not.

/// DNS-1123 label: what a tier is called.
pub fn is_label(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| edge(byte) || byte == b'-')
        && text.bytes().next().is_some_and(edge)
        && text.bytes().last().is_some_and(edge)
}

/// DNS-1123 subdomain: what a policy is called, in every era of their names. Unlike a label of its own, one between
/// dots may be longer than 63 bytes.
pub fn is_subdomain(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|part| {
            part.bytes().all(|byte| edge(byte) || byte == b'-')
                && part.bytes().next().is_some_and(edge)
                && part.bytes().last().is_some_and(edge)
        })
}

pub fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A named port.
pub fn is_port(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_calicos_clients_let_pass() {
        for name in ["a", "allow-web", "knp.default.allow-web", "edge.block-bad", "0", &"a".repeat(253)] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in ["", "A", "a_b", "-a", "a-", "a.", ".a", "a..b", "a.-b", "ä", &"a".repeat(254)] {
            assert!(!is_subdomain(name), "{name}");
        }
        assert!(is_label("kube-admin") && is_label(&"a".repeat(63)));
        for name in ["", "a.b", "A", "-a", "a-", &"a".repeat(64)] {
            assert!(!is_label(name), "{name}");
        }
        for name in ["eth0", "cali0d7763386da", "eth0.100", "A_b-c"] {
            assert!(is_interface(name), "{name}");
        }
        for name in ["", "*", "a/b", "a b", "a:b", "cali0d7763386da0"] {
            assert!(!is_interface(name), "{name}");
        }
    }
}
