//! How verdicts are found: what is missing on the way denies, and the rest is as the tables say.

use std::time::Instant;

use canal_agent::{
    dataplane::{
        object::{Object, Sizes},
        tables::{KernelTables, Tables as _},
    },
    pulse::Pulse,
};

use super::*;

fn judged(lab: &mut Lab) -> Ran {
    lab.forget_flows();
    leave(lab, B, &Packet::udp(B.at(1), A.at(53)))
}

#[test]
fn whatever_is_missing_on_the_way_to_a_verdict_denies() {
    story(|lab| {
        delivered(&judged(lab));
        let policy = lab.policy(A.id).unwrap();

        lab.delete_policy(A.id);
        dropped(&judged(lab), Reason::PolicyIngress);
        for ingress_set in [0, 60, 4095, 4096, u32::MAX] {
            lab.put_policy(A.id, EndpointPolicy { ingress_set, ..policy });
            dropped(&judged(lab), Reason::PolicyIngress);
        }
        lab.put_policy(A.id, policy);
        delivered(&judged(lab));

        // A class that the set has no column for.
        for class in [1, 63, 64, 1 << 20, u32::MAX] {
            lab.put_peer(B.ip, class);
            dropped(&judged(lab), Reason::PolicyIngress);
        }
        lab.put_set(A.ingress_set(), &[DENY, ALLOW]);
        lab.put_peer(B.ip, 1);
        delivered(&judged(lab));

        // Row 0, a row that was never written, one beyond the table.
        for row in [0, 63, 65535, 65536, u32::MAX] {
            lab.put_set(A.ingress_set(), &[ALLOW, row]);
            dropped(&judged(lab), Reason::PolicyIngress);
        }
    });
}

#[test]
fn an_endpoint_without_policy_is_closed_in_both_directions() {
    story(|lab| {
        lab.delete_policy(A.id);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53))), Reason::PolicyEgress);
        dropped(&arrive(lab, &Packet::udp((REMOTE, 2), A.at(53))), Reason::PolicyIngress);
    });
}

#[test]
fn the_exact_address_comes_before_the_longest_net_and_nets_count_only_where_asked() {
    story(|lab| {
        let policy = lab.policy(A.id).unwrap();
        // Class 1 is allowed, everything else is not.
        lab.put_set(A.ingress_set(), &[DENY, ALLOW, DENY]);
        lab.put_net("10.0.0.0/8", 2);
        lab.put_net("10.244.1.0/24", 1);
        dropped(&judged(lab), Reason::PolicyIngress);
        lab.put_policy(A.id, EndpointPolicy { flags: EndpointPolicy::USES_NETS, ..policy });
        delivered(&judged(lab));
        lab.put_net("10.244.1.8/29", 2);
        dropped(&judged(lab), Reason::PolicyIngress);
        lab.put_peer(B.ip, 1);
        delivered(&judged(lab));
        lab.put_policy(A.id, policy);
        delivered(&judged(lab));
    });
}

#[test]
fn a_search_goes_through_pages_by_destination_and_by_source_port() {
    story(|lab| {
        let (allow, deny) = (Verdict::new(Verdict::ALLOW, 8), Verdict::new(Verdict::DENY, 9));
        lab.put_row(10, &row(&[(0, deny), (key(17, 1000), allow), (key(17, 2000), deny)]));
        lab.put_row(
            11,
            &row(&[(0, deny), (key(17, 53), Verdict::new(Verdict::BY_SRC_PORT, 10)), (key(17, 54), deny)]),
        );
        lab.put_row(12, &row(&[(0, Verdict::new(Verdict::PAGE, 11))]));
        lab.put_set(A.ingress_set(), &[12]);
        for (src, dst, allowed) in [
            (999, 53, false),
            (1000, 53, true),
            (1999, 53, true),
            (2000, 53, false),
            (1500, 52, false),
            (1500, 54, false),
        ] {
            let ran = leave(lab, B, &Packet::udp(B.at(src), A.at(dst)));
            if allowed { delivered(&ran) } else { dropped(&ran, Reason::PolicyIngress) }
        }
        assert_eq!((lab.hits(8), lab.hits(9)), (2, 4));
    });
}

#[test]
fn a_search_that_finds_no_end_denies() {
    story(|lab| {
        lab.put_row(10, &row(&[(0, Verdict::new(Verdict::PAGE, 11))]));
        lab.put_row(11, &row(&[(0, Verdict::new(Verdict::BY_SRC_PORT, 10))]));
        lab.put_set(A.ingress_set(), &[10]);
        dropped(&judged(lab), Reason::PolicyIngress);
    });
}

#[test]
fn eight_pages_are_read_and_not_a_ninth() {
    story(|lab| {
        for depth in [8, 9] {
            for page in 1..depth {
                lab.put_row(10 + page, &row(&[(0, Verdict::new(Verdict::PAGE, 11 + page))]));
            }
            lab.put_row(10 + depth, &one_verdict(Verdict::ALLOW, 8));
            lab.put_set(A.ingress_set(), &[11]);
            let ran = judged(lab);
            if depth == 8 { delivered(&ran) } else { dropped(&ran, Reason::PolicyIngress) }
        }
    });
}

#[test]
fn every_write_to_the_policy_tables_is_a_sign_of_life() {
    type Write = fn(&mut KernelTables);
    let mut object = Object::load(&Settings::default(), None, &Sizes::new()).unwrap();
    let (mut tables, _) = KernelTables::adopt(&mut object.ebpf).unwrap();
    let writes: [(&str, Write); 6] = [
        ("a row", |tables| tables.write_row(1, &one_verdict(Verdict::ALLOW, ALLOW)).unwrap()),
        ("a set", |tables| tables.write_sets(&[(1, vec![1])]).unwrap()),
        ("a column", |tables| tables.write_columns(1, &[(0, 1)]).unwrap()),
        ("a peer", |tables| tables.write_peer(A.ip, 1).unwrap()),
        ("a policy", |tables| tables.write_policy(1, EndpointPolicy::default()).unwrap()),
        ("an endpoint", |tables| tables.write_endpoint(A.ip, Endpoint::default()).unwrap()),
    ];
    for (what, write) in writes {
        let pulse = Pulse::new();
        tables = tables.beating(pulse.clone());
        assert!(pulse.silence_at(Instant::now()).is_none());
        write(&mut tables);
        assert!(pulse.silence_at(Instant::now()).is_some(), "{what}");
    }
}
