//! Owns: what shows that the packets went the way the other steps claim: the wire, the counters, a table.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{Capture, Cmd, Host as _, Node, Pod, World, agent::binary};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use super::screen::{Screen, Seen};

const VXLAN: &str = "udp dst port 8472";

/// One ping between two nodes, seen on the first one's uplink.
pub(super) fn wire(world: &World, from: &Pod, to: &Pod) -> Result<Seen> {
    let mut capture = Capture::start(world.node(1).netns(), "up0", "ip", world.folder())?;
    let answered = from.ping(to.ip(), 1)?.lost == 0;
    let captured =
        capture.sees(&format!("{VXLAN} and dst host {}", world.node(2).public_ip()), Duration::from_secs(5));
    capture.stop()?;
    ensure!(answered && captured, "no VXLAN packet in {}", capture.file().display());
    let bare = capture.packets("icmp or tcp")?;
    let lines =
        Cmd::line("tcpdump -nn -t -T vxlan -r").arg(capture.file().display().to_string()).arg(VXLAN).run()?;
    let (from, to) = (from.ip().to_string(), to.ip().to_string());
    // An envelope is two lines: the outside, and what is in it.
    let lines: Vec<&str> = lines.lines().collect();
    let envelope = lines
        .windows(2)
        .find(|pair| pair[0].contains("vni 1") && pair[1].contains(&from) && pair[1].contains(&to))
        .context("no envelope holds the ping")?;
    let text = if bare.is_empty() { "the ping, in its envelope" } else { "packets without an envelope" };
    Ok(Seen::that(bare.is_empty(), text)
        .with(envelope.iter().map(|line| (*line).trim().to_owned()).collect()))
}

/// What `canalctl status` counts, over all nodes.
pub(super) fn counters(screen: &mut Screen, world: &World) {
    screen.step("where the packets went: canalctl status", "VXLAN both ways; no IPv4 packet dropped but by policy", || {
        let mut sum: BTreeMap<(String, String), Count> = BTreeMap::new();
        for node in world.nodes() {
            for counter in status(node)?["counters"].as_array().context("the status has no counters")? {
                let text = |field: &str| counter[field].as_str().unwrap_or_default().to_owned();
                let count = sum.entry((text("hook"), text("reason"))).or_default();
                count.packets += counter["packets"].as_u64().unwrap_or_default();
                count.meaning = text("sentence");
                count.drop = counter["drop"] == true;
            }
        }
        let packets = |hook: &str, reason: &str| {
            sum.get(&(hook.to_owned(), reason.to_owned())).map_or(0, |count| count.packets)
        };
        let (out, taken_out) = (packets("from_pod", "encapsulated"), packets("from_wire", "delivered"));
        let local = packets("from_pod", "delivered");
        let drops = sum.iter().filter(|(_, count)| count.drop);
        let (by_policy, other): (Vec<_>, Vec<_>) = drops
            // Pods look for IPv6 routers as soon as they are up, and that is dropped.
            .filter(|((_, reason), _)| reason != "not-ipv4")
            .partition(|((_, reason), _)| reason.starts_with("policy-") || reason == "flow-denied");
        let dropped: u64 = by_policy.iter().map(|(_, count)| count.packets).sum();
        let right = out > 0 && taken_out > 0 && local > 0 && dropped > 0 && other.is_empty();
        let text = format!(
            "{out} into VXLAN, {taken_out} out of it, {local} pod to pod on a node, {dropped} dropped by policy"
        );
        Ok(Seen::that(right, text).with(rows(&sum)))
    });
}

#[derive(Debug, Default)]
struct Count {
    packets: u64,
    meaning: String,
    drop: bool,
}

fn rows(sum: &BTreeMap<(String, String), Count>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["HOOK", "REASON", "PACKETS", "MEANING"]);
    for ((hook, reason), count) in sum {
        let reason = format!("{}{reason}", if count.drop { "DROP " } else { "" });
        let packets = Cell::new(count.packets).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(hook), Cell::new(reason), packets, Cell::new(&count.meaning)]);
    }
    table.to_string().lines().map(|line| line.trim_end().to_owned()).collect()
}

fn status(node: &Node) -> Result<Value> {
    let output = Cmd::new(binary("canalctl")?)
        .arg("--socket")
        .arg(node.agent().socket().display().to_string())
        .arg("--bpffs")
        .arg(node.bpffs().display().to_string())
        .args(["status", "-o", "json"])
        .output()?;
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("canalctl status on {}: {}{}", node.name(), output.stdout, output.stderr))
}

/// One pinned table, by a tool that knows nothing of Canal.
pub(super) fn table(screen: &mut Screen, world: &World) {
    screen.step("a table of node1, by bpftool", "every field has its name", || {
        let tables = tables(world.node(1))?;
        let path = tables.join("ENDPOINTS");
        let dump = Cmd::line("bpftool map dump pinned").arg(path.display().to_string()).run()?;
        let named =
            ["ifindex", "pod_mac", "host_mac"].iter().all(|field| dump.contains(&format!("\"{field}\"")));
        let layout = tables.file_name().unwrap_or_default().to_string_lossy();
        let mut lines = vec![format!("$ bpftool map dump pinned <bpffs>/canal/{layout}/ENDPOINTS")];
        // One element tells enough.
        lines.extend(dump.lines().take_while(|line| line.trim() != "},{").map(str::to_owned));
        lines.push("    …".to_owned());
        let text = if named { "address, interface and MACs of a pod" } else { "bytes without names" };
        Ok(Seen::that(named, text).with(lines))
    });
}

/// Where a node's tables are pinned: the folder's name carries the layout.
pub(super) fn tables(node: &Node) -> Result<PathBuf> {
    let pins = node.bpffs().join("canal");
    let is_layout =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('v'));
    fs::read_dir(&pins)
        .with_context(|| format!("cannot list {}", pins.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| is_layout(path))
        .with_context(|| format!("no tables below {}", pins.display()))
}
