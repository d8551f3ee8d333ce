//! The node's subnet lease: which subnet to take (`choose`), how not to overlap another (`guard`), taking it (`manager`) and keeping it (`keep`). No other key under `<prefix>/subnets` is ever created, changed or
//! deleted: a key there that flanneld cannot read makes every flanneld drop all its peers.

mod choose;
mod guard;
mod hold;
mod keep;
mod manager;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{BackendKind, LeaseValue, NetworkConfig, Owner, StoreError, json::Json};

pub use manager::LeaseManager;

/// What this node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    pub public_ip: Ipv4Addr,
    pub backend: BackendKind,
    pub node: String,
    pub machine: String,
}

impl Attributes {
    pub fn owner(&self) -> Owner<'_> {
        Owner { node: &self.node, machine: &self.machine, public_ip: Some(self.public_ip) }
    }

    /// The value of our key; `extra` are the members of the present value that are not ours to drop.
    fn value(&self, extra: Vec<(String, Json)>) -> LeaseValue {
        LeaseValue {
            node: Some(self.node.clone()),
            machine: Some(self.machine.clone()),
            extra,
            ..LeaseValue::new(self.public_ip, self.backend)
        }
    }
}

/// What a lease is taken and kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub network: NetworkConfig,
    pub attributes: Attributes,
}

/// A subnet that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub subnet: Ipv4Net,
    /// Where it stands in etcd.
    pub key: String,
    /// An administrator's: no etcd lease, never expires, and we keep it so.
    pub reservation: bool,
    pub mod_revision: i64,
    /// Id of the etcd lease, 0 for a reservation.
    pub etcd_lease: i64,
    ttl_seconds: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The lease is ours: at the start, after a loss that ended well, or as a reservation from now on.
    Held(Lease),
    /// It is not ours at the moment, and why. The manager is already trying to get it back.
    Lost { reason: String },
    /// Ours again, but with another subnet than before.
    Moved(Lease),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error(
        "no free /{subnet_len} subnet in {network}: all {total} are leased; remove leases of dead nodes under {subnets}, or use a larger Network"
    )]
    OutOfSubnets { network: Ipv4Net, subnet_len: u8, total: usize, subnets: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}
