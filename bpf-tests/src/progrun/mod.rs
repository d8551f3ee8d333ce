//! The kernel programs one packet at a time, by BPF_PROG_RUN.
//!
//! Owns: the loaded object that the tests of a process share, in a network namespace of its own with interfaces for
//! its hooks. Promises: a test begins with empty tables. Does not: send anything: a redirect ends as the action
//! [`REDIRECT`], and what it would have sent is in [`Ran::frame`].

mod context;
mod cost;
pub mod packet;
mod tables;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    net::Ipv4Addr,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    maps::{Array, MapData},
    programs::{TestRun, TestRunOptions},
};
use canal_agent::dataplane::{judge, object::Object, pins::Pins};
use canal_common::{
    Mac,
    event::EVENTS_PER_DECISION,
    flow::FlowLimits,
    names,
    policy::{RowRef, Verdict},
    question::Question,
    reason::{Hook, Reason},
    settings::Settings,
};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns, unshare};

pub use self::{context::Context, cost::Size};
use crate::cmd::Cmd;

/// `TCX_NEXT`: on to the stack.
pub const NEXT: i32 = -1;
/// `TCX_DROP`.
pub const DROP: i32 = 2;
/// `TCX_REDIRECT`.
pub const REDIRECT: i32 = 7;

pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
pub const VTEP_MAC: Mac = Mac::new([2, 0xca, 0, 0, 0, 1]);
pub const VXLAN_PORT: u16 = 8472;
/// The pod network of the lab.
pub const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
pub const VNI: u32 = 1;

/// The object, and where it may be run.
pub struct Lab {
    pub object: Object,
    netns: File,
    /// The arrays in `SETS` that tests have written.
    sets: BTreeMap<u32, Array<MapData, RowRef>>,
    /// Interfaces to hang hooks on.
    pub links: Links,
}

#[derive(Debug, Clone, Copy)]
pub struct Links {
    pub pods: [u32; 3],
    pub uplink: u32,
    pub overlay: u32,
}

/// What a program did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub action: i32,
    /// What was counted; `None` when nothing was.
    pub reason: Option<Reason>,
    pub frame: Vec<u8>,
}

/// One for each set of flags in [`Settings`].
static SHARED: Mutex<BTreeMap<u32, Lab>> = Mutex::new(BTreeMap::new());

impl Lab {
    /// Runs `story` with the lab that all tests of this process share, after those that came before it.
    pub fn run<T: Send>(story: impl FnOnce(&mut Self) -> T + Send) -> T {
        Self::run_with(0, story)
    }

    /// As [`Lab::run`], with these flags of [`Settings`].
    pub fn run_with<T: Send>(flags: u32, story: impl FnOnce(&mut Self) -> T + Send) -> T {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = shared
            .entry(flags)
            .or_insert_with(|| Self::open_with(flags).expect("the kernel programs load (this needs root)"));
        lab.reset();
        lab.visit(story)
    }

    /// A lab of one's own, in a network namespace of its own.
    pub fn open() -> Result<Self> {
        Self::open_with(0)
    }

    /// As [`Lab::open`], with these flags of [`Settings`].
    pub fn open_with(flags: u32) -> Result<Self> {
        Self::make(flags, |settings| Ok(Object::load(settings, None, &HashMap::new())?))
    }

