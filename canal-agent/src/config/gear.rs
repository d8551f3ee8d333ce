//! Who takes VXLAN off what the uplink brings.

use std::fmt;

use serde::Serialize;

use super::{ConfigError, environment::Value};

/// The same decisions in either; only the place differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gear {
    /// Our program at the uplink's tcx ingress, which hands the packet to the pod at once.
    #[default]
    Tc,
    /// The same, and before it one in the uplink's driver that takes the envelope off packets of known connections.
    Xdp,
    /// The kernel's VXLAN device; our program judges what comes out of it, and the stack delivers.
    Kernel,
}

impl fmt::Display for Gear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::Kernel => "kernel",
        })
    }
}

pub(super) fn gear(value: &Value) -> Result<Gear, ConfigError> {
    match value.text.as_str() {
        "auto" | "tc" => Ok(Gear::Tc),
        "xdp" => Ok(Gear::Xdp),
        "kernel" => Ok(Gear::Kernel),
        _ => Err(value.wrong("is none of auto, tc, xdp and kernel")),
    }
}
