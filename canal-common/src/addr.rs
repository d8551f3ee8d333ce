//! Addresses as the kernel sees them on the wire: byte arrays in network order.

use crate::abi;

/// An IPv4 address in network order. Aligned so that the kernel side loads it with one instruction.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ip4 {
    pub octets: [u8; 4],
}

impl Ip4 {
    pub const UNSPECIFIED: Self = Self { octets: [0; 4] };

    pub const fn new(octets: [u8; 4]) -> Self {
        Self { octets }
    }

    /// From four bytes as they lie in the packet.
    #[inline(always)]
    pub const fn from_wire(raw: u32) -> Self {
        Self { octets: raw.to_ne_bytes() }
    }

    /// The four bytes as they lie in the packet.
    #[inline(always)]
    pub const fn to_wire(self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }

    /// Host order: comparisons follow the numbers.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        u32::from_be_bytes(self.octets)
    }
}

/// An Ethernet address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Mac {
    pub octets: [u8; 6],
}

impl Mac {
    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets }
    }
}

/// Key of a longest-prefix table: the kernel wants the length in bits first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Prefix {
    pub bits: u32,
    pub addr: Ip4,
}

impl Prefix {
    #[inline(always)]
    pub const fn host(addr: Ip4) -> Self {
        Self { bits: 32, addr }
    }
}

abi!(Ip4 = 4 align 4, Mac = 6 align 1, Prefix = 8 align 4);

#[cfg(feature = "user")]
mod user {
    use std::{fmt, net::Ipv4Addr, str::FromStr};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{Ip4, Mac};

    impl From<Ipv4Addr> for Ip4 {
        fn from(a: Ipv4Addr) -> Self {
            Self::new(a.octets())
        }
    }

    impl From<Ip4> for Ipv4Addr {
        fn from(a: Ip4) -> Self {
            Self::from(a.octets)
        }
    }

    impl fmt::Display for Ip4 {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            Ipv4Addr::from(*self).fmt(f)
        }
    }

    impl fmt::Display for Mac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let octets = self.octets.map(|octet| format!("{octet:02x}"));
            f.write_str(&octets.join(":"))
        }
    }

    /// The text is not a MAC address.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct BadMac(pub String);

    impl fmt::Display for BadMac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?} is not a MAC address (want aa:bb:cc:dd:ee:ff)", self.0)
        }
    }

    impl std::error::Error for BadMac {}

    /// Accepts Go's three grammars: `aa:bb:cc:dd:ee:ff`, `aa-bb-cc-dd-ee-ff`, `aabb.ccdd.eeff`.
    impl FromStr for Mac {
        type Err = BadMac;

        fn from_str(s: &str) -> Result<Self, BadMac> {
            let bad = || BadMac(s.to_owned());
            let (separator, digits) = match s.as_bytes().get(2) {
                Some(b':') => (':', 2),
                Some(b'-') => ('-', 2),
                _ => ('.', 4),
            };
            let mut octets = [0; 6];
            let mut filled = 0;
            for group in s.split(separator) {
                if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(bad());
                }
                for i in (0..digits).step_by(2) {
                    let octet = octets.get_mut(filled).ok_or_else(bad)?;
                    *octet = u8::from_str_radix(&group[i..i + 2], 16).map_err(|_| bad())?;
                    filled += 1;
                }
            }
            if filled == 6 { Ok(Self { octets }) } else { Err(bad()) }
        }
    }

    impl Serialize for Mac {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for Mac {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            String::deserialize(d)?.parse().map_err(D::Error::custom)
        }
    }

    impl Serialize for Ip4 {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.collect_str(self)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn mac_reads_the_three_grammars_of_go_and_nothing_else() {
            let mac = Mac::new([0x8a, 0x10, 0x22, 0x33, 0x44, 0x55]);
            for text in ["8a:10:22:33:44:55", "8A-10-22-33-44-55", "8a10.2233.4455"] {
                assert_eq!(text.parse(), Ok(mac), "{text}");
            }
            assert_eq!(mac.to_string(), "8a:10:22:33:44:55");
            for text in [
                "",
                "8a",
                "8a:10:22:33:44",
                "8a:10:22:33:44:55:66",
                "8a:10-22:33:44:55",
                "g0:00:00:00:00:00",
                "8a:1:22:33:44:555",
                "é8:10:22:33:44:5",
            ] {
                assert!(text.parse::<Mac>().is_err(), "{text}");
            }
        }
    }
}
#[cfg(feature = "user")]
pub use user::BadMac;
