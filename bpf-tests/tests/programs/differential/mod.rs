//! Random clusters and packets: what the loaded programs do with tables that the agent wrote is what the definition of
//! policy says, rule and notes included, over a life of updates and restarts.
//!
//! Most packets are put as questions to the program `judge`, many at once. A good share goes through the hooks that
//! judge real ones, and their hit counters must name the same decisions.

mod content;
mod kernel;
mod traffic;

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use bpf_tests::{dice::Dice, progrun::Links};
use canal_agent::{
    compile::{Compiler, reference, reference::Reference},
    dataplane::{
        hits::HitCounters,
        judge,
        pins::Pins,
        policy::{Desired, Limits, PolicyTables},
        tables::KernelTables,
    },
    model::{Cluster, EndpointKey, rule::Direction},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use self::{
    content::{Content, HERE, LOCAL_PODS, PODS, pod_address},
    kernel::{End, Kernel},
};
use super::*;

/// Over all stories.
const VERDICTS: u64 = 1_000_000;
/// Told at the same time, each from its own beginning.
const STORIES: u64 = 2;
/// Packets for each cluster.
const ASKED: usize = 1000;
const SENT: usize = 200;
/// Every so many clusters, a fresh process takes the tables over.
const LIFE: u64 = 25;

/// The node's process: it may die, its tables stay.
struct Process {
    kernel: Kernel,
    cluster: Cluster,
    compiler: Compiler,
}

/// Whose addresses are programmed, and under which id.
type Locals = BTreeMap<Ipv4Addr, (EndpointKey, u32)>;

impl Process {
    fn start(links: Links, bpffs: &Path) -> Self {
        let kernel = Kernel::adopt(links, bpffs);
        Self { kernel, cluster: Cluster::default(), compiler: Compiler::new(HERE) }
    }

    /// The store's complete content.
    fn list(&mut self, content: &Content) {
        let entries = content.iter().map(|(key, value)| (key.clone(), value.to_string().into_bytes()));
        self.cluster.replace_all(entries);
    }

    fn watch(&mut self, changes: &content::Changes) {
        for (key, value) in changes {
            let text = value.as_ref().map(ToString::to_string);
            self.cluster.apply(key, text.as_ref().map(String::as_bytes));
        }
    }

    fn apply(&mut self, pins: &Pins) -> Locals {
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
        let mut holders: BTreeMap<Ipv4Addr, EndpointKey> = BTreeMap::new();
        for (key, addr) in self.compiler.endpoints().keys() {
            // As the node decides it: the lower key has the address.
            holders.entry(*addr).or_insert_with(|| key.clone());
        }
        let links = self.kernel.lab.links;
        let desired = holders.iter().map(|(addr, key)| {
            let pod = (0..LOCAL_PODS).map(pod).find(|pod| pod.ip == *addr).expect("a pod of this node");
            let judgement = &self.compiler.endpoints()[&(key.clone(), *addr)];
            let desired = Desired {
                ifindex: links.pods[pod.number],
                pod_mac: pod.mac,
                host_mac: HOST_MAC,
                shaped: false,
                ingress: judgement.ingress.clone(),
                egress: judgement.egress.clone(),
            };
            (*addr, desired)
        });
        let desired = desired.collect();
        let problems = self.kernel.policy.apply(self.compiler.census(), &desired).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let id = |addr| judge::endpoint(pins, addr).unwrap().expect("it was just written").id;
        holders.into_iter().map(|(addr, key)| (addr, (key, id(addr)))).collect()
    }
}

/// What has been seen.
#[derive(Debug, Default)]
struct Tally {
    clusters: u64,
    restarts: u64,
    asked: u64,
    allowed: u64,
    by_policy: u64,
    by_profile: u64,
    noted: u64,
    /// Sent, by hook, and how many of them passed.
    sent: BTreeMap<&'static str, (u64, u64)>,
}

impl Tally {
    fn verdicts(&self) -> u64 {
        self.asked + self.sent.values().map(|(sent, _)| sent).sum::<u64>()
    }

    fn count(&mut self, verdict: &reference::Verdict) {
        self.asked += 1;
        self.allowed += u64::from(verdict.allow);
        let by_profile = verdict.rule.as_ref().map(|rule| rule.tier.is_empty());
        self.by_policy += u64::from(by_profile == Some(false));
        self.by_profile += u64::from(by_profile == Some(true));
        self.noted += u64::from(!verdict.logs.is_empty());
    }

    fn add(&mut self, other: &Self) {
        self.clusters += other.clusters;
        self.restarts += other.restarts;
        self.asked += other.asked;
        self.allowed += other.allowed;
        self.by_policy += other.by_policy;
        self.by_profile += other.by_profile;
        self.noted += other.noted;
        for (hook, (sent, passed)) in &other.sent {
            let sum = self.sent.entry(hook).or_default();
            *sum = (sum.0 + sent, sum.1 + passed);
        }
    }

    /// The cases must say something.
    fn check(&self) {
        let within = |least: u64, part: u64, whole: u64, most: u64, what: &str| {
            let percent = part * 100 / whole;
            assert!((least..=most).contains(&percent), "{what}: {percent} %, not {least} to {most} %");
        };
        within(10, self.allowed, self.asked, 90, "allowed");
        within(20, self.by_policy, self.asked, 90, "decided by a policy's rule");
        within(5, self.by_profile, self.asked, 90, "decided by a profile's rule");
        within(2, self.noted, self.asked, 90, "noted by Log rules");
        for (hook, (sent, passed)) in &self.sent {
            within(10, *passed, *sent, 90, hook);
            within(1, *sent, self.verdicts(), 100, hook);
        }
        assert_eq!(self.sent.len(), 3, "{:?}", self.sent);
    }
}

/// One cluster as it stands: the same packets by the definition and by what is loaded.
struct Round<'a> {
    kernel: &'a mut Kernel,
    reference: Reference<'a>,
    locals: &'a Locals,
    /// Those of them that are programmed.
    pods: Vec<Pod>,
    dice: &'a mut Dice,
}

