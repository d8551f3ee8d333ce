//! Answers questions about the loaded policy by the code and the tables that judge packets: a packet full of
//! [`Case`]s comes back with the verdicts filled in. Counts nothing, remembers nothing.

use core::mem::offset_of;

use aya_ebpf::programs::TcContext;
use canal_common::{
    policy::Verdict,
    question::{CASES, Case, HEADER_LEN, Question},
};

use crate::{packet, step::policy::look_up};

/// How many were answered.
#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut answered = 0;
    for at in 0..CASES {
        let offset = HEADER_LEN + at * size_of::<Case>();
        let Some(case) = packet::read::<Case>(ctx, offset) else { break };
        let verdict = consult(&raw const case.question);
        if packet::write(ctx, offset + offset_of!(Case, verdict), verdict).is_none() {
            break;
        }
        answered += 1;
    }
    answered
}

/// A global function, so that the verifier walks it once and not for each case.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consult(question: *const Question) -> u32 {
    // SAFETY: the verifier knows the pointer as readable memory of this size, or null.
    let Some(question) = (unsafe { question.as_ref() }) else { return 0 };
    look_up(question).unwrap_or(Verdict::new(Verdict::DENY, 0)).bits
}
