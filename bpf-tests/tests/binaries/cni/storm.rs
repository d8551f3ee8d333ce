//! Many at once, and everything that can die dying meanwhile.

use std::{
    collections::BTreeSet,
    env,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bpf_tests::{Host, Netns, Node, World, cmd::Output, dice::Dice};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Call, comes_to_hold, garbage::seed, ip, netns};
use crate::one_node;

/// As many as the pods of a large node that starts.
const PODS: usize = 100;
const WORKERS: usize = 8;
/// Attachments that a storm makes, unless `CANAL_STORM` says otherwise.
const STORM: usize = 1_000;
/// A runtime asks for DEL until it succeeds.
const DELS: usize = 50;

/// Does it for each number below `count`, some at once.
fn spread<T: Send>(count: usize, workers: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let result = work(at);
                    done.lock().unwrap().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn a_hundred_pods_at_once_come_talk_and_go() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    comes_to_hold(&world, node, 0);
    let name = |at: usize| format!("p{at}");
    let pods = spread(PODS, WORKERS, |at| netns(&world, &name(at)));
    let begun = Instant::now();
    let results = spread(PODS, PODS, |at| Call::new(node, "ADD", &pods[at], &name(at)).result());
    println!("{PODS} ADDs at once: {:?}", begun.elapsed());
    let addresses: Vec<_> = results.iter().map(ip).collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), PODS);
    let talking = spread(PODS, 2 * WORKERS, |at| {
        let pod = bpf_tests::At { netns: &pods[at], ip: addresses[at] };
        pod.pings(addresses[(at + 1) % PODS])
    });
    assert_eq!(talking.iter().filter(|talks| !**talks).count(), 0);
    comes_to_hold(&world, node, PODS);
    let begun = Instant::now();
    spread(PODS, PODS, |at| Call::new(node, "DEL", &pods[at], &name(at)).works());
    println!("{PODS} DELs at once: {:?}", begun.elapsed());
    comes_to_hold(&world, node, 0);
}

/// The processes that may be killed.
#[derive(Default)]
struct Victims(Mutex<BTreeSet<u32>>);

impl Victims {
    fn make(&self, call: Call<'_>) -> Output {
        let mut id = None;
        let output = call.command().deadline(Duration::from_mins(2)).output_telling(|pid| {
            id = Some(pid);
            self.0.lock().unwrap().insert(pid);
        });
        self.0.lock().unwrap().remove(&id.unwrap());
        output.unwrap()
    }

    fn kill_one(&self, dice: &mut Dice) -> bool {
        let victims = self.0.lock().unwrap();
        if victims.is_empty() {
            return false;
        }
        let victim = victims.iter().nth(dice.below(victims.len())).unwrap();
        kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).is_ok()
    }
}

#[derive(Debug, Default)]
struct Tally {
    plugins: usize,
    agents: usize,
    stores: usize,
}

/// However the others end.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills until it is told to stop; at the end all is up.
fn kill_at_random(world: &World, victims: &Victims, stop: &AtomicBool, mut dice: Dice) -> Tally {
    let (node, mut tally) = (world.node(1), Tally::default());
    while !stop.load(Ordering::Relaxed) {
        match dice.below(40) {
            0 => {
                node.agent().kill_9();
                node.agent().spawn().unwrap();
                tally.agents += 1;
            }
            1 => {
                world.etcd().kill();
                // A moment in which others may need it.
                let moment = Duration::from_millis(10 * dice.below(50) as u64);
                bpf_tests::until(moment, || false);
                world.etcd().restart().unwrap();
                tally.stores += 1;
            }
            _ => tally.plugins += usize::from(victims.kill_one(&mut dice)),
        }
        let pause = Duration::from_millis(10 * dice.below(20) as u64);
        bpf_tests::until(pause, || stop.load(Ordering::Relaxed));
    }
    tally
}

/// As a runtime does it: a failed ADD is followed by DEL, and DEL is asked for until it succeeds. True: it came up.
fn attach_and_detach(node: &Node, victims: &Victims, pod: &Netns, name: &str, checks: bool) -> bool {
    let added = victims.make(Call::new(node, "ADD", pod, name));
    let came = added.ok();
    if came && checks {
        let result = serde_json::from_str(&added.stdout).unwrap();
        let config = super::after(&result, super::config(node, "1.1.0"));
        drop(victims.make(Call::new(node, "CHECK", pod, name).with(&config)));
    }
    let deleted = (0..DELS).any(|_| victims.make(Call::new(node, "DEL", pod, name)).ok());
    assert!(deleted, "{name}: DEL fails again and again");
    came
}

#[test]
fn after_a_storm_in_which_everything_was_killed_nothing_is_left() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let lives = netns(&world, "lives");
    let result = Call::new(node, "ADD", &lives, "lives").result();
    comes_to_hold(&world, node, 1);
    let storm = env::var("CANAL_STORM").map_or(STORM, |text| text.parse().unwrap());
    let seed = seed();
    let free = Mutex::new((0..WORKERS).map(|at| netns(&world, &format!("s{at}"))).collect::<Vec<_>>());
    let (victims, stop) = (Victims::default(), AtomicBool::new(false));
    let begun = Instant::now();
    let (came, tally) = thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at_random(&world, &victims, &stop, Dice(seed)));
        let stops = Stops(&stop);
        let came = spread(storm, WORKERS, |at| {
            let pod = free.lock().unwrap().pop().unwrap();
            let came = attach_and_detach(node, &victims, &pod, &format!("storm{at}"), at % 10 == 0);
            free.lock().unwrap().push(pod);
            came
        });
        drop(stops);
        (came.iter().filter(|came| **came).count(), killer.join().unwrap())
    });
    println!("CANAL_STORM={storm}: {came} came up, killed {tally:?}, {:?}", begun.elapsed());
    node.agent().wait_ready(crate::RETRIED).unwrap();
    comes_to_hold(&world, node, 1);
    println!("nothing left after {:?}", begun.elapsed());
    assert!(super::talks(node, &lives, ip(&result)), "and the one that was not touched talks on");
    assert!(came > 0 && tally.plugins > 0);
    let left = free.into_inner().unwrap();
    assert!(left.iter().all(|pod| pod.ip("-br link").unwrap().lines().all(|link| link.starts_with("lo"))));
}
