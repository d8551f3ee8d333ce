//! Settings below `/proc/sys`, of the calling thread's network namespace where they belong to one.
//!
//! Keys are written with slashes, so that an interface name with dots stays one component:
//! `net/ipv4/conf/eth0.5/forwarding`.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::Error;

/// Writes `value` unless it is there already; tells whether it wrote. Comparing first keeps a read-only
/// `/proc/sys` that already has the right value from being an error.
pub fn set(key: &str, value: &str) -> Result<bool, Error> {
    if get(key)? == value {
        return Ok(false);
    }
    let path = path("write", key)?;
    fs::write(&path, value).map_err(|source| Error::File { operation: "write", path, source })?;
    Ok(true)
}

/// The value without surrounding white space.
pub fn get(key: &str) -> Result<String, Error> {
    let path = path("read", key)?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::File { operation: "read", path, source }),
    }
}

/// Like [`set`], for a setting that some kernels do not have; absent is as good as written.
pub fn set_if_present(key: &str, value: &str) -> Result<bool, Error> {
    match set(key, value) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other,
    }
}

fn path(operation: &'static str, key: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(key);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    if key.is_empty() || !plain {
        let why = "a key is a relative path without `..`";
        return Err(Error::Invalid { operation, object: format!("sysctl {key:?}"), why });
    }
    Ok(Path::new("/proc/sys").join(relative))
}
