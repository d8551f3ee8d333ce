//! Where things are in etcd: flannel's prefix and the spelling of subnet keys, and Calico's resource tree.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Serialize, Serializer};

/// Calico's v3 resources; `<plural>/[<namespace>/]<name>` follows.
pub const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";

/// Flannel's prefix, cleaned the way flannel joins paths: no doubled, trailing or dotted segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPrefix(String);

/// The prefix would make us watch the whole store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "etcd prefix {0:?} is empty: name the folder of the network's keys, for instance /coreos.com/network"
)]
pub struct EmptyPrefix(String);

impl EtcdPrefix {
    pub fn new(text: &str) -> Result<Self, EmptyPrefix> {
        let mut segments = Vec::new();
        for segment in text.trim().split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                _ => segments.push(segment),
            }
        }
        if segments.is_empty() {
            return Err(EmptyPrefix(text.to_owned()));
        }
        let root = if text.trim().starts_with('/') { "/" } else { "" };
        Ok(Self(format!("{root}{}", segments.join("/"))))
    }

    /// The network configuration.
    pub fn config(&self) -> String {
        format!("{}/config", self.0)
    }

    /// All subnet leases: a prefix that ends in a slash.
    pub fn subnets(&self) -> String {
        format!("{}/subnets/", self.0)
    }

    /// Everything of this network: a prefix that ends in a slash.
    pub fn all(&self) -> String {
        format!("{}/", self.0)
    }

    pub fn subnet(&self, key: &SubnetKey) -> String {
        format!("{}{key}", self.subnets())
    }

    /// What `key` leases, if it is a subnet key of this network.
    pub fn parse_subnet(&self, key: &str) -> Option<Result<SubnetKey, BadSubnetKey>> {
        key.strip_prefix(&self.subnets()).map(str::parse)
    }
}

impl fmt::Display for EtcdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for EtcdPrefix {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// The last segment of a lease's key: `10.77.12.0-24` or `10.77.12.0-24&fd42:9:0:7::-64`.
///
/// The address is kept as spelled: flannel accepts one with host bits, and the key must be written back as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    pub v4: Ipv4Net,
    pub v6: Option<Ipv6Net>,
}

/// Flannel would not take this for a lease either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is not a subnet key: {reason} (want 10.77.12.0-24 or 10.77.12.0-24&fd42:9:0:7::-64)")]
pub struct BadSubnetKey {
    key: String,
    reason: &'static str,
}

impl SubnetKey {
    pub fn v4(subnet: Ipv4Net) -> Self {
        Self { v4: subnet, v6: None }
    }

    /// The IPv4 subnet with its host bits cleared.
    pub fn subnet(&self) -> Ipv4Net {
        self.v4.trunc()
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        let Some(v6) = self.v6 else { return Ok(()) };
        match v6.addr().to_ipv4_mapped() {
            // The usual dotted form could not be read back: flannel's pattern has no dots there.
            Some(_) => {
                let [.., high, low] = v6.addr().segments();
                write!(f, "&::ffff:{high:x}:{low:x}-{}", v6.prefix_len())
            }
            None => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
        }
    }
}

/// Flannel searches its pattern at the end of the key and does not anchor the start, so leading text is no error.
impl FromStr for SubnetKey {
    type Err = BadSubnetKey;

    fn from_str(key: &str) -> Result<Self, BadSubnetKey> {
        let bad = |reason| BadSubnetKey { key: key.to_owned(), reason };
        let (v4, v6) = match key.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (key, None),
        };
        let (addr, len) = v4.rsplit_once('-').ok_or_else(|| bad("no prefix length"))?;
        let addr = trailing_quad(addr).ok_or_else(|| bad("no IPv4 address"))?;
        let addr: Ipv4Addr = addr.parse().map_err(|_| bad("no IPv4 address"))?;
        let v4 = length(len, 31)
            .and_then(|len| Ipv4Net::new(addr, len).ok())
            .ok_or_else(|| bad("the IPv4 prefix length is not 0 to 31"))?;
        let v6 = v6.map(|text| {
            let (addr, len) = text.rsplit_once('-').ok_or_else(|| bad("no IPv6 prefix length"))?;
            let lower = addr.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b':'));
            let addr: Ipv6Addr =
                addr.parse().ok().filter(|_| lower).ok_or_else(|| bad("no lower-case IPv6 address"))?;
            length(len, 127)
                .and_then(|len| Ipv6Net::new(addr, len).ok())
                .ok_or_else(|| bad("the IPv6 prefix length is not 0 to 127"))
        });
        Ok(Self { v4, v6: v6.transpose()? })
    }
}

