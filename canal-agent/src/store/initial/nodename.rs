//! The file by which Calico's CNI plugin learns what this node is called. It refuses to work without.

use std::{fs, io, path::Path};

use tracing::{info, warn};

use crate::file;

/// The name in the file, if there is a file with one.
pub fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Makes the file say `name`. One that says something else was made for another name of this node, and is replaced as
/// calico/node replaces it: plugin and agent must agree, since the name is part of every endpoint's key.
pub(super) fn ensure(path: &Path, name: &str) -> Result<(), String> {
    let wrong = |operation: &str, error: &io::Error| {
        format!(
            "cannot {operation} {}: {error}; Calico's CNI plugin needs it to say {name}; check --nodename-file and the \
             permissions of its folder",
            path.display()
        )
    };
    let before = match fs::read_to_string(path) {
        Ok(text) if text.trim() == name => return Ok(()),
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // Whatever it is, it is not text.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(String::new()),
        Err(error) => return Err(wrong("read", &error)),
    };
    file::replace(path, name.as_bytes()).map_err(|error| wrong("write", &error))?;
    match before {
        Some(before) if !before.is_empty() => warn!(
            file = %path.display(), before, now = name,
            "this node has another name now: endpoints that Calico's plugin made under the old one are not this node's any more"
        ),
        _ => info!(file = %path.display(), name, "wrote the nodename file"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_comes_to_say_the_name_and_is_left_alone_when_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calico/nodename");
        assert_eq!(read(&path), None);
        ensure(&path, "node-a").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "node-a");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&path, "node-a\n").unwrap();
        ensure(&path, "node-a").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "node-a\n", "a line end is no other name");
        for other in ["node-b", "", "\u{0}"] {
            fs::write(&path, other).unwrap();
            ensure(&path, "node-a").unwrap();
            assert_eq!(read(&path).as_deref(), Some("node-a"), "{other:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let said = ensure(&file.join("nodename"), "node-a").unwrap_err();
        assert!(said.contains("file/nodename") && said.contains("--nodename-file"), "{said}");
        assert!(ensure(folder.path(), "node-a").is_err());
    }
}
