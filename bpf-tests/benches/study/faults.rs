//! Faults under a steady load from a pod to one of another node: what each costs.

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{
    Host as _,
    faults::{self, Scene, WHOLE_AGAIN},
    load::{Path, Stream},
    until,
    world::AGENT_READY,
};

use super::Figure;

/// Packets before and after each fault: a fifth of a second.
const CALM_PARTS: u32 = 5;

/// With so many packets a second.
pub(super) fn measure(rate: u32) -> Result<Vec<Figure>> {
    let world = faults::world()?;
    let (from, to) = (world.node(1).add_pod("from", &[])?, world.node(2).add_pod("to", &[])?);
    ensure!(until(AGENT_READY, || from.pings(to.ip())), "no way between the pods");
    let mut figures = Vec::new();
    for fault in &faults::ALL {
        eprintln!("{}", fault.what);
        let stream = Stream::start(Path { from: &from, to: &to }, rate)?;
        let arrive = |more: u64| {
            let seen = stream.received();
            until(AGENT_READY, || stream.received() > seen + more)
        };
        let calm = u64::from(rate / CALM_PARTS);
        ensure!(arrive(calm), "nothing comes before: {}", fault.what);
        let whole_again = fault.happen(&Scene { world: &world, arrive: &arrive })?;
        ensure!(arrive(calm), "nothing comes after: {}", fault.what);
        let numbered = stream.stop().context(fault.what)?;
        eprintln!("  {numbered:?} {whole_again:?}");
        let lost = Figure::of(format!("{}: lost", fault.what), "packets", count(numbered.lost));
        figures.push(if fault.is_harmless() { lost.at_most(0.0) } else { lost });
        figures.push(Figure::of("  of so many", "packets", count(numbered.sent)));
        figures.push(Figure::of("  of so many in a second", "packets", numbered.per_second()));
        if !fault.is_harmless() {
            let gap = whole_again.unwrap_or(numbered.longest_gap).as_secs_f64() * 1e3;
            figures.push(
                Figure::of("  until it is whole again", "ms", gap).at_most(WHOLE_AGAIN.as_secs_f64() * 1e3),
            );
        }
        if numbered.overload > 0 {
            let overload = count(numbered.overload);
            figures.push(Figure::of(
                "  dropped by busy processors, on no path's account",
                "packets",
                overload,
            ));
        }
    }
    Ok(figures)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn count(packets: u64) -> f64 {
    packets as f64
}
