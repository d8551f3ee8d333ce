//! Tables as scripts and people like them: aligned, without borders, header in capitals.

use comfy_table::{Table, presets};

pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
