//! Tells the tests what this machine has: those that need a program are reported as skipped where there is none.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_flanneld)");
    println!("cargo::rustc-check-cfg=cfg(has_calico)");
    println!("cargo::rustc-check-cfg=cfg(has_felix)");
    println!("cargo::rustc-check-cfg=cfg(has_podman)");
    println!("cargo::rerun-if-env-changed=PATH");
    if find("flanneld").is_some() {
        println!("cargo::rustc-cfg=has_flanneld");
    }
    // The plugins under the names that runtimes call them by.
    if find("calico").is_some() && find("flannel").is_some() {
        println!("cargo::rustc-cfg=has_calico");
    }
    if find("calico-felix").is_some() && find("calicoctl").is_some() {
        println!("cargo::rustc-cfg=has_felix");
    }
    // Until it is installed, it is looked for again whenever packages have come or gone.
    let podman = find("podman");
    println!("cargo::rerun-if-changed={}", podman.as_deref().unwrap_or(Path::new("/usr/bin")).display());
    if podman.is_some_and(|program| knows_cni(&program)) {
        println!("cargo::rustc-cfg=has_podman");
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Version 5 has networks of another kind only.
fn knows_cni(podman: &Path) -> bool {
    let Ok(output) = Command::new(podman).arg("--version").output() else { return false };
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_whitespace().last().and_then(|version| version.split('.').next());
    matches!(version, Some("3" | "4"))
}
