//! What a failed test leaves behind: logs, captures, the kernel's state of every namespace, the pinned tables, etcd.
//!
//! Collecting never fails a second time: what cannot be had is left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{cmd::Cmd, netns::Netns, probe::Host, world::World};

const STATE: [&str; 6] =
    ["ip -d addr", "ip route show table all", "ip -s neigh", "ss -tunap", "bridge fdb", "nstat -az"];

/// Saves everything about a world under `target/test-artefacts/<name>` and prints the place.
pub fn save(world: &World, name: &str) {
    let folder = place(name);
    drop(fs::remove_dir_all(&folder));
    if let Err(error) = fs::create_dir_all(&folder) {
        eprintln!("cannot save artefacts in {}: {error}", folder.display());
        return;
    }
    copy_files(world.folder(), &folder);
    for node in world.nodes() {
        let into = folder.join(format!("n{}", node.number()));
        drop(fs::create_dir_all(&into));
        copy_files(node.folder(), &into);
        state(node.netns(), &into.join("state.txt"));
        tables(&node.bpffs().join("canal"), &into);
        write(&into.join("status.json"), node.agent().get("/v1/status").unwrap_or_default());
        for pod in node.pods() {
            state(pod.netns(), &into.join(format!("pod-{}.txt", pod.name())));
        }
    }
    if let Ok(dump) = world.etcd().ctl(&["get", "--prefix", "/", "--command-timeout", "2s"]) {
        write(&folder.join("etcd-dump.txt"), dump);
    }
    eprintln!("artefacts of {name}: {}", folder.display());
}

pub(crate) fn place(name: &str) -> PathBuf {
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    workspace.join("target/test-artefacts").join(name.chars().map(safe).collect::<String>())
}

/// Logs, captures and small state; not etcd's data.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_file()) {
            drop(fs::copy(&path, to.join(entry.file_name())));
        }
    }
}

fn state(netns: &Netns, file: &Path) {
    let mut text = format!("# to enter, while it exists: ip netns exec {} bash\n", netns.name());
    for line in STATE {
        let said = netns.cmd(line).output().map(|o| o.stdout + &o.stderr);
        let said = said.unwrap_or_else(|e| e.to_string());
        text.extend(["\n$ ", line, "\n", &said]);
    }
    write(file, text);
}

/// Every pinned map, with its field names.
fn tables(pins: &Path, into: &Path) {
    for entry in fs::read_dir(pins).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            tables(&path, into);
            continue;
        }
        let dump = Cmd::line("bpftool map dump pinned").arg(path.display().to_string()).output();
        if let Ok(dump) = dump.map_err(drop).and_then(|o| if o.ok() { Ok(o.stdout) } else { Err(()) }) {
            write(&into.join(format!("map-{}.txt", entry.file_name().to_string_lossy())), dump);
        }
    }
}

fn write(file: &Path, text: String) {
    drop(fs::write(file, text));
}
