//! What flanneld leaves on a node when it stops, and what it wants to find when it starts.
//!
//! Owns: telling what is flannel's, and taking it away once ours stands, or making it again for the way back.
//! Promises: nothing that flannel did not make is touched, and nothing at all while a flanneld runs.
//! Does not: decide when ([`crate::node`], [`crate::rollback`]).

pub mod daemon;
pub mod device;
pub mod firewall;
pub mod peers;
