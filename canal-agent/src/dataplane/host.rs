//! `LOCAL_IPS`: the addresses of this node, which pods may be kept from.

use std::{collections::BTreeSet, net::Ipv4Addr};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError},
};
use canal_common::{
    Ip4,
    host::{LocalIp, MAX_LOCAL_IPS},
    names,
};
use ipnet::Ipv4Net;

use super::tables::{absent_is_fine, take};

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "this node has {0} addresses and {MAX_LOCAL_IPS} fit in LOCAL_IPS: pods can reach the others although they may not \
         reach the node; remove addresses from it"
    )]
    Full(usize),
    #[error("cannot write LOCAL_IPS: {0}")]
    Write(#[from] MapError),
}

pub struct HostAddresses {
    table: BpfHashMap<MapData, Ip4, LocalIp>,
    /// What the kernel holds.
    programmed: BTreeSet<Ipv4Addr>,
}

impl HostAddresses {
    /// Reads back what an earlier process programmed.
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let table: BpfHashMap<_, Ip4, LocalIp> = take(ebpf, names::LOCAL_IPS)?;
        let programmed = table.keys().map(|key| key.map(Ipv4Addr::from)).collect::<Result<_, _>>()?;
        Ok(Self { table, programmed })
    }

    /// Makes the table hold `wanted`; what is right is not touched. Of too many, the lowest are held. Tells whether anything
    /// changed.
    pub fn apply(&mut self, wanted: &BTreeSet<Ipv4Addr>) -> Result<bool, HostError> {
        let changed = *wanted != self.programmed;
        // Removals first: they make room.
        for addr in self.programmed.difference(wanted).copied().collect::<Vec<_>>() {
            absent_is_fine(self.table.remove(&addr.into()))?;
            self.programmed.remove(&addr);
        }
        for addr in wanted.difference(&self.programmed).copied().collect::<Vec<_>>() {
            if self.programmed.len() >= MAX_LOCAL_IPS as usize {
                return Err(HostError::Full(wanted.len()));
            }
            self.table.insert(Ip4::from(addr), LocalIp::default(), 0)?;
            self.programmed.insert(addr);
        }
        Ok(changed)
    }
}

/// The addresses at which a host with these interface addresses listens: its own, and the broadcast of each network.
pub fn addresses_of(interfaces: impl IntoIterator<Item = Ipv4Net>) -> BTreeSet<Ipv4Addr> {
    interfaces
        .into_iter()
        .flat_map(|net| {
            // RFC 3021: a network of two addresses has no broadcast.
            let broadcast = (net.prefix_len() < 31).then(|| net.broadcast());
            [Some(net.addr()), broadcast]
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_listens_at_its_addresses_and_the_broadcasts_of_its_networks() {
        let nets = ["192.168.50.1/24", "10.77.12.0/32", "10.1.2.2/31", "127.0.0.1/8"];
        let found = addresses_of(nets.iter().map(|net| net.parse().unwrap()));
        let expected =
            ["192.168.50.1", "192.168.50.255", "10.77.12.0", "10.1.2.2", "127.0.0.1", "127.255.255.255"];
        assert_eq!(found, expected.iter().map(|addr| addr.parse().unwrap()).collect());
    }
}
