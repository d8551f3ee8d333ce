//! How many entries the kernel tables hold.
//!
//! The defaults grow with the machine's memory, in steps of powers of two so that a few megabytes more or less at the
//! next boot change nothing (a table of another size starts empty, which costs connections):
//!
//! | memory | flows | new flows | rows | peers | nets | kernel memory at once |
//! |---|---|---|---|---|---|---|
//! | up to 512 MB | 32,768 | 8,192 | 16,384 | 65,536 | 32,768 | 8 MB |
//! | 1 GB | 65,536 | 16,384 | 32,768 | 131,072 | 65,536 | 17 MB |
//! | 2 GB | 131,072 | 32,768 | 65,536 | 262,144 | 131,072 | 33 MB |
//! | 4 GB | 262,144 | 65,536 | 65,536 | 262,144 | 131,072 | 58 MB |
//! | 8 GB and more | 524,288 | 131,072 | 65,536 | 524,288 | 262,144 | 108 MB |
//!
//! Flows, new flows and rows are allocated at once; an entry of the other two costs memory (some 100 bytes) when it is
//! there. The remaining tables have sizes that the programs know.

use std::collections::HashMap;

use canal_common::{
    names,
    policy::{MAX_ROWS, Row},
};
use serde::Serialize;

use super::{ConfigError, environment::Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TableSizes {
    /// Connections that were answered; when full, the one idle longest goes first.
    pub flows: u32,
    /// Connections that were not answered yet, likewise.
    pub new_flows: u32,
    /// Addresses that selectors of this node's policies name.
    pub peers: u32,
    /// CIDRs that rules and network sets of this node's policies name.
    pub nets: u32,
    /// Pages of verdicts that this node's policies compile to.
    pub rows: u32,
}

/// An entry of a preallocated LRU table of flows: key 16, value 48, the kernel's own 72, bucket 16, spare 8 bytes.
const FLOW_BYTES: u64 = 160;
const ROW_BYTES: u64 = size_of::<Row>() as u64;
const MB: u64 = 1 << 20;
const SMALLEST: u32 = 1024;
const LARGEST: u32 = 1 << 24;

impl TableSizes {
    /// Defaults for a machine with this much memory (`MemTotal`; less than its memory chips hold).
    pub fn for_memory(bytes: u64) -> Self {
        // One connection for each 16 kB of memory.
        let class = bytes.clamp(512 * MB, 8192 * MB).next_power_of_two() / MB;
        let flows = u32::try_from(class * 64).unwrap_or(LARGEST);
        Self {
            flows,
            new_flows: flows / 4,
            peers: match class {
                ..2048 => flows * 2,
                2048..8192 => 262_144,
                _ => 524_288,
            },
            nets: match class {
                ..2048 => flows,
                2048..8192 => 131_072,
                _ => 262_144,
            },
            rows: (flows / 2).min(MAX_ROWS),
        }
    }

    /// By the tables' names.
    pub fn by_name(&self) -> HashMap<&'static str, u32> {
        [
            (names::FLOWS, self.flows),
            (names::FLOWS_NEW, self.new_flows),
            (names::PEERS, self.peers),
            (names::NETS, self.nets),
            (names::ROWS, self.rows),
        ]
        .into()
    }

    /// Bytes that the kernel takes at once.
    fn at_once(&self) -> u64 {
        (u64::from(self.flows) + u64::from(self.new_flows)) * FLOW_BYTES + u64::from(self.rows) * ROW_BYTES
    }
}

/// The defaults with what was given in their places.
pub(super) fn resolve(
    memory: u64,
    find: impl Fn(&'static str) -> Option<Value>,
) -> Result<TableSizes, ConfigError> {
    let mut sizes = TableSizes::for_memory(memory);
    let mut given = None;
    for (flag, size, most) in [
        ("max-flows", &mut sizes.flows, LARGEST),
        ("max-new-flows", &mut sizes.new_flows, LARGEST),
        ("max-peers", &mut sizes.peers, LARGEST),
        ("max-nets", &mut sizes.nets, LARGEST),
        ("max-rows", &mut sizes.rows, MAX_ROWS),
    ] {
        if let Some(value) = find(flag) {
            *size = number(&value, most)?;
            given = Some(value);
        }
    }
    if let Some(value) = given.filter(|_| sizes.at_once() > memory / 2) {
        return Err(value.wrong(&format!(
            "is too large: the tables would take {} MB of this machine's {} MB",
            sizes.at_once() / MB,
            memory / MB
        )));
    }
    Ok(sizes)
}

fn number(value: &Value, most: u32) -> Result<u32, ConfigError> {
    match value.text.replace(['_', ','], "").parse::<u32>() {
        Ok(size) if (SMALLEST..=most).contains(&size) => Ok(size),
        _ => Err(value.wrong(&format!("is not a number of entries between {SMALLEST} and {most}"))),
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
pub(super) fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_with_memory_in_steps() {
        for (mb, flows, new_flows, rows, peers, nets) in [
            (0, 32_768, 8_192, 16_384, 65_536, 32_768),
            (480, 32_768, 8_192, 16_384, 65_536, 32_768),
            (512, 32_768, 8_192, 16_384, 65_536, 32_768),
            (980, 65_536, 16_384, 32_768, 131_072, 65_536),
            (1_970, 131_072, 32_768, 65_536, 262_144, 131_072),
            (3_900, 262_144, 65_536, 65_536, 262_144, 131_072),
            (4_096, 262_144, 65_536, 65_536, 262_144, 131_072),
            (7_900, 524_288, 131_072, 65_536, 524_288, 262_144),
            (24_105, 524_288, 131_072, 65_536, 524_288, 262_144),
            (1 << 30, 524_288, 131_072, 65_536, 524_288, 262_144),
        ] {
            let expected = TableSizes { flows, new_flows, peers, nets, rows };
            assert_eq!(TableSizes::for_memory(mb * MB), expected, "{mb} MB");
        }
        let first = |mb| TableSizes::for_memory(mb * MB);
        assert_eq!(first(3_800), first(4_090), "a kernel that keeps more for itself changes nothing");
        assert!(first(512).at_once() < 9 * MB && first(8_192).at_once() < 110 * MB);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(mem_total("MemTotal:       24683580 kB\nMemFree: 1 kB\n"), Some(24_683_580 * 1024));
        for text in ["", "MemFree: 1 kB", "MemTotal: x kB", "MemTotal: 1 MB"] {
            assert_eq!(mem_total(text), None, "{text}");
        }
    }
}
