//! Owns: the names of the sections of a 64-bit little-endian ELF file, which is what bpf-linker writes.
//! Promises: no input makes it panic. Does not: read symbols, code or BTF.

use anyhow::{Context as _, Result, ensure};

const ELF64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";

/// Offsets inside the file header and inside a section header, from the ELF64 format.
mod offset {
    pub(super) const SECTIONS: usize = 0x28;
    pub(super) const SECTION_SIZE: usize = 0x3a;
    pub(super) const SECTION_COUNT: usize = 0x3c;
    pub(super) const NAMES_INDEX: usize = 0x3e;
    pub(super) const NAME: usize = 0x00;
    pub(super) const CONTENT: usize = 0x18;
}

pub(crate) fn section_names(file: &[u8]) -> Result<Vec<String>> {
    ensure!(file.starts_with(ELF64_LITTLE_ENDIAN), "not a 64-bit little-endian ELF file");
    let sections = number(file, offset::SECTIONS, 8)?;
    let size = number(file, offset::SECTION_SIZE, 2)?;
    let count = number(file, offset::SECTION_COUNT, 2)?;
    let names_index = number(file, offset::NAMES_INDEX, 2)?;
    let header = |index: usize| -> Result<usize> {
        index
            .checked_mul(size)
            .and_then(|offset| offset.checked_add(sections))
            .context("a section out of range")
    };
    let names = number(file, header(names_index)? + offset::CONTENT, 8)?;
    (0..count)
        .map(|index| {
            let name = number(file, header(index)? + offset::NAME, 4)?;
            text_at(file, names.checked_add(name).context("a section's name out of range")?)
        })
        .collect()
}

fn number(file: &[u8], at: usize, width: usize) -> Result<usize> {
    let end = at.checked_add(width).context("an offset out of range")?;
    let bytes = file.get(at..end).context("the ELF file is cut short")?;
    let value = bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    // Half of the address space is more than any file; it leaves room for the additions above.
    usize::try_from(value).ok().filter(|value| *value < usize::MAX / 2).context("an offset out of range")
}

fn text_at(file: &[u8], at: usize) -> Result<String> {
    let rest = file.get(at..).context("a section's name out of range")?;
    let end = rest.iter().position(|byte| *byte == 0).context("a section's name has no end")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_executable_has_a_text_section() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let names = section_names(&own).unwrap();
        assert!(names.iter().any(|name| name == ".text"), "{names:?}");
    }

    #[test]
    fn a_file_cut_at_any_place_or_filled_with_ones_is_an_error_and_not_a_panic() {
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(ELF64_LITTLE_ENDIAN);
        header[offset::SECTION_COUNT] = 3;
        for length in 0..header.len() {
            assert!(section_names(&header[..length]).is_err(), "{length}");
        }
        header[8..].fill(0xff);
        assert!(section_names(&header).is_err());
    }
}
