//! The verdict of one endpoint's policy on one packet: the same few reads for ten rules or a hundred thousand.

use canal_common::{
    Ip4,
    endpoint::EndpointPolicy,
    policy::{MAX_DEPTH, Verdict},
    question::Question,
    settings::Settings,
};

use crate::{
    maps::{NETS, PEERS, POLICY, ROWS, SETS, hits_of, setting},
    step::leg,
};

/// Seen from the endpoint.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress = Question::INGRESS,
    Egress = Question::EGRESS,
}

/// Anything missing on the way denies. A pod's own policy may allow what the node itself does not take: that is
/// [`Verdict::to_host`].
#[inline(always)]
pub fn judge(endpoint: u32, direction: Direction, peer: Ip4, key: u32, src_port: u16) -> Verdict {
    let question = Question { peer, key, src_port, direction: direction as u8, _pad: 0, endpoint };
    Verdict::from_bits(answer(&raw const question))
}

/// A global function: the verifier walks it once per program and not once per path that leads here, and the search
/// in the rows has very many paths.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer(question: *const Question) -> u32 {
    // SAFETY: the verifier knows the pointer as readable memory of this size, or null.
    let Some(question) = (unsafe { question.as_ref() }) else { return 0 };
    let verdict = look_up(question).unwrap_or(Verdict::new(Verdict::DENY, 0));
    if let Some(hits) = hits_of(verdict.id()) {
        // SAFETY: this CPU's own.
        unsafe { (*hits).flows += 1 };
    }
    if question.direction == Question::EGRESS
        && setting!(flags) & Settings::DROP_TO_HOST != 0
        && leg::is_this_node(question.peer)
    {
        return verdict.to_host().bits;
    }
    verdict.bits
}

/// The verdict of the loaded tables, without a trace.
#[inline(always)]
pub fn look_up(question: &Question) -> Option<Verdict> {
    // SAFETY: values are plain data; the reference is not kept across an update.
    let policy = unsafe { POLICY.get(question.endpoint) }?;
    let set = match question.direction {
        Question::INGRESS => policy.ingress_set,
        Question::EGRESS => policy.egress_set,
        _ => return None,
    };
    let class = class_of(question.peer, policy.flags & EndpointPolicy::USES_NETS != 0);
    let mut row = SETS.get_value(set, &class)?.row;
    let mut key = question.key;
    for _ in 0..MAX_DEPTH {
        let page = ROWS.get(row)?;
        let verdict = page.verdicts[page.slot(key)];
        match verdict.kind() {
            Verdict::PAGE => row = verdict.id(),
            Verdict::BY_SRC_PORT => {
                row = verdict.id();
                key = key & 0xffff_0000 | u32::from(question.src_port);
            }
            _ => return Some(verdict),
        }
    }
    None
}

#[inline(always)]
fn class_of(peer: Ip4, uses_nets: bool) -> u32 {
    // SAFETY: as above.
    if let Some(class) = unsafe { PEERS.get(peer) } {
        return class.class;
    }
    if uses_nets {
        let key = aya_ebpf::btf_maps::lpm_trie::Key::new(32, peer);
        if let Some(class) = NETS.get(&key) {
            return class.class;
        }
    }
    0
}
