//! The hooks, each readable top to bottom as what happens to a packet there.

pub mod from_overlay;
pub mod from_pod;
pub mod from_wire;
pub mod to_overlay;
pub mod to_pod;
pub mod xdp_wire;
