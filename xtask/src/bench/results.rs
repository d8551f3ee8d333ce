//! Owns: what a run leaves behind: `RESULTS.json` for scripts, `RESULTS.md` with a picture of each figure for people.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use bpf_tests::topology::Kind;
use serde_json::{Value, json};

use super::{
    machine,
    plot::{self, Bar},
    report::{BASES, Report, limit, number},
    row::Figure,
    study::Finding,
    target,
};

impl Report<'_> {
    /// Into `folder`, in place of what an earlier run left there.
    pub(super) fn keep(&self, folder: &Path, root: &Path) -> Result<()> {
        let machine = machine::describe(root);
        let plots = folder.join("plots");
        if plots.exists() {
            fs::remove_dir_all(&plots).with_context(|| format!("cannot empty {}", plots.display()))?;
        }
        fs::create_dir_all(&plots).with_context(|| format!("cannot create {}", plots.display()))?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        for figure in self.compared() {
            write(&plot_name(figure), plot::svg(figure.sentence(), figure.unit(), &self.bars(figure)))?;
        }
        write("RESULTS.md", self.markdown(&machine)?)?;
        let json = serde_json::to_string_pretty(&self.json(&machine)?).context("the results as JSON")?;
        write("RESULTS.json", json + "\n")
    }

    fn compared(&self) -> Vec<Figure> {
        self.figures.names().into_iter().filter(|figure| figure.compares()).collect()
    }

    fn bars(&self, figure: Figure) -> Vec<Bar> {
        let bar = |kind: &Kind| {
            let summary = self.figures.summary(figure, *kind)?;
            Some(Bar { name: kind.to_string(), summary, is_ours: matches!(kind, Kind::Canal { .. }) })
        };
        self.plan.topologies.iter().filter_map(bar).collect()
    }

    fn markdown(&self, machine: &Value) -> Result<String> {
        let mut text = String::from(
            "# Measured\n\n\
             Written by `cargo xtask bench`; not by hand. Medians of rounds that take turns over all topologies, with the\n\
             least and the most; a ratio is the median over the rounds of the ratio within the round.\n\n",
        );
        let line = |text: &mut String, line: String| text.push_str(&(line + "\n"));
        for (name, value) in machine.as_object().into_iter().flatten() {
            line(&mut text, format!("- {name}: {}", value.as_str().map_or(value.to_string(), str::to_owned)));
        }
        let seconds = self.plan.duration.as_secs_f64();
        line(&mut text, format!("- rounds: {} of {seconds} s", self.plan.rounds));
        line(&mut text, String::new());
        for note in self.notes()? {
            line(&mut text, format!("    {note}"));
        }
        self.targets(&mut text);
        for figure in self.compared() {
            self.figure(&mut text, figure);
        }
        self.studies(&mut text);
        self.hooks(&mut text);
        Ok(text)
    }

    fn targets(&self, text: &mut String) {
        let outcomes = target::outcomes(self.figures);
        if outcomes.is_empty() {
            return;
        }
        text.push_str("\n## Targets\n\n| figure | ratio | measured | target | |\n|---|---|--:|--:|---|\n");
        for outcome in outcomes {
            let (target, met) = (outcome.target, if outcome.is_met() { "met" } else { "**missed**" });
            let (figure, ratio) = (target.figure.sentence(), number(outcome.ratio));
            let (of, to, wanted) = (target.of, target.to, limit(target.limit));
            // Writing to a string does not fail.
            let _ = writeln!(text, "| {figure} | {of} to {to} | {ratio} | {wanted} | {met} |");
        }
    }

    fn figure(&self, text: &mut String, figure: Figure) {
        let (sentence, plot) = (figure.sentence(), plot_name(figure));
        let _ = write!(
            text,
            "\n## {sentence}\n\n![{sentence}]({plot})\n\n\
             | topology | {} | min – max |{} |\n|---|--:|--:|{}\n",
            figure.unit(),
            BASES.map(|(_, kind)| format!(" to {kind}")).join(" |"),
            "--:|".repeat(BASES.len()),
        );
        for kind in &self.plan.topologies {
            let Some(summary) = self.figures.summary(figure, *kind) else { continue };
            let [median, min, max] = [summary.median, summary.min, summary.max].map(number);
            let ratios = BASES.map(|(_, base)| self.figures.ratio(figure, *kind, base));
            let ratios = ratios.map(|ratio| ratio.map_or(String::new(), number)).join(" | ");
            let _ = writeln!(text, "| {kind} | {median} | {min} – {max} | {ratios} |");
        }
    }

    fn studies(&self, text: &mut String) {
        if !self.findings.is_empty() {
            text.push_str(
                "\n## Studies\n\n| study | | median | min – max | | target |\n|---|---|--:|--:|---|---|\n",
            );
        }
        for finding in self.findings {
            let [median, min, max] =
                [finding.summary.median, finding.summary.min, finding.summary.max].map(number);
            let wanted = finding.target.map_or(String::new(), limit);
            let missed = if finding.is_met() == Some(false) { " **missed**" } else { "" };
            let (study, what, unit) = (finding.study.name(), finding.what.trim(), &finding.unit);
            let _ =
                writeln!(text, "| {study} | {what} | {median} | {min} – {max} | {unit} | {wanted}{missed} |");
        }
    }

    fn hooks(&self, text: &mut String) {
        if !self.hooks.is_empty() {
            text.push_str(
                "\n## Hooks under traffic\n\nBy the kernel's statistics, which cost each run two looks at a clock.\n\n\
                 | traffic | node and hook | ns a run | runs |\n|---|---|--:|--:|\n",
            );
        }
        for cost in self.hooks {
            let (traffic, topology, hook, ns, runs) =
                (cost.traffic, &cost.topology, &cost.hook, cost.ns, cost.runs);
            let _ = writeln!(text, "| {traffic} on {topology} | {hook} | {ns:.0} | {runs} |");
        }
    }

    fn json(&self, machine: &Value) -> Result<Value> {
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
        let targets = target::outcomes(self.figures).into_iter().map(|outcome| {
            let target = outcome.target;
            let (sign, wanted) = target.limit.parts();
            json!({
                "row": target.figure.name(), "topology": target.of.to_string(), "to": target.to.to_string(),
                "ratio": outcome.ratio, "target": wanted, "target_is": sign, "met": outcome.is_met(),
            })
        });
        Ok(json!({
            "machine": machine,
            "rounds": self.plan.rounds,
            "seconds": self.plan.duration.as_secs_f64(),
            "other_processes": self.others,
            "topologies": topologies.collect::<Result<Vec<_>>>()?,
            "rows": rows,
            "targets": targets.collect::<Vec<_>>(),
            "hooks": hooks.collect::<Vec<_>>(),
            "studies": self.findings.iter().map(Finding::json).collect::<Vec<_>>(),
        }))
    }
}

fn plot_name(figure: Figure) -> String {
    format!("plots/{}.svg", figure.name())
}
