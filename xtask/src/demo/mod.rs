//! Owns: `cargo xtask demo`: a cluster on this machine, and a table of what it was expected to do and what it did.
//!
//! Promises: needs nothing but root and what `setup` gets; every expectation that fails ends in a non-zero status;
//! all that it makes carries its prefix, and goes at the end, on Ctrl-C, on failure and on panic, unless `--keep`
//! asked for it. Does not: touch anything outside its network namespaces and its folder.

mod evidence;
mod guide;
mod screen;
mod story;

use std::{fs, path::Path, process, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bpf_tests::{World, artefacts, sweep, world::CONFIG};
use nix::unistd::Uid;

use self::screen::{Screen, Seen};
use crate::{
    object::{self, Profile},
    run,
    setup::{self, Purpose},
    workspace::Workspace,
};

/// Begins the names of everything that belongs to a demo; the process id and a dash follow.
const STEM: &str = "canal-demo";

/// In the folder of a cluster that is to stay when its demo has ended.
const KEPT: &str = "kept";

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// How many nodes the cluster has
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=32))]
    nodes: u8,
    /// Leave the cluster up, and say how to enter it and how to stop it
    #[arg(long)]
    keep: bool,
    /// Remove the clusters that earlier demos left up
    #[arg(long, conflicts_with_all = ["nodes", "keep"])]
    stop: bool,
}

pub(crate) fn demo(workspace: &Workspace, arguments: &DemoArguments) -> Result<()> {
    if arguments.stop {
        return stop();
    }
    setup::require(workspace, &[Purpose::Build, Purpose::Demo])?;
    object::build(workspace, Profile::Release)?;
    for prefix in sweep::worlds(STEM).iter().filter(|prefix| is_dead(prefix) && !is_kept(prefix)) {
        run::say(format!("removing what an interrupted demo left ({prefix}*)"));
        sweep(prefix);
    }
    let prefix = format!("{STEM}{}-", process::id());
    bpf_tests::clean_up_on_interrupt(&prefix)?;
    run::say(format!("starting etcd and {} nodes as network namespaces ({prefix}*)", arguments.nodes));
    let start = Instant::now();
    let mut screen = Screen::of_terminal();
    let world = World::builder().nodes(arguments.nodes).prefix(&prefix).config(Some(CONFIG)).build()?;

    screen.header();
    let told = story::tell(&mut screen, &world);
    if told.is_err() || screen.failures() > 0 {
        artefacts::save(&world, "demo");
    }
    let cast = told?;
    if arguments.keep {
        let marker = world.folder().join(KEPT);
        fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
        guide::print(&screen, &world, &cast)?;
        world.keep();
    } else {
        clean_up(&mut screen, world);
    }
    screen.conclude(start.elapsed());
    ensure!(screen.failures() == 0, "the cluster did not do what was expected of it");
    Ok(())
}

fn clean_up(screen: &mut Screen, world: World) {
    screen.section("Afterwards");
    let (prefix, folder) = (world.prefix().to_owned(), world.folder().to_owned());
    screen.step("all of it is removed", "no namespace, mount, process or file is left", || {
        drop(world);
        let left = left_of(&prefix, &folder)?;
        let nothing = "nothing is left".to_owned();
        Ok(Seen::that(left.is_empty(), if left.is_empty() { nothing } else { left.join(", ") }))
    });
}

fn left_of(prefix: &str, folder: &Path) -> Result<Vec<String>> {
    let mut left: Vec<String> = sweep::worlds(STEM).into_iter().filter(|world| world == prefix).collect();
    let folder = folder.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    left.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")));
    for process in fs::read_dir("/proc").context("cannot list the processes")?.flatten() {
        // Processes come and go while one looks.
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(&folder) {
            left.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    Ok(left)
}

fn stop() -> Result<()> {
    ensure!(Uid::effective().is_root(), "removing network namespaces needs root");
    let all = sweep::worlds(STEM);
    let (over, running): (Vec<&String>, Vec<&String>) =
        all.iter().partition(|prefix| is_kept(prefix) || is_dead(prefix));
    for prefix in &running {
        run::say(format!("{prefix}* belongs to a demo that still runs; end that with Ctrl-C"));
    }
    if over.is_empty() {
        run::say("no demo was left up");
    }
    for prefix in over {
        sweep(prefix);
        if sweep::worlds(STEM).contains(prefix) {
            bail!("something of {prefix}* is still there; is a shell open in it?");
        }
        run::say(format!("removed {prefix}*"));
    }
    Ok(())
}

fn is_kept(prefix: &str) -> bool {
    sweep::folder(prefix).join(KEPT).exists()
}

/// Whether the process that made it is gone.
fn is_dead(prefix: &str) -> bool {
    let pid = prefix.strip_prefix(STEM).and_then(|rest| rest.strip_suffix('-'));
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}
