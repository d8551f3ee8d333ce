//! Owns: what `--keep` says: how to enter what stays up, and how to stop it.

use anyhow::Result;
use bpf_tests::{Host as _, World, agent::binary, etcd::ENDPOINT};

use super::{
    evidence,
    screen::{self, Screen},
    story::Cast,
};

pub(super) fn print(screen: &Screen, world: &World, cast: &Cast) -> Result<()> {
    let node = world.node(1);
    let agent = node.agent();
    let canalctl = binary("canalctl")?;
    let commands = [
        ("a node", format!("ip netns exec {} bash", node.netns().name())),
        ("a pod", format!("ip netns exec {} bash", cast.web.netns().name())),
        ("", format!("ip netns exec {} ping {}", cast.web.netns().name(), cast.db.ip())),
        (
            "etcd",
            format!(
                "ip netns exec {} env ETCDCTL_API=3 etcdctl --endpoints {ENDPOINT} get --prefix /",
                world.hub().name()
            ),
        ),
        (
            "status",
            format!(
                "{} --socket {} --bpffs {} status",
                canalctl.display(),
                agent.socket().display(),
                node.bpffs().display()
            ),
        ),
        ("tables", format!("bpftool map dump pinned {}", evidence::tables(node)?.join("FLOWS").display())),
        (
            "the wire",
            format!("ip netns exec {} tcpdump -nn -T vxlan -i up0 udp port 8472", node.netns().name()),
        ),
        ("the log", format!("tail -f {}", agent.log_file().display())),
        ("stop it", "cargo xtask demo --stop".to_owned()),
    ];
    screen.section("It stays up. As root:");
    for (what, command) in commands {
        screen::put(&format!("   {what:9} {command}"));
    }
    screen::put(&format!("   The other nodes end in -n2 …, the other pods in -pod-{} …", cast.db.name()));
    Ok(())
}
