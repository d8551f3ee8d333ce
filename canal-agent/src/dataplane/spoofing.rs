//! `SPOOFABLE`: the source addresses that pods may use besides their own (Calico's `allowSpoofedSourcePrefixes`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, lpm_trie::Key},
};
use canal_common::{
    endpoint::{BorrowedSource, Borrower, MAX_SPOOFABLE},
    names,
};
use ipnet::Ipv4Net;

use super::tables::{absent_is_fine, take};

#[derive(Debug, thiserror::Error)]
pub enum SpoofingError {
    #[error(
        "the pods of this node have {0} prefixes in allowSpoofedSourcePrefixes and {MAX_SPOOFABLE} fit: what pods send from \
         the others is dropped (spoofed-ip); give them fewer"
    )]
    Full(usize),
    #[error("cannot write SPOOFABLE: {0}")]
    Write(#[from] MapError),
}

/// Host side of a pod's veth and prefix → the pod's own address.
pub type Borrowed = BTreeMap<(u32, Ipv4Net), Ipv4Addr>;

pub struct Spoofing {
    table: LpmTrie<MapData, BorrowedSource, Borrower>,
    /// What the kernel holds.
    programmed: Borrowed,
}

impl Spoofing {
    /// Reads back what an earlier process programmed.
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let table: LpmTrie<_, BorrowedSource, Borrower> = take(ebpf, names::SPOOFABLE)?;
        let mut programmed = BTreeMap::new();
        for entry in &table {
            let (key, Borrower { addr: own }) = entry?;
            let BorrowedSource { ifindex, addr } = key.data();
            let bits = key.prefix_len().saturating_sub(BorrowedSource::INTERFACE_BITS);
            if let Ok(net) = Ipv4Net::new(addr.into(), u8::try_from(bits).unwrap_or(u8::MAX)) {
                programmed.insert((ifindex, net), own.into());
            }
        }
        Ok(Self { table, programmed })
    }

    /// Makes the table hold `wanted`; what is right is not touched. Says which pods, by their own addresses, have lost a
    /// prefix: their flows are to be judged again ([`super::tables::Tables::bump_generation`]), else those with a borrowed
    /// source go on.
    pub fn apply(&mut self, wanted: &Borrowed) -> Result<BTreeSet<Ipv4Addr>, SpoofingError> {
        let mut lost = BTreeSet::new();
        // Removals first: they make room.
        let gone = self.programmed.iter().filter(|(source, own)| wanted.get(source) != Some(own));
        for (source, own) in gone.map(|(source, own)| (*source, *own)).collect::<Vec<_>>() {
            absent_is_fine(self.table.remove(&key(source)))?;
            self.programmed.remove(&source);
            lost.insert(own);
        }
        for (source, own) in wanted {
            if self.programmed.contains_key(source) {
                continue;
            }
            if self.programmed.len() >= MAX_SPOOFABLE as usize {
                return Err(SpoofingError::Full(wanted.len()));
            }
            self.table.insert(&key(*source), Borrower { addr: (*own).into() }, 0)?;
            self.programmed.insert(*source, *own);
        }
        Ok(lost)
    }
}

fn key((ifindex, net): (u32, Ipv4Net)) -> Key<BorrowedSource> {
    let bits = BorrowedSource::INTERFACE_BITS + u32::from(net.prefix_len());
    Key::new(bits, BorrowedSource { ifindex, addr: net.network().into() })
}
