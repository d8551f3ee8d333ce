//! What tells this node from another of the same name: a random number, made once and kept with what survives a reboot.

use std::{fs, io, path::Path};

use crate::file;

const FILE: &str = "machine";

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {error}; check --state-dir and its permissions")]
pub struct MachineError {
    verb: &'static str,
    path: String,
    error: io::Error,
}

/// The machine's number, as 32 hex digits; `None` if there is none, or none that could be one.
pub fn read(state_dir: &Path) -> Result<Option<String>, MachineError> {
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim()).filter(|text| is_number(text)).map(str::to_owned)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            Ok(None)
        }
        Err(error) => Err(MachineError { verb: "read", path: path.display().to_string(), error }),
    }
}

/// The same; made if there is none.
pub fn read_or_make(state_dir: &Path) -> Result<String, MachineError> {
    if let Some(number) = read(state_dir)? {
        return Ok(number);
    }
    let (path, number) = (state_dir.join(FILE), format!("{:032x}", rand::random::<u128>()));
    file::replace(&path, format!("{number}\n").as_bytes()).map_err(|error| MachineError {
        verb: "write",
        path: path.display().to_string(),
        error,
    })?;
    Ok(number)
}

/// For a node that leaves; true when there was one.
pub fn forget(state_dir: &Path) -> bool {
    fs::remove_file(state_dir.join(FILE)).is_ok()
}

fn is_number(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_its_number_and_nonsense_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(read(&state).unwrap(), None);
        assert!(!state.exists(), "who only reads makes nothing");
        let number = read_or_make(&state).unwrap();
        assert!(is_number(&number), "{number}");
        assert_eq!(read_or_make(&state).unwrap(), number);
        assert_eq!(read(&state).unwrap(), Some(number.clone()));
        fs::write(state.join(FILE), "").unwrap();
        assert_eq!(read(&state).unwrap(), None);
        let other = read_or_make(&state).unwrap();
        assert_ne!(other, number);
        assert_eq!(read_or_make(&state).unwrap(), other);
        assert!(forget(&state) && !forget(&state));
        fs::create_dir(state.join(FILE)).unwrap();
        assert!(read_or_make(&state).unwrap_err().to_string().contains("--state-dir"));
    }
}
