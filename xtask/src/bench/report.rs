//! Owns: how a run is shown in a terminal.

use std::collections::BTreeMap;

use anyhow::Result;
use bpf_tests::topology::{Kind, Topology};
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::{
    Plan,
    figures::Figures,
    hooks::HookCost,
    row::Figure,
    study::Finding,
    target::{self, Limit, Outcome},
};

pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    pub(super) topologies: &'a [Topology],
    pub(super) figures: &'a Figures,
    pub(super) hooks: &'a [HookCost],
    pub(super) findings: &'a [Finding],
    /// Share of one processor that went to other processes.
    pub(super) others: f64,
}

/// What everything is compared with, where it was measured; the names are those of the members in JSON, too.
pub(super) const BASES: [(&str, Kind); 4] =
    [("K10", Kind::Felix { rules: 10 }), ("K0", Kind::Vxlan), ("D", Kind::Routed), ("L", Kind::Bare)];
/// Above this the machine was busy with something else.
const DISTURBED: f64 = 0.05;
/// Percent of the datagrams.
const NOTABLE_LOSS: f64 = 1.0;

impl Report<'_> {
    pub(super) fn show(&self) -> Result<()> {
        if !self.figures.names().is_empty() {
            println!("{}", self.table());
        }
        if !self.findings.is_empty() {
            println!("{}", self.study_table());
        }
        if !self.hooks.is_empty() {
            println!("{}", self.hook_table());
        }
        let outcomes = target::outcomes(self.figures);
        if !outcomes.is_empty() {
            println!("{}", outcome_table(&outcomes));
        }
        for note in self.notes()? {
            println!("{note}");
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let bases = BASES.map(|(_, kind)| format!("to {kind}"));
        let headers = ["", "topology", "median", "min – max", ""].map(str::to_owned);
        let mut table = table(headers.into_iter().chain(bases));
        for figure in self.figures.names().into_iter().filter(|figure| figure.compares()) {
            let mut title = figure.sentence();
            for kind in &self.plan.topologies {
                let Some(summary) = self.figures.summary(figure, *kind) else { continue };
                let ratios = BASES.map(|(_, base)| {
                    self.figures
                        .ratio(figure, *kind, base)
                        .map_or(String::new(), |ratio| format!("{ratio:.2}"))
                });
                let cells = [
                    std::mem::take(&mut title).to_owned(),
                    kind.to_string(),
                    number(summary.median),
                    format!("{} – {}", number(summary.min), number(summary.max)),
                    figure.unit().to_owned(),
                ];
                table.add_row(cells.into_iter().chain(ratios));
            }
        }
        table
    }

    fn hook_table(&self) -> Table {
        let mut table = table(["traffic", "node and hook", "ns a run", "runs"]);
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
        let mut table = table(["study", "", "median", "min – max", "", "target"]);
        let mut last = None;
        for finding in self.findings {
            let Finding { study, what, unit, summary, target } = finding;
            let title = if last == Some(*study) { "" } else { study.name() };
            last = Some(*study);
            let limit = target.map_or(String::new(), limit);
            let missed = if finding.is_met() == Some(false) { ", missed" } else { "" };
            table.add_row([
                title.to_owned(),
                what.clone(),
                number(summary.median),
                format!("{} – {}", number(summary.min), number(summary.max)),
                unit.clone(),
                format!("{limit}{missed}"),
            ]);
        }
        table
    }

    pub(super) fn notes(&self) -> Result<Vec<String>> {
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
        notes.extend(self.offloads()?);
        if self.others > DISTURBED {
            notes.push(format!(
                "Other processes took {:.0} % of one processor meanwhile: trust the ratios, not the figures.",
                self.others * 100.0
            ));
        }
        Ok(notes)
    }

    /// One line for all topologies whose devices have the same offloads on.
    fn offloads(&self) -> Result<Vec<String>> {
        let mut alike: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
        for topology in self.topologies {
            let on = topology.offloads()?.into_iter().filter(|(_, on)| *on).map(|(name, _)| name);
            alike.entry(on.collect()).or_default().push(topology.kind().to_string());
        }
        let line = |(on, kinds): (Vec<String>, Vec<String>)| {
            format!("offloads on, {}: {}", kinds.join(" "), on.join(" "))
        };
        Ok(alike.into_iter().map(line).collect())
    }
}

fn outcome_table(outcomes: &[Outcome]) -> Table {
    let mut table = table(["target", "", "measured", "wanted", ""]);
    for outcome in outcomes {
        let Outcome { target, ratio } = outcome;
        table.add_row([
            target.figure.sentence().to_owned(),
            format!("{} to {}", target.of, target.to),
            number(*ratio),
            limit(target.limit),
            if outcome.is_met() { String::new() } else { "missed".to_owned() },
        ]);
    }
    table
}

/// As people write it.
pub(super) fn limit(limit: Limit) -> String {
    let (sign, value) = limit.parts();
    format!("{sign} {}", number(value))
}

fn table(headers: impl IntoIterator<Item: Into<Cell>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers.into_iter().map(Into::into).collect::<Vec<Cell>>());
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three digits that mean something.
pub(super) fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v > 0.0 && v < 0.1 => format!("{v:.4}"),
        v => format!("{v:.2}"),
    }
}
