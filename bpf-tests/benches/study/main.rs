//! Studies that need the agent's library: `cargo xtask bench` runs this, optimised as users run the agent.
//!
//! `study verdict [ROUNDS]`, `study scale [CHANGES]`, `study control [ROUNDS]`, `study cni [ROUNDS]`,
//! `study faults [PACKETS_A_SECOND]`, `study hooks ROUNDS OBJECT`; figures go to stdout, one JSON object a line, what is going on to stderr.

mod cni;
mod control;
mod faults;
mod hooks;
mod memory;
mod scale;
mod verdict;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

fn main() -> Result<()> {
    // `cargo bench` adds its own flag.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = words.get(1).map(|word| word.parse().context("a number")).transpose()?;
    let what = words.first().map(String::as_str);
    if !matches!(what, Some("control" | "faults" | "cni")) {
        // Where the agent itself is measured, it takes its turn as everywhere.
        bpf_tests::load::go_first()?;
    }
    let figures = match what {
        Some("verdict") => verdict::measure(number.unwrap_or(31))?,
        Some("scale") => scale::measure(number.unwrap_or(500))?,
        Some("control") => control::measure(number.unwrap_or(7))?,
        Some("cni") => cni::measure(number.unwrap_or(5))?,
        Some("faults") => faults::measure(number.unwrap_or(50_000))?,
        Some("hooks") => {
            let object = words.get(2).context("the kernel object without flow table and policy")?;
            hooks::measure(number.unwrap_or(15), Path::new(object))?
        }
        _ => bail!("study verdict|scale|hooks|control|cni|faults [NUMBER] [OBJECT]"),
    };
    for figure in figures {
        println!("{}", figure.json());
    }
    Ok(())
}

/// One line of a report.
struct Figure {
    what: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    /// What it must not exceed.
    at_most: Option<f64>,
}

impl Figure {
    /// Of one reading.
    fn of(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { what: what.into(), unit, median: value, min: value, max: value, at_most: None }
    }

    /// Of several.
    fn median(what: impl Into<String>, unit: &'static str, mut readings: Vec<f64>) -> Self {
        readings.sort_by(f64::total_cmp);
        let (median, max) = (readings[readings.len() / 2], readings[readings.len() - 1]);
        Self { what: what.into(), unit, median, min: readings[0], max, at_most: None }
    }

    fn at_most(self, limit: f64) -> Self {
        Self { at_most: Some(limit), ..self }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "what": self.what, "unit": self.unit, "median": self.median, "min": self.min, "max": self.max,
            "at_most": self.at_most,
        })
    }
}
