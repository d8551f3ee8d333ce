//! Canal's user space. The modules stand in the order in which data flows:
//!
//! ```text
//! store → model → compile → dataplane → (kernel maps)
//!   cni → api → endpoint ↗
//! ```
//!
//! `model` and `compile` are pure: no tokio, no aya, no clock, no I/O.

pub mod api;
pub mod app;
pub mod cleanup;
pub mod cni;
pub mod compile;
pub mod config;
pub mod ctl;
pub mod dataplane;
pub mod endpoint;
mod file;
pub mod install;
mod lock;
pub mod logging;
pub mod model;
pub mod netlink;
pub mod node;
mod one_line;
pub mod preflight;
pub mod pulse;
pub mod release;
pub mod rollback;
pub mod store;

pub use one_line::one_line;
