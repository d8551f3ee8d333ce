//! What compiled policy answers.

use std::{fmt, sync::Arc};

use canal_common::policy::key;

use crate::model::{resource::Resource, rule::Direction};

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId {
    /// Empty for a profile.
    pub tier: String,
    /// The policy or profile.
    pub policy: Resource,
    pub direction: Direction,
    /// Position in the list, from 0.
    pub index: u32,
}

/// The end of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Final {
    pub allow: bool,
    /// `None`: no rule matched, or what should have decided is missing.
    pub rule: Option<Arc<RuleId>>,
    /// Log rules that were met on the way, in order.
    pub logs: Vec<Arc<RuleId>>,
}

impl Final {
    pub const DENY: Self = Self { allow: false, rule: None, logs: Vec::new() };

    /// Nothing is to be told of it beyond what it is.
    pub fn is_nameless(&self) -> bool {
        self.rule.is_none() && self.logs.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    Final(Final),
    /// By [`key`] of protocol and source port: ascending breakpoints, the first is 0, no equal neighbours.
    BySrcPort(Vec<(u32, Final)>),
}

impl Decision {
    /// What it takes of the budget for a row.
    pub(super) fn weight(&self) -> usize {
        let of = |decided: &Final| 1 + decided.logs.len();
        match self {
            Self::Final(decided) => of(decided),
            Self::BySrcPort(by) => by.iter().map(|(_, decided)| of(decided)).sum(),
        }
    }
}

/// Verdicts of one set for one class, by [`key`] of protocol and destination port (ICMP: type and code):
/// ascending breakpoints, the first is 0, no equal neighbours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row(pub Vec<(u32, Decision)>);

impl Row {
    pub fn deny_all() -> Self {
        Self(vec![(0, Decision::Final(Final::DENY))])
    }

    /// `port`: destination port, or ICMP type and code, or 0.
    pub fn lookup(&self, protocol: u8, src_port: u16, port: u16) -> &Final {
        match at(&self.0, key(protocol, port)) {
            Decision::Final(verdict) => verdict,
            Decision::BySrcPort(by) => at(by, key(protocol, src_port)),
        }
    }
}

fn at<T>(breakpoints: &[(u32, T)], key: u32) -> &T {
    let above = breakpoints.partition_point(|(bound, _)| *bound <= key);
    &breakpoints[above.saturating_sub(1)].1
}

/// `GlobalNetworkPolicy p0 (tier default) ingress rule 2`, `Profile canal egress rule 0`.
impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if !self.tier.is_empty() {
            write!(f, " (tier {})", self.tier)?;
        }
        write!(f, " {} rule {}", self.direction, self.index)
    }
}
