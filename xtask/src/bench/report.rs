//! Owns: how a run is shown and kept: a table for people, `results.json` for scripts.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use bpf_tests::topology::{Kind, Topology};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{
    Plan,
    figures::Figures,
    hooks::HookCost,
    machine,
    row::Figure,
    study::{Finding, Target},
};
use crate::{run, workspace::Workspace};

pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    pub(super) topologies: &'a [Topology],
    pub(super) figures: &'a Figures,
    pub(super) hooks: &'a [HookCost],
    pub(super) findings: &'a [Finding],
    /// Share of one processor that went to other processes.
    pub(super) others: f64,
}

/// What everything is compared with, where it was measured.
const BASES: [(&str, Kind); 2] = [("K0", Kind::Vxlan), ("L", Kind::Bare)];
/// Above this the machine was busy with something else.
const DISTURBED: f64 = 0.05;
/// Percent of the datagrams.
const NOTABLE_LOSS: f64 = 1.0;

impl Report<'_> {
    pub(super) fn publish(&self, workspace: &Workspace) -> Result<()> {
        if !self.figures.names().is_empty() {
            println!("{}", self.table());
        }
        if !self.findings.is_empty() {
            println!("{}", self.study_table());
        }
        if !self.hooks.is_empty() {
            println!("{}", self.hook_table());
        }
        for note in self.notes()? {
            println!("{note}");
        }
        let file = self.write(workspace)?;
        run::say(format!("written: {}", file.display()));
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = table(&["", "topology", "median", "min – max", "", "to K0", "to L"]);
        for figure in self.figures.names().into_iter().filter(|figure| figure.compares()) {
            let mut title = figure.sentence();
            for kind in &self.plan.topologies {
                let Some(summary) = self.figures.summary(figure, *kind) else { continue };
                let [to_k0, to_l] = BASES.map(|(_, base)| {
                    self.figures
                        .ratio(figure, *kind, base)
                        .map_or(String::new(), |ratio| format!("{ratio:.2}"))
                });
                table.add_row([
                    std::mem::take(&mut title).to_owned(),
                    kind.to_string(),
                    number(summary.median),
                    format!("{} – {}", number(summary.min), number(summary.max)),
                    figure.unit().to_owned(),
                    to_k0,
                    to_l,
                ]);
            }
        }
        table
    }

    fn hook_table(&self) -> Table {
        let mut table = table(&["traffic", "node and hook", "ns a run", "runs"]);
        for HookCost { topology, traffic, hook, runs, ns } in self.hooks {
            table.add_row([
                format!("{traffic} on {topology}"),
                hook.clone(),
                format!("{ns:.0}"),
                runs.to_string(),
            ]);
        }
        table
    }

    fn study_table(&self) -> Table {
        let mut table = table(&["study", "", "median", "min – max", "", "target"]);
        let mut last = None;
        for finding in self.findings {
            let Finding { study, what, unit, summary, target } = finding;
            let title = if last == Some(*study) { "" } else { study.name() };
            last = Some(*study);
            let (sign, limit) = match target {
                None => ("", String::new()),
                Some(Target::AtMost(limit)) => ("≤ ", number(*limit)),
                Some(Target::AtLeast(limit)) => ("≥ ", number(*limit)),
            };
            let missed = if finding.is_met() == Some(false) { ", missed" } else { "" };
            table.add_row([
                title.to_owned(),
                what.clone(),
                number(summary.median),
                format!("{} – {}", number(summary.min), number(summary.max)),
                unit.clone(),
                format!("{sign}{limit}{missed}"),
            ]);
        }
        table
    }

    fn notes(&self) -> Result<Vec<String>> {
        let mut notes: Vec<_> =
            self.plan.topologies.iter().map(|kind| format!("{kind:<6} {}", kind.sentence())).collect();
        for kind in &self.plan.topologies {
            for figure in Figure::LOSSES {
                if let Some(loss) = self.figures.summary(figure, *kind)
                    && loss.median > NOTABLE_LOSS
                {
                    let (what, percent) = (figure.sentence(), loss.median);
                    notes.push(format!("{kind:<6} {what} at the receiver's socket: {percent:.1} %"));
                }
            }
        }
        for topology in self.topologies {
            let on: Vec<_> =
                topology.offloads()?.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
            notes.push(format!("{:<6} offloads on: {}", topology.kind(), on.join(" ")));
        }
        if self.others > DISTURBED {
            notes.push(format!(
                "Other processes took {:.0} % of one processor meanwhile: trust the ratios, not the figures.",
                self.others * 100.0
            ));
        }
        Ok(notes)
    }

    fn write(&self, workspace: &Workspace) -> Result<PathBuf> {
        let file = workspace.target().join("bench/results.json");
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&self.json(workspace)?).context("the results as JSON")?;
        fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn json(&self, workspace: &Workspace) -> Result<Value> {
        let mut rows = Vec::new();
        for figure in self.figures.names() {
            for kind in &self.plan.topologies {
                let Some(summary) = self.figures.summary(figure, *kind) else { continue };
                let mut row = json!({
                    "row": figure.name(), "topology": kind.to_string(), "unit": figure.unit(),
                    "median": summary.median, "min": summary.min, "max": summary.max,
                });
                for (name, base) in BASES.into_iter().filter(|_| figure.compares()) {
                    row[format!("vs_{name}")] = json!(self.figures.ratio(figure, *kind, base));
                }
                rows.push(row);
            }
        }
        let topologies = self.topologies.iter().map(|topology| {
            let kind = topology.kind();
            Ok(json!({"topology": kind.to_string(), "is": kind.sentence(), "offloads": topology.offloads()?}))
        });
        let hooks = self.hooks.iter().map(|cost| {
            json!({
                "topology": cost.topology, "traffic": cost.traffic, "hook": cost.hook,
                "runs": cost.runs, "ns": cost.ns,
            })
        });
        Ok(json!({
            "machine": machine::describe(workspace.root()),
            "rounds": self.plan.rounds,
            "seconds": self.plan.duration.as_secs_f64(),
            "other_processes": self.others,
            "topologies": topologies.collect::<Result<Vec<_>>>()?,
            "rows": rows,
            "hooks": hooks.collect::<Vec<_>>(),
            "studies": self.findings.iter().map(Finding::json).collect::<Vec<_>>(),
        }))
    }
}

fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v > 0.0 && v < 0.1 => format!("{v:.4}"),
        v => format!("{v:.2}"),
    }
}