    /// As [`Lab::open`], with the kernel object in a file.
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::make(0, |settings| {
            let mut loader = EbpfLoader::new();
            loader.override_global(names::SETTINGS, settings, true);
            let ebpf = loader.load_file(path).with_context(|| format!("cannot load {}", path.display()))?;
            let mut object = Object::from(ebpf);
            names::PROGRAMS.iter().chain(&[names::JUDGE]).try_for_each(|name| object.program(name).load())?;
            Ok(object)
        })
    }

    fn make(flags: u32, load: impl FnOnce(&Settings) -> Result<Object> + Send) -> Result<Self> {
        thread::scope(|scope| {
            let made = scope.spawn(move || -> Result<Self> {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
                Self::with(flags, Links::make()?, load)
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Loads the object, or adopts the tables that are pinned, for the namespace of this thread.
    pub fn load(links: Links, pins: Option<&Pins>) -> Result<Self> {
        Self::with(0, links, |settings| Ok(Object::load(settings, pins, &HashMap::new())?))
    }

    fn with(flags: u32, links: Links, load: impl FnOnce(&Settings) -> Result<Object>) -> Result<Self> {
        let settings = Settings {
            node_ip: NODE_IP.into(),
            vtep_mac: VTEP_MAC,
            vxlan_port: VXLAN_PORT,
            vni: VNI,
            uplink_ifindex: links.uplink,
            overlay_ifindex: links.overlay,
            pods_first: NETWORK.network().to_bits(),
            pods_last: NETWORK.broadcast().to_bits(),
            limits: FlowLimits::DEFAULT,
            events_per_tick: EVENTS_PER_DECISION,
            flags,
            calico_vxlan_port: Settings::CALICO_VXLAN_PORT,
            _pad: [0; 2],
        };
        let netns = File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")?;
        let object = load(&settings)?;
        Ok(Self { object, netns, sets: BTreeMap::new(), links })
    }

    /// Runs `story` on a thread in the lab's namespace: programs see the interfaces of the namespace they are run in.
    pub fn visit<T: Send>(&mut self, story: impl FnOnce(&mut Self) -> T + Send) -> T {
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                story(self)
            });
            visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Gives the packet to the program of this hook.
    pub fn send(&mut self, hook: Hook, frame: &[u8], context: Context) -> Ran {
        let before = self.counters();
        let (action, frame) = self.try_send(hook, frame, context).expect("BPF_PROG_RUN");
        let after = self.counters();
        let changed: Vec<_> =
            before.iter().zip(&after).filter(|(before, after)| before.2 != after.2).collect();
        assert!(changed.len() <= 1, "one packet, several counters: {changed:?}");
        let reason = changed.first().map(|(before, after)| {
            assert_eq!((after.0, after.2.packets), (hook, before.2.packets + 1), "{after:?}");
            after.1
        });
        Ran { action, reason, frame }
    }

    /// What the loaded code answers from the loaded tables; nothing is counted or remembered.
    pub fn ask(&self, questions: &[Question]) -> Vec<Verdict> {
        judge::ask(self.object.judge(), questions).expect("BPF_PROG_RUN")
    }

    /// As [`Lab::send`], without a look at the counters: for those who send many.
    pub fn try_send(&mut self, hook: Hook, frame: &[u8], context: Context) -> Result<(i32, Vec<u8>)> {
        self.try_run(hook.slug(), frame, context)
    }

    /// What the kernel says that the program of this hook takes for this packet, in the mean of so many runs. For hooks
    /// that leave the packet as it is: nobody puts it right again in between.
    pub fn time(&mut self, hook: Hook, frame: &[u8], context: Context, runs: u32) -> Result<(i32, Duration)> {
        let ran = self.object.program(hook.slug()).test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context.bytes()),
            repeat: runs,
            ..TestRunOptions::default()
        })?;
        Ok((ran.return_value.cast_signed(), ran.duration))
    }

    /// Any program by its name.
    pub fn try_run(&mut self, program: &str, frame: &[u8], context: Context) -> Result<(i32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let ran = self.object.program(program).test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context.bytes()),
            ..TestRunOptions::default()
        })?;
        out.truncate(ran.data_size_out as usize);
        Ok((ran.return_value.cast_signed(), out))
    }
}

impl Links {
    /// In the namespace of this thread.
    pub fn make() -> Result<Self> {
        let make = |name: &str| -> Result<u32> {
            Cmd::line("ip link add")
                .args([name, "type", "veth", "peer", "name"])
                .arg(format!("{name}p"))
                .run()?;
            Cmd::line("ip link set").args([name, "up"]).run()?;
            let index = nix::net::if_::if_nametoindex(name)?;
            ensure!(index > 1, "{name} has index {index}, which BPF_PROG_RUN takes for none");
            Ok(index)
        };
        Ok(Self {
            pods: [make("pod0")?, make("pod1")?, make("pod2")?],
            uplink: make("up0")?,
            overlay: make("over0")?,
        })
    }
}
