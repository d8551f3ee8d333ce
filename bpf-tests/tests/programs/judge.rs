//! The program that answers questions about the loaded policy.

use canal_common::question::{CASES, Case, HEADER_LEN, Question};

use super::*;

fn question(endpoint: u32, direction: u8, peer: Ipv4Addr, key: u32, src_port: u16) -> Question {
    Question { peer: peer.into(), key, src_port, direction, _pad: 0, endpoint }
}

/// A set of pod A that tells classes, protocols, destination and source ports apart.
fn tell_apart(lab: &mut Lab) {
    let (allow, deny) = (Verdict::new(Verdict::ALLOW, 8), Verdict::new(Verdict::DENY, 9));
    lab.put_row(10, &row(&[(0, deny), (key(17, 1000), allow), (key(17, 2000), deny)]));
    lab.put_row(
        11,
        &row(&[
            (0, deny),
            (key(6, 80), allow),
            (key(6, 90), deny),
            (key(17, 53), Verdict::new(Verdict::BY_SRC_PORT, 10)),
            (key(17, 54), deny),
        ]),
    );
    lab.put_set(A.ingress_set(), &[ALLOW, DENY, 11]);
    lab.put_peer(B.ip, 2);
    lab.put_peer(REMOTE, 1);
}

#[test]
fn it_answers_many_questions_as_the_programs_would_and_leaves_no_trace() {
    story(|lab| {
        tell_apart(lab);
        let mut cases = Vec::new();
        for (src, dst) in [(999, 53), (1000, 53), (1999, 53), (2000, 53), (1500, 52), (1500, 54)] {
            cases.push((17, src, dst));
        }
        cases.extend((0..200).map(|n| (6, 40_000 + n, n)));
        let packet = |&(proto, src, dst): &(u8, u16, u16)| match proto {
            17 => Packet::udp(B.at(src), A.at(dst)),
            _ => Packet::tcp(B.at(src), A.at(dst), SYN),
        };
        let sent: Vec<bool> =
            cases.iter().map(|case| leave(lab, B, &packet(case)).action == REDIRECT).collect();
        let before = (lab.hits(8), lab.hits(9), lab.flows().len(), lab.new_flows().len());
        let questions: Vec<Question> = cases
            .iter()
            .map(|(proto, src, dst)| question(A.id, Question::INGRESS, B.ip, key(*proto, *dst), *src))
            .collect();
        assert!(questions.len() > 3 * CASES);
        let answers = lab.ask(&questions);
        assert_eq!(answers.iter().map(|v| v.kind() == Verdict::ALLOW).collect::<Vec<_>>(), sent);
        assert!(
            answers.iter().all(|v| v.id() == if v.kind() == Verdict::ALLOW { 8 } else { 9 }),
            "{answers:?}"
        );
        assert_eq!((lab.hits(8), lab.hits(9), lab.flows().len(), lab.new_flows().len()), before);
    });
}

#[test]
fn direction_peer_and_endpoint_are_those_of_the_question_and_what_is_missing_denies() {
    story(|lab| {
        tell_apart(lab);
        lab.put_set(A.egress_set(), &[DENY, ALLOW]);
        let tcp = key(6, 80);
        let allowed: Vec<bool> = lab
            .ask(&[
                question(A.id, Question::INGRESS, B.ip, tcp, 1),
                question(A.id, Question::INGRESS, REMOTE, tcp, 1),
                question(A.id, Question::INGRESS, WORLD, tcp, 1),
                question(A.id, Question::EGRESS, REMOTE, tcp, 1),
                question(A.id, Question::EGRESS, WORLD, tcp, 1),
                question(B.id, Question::INGRESS, WORLD, tcp, 1),
                question(77, Question::INGRESS, B.ip, tcp, 1),
                question(0, Question::EGRESS, B.ip, tcp, 1),
                question(A.id, 2, WORLD, tcp, 1),
                question(A.id, 255, WORLD, tcp, 1),
            ])
            .into_iter()
            .map(|verdict| verdict.kind() == Verdict::ALLOW)
            .collect();
        assert_eq!(allowed, [true, false, true, true, false, true, false, false, false, false]);
        assert!(lab.ask(&[]).is_empty());
    });
}

#[test]
fn a_packet_with_a_part_of_a_case_is_answered_up_to_there_and_one_too_long_up_to_its_limit() {
    story(|lab| {
        let full = i32::try_from(CASES).unwrap();
        for (cases, extra, answered) in
            [(0, 0, 0), (0, size_of::<Case>() - 1, 0), (1, 19, 1), (CASES, 0, full), (CASES + 2, 3, full)]
        {
            let mut packet = vec![0; HEADER_LEN + cases * size_of::<Case>() + extra];
            packet[12..14].copy_from_slice(&[0x88, 0xb5]);
            let (said, answer) =
                lab.try_run(canal_common::names::JUDGE, &packet, Context::default()).unwrap();
            assert_eq!((said, answer.len()), (answered, packet.len()), "{cases} cases and {extra} bytes");
        }
    });
}