impl Round<'_> {
    fn random(&mut self) -> (Pod, Direction, reference::Packet) {
        let local = self.dice.pick(&self.pods);
        let direction = self.dice.pick(&Direction::BOTH);
        (local, direction, traffic::random(self.dice, local.ip, direction))
    }

    /// What the definition says about the policy of one end.
    fn expected(
        &self,
        addr: Ipv4Addr,
        direction: Direction,
        packet: &reference::Packet,
    ) -> reference::Verdict {
        self.reference.judge(&self.locals[&addr].0, direction, packet)
    }

    fn ask(&mut self, tally: &mut Tally) -> Result<(), String> {
        let cases: Vec<_> = (0..ASKED).map(|_| self.random()).collect();
        let end = |local: Pod, direction| (self.locals[&local.ip].1, direction);
        let answers =
            self.kernel.ask(cases.iter().map(|(local, direction, packet)| (end(*local, *direction), packet)));
        for ((local, direction, packet), (_, found)) in cases.iter().zip(answers) {
            let wanted = self.expected(local.ip, *direction, packet);
            if found != wanted {
                return Err(format!("{direction} of {}: {packet:?}: {found:#?}, not {wanted:#?}", local.ip));
            }
            tally.count(&wanted);
        }
        Ok(())
    }

    /// The ends whose policy a packet meets here, in this order, until one denies.
    fn ends(&self, packet: &reference::Packet) -> Vec<(End, reference::Verdict)> {
        let mut met = Vec::new();
        for (addr, direction) in
            [(packet.source, Direction::Egress), (packet.destination, Direction::Ingress)]
        {
            if let Some((_, id)) = self.locals.get(&addr) {
                let verdict = self.expected(addr, direction, packet);
                let denied = !verdict.allow;
                met.push(((*id, direction), verdict));
                if denied {
                    break;
                }
            }
        }
        met
    }

    fn send(&mut self, tally: &mut Tally) -> Result<(), String> {
        let mut packets = Vec::new();
        // By decision: before, and what will have been added.
        let mut hits: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        while packets.len() < SENT {
            let (local, direction, packet) = self.random();
            if !traffic::is_judged(&packet) {
                continue;
            }
            let ends = self.ends(&packet);
            let answers = self.kernel.ask(ends.iter().map(|(end, _)| (*end, &packet)));
            for ((decision, found), (_, wanted)) in answers.into_iter().zip(&ends) {
                if found != *wanted {
                    return Err(format!("{packet:?}: {found:#?}, not {wanted:#?}"));
                }
                hits.entry(decision).or_insert_with(|| (self.kernel.hits(decision), 0)).1 += 1;
            }
            let passes = ends.iter().all(|(_, verdict)| verdict.allow);
            packets.push((local, direction, packet, passes));
        }
        for (local, direction, packet, wanted) in packets {
            let in_envelope = self.dice.chance(60);
            let (hook, passed) = self.kernel.send(local, direction, &packet, in_envelope);
            if passed != wanted {
                let slug = hook.slug();
                return Err(format!(
                    "{slug} {direction} of {}: {packet:?}: {passed}, not {wanted}",
                    local.ip
                ));
            }
            let sum = tally.sent.entry(hook.slug()).or_default();
            *sum = (sum.0 + 1, sum.1 + u64::from(passed));
        }
        for (decision, (before, more)) in hits {
            let found = self.kernel.hits(decision) - before;
            if found != more {
                return Err(format!("decision {decision} was hit {found} times, not {more}"));
            }
        }
        Ok(())
    }
}

