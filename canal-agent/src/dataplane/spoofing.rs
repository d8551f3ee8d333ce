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

pub struct Spoofing<T = LpmTrie<MapData, BorrowedSource, Borrower>> {
    table: T,
    /// What the kernel holds.
    programmed: Borrowed,
    /// Pods, by their own addresses, that have lost a prefix and whose flows are yet to be judged again.
    lost: BTreeSet<Ipv4Addr>,
}

/// `SPOOFABLE`, or what stands for it.
trait Table {
    fn insert(&mut self, source: (u32, Ipv4Net), own: Ipv4Addr) -> Result<(), MapError>;
    /// What is absent is removed.
    fn remove(&mut self, source: (u32, Ipv4Net)) -> Result<(), MapError>;
}

impl Table for LpmTrie<MapData, BorrowedSource, Borrower> {
    fn insert(&mut self, source: (u32, Ipv4Net), own: Ipv4Addr) -> Result<(), MapError> {
        LpmTrie::insert(self, &key(source), Borrower { addr: own.into() }, 0)
    }

    fn remove(&mut self, source: (u32, Ipv4Net)) -> Result<(), MapError> {
        absent_is_fine(LpmTrie::remove(self, &key(source)))
    }
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
        Ok(Self { table, programmed, lost: BTreeSet::new() })
    }
}

#[expect(private_bounds, reason = "there is one table outside the tests")]
impl<T: Table> Spoofing<T> {
    /// Makes the table hold `wanted`; what is right is not touched. Also when that fails, some pods may have lost a
    /// prefix: [`Spoofing::judge_lost`] is to follow.
    pub fn apply(&mut self, wanted: &Borrowed) -> Result<(), SpoofingError> {
        // Removals first: they make room.
        let gone = self.programmed.iter().filter(|(source, own)| wanted.get(source) != Some(own));
        for (source, own) in gone.map(|(source, own)| (*source, *own)).collect::<Vec<_>>() {
            self.table.remove(source)?;
            self.programmed.remove(&source);
            self.lost.insert(own);
        }
        for (source, own) in wanted {
            if self.programmed.contains_key(source) {
                continue;
            }
            if self.programmed.len() >= MAX_SPOOFABLE as usize {
                return Err(SpoofingError::Full(wanted.len()));
            }
            self.table.insert(*source, *own)?;
            self.programmed.insert(*source, *own);
        }
        Ok(())
    }

    /// Has the flows of the pods that have lost a prefix judged again ([`super::tables::Tables::bump_generation`]), else
    /// those with a borrowed source go on. Who fails is asked about again the next time.
    pub fn judge_lost<E>(&mut self, mut judge_again: impl FnMut(Ipv4Addr) -> Result<(), E>) -> Result<(), E> {
        while let Some(addr) = self.lost.first() {
            judge_again(*addr)?;
            self.lost.pop_first();
        }
        Ok(())
    }
}

fn key((ifindex, net): (u32, Ipv4Net)) -> Key<BorrowedSource> {
    let bits = BorrowedSource::INTERFACE_BITS + u32::from(net.prefix_len());
    Key::new(bits, BorrowedSource { ifindex, addr: net.network().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table in which one prefix cannot be touched.
    struct Stuck(Ipv4Net);

    impl Stuck {
        fn touch(&self, net: Ipv4Net) -> Result<(), MapError> {
            if net == self.0 { Err(MapError::ElementNotFound) } else { Ok(()) }
        }
    }

    impl Table for Stuck {
        fn insert(&mut self, (_, net): (u32, Ipv4Net), _: Ipv4Addr) -> Result<(), MapError> {
            self.touch(net)
        }

        fn remove(&mut self, (_, net): (u32, Ipv4Net)) -> Result<(), MapError> {
            self.touch(net)
        }
    }

    #[test]
    fn who_lost_a_prefix_before_something_failed_is_judged_again_until_that_works() {
        let own = Ipv4Addr::new(10, 0, 0, 1);
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let stuck = net("192.0.2.2/32");
        let programmed = [((1, net("192.0.2.1/32")), own), ((1, stuck), own)].into();
        let mut spoofing = Spoofing { table: Stuck(stuck), programmed, lost: BTreeSet::new() };
        spoofing.apply(&Borrowed::new()).unwrap_err();
        assert_eq!(spoofing.judge_lost(Err), Err(own));
        let mut judged = Vec::new();
        for _ in 0..2 {
            let judge = |addr| {
                judged.push(addr);
                Ok::<_, ()>(())
            };
            spoofing.judge_lost(judge).unwrap();
        }
        assert_eq!(judged, [own]);
    }
}
