//! Whatever happens to agents, etcd, pins and devices (`bpf_tests::faults`), with a steady load in both directions of which every
//! packet is counted. Where the path itself does not change nothing is lost; where it does, it is whole again within two seconds.
//!
//! The rate is one that a small machine carries beside everything else; `cargo xtask bench` asks the same at 50,000 a second.

use bpf_tests::{
    Host,
    faults::{self, Fault, Scene, WHOLE_AGAIN},
    load::{Numbered, Path, Stream},
};

use crate::soon;

/// Packets a second, each way.
const RATE: u32 = 10_000;
/// Packets before and after each fault.
const CALM: u64 = 500;

#[test]
fn nothing_is_lost_to_what_leaves_the_path_alone() {
    happen(Fault::is_harmless);
}

#[test]
fn a_path_that_changes_is_whole_again_within_two_seconds() {
    happen(|fault| !fault.is_harmless());
}

fn happen(which: impl Fn(&Fault) -> bool) {
    let world = faults::world().unwrap();
    let (a, b) = (world.node(1).add_pod("a", &[]).unwrap(), world.node(2).add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
    for fault in faults::ALL.iter().filter(|fault| which(fault)) {
        let start = |from, to| Stream::start(Path { from, to }, RATE).unwrap();
        let streams = [start(&a, &b), start(&b, &a)];
        let arrive = |more: u64| {
            let seen = streams.each_ref().map(Stream::received);
            soon(|| streams.iter().zip(seen).all(|(stream, seen)| stream.received() > seen + more))
        };
        assert!(arrive(CALM), "before: {}", fault.what);
        let whole_again = fault.happen(&Scene { world: &world, arrive: &arrive }).unwrap();
        let flow_again = arrive(CALM);
        for stream in streams {
            let numbered = stream.stop().unwrap();
            let Numbered { lost, twice, longest_gap, .. } = numbered;
            println!("{}: {numbered:?} {whole_again:?}", fault.what);
            assert!(flow_again, "after: {}", fault.what);
            if fault.is_harmless() {
                assert_eq!((lost, twice), (0, 0), "{}: {numbered:?}", fault.what);
            } else {
                assert!(whole_again.unwrap_or(longest_gap) < WHOLE_AGAIN, "{}: {numbered:?}", fault.what);
            }
        }
    }
}
