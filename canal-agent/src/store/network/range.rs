//! Which subnets a network hands out: one arithmetic for both families.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::NetworkError;

/// Names and limits that differ between the families.
#[derive(Debug)]
pub(super) struct Family {
    bits: u8,
    /// Longest prefix that can still be shared by nodes when no length is given.
    longest_network: u8,
    longest_subnet: u8,
    /// The usual subnet, given to networks at least two bits shorter.
    usual_subnet: u8,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    show: fn(u128) -> String,
}

pub(super) const IPV4: Family = Family {
    bits: 32,
    longest_network: 28,
    longest_subnet: 30,
    usual_subnet: 24,
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    show: |value| u32::try_from(value).map_or_else(|_| value.to_string(), |v| Ipv4Addr::from(v).to_string()),
};

pub(super) const IPV6: Family = Family {
    bits: 128,
    longest_network: 124,
    longest_subnet: 126,
    usual_subnet: 64,
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    show: |value| Ipv6Addr::from(value).to_string(),
};

/// What the configuration says; addresses as numbers, `base` without host bits, length 0 for "not given".
#[derive(Debug)]
pub(super) struct Given {
    pub(super) base: u128,
    pub(super) network_len: u8,
    pub(super) subnet_len: u64,
    pub(super) min: Option<u128>,
    pub(super) max: Option<u128>,
}

/// Subnets of `len` from `min` to `max`, both aligned and inside the network.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) len: u8,
    pub(super) min: u128,
    pub(super) max: u128,
}

impl Family {
    /// Flannel's rules in flannel's order, and one of ours: min is not above max.
    pub(super) fn derive(&self, given: &Given) -> Result<Range, NetworkError> {
        let network = format!("{}/{}", (self.show)(given.base), given.network_len);
        let len = self.subnet_len(given, &network)?;
        let subnet = 1u128 << (self.bits - len);
        // A subnet length was found, so the network has at least two bits to share and these sums cannot overflow.
        let host_bits = self.bits - given.network_len;
        let last_address = given.base | (u128::MAX >> (128 - u32::from(host_bits)));
        let default_max = last_address - (subnet - 1);
        let min = given.min.unwrap_or(given.base + subnet);
        let max = given.max.unwrap_or(default_max);
        for (field, at) in [(self.min, min), (self.max, max)] {
            if !(given.base..=last_address).contains(&at) {
                return Err(NetworkError::Outside { field, address: (self.show)(at), network });
            }
        }
        for (field, at) in [(self.min, min), (self.max, max)] {
            let aligned = at & !(subnet - 1);
            if at != aligned {
                let (address, aligned) = ((self.show)(at), (self.show)(aligned));
                return Err(NetworkError::NotAligned { field, address, len, aligned });
            }
        }
        if min > max {
            return Err(NetworkError::MinAboveMax {
                min_field: self.min,
                min: (self.show)(min),
                max_field: self.max,
                max: (self.show)(max),
            });
        }
        Ok(Range { len, min, max })
    }

    fn subnet_len(&self, given: &Given, network: &str) -> Result<u8, NetworkError> {
        let too_small = || NetworkError::TooSmall {
            field: self.network,
            network: network.to_owned(),
            longest: self.longest_network,
        };
        if given.subnet_len == 0 {
            return match given.network_len {
                len if len > self.longest_network => Err(too_small()),
                len if len + 2 <= self.usual_subnet => Ok(self.usual_subnet),
                len => Ok(len + 2),
            };
        }
        if given.network_len > self.longest_network {
            return Err(too_small());
        }
        // Four subnets at the least, so that skipping the first leaves some.
        let shortest = given.network_len + 2;
        u8::try_from(given.subnet_len)
            .ok()
            .filter(|len| (shortest..=self.longest_subnet).contains(len))
            .ok_or_else(|| NetworkError::SubnetLen {
                field: self.len,
                len: given.subnet_len,
                network: network.to_owned(),
                shortest,
                longest: self.longest_subnet,
            })
    }
}
