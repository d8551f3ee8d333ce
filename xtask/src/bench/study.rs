//! Owns: what is measured by itself and not on topologies, and what is found.

use std::{ffi::OsStr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{figures::Summary, flood, target::Limit};
use crate::{object, run, workspace::Workspace};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Study {
    /// What each program costs for each kind of packet.
    Hooks,
    /// What a new flow costs, by the number of rules.
    Verdict,
    /// What the agent takes to start, and to follow etcd.
    Control,
    /// What a runtime waits for when a pod comes or goes.
    Cni,
    /// A large cluster, from the store's list to the kernel.
    Scale,
    /// Other pods' flows while one pod opens flow after flow.
    Flood,
    /// Agents, etcd, pins and devices fail under a steady load.
    Faults,
}

/// One line of a study.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) study: Study,
    pub(super) what: String,
    pub(super) unit: String,
    pub(super) summary: Summary,
    /// What the median must not miss.
    pub(super) target: Option<Limit>,
}

impl Study {
    pub(super) const ALL: [Self; 7] =
        [Self::Hooks, Self::Control, Self::Cni, Self::Verdict, Self::Scale, Self::Flood, Self::Faults];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Control => "control",
            Self::Cni => "cni",
            Self::Verdict => "verdict",
            Self::Scale => "scale",
            Self::Flood => "flood",
            Self::Faults => "faults",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Hooks => {
                "what each program costs for each kind of packet, and what of it is flow table and policy"
            }
            Self::Control => {
                "an agent starts with 10,000 leases and with 2,000 policies, and follows a change in etcd"
            }
            Self::Cni => "ADD and DEL, alone and fifty at once, beside Debian's bridge plugin",
            Self::Verdict => "what a new flow costs at ten rules and at a hundred thousand",
            Self::Scale => "10,000 policies and 100,000 endpoints on a node with 250 pods",
            Self::Flood => "other pods' flows while one pod opens 200,000 flows a second",
            Self::Faults => "what a fault costs a pod that sends 50,000 packets a second to another node",
        }
    }

    pub(super) fn measure(self, workspace: &Workspace, quick: bool) -> Result<Vec<Finding>> {
        run::say(format!("{}: {}", self.name(), self.sentence()));
        match self {
            Self::Hooks => {
                let bare = object::build_bare_ebpf(workspace)?;
                self.by_benchmark(workspace, if quick { 5 } else { 31 }, Some(bare.as_os_str()))
            }
            Self::Control => self.by_benchmark(workspace, if quick { 2 } else { 7 }, None),
            Self::Cni => self.by_benchmark(workspace, if quick { 1 } else { 7 }, None),
            Self::Verdict => self.by_benchmark(workspace, if quick { 7 } else { 31 }, None),
            Self::Scale => self.by_benchmark(workspace, if quick { 100 } else { 1000 }, None),
            Self::Faults => self.by_benchmark(workspace, if quick { 20_000 } else { 50_000 }, None),
            Self::Flood => {
                let (rounds, seconds) = if quick { (2, 1) } else { (5, 4) };
                flood::measure(rounds, Duration::from_secs(seconds))
            }
        }
        .with_context(|| format!("study {}", self.name()))
    }

    /// By the benchmark of bpf-tests that is linked with the agent's library.
    fn by_benchmark(self, workspace: &Workspace, number: u32, file: Option<&OsStr>) -> Result<Vec<Finding>> {
        let mut cargo = run::cargo(workspace.root());
        cargo.args(["bench", "--quiet", "--package", "bpf-tests", "--bench", "study", "--"]);
        cargo.args([self.name(), &number.to_string()]).args(file);
        let shown = run::shown(&cargo);
        let output = cargo
            .stdout(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .with_context(|| format!("cannot run `{shown}`"))?;
        ensure!(output.status.success(), "`{shown}` failed ({})", output.status);
        let text = String::from_utf8(output.stdout).context("its figures")?;
        text.lines().map(|line| self.finding(line).with_context(|| format!("a figure: {line}"))).collect()
    }

    fn finding(self, line: &str) -> Result<Finding> {
        let value: Value = serde_json::from_str(line)?;
        let text = |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let number = |name: &str| value[name].as_f64().with_context(|| format!("no {name}"));
        Ok(Finding {
            study: self,
            what: text("what")?,
            unit: text("unit")?,
            summary: Summary { median: number("median")?, min: number("min")?, max: number("max")? },
            target: value["at_most"].as_f64().map(Limit::AtMost),
        })
    }
}

impl Finding {
    /// `None` without a target.
    pub(super) fn is_met(&self) -> Option<bool> {
        self.target.map(|target| target.is_met(self.summary.median))
    }

    pub(super) fn json(&self) -> Value {
        let (name, limit) = match self.target {
            None => (None, None),
            Some(Limit::AtMost(limit)) => (Some("at most"), Some(limit)),
            Some(Limit::AtLeast(limit)) => (Some("at least"), Some(limit)),
        };
        json!({
            "study": self.study.name(), "what": self.what.trim(), "unit": self.unit,
            "median": self.summary.median, "min": self.summary.min, "max": self.summary.max,
            "target": limit, "target_is": name, "met": self.is_met(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_with_its_target() {
        let line = r#"{"what":"labels, p99","unit":"ms","median":4.5,"min":1.0,"max":9.5,"at_most":10.0}"#;
        let finding = Study::Scale.finding(line).unwrap();
        assert_eq!((finding.what.as_str(), finding.unit.as_str()), ("labels, p99", "ms"));
        assert_eq!(finding.is_met(), Some(true));
        let without = Study::Scale.finding(&line.replace("10.0", "null")).unwrap();
        assert_eq!(without.is_met(), None);
        assert!(Study::Scale.finding("{}").is_err());
    }
}
