//! Owns: what must be installed before a verb can work.

use anyhow::Result;

use crate::workspace::Workspace;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Build,
}

pub(crate) fn require(_workspace: &Workspace, _groups: &[Group]) -> Result<()> {
    Ok(())
}
