//! Owns: where things lie. Does not: create any of them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The checkout that xtask belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies outside a workspace")?;
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts what it builds for this machine.
    pub(crate) fn target(&self) -> PathBuf {
        // `join` keeps an absolute CARGO_TARGET_DIR as it is.
        self.root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
    }

    /// Another directory for the kernel's target: it has another compiler, and the two must not undo each
    /// other's work. `canal-agent/build.rs` reads the object here, so it does not move with `CARGO_TARGET_DIR`.
    pub(crate) fn bpf_target(&self) -> PathBuf {
        self.root.join("target/bpf")
    }

    /// The kernel object that the agent embeds.
    pub(crate) fn object(&self) -> PathBuf {
        self.bpf_target().join("canal.o")
    }

    /// Another one, so that what is compiled for the bench alone is never taken for the object.
    pub(crate) fn bare_target(&self) -> PathBuf {
        self.root.join("target/bpf-bare")
    }

    /// The kernel object without flow table and policy, which nothing embeds.
    pub(crate) fn bare_object(&self) -> PathBuf {
        self.bare_target().join("bare.o")
    }

    /// A log of something that `setup` ran.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.target().join("xtask-logs").join(format!("{name}.log"))
    }
}
