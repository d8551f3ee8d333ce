//! What a process and the tables that it holds take.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;

/// A line of a process's status (proc(5)), in megabytes.
pub(super) fn resident_mb(process: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: u64 =
        found.and_then(|text| text.split_whitespace().next()?.parse().ok()).context("no such line")?;
    Ok(megabytes(kib * 1024))
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
pub(super) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What the kernel says that each table of a process takes. The arrays of sets are many, and count as one.
pub(super) fn tables(process: u32) -> Result<BTreeMap<String, u64>> {
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for descriptor in fs::read_dir(format!("/proc/{process}/fdinfo"))?.flatten() {
        let Ok(text) = fs::read_to_string(descriptor.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().parse().ok()
        };
        let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) else { continue };
        if !seen.insert(id) {
            continue;
        }
        let info = MapInfo::from_id(u32::try_from(id)?)?;
        let name = info.name_as_str().filter(|name| !name.is_empty()).unwrap_or("columns of SETS");
        *tables.entry(name.to_owned()).or_default() += bytes;
    }
    ensure!(tables.len() > 10, "{tables:?}");
    Ok(tables)
}
