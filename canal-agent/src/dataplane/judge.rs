//! Asks the loaded policy: the program `judge`, run by BPF_PROG_RUN, answers by the code and the tables that judge packets.
//!
//! Whoever loads the object has the program in hand; everybody else finds it by its pin. Asking counts no hit and makes
//! no flow.

use std::{mem::offset_of, net::Ipv4Addr};

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use canal_common::{
    Ip4,
    endpoint::Endpoint,
    names,
    policy::Verdict,
    question::{CASES, Case, ETHERTYPE, ETHERTYPE_AT, HEADER_LEN, Question},
};

use super::pins::Pins;

#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error("cannot run the program judge: {0}")]
    Run(#[from] ProgramError),
    #[error("the program judge answered {answered} of {asked} questions")]
    Short { asked: usize, answered: usize },
}

/// Who the programs take an address for, as the pinned table says: whose id questions name.
pub fn endpoint(pins: &Pins, address: Ipv4Addr) -> Result<Option<Endpoint>, MapError> {
    let data = MapData::from_pin(pins.table(names::ENDPOINTS))?;
    let endpoints = HashMap::<MapData, Ip4, Endpoint>::try_from(Map::HashMap(data))?;
    match endpoints.get(&address.into(), 0) {
        Ok(endpoint) => Ok(Some(endpoint)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The program that an agent has pinned.
pub fn open(pins: &Pins) -> Result<SchedClassifier, JudgeError> {
    Ok(SchedClassifier::from_pin(pins.judge())?)
}

/// The verdicts, in the order of the questions. Tables may change between two packets of [`CASES`].
pub fn ask(program: &SchedClassifier, questions: &[Question]) -> Result<Vec<Verdict>, JudgeError> {
    let mut verdicts = Vec::with_capacity(questions.len());
    for questions in questions.chunks(CASES) {
        let sent = packet(questions);
        let mut answer = vec![0; sent.len()];
        let ran = program.test_run(TestRunOptions {
            data_in: Some(&sent),
            data_out: Some(&mut answer),
            ..TestRunOptions::default()
        })?;
        let answered = ran.return_value as usize;
        if answered != questions.len() || ran.data_size_out as usize != sent.len() {
            return Err(JudgeError::Short { asked: questions.len(), answered });
        }
        verdicts.extend(self::verdicts(&answer));
    }
    Ok(verdicts)
}

fn packet(questions: &[Question]) -> Vec<u8> {
    let mut packet = vec![0; HEADER_LEN];
    packet[ETHERTYPE_AT..ETHERTYPE_AT + 2].copy_from_slice(&ETHERTYPE.to_be_bytes());
    for Question { peer, key, src_port, direction, endpoint, .. } in questions {
        packet.extend(peer.octets);
        packet.extend(key.to_ne_bytes());
        packet.extend(src_port.to_ne_bytes());
        packet.extend([*direction, 0]);
        packet.extend(endpoint.to_ne_bytes());
        packet.extend(Verdict::default().bits.to_ne_bytes());
    }
    packet
}

fn verdicts(packet: &[u8]) -> impl Iterator<Item = Verdict> {
    let (cases, _) = packet[HEADER_LEN..].as_chunks::<{ size_of::<Case>() }>();
    cases.iter().map(|case| {
        let (_, bits) = case.split_at(offset_of!(Case, verdict));
        Verdict::from_bits(u32::from_ne_bytes(bits.try_into().expect("a case ends with its verdict")))
    })
}

#[cfg(test)]
mod tests {
    use canal_common::{
        Ip4,
        policy::{icmp_port, key},
    };

    use super::*;

    #[test]
    fn a_packet_lies_as_the_kernel_reads_it() {
        let question = Question {
            peer: Ip4::new([10, 0, 0, 1]),
            key: key(1, icmp_port(8, 0)),
            src_port: 0x0102,
            direction: Question::EGRESS,
            _pad: 0,
            endpoint: 7,
        };
        let packet = packet(&[Question::default(), question]);
        assert_eq!(packet.len(), HEADER_LEN + 2 * size_of::<Case>());
        assert_eq!(&packet[..HEADER_LEN], b"\0\0\0\0\0\0\0\0\0\0\0\0\x88\xb5\0\0");
        let at = HEADER_LEN + size_of::<Case>();
        // SAFETY: in bounds, and plain data.
        let read = unsafe { packet[at..].as_ptr().cast::<Case>().read_unaligned() };
        assert_eq!(read, Case { question, verdict: Verdict::default() });
    }

    #[test]
    fn verdicts_are_read_from_the_end_of_each_case() {
        let mut packet = packet(&[Question::default(); 2]);
        packet[HEADER_LEN + 16..HEADER_LEN + 20].copy_from_slice(&7_u32.to_ne_bytes());
        let bits: Vec<u32> = verdicts(&packet).map(|verdict| verdict.bits).collect();
        assert_eq!(bits, [7, 0]);
    }
}
