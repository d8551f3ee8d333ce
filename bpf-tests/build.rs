//! Tells the tests whether this machine has a flanneld: those that need one are reported as skipped where it has none.

use std::{env, path::Path};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_flanneld)");
    println!("cargo::rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    let is_here = |folder: std::path::PathBuf| Path::new(&folder).join("flanneld").is_file();
    if env::split_paths(&path).any(is_here) {
        println!("cargo::rustc-cfg=has_flanneld");
    }
}
