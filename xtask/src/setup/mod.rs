//! Owns: what must be there before a verb can work: `requirement` is the table, `probe` looks, `apt` and `install`
//! get what is missing. This file decides what to do and says it.
//! Promises: what is there is left alone; nothing is done silently; a verb that goes on after `require` has all
//! that it needs.

mod apt;
mod install;
mod probe;
mod requirement;

use anyhow::{Result, bail};

pub(crate) use self::requirement::Purpose;
use self::{
    install::Outcome,
    requirement::{Requirement, TABLE},
};
use crate::{run, workspace::Workspace};

/// `cargo xtask setup`: everything for every purpose, with a line for each thing.
pub(crate) fn setup(workspace: &Workspace, dry_run: bool) -> Result<()> {
    let missing = inspect(&Purpose::ALL, true);
    if missing.is_empty() {
        run::say("everything is there");
        return Ok(());
    }
    if dry_run {
        preview(&missing);
        return Ok(());
    }
    provide(workspace, &missing)
}

fn preview(missing: &[Missing]) {
    run::say("setup would do this:");
    for step in install::plan(missing) {
        eprintln!("    {}", step.describe());
    }
    let yours: Vec<Missing> = missing.iter().filter(|one| !install::can_help(one)).cloned().collect();
    if !yours.is_empty() {
        run::say("and this would be left to you:");
        eprintln!("{}", advice(&yours, &[]));
    }
}

/// What another verb calls first. Silent when everything is there.
pub(crate) fn require(workspace: &Workspace, purposes: &[Purpose]) -> Result<()> {
    let missing = inspect(purposes, false);
    if missing.is_empty() { Ok(()) } else { provide(workspace, &missing) }
}

/// A requirement that is not met, and why not.
#[derive(Debug, Clone)]
struct Missing {
    requirement: &'static Requirement,
    reason: String,
}

fn inspect(purposes: &[Purpose], tell_all: bool) -> Vec<Missing> {
    let mut missing = Vec::new();
    for requirement in TABLE.iter().filter(|row| row.purposes.iter().any(|one| purposes.contains(one))) {
        match probe::look(requirement.probe) {
            Ok(found) if tell_all => eprintln!("    ok       {:16} {found}", requirement.name),
            Ok(_) => {}
            Err(reason) => {
                let Requirement { name, why, .. } = requirement;
                eprintln!("    missing  {name:16} {reason}; needed for {why}");
                missing.push(Missing { requirement, reason });
            }
        }
    }
    missing
}

/// Gets what can be got, then looks again: only what is really there counts.
fn provide(workspace: &Workspace, missing: &[Missing]) -> Result<()> {
    let mut failures = Vec::new();
    for step in install::plan(missing) {
        match step.run(workspace)? {
            Outcome::Done => {}
            Outcome::Impossible(reason) => failures.push(reason),
        }
    }
    let left: Vec<Missing> = missing
        .iter()
        .filter_map(|one| {
            let reason = probe::look(one.requirement.probe).err()?;
            Some(Missing { requirement: one.requirement, reason })
        })
        .collect();
    if left.is_empty() {
        run::say("everything needed is there now");
        return Ok(());
    }
    bail!("{}", advice(&left, &failures));
}

/// What the user has to do, one line for each thing, and one command where one command does it.
fn advice(left: &[Missing], failures: &[String]) -> String {
    let mut lines = vec!["these things are missing:".to_owned()];
    for Missing { requirement, reason } in left {
        lines.push(format!("  {:16} {reason}", requirement.name));
        lines.push(format!("  {:16} get: {}", "", requirement.otherwise));
    }
    lines.extend(failures.iter().map(|failure| format!("  {failure}")));
    let packages = install::packages_of(left);
    if apt::present() && !probe::is_root() && !packages.is_empty() {
        lines.push(format!("as root: apt-get install {}", packages.join(" ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{install::Step, *};

    fn lacking(name: &str) -> Missing {
        let requirement = TABLE.iter().find(|row| row.name == name).unwrap();
        Missing { requirement, reason: "not found".to_owned() }
    }

    #[test]
    fn the_advice_names_each_missing_thing_and_how_to_get_it() {
        let text = advice(&[lacking("etcd"), lacking("root")], &["apt said no".to_owned()]);
        for part in ["etcd", "etcd 3.4 or later", "run it as root", "apt said no"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn one_apt_call_gets_all_packages_and_comes_before_what_is_built_with_them() {
        let plan = install::plan_for(&[lacking("bpf-linker"), lacking("etcd"), lacking("root")], true, true);
        let texts: Vec<String> = plan.iter().map(Step::describe).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("etcd-server") && texts[0].contains("llvm-22-dev"), "{texts:?}");
        assert!(texts[1].contains("cargo install bpf-linker --version 0.13.0 --locked"), "{texts:?}");
    }

    #[test]
    fn without_root_or_apt_only_what_needs_neither_is_planned() {
        for (apt, root) in [(true, false), (false, true), (false, false)] {
            let plan = install::plan_for(&[lacking("etcd"), lacking("cargo-deny")], apt, root);
            let texts: Vec<String> = plan.iter().map(Step::describe).collect();
            assert!(matches!(&texts[..], [one] if one.contains("cargo-deny")), "{texts:?}");
        }
    }
}
