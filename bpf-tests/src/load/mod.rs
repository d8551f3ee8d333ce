//! Load generators: how fast one path is, measured from inside its two ends.
//!
//! Promises: the same system calls on the same two processors for every path, so that figures of one run compare; a
//! path that does not carry the traffic is an error, never a small figure. Does not: know what lies between the ends,
//! nor repeat, compare or judge.

mod bulk;
mod connections;
mod datagrams;
mod flood;
mod inject;
mod round_trips;
mod seat;
mod sink;
mod steady;
mod stream;

use std::time::Duration;

pub use bulk::{Bulk, Congestion, bulk};
pub use connections::{Connections, connections};
pub use datagrams::{Datagrams, Receiver, datagrams};
pub use flood::{Flood, NewFlows, flood, new_flows};
pub use inject::{Entrance, injected};
pub use round_trips::{RoundTrips, round_trips};
pub use seat::go_first;
pub use steady::{Steady, SteadyFlows};
pub use stream::{Numbered, Stream};

use crate::probe::Host;

/// The ends of what is measured.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// Sends, or connects.
    pub from: &'a (dyn Host + Sync),
    /// Receives, or accepts.
    pub to: &'a (dyn Host + Sync),
}

/// Without progress for this long a path counts as broken.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before a measurement: congestion windows open, caches fill, flows become established.
const WARM_UP: Duration = Duration::from_millis(100);

/// What overflows in a receiver's buffer says something about its turn on its processor, and nothing about the path.
const RECEIVE_BUFFER: usize = 16 << 20;

/// What the rows of one run use; nothing else listens in these namespaces.
mod port {
    pub(super) const BULK: u16 = 20_001;
    pub(super) const DATAGRAMS: u16 = 20_002;
    pub(super) const ROUND_TRIPS: u16 = 20_003;
    pub(super) const CONNECTIONS: u16 = 20_004;
    pub(super) const STEADY: u16 = 20_005;
    pub(super) const STREAM: u16 = 20_006;
}

/// Every port that the generators send to, first and last: for policies that let just this traffic pass.
pub const PORTS: (u16, u16) = (port::BULK, port::STREAM);
