//! ICMP (RFC 792, RFC 950): what is a query, what answers it, what reports an error.

pub const ECHO_REPLY: u8 = 0;
pub const ECHO: u8 = 8;
pub const TIMESTAMP: u8 = 13;
pub const TIMESTAMP_REPLY: u8 = 14;
pub const INFORMATION: u8 = 15;
pub const INFORMATION_REPLY: u8 = 16;
pub const MASK: u8 = 17;
pub const MASK_REPLY: u8 = 18;

/// A query, or its answer: both carry an identifier behind the checksum, and meet in one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// Type of the query; its code is 0.
    pub kind: u8,
    /// This is the answer.
    pub is_answer: bool,
}

impl Query {
    /// `None`: errors, types without an answer, and codes that no query has.
    #[inline(always)]
    pub const fn of(icmp_type: u8, code: u8) -> Option<Self> {
        if code != 0 || icmp_type > MASK_REPLY {
            return None;
        }
        let bit = 1u32 << icmp_type;
        if bit & (1 << ECHO | 1 << TIMESTAMP | 1 << INFORMATION | 1 << MASK) != 0 {
            return Some(Self { kind: icmp_type, is_answer: false });
        }
        if bit & (1 << TIMESTAMP_REPLY | 1 << INFORMATION_REPLY | 1 << MASK_REPLY) != 0 {
            return Some(Self { kind: icmp_type - 1, is_answer: true });
        }
        if icmp_type == ECHO_REPLY { Some(Self { kind: ECHO, is_answer: true }) } else { None }
    }
}

/// Unreachable, source quench, redirect, time exceeded, parameter problem.
#[inline(always)]
pub const fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_query_has_one_answer_and_nothing_else_is_one() {
        let queries = (0..=255).filter_map(|kind| Query::of(kind, 0));
        let (answers, asked): (Vec<_>, Vec<_>) = queries.partition(|query| query.is_answer);
        assert_eq!(asked.iter().map(|q| q.kind).collect::<Vec<_>>(), [8, 13, 15, 17]);
        assert_eq!(answers.iter().map(|q| q.kind).collect::<Vec<_>>(), [8, 13, 15, 17]);
        for kind in 0..=255 {
            assert_eq!(Query::of(kind, 1), None);
            assert!(!is_error(kind) || Query::of(kind, 0).is_none());
        }
    }
}