fn tell(seed: u64, bpffs: &Path, verdicts: u64) -> Tally {
    let mut dice = Dice(seed);
    let pins = Pins::open(bpffs).unwrap();
    let links = Links::make().unwrap();
    let mut process = Process::start(links, bpffs);
    let (mut content, mut tally) = (Content::new(), Tally::default());
    let mut removals = 0;
    while tally.verdicts() < verdicts {
        let begins = tally.clusters.is_multiple_of(LIFE);
        tally.clusters += 1;
        if begins {
            removals = dice.pick(&[20, 50, 80]);
        }
        let many = if begins { 40 } else { 1 + dice.below(5) };
        let changes = content::advance(&mut dice, &mut content, many, removals);
        if begins && tally.clusters > 1 {
            drop(process);
            process = Process::start(links, bpffs);
            process.list(&content);
            tally.restarts += 1;
        } else if dice.chance(5) {
            process.list(&content);
        } else {
            process.watch(&changes);
        }
        let locals = process.apply(&pins);
        let pods: Vec<Pod> = (0..LOCAL_PODS).map(pod).filter(|pod| locals.contains_key(&pod.ip)).collect();
        if pods.is_empty() {
            continue;
        }
        let reference = Reference::new(&process.cluster);
        let mut round =
            Round { kernel: &mut process.kernel, reference, locals: &locals, pods, dice: &mut dice };
        let told = round.ask(&mut tally).and_then(|()| round.send(&mut tally));
        if let Err(difference) = told {
            let store: Vec<_> = content.iter().map(|(key, value)| format!("{key} {value}")).collect();
            panic!(
                "CANAL_SEED={seed}, cluster {}: {difference}\nthe store:\n{}",
                tally.clusters,
                store.join("\n")
            );
        }
    }
    tally
}

/// With interfaces and pins of its own, which end with the thread.
fn story(seed: u64, verdicts: u64) -> thread::JoinHandle<Tally> {
    thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let bpffs = folder.path().join("bpf");
        fs::create_dir(&bpffs).unwrap();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let tally = tell(seed, &bpffs, verdicts);
        nix::mount::umount(&bpffs).unwrap();
        tally
    })
}

/// From another beginning each time: `CANAL_SEED` and `CANAL_VERDICTS` tell one again.
#[test]
fn the_kernel_judges_as_the_definition_says_over_updates_and_restarts() {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("CANAL_SEED").unwrap_or(now);
    let wanted = number("CANAL_VERDICTS").unwrap_or(VERDICTS);
    println!("CANAL_SEED={seed} CANAL_VERDICTS={wanted}");
    let stories: Vec<_> =
        (0..STORIES).map(|at| story(seed.wrapping_add(at), wanted.div_ceil(STORIES))).collect();
    let mut tally = Tally::default();
    for story in stories {
        tally.add(&story.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    println!("{} verdicts: {tally:?}", tally.verdicts());
    assert!(tally.verdicts() >= wanted, "{tally:?}");
    tally.check();
}
