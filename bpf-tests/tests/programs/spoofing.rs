//! Sources that a pod may use besides its own.

use std::collections::BTreeMap;

use bpf_tests::progrun::Links;
use canal_agent::dataplane::spoofing::{Borrowed, Spoofing, SpoofingError};
use canal_common::endpoint::MAX_SPOOFABLE;
use ipnet::Ipv4Net;

use super::*;

/// Within what A may use, and outside.
const BORROWED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 101, 7);

fn borrowed(links: Links, nets: &[&str]) -> Borrowed {
    nets.iter().map(|net| ((links.pods[A.number], net.parse().unwrap()), A.ip)).collect()
}

/// Pods A and B, and what A may borrow: written by the agent's own hand, so each test has a lab for itself.
fn lending(nets: &[&str], tell: impl FnOnce(&mut Lab, &mut Spoofing) + Send) {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        lab.put_node(REMOTE_INDEX, REMOTE_NET, remote_node());
        add_pods(lab);
        let mut spoofing = Spoofing::adopt(&mut lab.object.ebpf).unwrap();
        spoofing.apply(&borrowed(lab.links, nets)).unwrap();
        assert!(lost(&mut spoofing).is_empty());
        tell(lab, &mut spoofing);
    });
}

/// The pods whose flows are to be judged again.
fn lost(spoofing: &mut Spoofing) -> Vec<Ipv4Addr> {
    let mut lost = Vec::new();
    let judge = |addr| {
        lost.push(addr);
        Ok::<_, ()>(())
    };
    spoofing.judge_lost(judge).unwrap();
    lost
}

fn ask(src: Ipv4Addr, dst: Ipv4Addr) -> Packet {
    Packet::udp((src, 1), (dst, 53))
}

#[test]
fn a_borrowed_source_goes_where_the_pods_own_would_and_the_answer_comes_back() {
    lending(&["198.51.100.0/24"], |lab, _| {
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        delivered(&leave(lab, B, &Packet::udp(B.at(53), (BORROWED, 1))));
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        to_stack(&leave(lab, A, &ask(BORROWED, WORLD)));
        let [first, later] = ask(BORROWED, WORLD).payload(&[0; 40]).split(16);
        to_stack(&leave(lab, A, &first));
        to_stack(&leave(lab, A, &later));
    });
}

#[test]
fn every_other_source_and_every_other_pod_is_refused_as_before() {
    lending(&["198.51.100.0/24"], |lab, _| {
        dropped(&leave(lab, A, &ask(OTHER, B.ip)), Reason::SpoofedIp);
        dropped(&leave(lab, A, &ask(B.ip, REMOTE)), Reason::SpoofedIp);
        dropped(&leave(lab, B, &ask(BORROWED, A.ip)), Reason::SpoofedIp);
        dropped(&leave(lab, Pod { mac: B.mac, ..A }, &ask(BORROWED, B.ip)), Reason::SpoofedMac);
        // Nor is a live flow with such a source anybody else's.
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        dropped(&leave(lab, B, &ask(BORROWED, B.ip)), Reason::SpoofedIp);
    });
}

#[test]
fn the_senders_policy_judges_it_and_the_receivers_sees_the_borrowed_address() {
    lending(&["198.51.100.0/24"], |lab, _| {
        lab.put_set(B.ingress_set(), &[DENY, ALLOW]);
        lab.put_peer(A.ip, 1);
        delivered(&leave(lab, A, &ask(A.ip, B.ip)));
        dropped(&leave(lab, A, &ask(BORROWED, B.ip)), Reason::PolicyIngress);
        lab.put_peer(BORROWED, 1);
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        revise(lab, A, A.egress_set(), DENY);
        dropped(&leave(lab, A, &ask(BORROWED, B.ip)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &ask(BORROWED, WORLD)), Reason::PolicyEgress);
    });
}

#[test]
fn without_the_pod_there_is_nothing_to_borrow() {
    lending(&["198.51.100.0/24"], |lab, _| {
        lab.delete_endpoint(A.ip);
        dropped(&leave(lab, A, &ask(BORROWED, B.ip)), Reason::SpoofedIp);
        // Its address is another interface's now.
        add_pod(lab, Pod { number: 2, ..A });
        dropped(&leave(lab, A, &ask(BORROWED, B.ip)), Reason::SpoofedIp);
    });
}

#[test]
fn the_agent_names_the_pods_that_lost_a_prefix_and_their_flows_end() {
    lending(&["198.51.100.0/24", "0.0.0.0/0"], |lab, spoofing| {
        delivered(&leave(lab, A, &ask(OTHER, B.ip)));
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        spoofing.apply(&borrowed(lab.links, &["198.51.100.0/24"])).unwrap();
        assert_eq!(lost(spoofing), [A.ip]);
        lab.bump(A.id);
        dropped(&leave(lab, A, &ask(OTHER, B.ip)), Reason::SpoofedIp);
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        // Another pod has the prefix now.
        let of_b = ((lab.links.pods[B.number], "198.51.100.0/24".parse().unwrap()), B.ip);
        spoofing.apply(&BTreeMap::from([of_b])).unwrap();
        lab.bump(A.id);
        dropped(&leave(lab, A, &ask(BORROWED, B.ip)), Reason::SpoofedIp);
        delivered(&leave(lab, B, &ask(BORROWED, A.ip)));
    });
}

#[test]
fn prefixes_that_do_not_fit_stay_refused() {
    lending(&["198.51.100.0/24"], |lab, spoofing| {
        let mut many = borrowed(lab.links, &["198.51.100.0/24"]);
        many.extend((0..MAX_SPOOFABLE).map(|n| {
            let net = Ipv4Net::new(Ipv4Addr::from(0xc633_6500 + n), 32).unwrap();
            ((lab.links.pods[A.number], net), A.ip)
        }));
        assert!(matches!(spoofing.apply(&many), Err(SpoofingError::Full(4097))));
        delivered(&leave(lab, A, &ask(BORROWED, B.ip)));
        dropped(
            &leave(lab, A, &ask(Ipv4Addr::from(0xc633_6500 + MAX_SPOOFABLE - 1), B.ip)),
            Reason::SpoofedIp,
        );
    });
}
