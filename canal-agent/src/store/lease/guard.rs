//! What must not have been created since our list for a new subnet to be free of overlaps: expressed as prefixes
//! of keys, so that etcd compares them inside the transaction that takes the subnet. Only keys that could overlap
//! are covered, or every node that joins would make all others that join retry.

use ipnet::Ipv4Net;

/// Beyond this many prefixes one coarser prefix does.
const MOST: u32 = 16;

/// The key of any lease that overlaps `subnet` begins with `subnets` and one of these.
pub(super) fn guards(subnets: &str, subnet: Ipv4Net) -> Vec<String> {
    let len = u32::from(subnet.prefix_len());
    let base = u32::from(subnet.network());
    // Leases inside ours: their addresses share our leading octets.
    let count = |octets: u32| 1u32 << (octets * 8).saturating_sub(len);
    let fine = len.div_ceil(8).min(3);
    let octets = if count(fine) <= MOST { fine } else { len / 8 };
    let inside = (0..count(octets)).map(|i| {
        let address = base + i.checked_shl(32 - octets * 8).unwrap_or(0);
        let leading = address.to_be_bytes().into_iter().take(octets as usize);
        leading.fold(subnets.to_owned(), |text, octet| format!("{text}{octet}."))
    });
    // Leases around ours: one possible address for each shorter length.
    let around = (0..subnet.prefix_len()).filter_map(|len| {
        let wider = Ipv4Net::new(subnet.network(), len).ok()?;
        Some(format!("{subnets}{}-{len}", wider.network()))
    });
    inside.chain(around).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::SubnetKey;

    #[test]
    fn a_usual_subnet_has_few_guards_and_neighbours_have_others() {
        let guards = guards("/n/subnets/", "10.77.12.0/24".parse().unwrap());
        assert_eq!(guards[0], "/n/subnets/10.77.12.");
        assert!(guards.contains(&"/n/subnets/10.77.0.0-16".to_owned()));
        assert_eq!(guards.len(), 25);
        assert!(!guards.iter().any(|guard| "/n/subnets/10.77.13.0-24".starts_with(guard)));
    }

    proptest! {
        #[test]
        fn every_overlapping_lease_is_guarded(a: u32, len in 0u8..=30, other_len in 0u8..=31, noise: u32) {
            let subnet = Ipv4Net::new(a.into(), len).unwrap().trunc();
            // Keep the bits that both share, vary the rest: always overlapping.
            let shared = len.min(other_len);
            let mask = u32::MAX.checked_shl(32 - u32::from(shared)).unwrap_or(0);
            let other = Ipv4Net::new(((a & mask) | (noise & !mask)).into(), other_len).unwrap().trunc();
            let key = format!("/n/subnets/{}", SubnetKey::v4(other));
            let guards = guards("/n/subnets/", subnet);
            prop_assert!(guards.iter().any(|guard| key.starts_with(guard)), "{key} {guards:?}");
            prop_assert!(guards.len() <= 64);
        }
    }
}