/// The longest tail of `text` that is four groups of digits with dots between.
fn trailing_quad(text: &str) -> Option<&str> {
    let mut start = text.len();
    for group in 0..4 {
        if group > 0 {
            start = text[..start].strip_suffix('.')?.len();
        }
        let head = text[..start].trim_end_matches(|c: char| c.is_ascii_digit());
        if head.len() == start {
            return None;
        }
        start = head.len();
    }
    Some(&text[start..])
}

fn length(text: &str, max: u8) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Leading zeros are no error to flannel.
    let digits = text.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { digits.parse().ok().filter(|len| *len <= max) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_is_cleaned_as_flannel_joins_paths() {
        for (text, want) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("/coreos.com//network/", "/coreos.com/network"),
            ("//coreos.com/./x/../network//", "/coreos.com/network"),
            ("coreos.com/network", "coreos.com/network"),
        ] {
            let prefix = EtcdPrefix::new(text).unwrap();
            assert_eq!(prefix.to_string(), want, "{text}");
            assert_eq!(prefix.config(), format!("{want}/config"));
            assert_eq!(prefix.subnets(), format!("{want}/subnets/"));
        }
        for text in ["", "/", " ", "/..", "//./"] {
            assert!(EtcdPrefix::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn subnet_keys_are_read_as_flannel_reads_them() {
        for (text, v4, v6) in [
            ("10.77.12.0-24", "10.77.12.0/24", None),
            ("10.77.12.0-024", "10.77.12.0/24", None),
            ("0.0.0.0-0", "0.0.0.0/0", None),
            ("x/y10.77.12.5-31", "10.77.12.5/31", None),
            ("10.77.12.0-24&fd42:9:0:7::-64", "10.77.12.0/24", Some("fd42:9:0:7::/64")),
        ] {
            let key: SubnetKey = text.parse().unwrap();
            assert_eq!(key.v4, v4.parse().unwrap(), "{text}");
            assert_eq!(key.v6, v6.map(|net| net.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_subnet_key_is_refused_with_a_reason() {
        for text in [
            "",
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "910.12.13.0-24",
            "10.12.13.0-24x",
            "10.12.13.0-24/",
            "10.12.13.0-32",
            "10.12.13.0-",
            "10.12.13.0-+4",
            "010.12.13.0-24",
            "10..13.0-24",
            "fd42::-64",
            "&fd42::-64",
            "10.12.13.0-24&",
            "10.12.13.0-24&fd42::",
            "10.12.13.0-24&fd42::-128",
            "10.12.13.0-24&FD42::-64",
            "10.12.13.0-24&fd42:::-64",
            "10.12.13.0-24&10.0.0.0-8",
            "10.12.13.0-24&fd42::-64&fd43::-64",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_key_reads_back_as_it_was_written(
            v4: u32, len in 0u8..=31, v6 in proptest::option::of((any::<u128>(), 0u8..=127)),
        ) {
            let key = SubnetKey {
                v4: Ipv4Net::new(v4.into(), len).unwrap(),
                v6: v6.map(|(addr, len)| Ipv6Net::new(addr.into(), len).unwrap()),
            };
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<SubnetKey>();
        }

        #[test]
        fn mapped_addresses_read_back_too(v4: u32) {
            let key = SubnetKey {
                v4: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 8).unwrap(),
                v6: Some(Ipv6Net::new(Ipv4Addr::from(v4).to_ipv6_mapped(), 64).unwrap()),
            };
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
}
