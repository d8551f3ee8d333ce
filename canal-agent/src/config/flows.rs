//! How live connections are treated: whether a change of policy reaches them, and how long they may be idle.

use std::time::Duration;

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

/// How long a connection without packets is remembered. The defaults are Calico's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FlowTimeouts {
    /// TCP that was not answered yet.
    pub tcp_new: Duration,
    pub tcp_established: Duration,
    /// TCP after a FIN or a reset.
    pub tcp_closing: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    pub sctp: Duration,
    pub other: Duration,
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tcp_new: seconds(20),
            tcp_established: seconds(3600),
            tcp_closing: seconds(30),
            udp: seconds(60),
            icmp: seconds(5),
            sctp: seconds(600),
            other: seconds(600),
        }
    }
}

/// The kernel's clock for this has ticks of about a second.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

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
            "tcp-closing" => &mut timeouts.tcp_closing,
            "udp" => &mut timeouts.udp,
            "icmp" => &mut timeouts.icmp,
            "sctp" => &mut timeouts.sctp,
            "other" => &mut timeouts.other,
            _ => {
                return Err(wrong(
                    "has an unknown name; known are tcp-new, tcp-established, tcp-closing, udp, icmp, sctp and other",
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
