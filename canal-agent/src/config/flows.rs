//! How live connections are treated: whether a change of policy reaches them, and how long they may be idle.

use std::time::Duration;

use canal_common::flow::{self, FlowLimits};
use serde::Serialize;

use super::{ConfigError, duration, environment::Value};

/// What a change of policy does to connections that it would not allow any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// Their next packet is judged anew.
    #[default]
    Judge,
    /// They live until they end, as with Calico.
    Keep,
}

pub(super) fn established(value: &Value) -> Result<Established, ConfigError> {
    match value.text.as_str() {
        "judge" => Ok(Established::Judge),
        "keep" => Ok(Established::Keep),
        _ => Err(value.wrong("is neither judge nor keep")),
    }
}

/// How long a connection without packets is remembered. The defaults are the kernel programs' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FlowTimeouts {
    /// TCP that was not answered yet.
    pub tcp_new: Duration,
    pub tcp_established: Duration,
    /// After a reset, or a FIN from either side.
    pub closing: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    /// SCTP that was not answered yet.
    pub sctp_new: Duration,
    pub sctp_established: Duration,
    /// Every other protocol.
    pub other: Duration,
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tcp_new: seconds(20),
            tcp_established: seconds(3600),
            closing: seconds(30),
            udp: seconds(60),
            icmp: seconds(5),
            sctp_new: seconds(20),
            sctp_established: seconds(600),
            other: seconds(600),
        }
    }
}

impl From<FlowTimeouts> for FlowLimits {
    fn from(timeouts: FlowTimeouts) -> Self {
        let ticks = |duration: Duration| flow::ticks(duration.as_secs().try_into().unwrap_or(u32::MAX));
        Self {
            tcp_established: ticks(timeouts.tcp_established),
            tcp_new: ticks(timeouts.tcp_new),
            closing: ticks(timeouts.closing),
            udp: ticks(timeouts.udp),
            icmp: ticks(timeouts.icmp),
            sctp_established: ticks(timeouts.sctp_established),
            sctp_new: ticks(timeouts.sctp_new),
            other: ticks(timeouts.other),
        }
    }
}

/// The kernel's clock for this has ticks of about a second.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_hours(720);

/// `tcp-established=1h,udp=60s`: what is not named keeps its default.
pub(super) fn timeouts(value: &Value) -> Result<FlowTimeouts, ConfigError> {
    let mut timeouts = FlowTimeouts::default();
    for part in value.text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = |problem: &str| ConfigError::new(&value.origin, format!("{part:?} {problem}"));
        let (name, text) =
            part.split_once('=').ok_or_else(|| wrong("is not name=duration; write tcp-established=1h"))?;
        let field = match name.trim() {
            "tcp-new" => &mut timeouts.tcp_new,
            "tcp-established" => &mut timeouts.tcp_established,
            "closing" => &mut timeouts.closing,
            "udp" => &mut timeouts.udp,
            "icmp" => &mut timeouts.icmp,
            "sctp-new" => &mut timeouts.sctp_new,
            "sctp-established" => &mut timeouts.sctp_established,
            "other" => &mut timeouts.other,
            _ => {
                return Err(wrong(
                    "has an unknown name; known are tcp-new, tcp-established, closing, udp, icmp, sctp-new, sctp-established and other",
                ));
            }
        };
        *field = duration::parse(text.trim())
            .ok_or_else(|| wrong("is no duration; write 90s, 1h30m or the like"))
            .and_then(|d| {
                let fits = (SHORTEST..=LONGEST).contains(&d);
                if fits { Ok(d) } else { Err(wrong("is not between 2s and 720h")) }
            })?;
    }
    Ok(timeouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_kernel_programs() {
        assert_eq!(FlowLimits::from(FlowTimeouts::default()), FlowLimits::DEFAULT);
    }
}
