//! Each binary as its user runs it: what it says to bad input, and what it leaves alone.
//!
//! Every message has the operation, the object, the cause and what to do; the tests look for the words that carry
//! these. Not here: a kernel without tcx or without BTF, which this machine cannot be (a unit test of
//! `dataplane::object` reads kernel releases; the message is `ObjectError::{KernelTooOld, NoBtf}`), and etcd's
//! errors one by one (`canal-agent/tests/store`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod agent;
mod authority;
mod cni;
mod configuration;
mod ctl;
mod datastore;
mod explain;
mod health;
mod installation;
mod lists;
mod objects;
mod parameters;
mod podman;
mod privileges;
mod status_files;
mod store;

use std::time::Duration;

use bpf_tests::{Agent, Cmd, Host, Node, World, agent::binary, until};

const SOON: Duration = Duration::from_secs(10);
/// After a wait between attempts.
const RETRIED: Duration = Duration::from_secs(30);

fn soon(condition: impl FnMut() -> bool) -> bool {
    until(SOON, condition)
}

fn one_node() -> World {
    World::builder().nodes(1).build().unwrap()
}

/// The agent of this node with its flags, behind another program that starts it.
fn agent_by(node: &Node, starter: &str) -> Cmd {
    let agent = binary("canal-agent").unwrap().display().to_string();
    let line = if starter.is_empty() { agent.clone() } else { starter.to_owned() };
    let command = node.netns().cmd(&line);
    let command = if starter.is_empty() { command } else { command.arg(&agent) };
    command.arg("run").args(node.agent().flags())
}

/// It must not start; returns what it said.
fn refusal(command: Cmd) -> String {
    let output = command.output().unwrap();
    let said = output.stdout + &output.stderr;
    assert!(!output.status.success(), "it should not have started: {said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("canal-agent: "), "the reason is the last line: {said}");
    said
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// It starts, waits for something, and says for what.
fn waits_saying(agent: &Agent, words: &[&str]) {
    agent.spawn().unwrap();
    assert!(agent.says(words, SOON), "{words:?} are not in: {}", agent.log());
    assert!(agent.is_running() && !agent.subnet_file().exists());
}
