//! Running another CNI plugin: finding it, feeding it, reading what it says.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};
use serde::Deserialize;

use super::error::{CniError, Code};

/// Such plugins read and write a few small files under a lock, or a few links.
const PATIENCE: Duration = Duration::from_secs(20);

/// The error object of the CNI specification.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    msg: String,
    details: String,
}

/// In the first folder that has it.
pub(super) fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    path.iter().map(|folder| folder.join(plugin)).find(|p| p.is_file()).ok_or_else(|| {
        let folders: Vec<_> = path.iter().map(|p| p.display().to_string()).collect();
        let details = format!(
            "looked in CNI_PATH ({}): install the standard CNI plugins there (Debian: \
             containernetworking-plugins)",
            folders.join(":")
        );
        CniError::new(Code::PluginMissing, format!("there is no {plugin}"), details)
    })
}

/// Runs to the end, or kills it when patience ends. An error is of the running; what the plugin itself says is in the
/// output.
pub(super) fn run(
    program: &Path,
    environment: &BTreeMap<&str, &str>,
    stdin: String,
) -> Result<Output, CniError> {
    finish(program, environment, stdin).map_err(|source| {
        let code =
            if source.kind() == io::ErrorKind::TimedOut { Code::PluginFailed } else { Code::PluginMissing };
        CniError::new(code, format!("cannot run {}", program.display()), source.to_string())
    })
}

fn finish(program: &Path, environment: &BTreeMap<&str, &str>, stdin: String) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.env_clear().envs(environment).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let own = getpid();
    // It must not go on alone: an address that it takes after the runtime's DEL would be nobody's.
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() == own { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
    }
    let mut child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        if let Some(mut pipe) = child.stdin.take() {
            // If it ends without reading, its answer says why.
            pipe.write_all(stdin.as_bytes()).ok();
        }
        done.send(child.wait_with_output()).ok();
    });
    finished.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill(pid, Signal::SIGKILL).ok();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {PATIENCE:?}")))
    })
}

/// What a plugin that failed said, in one line.
pub(super) fn said(output: &Output) -> String {
    let refusal: Refusal = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = [refusal.msg, refusal.details, String::from_utf8_lossy(&output.stderr).trim().to_owned()];
    let said = said.iter().filter(|s| !s.is_empty()).map(String::as_str).collect::<Vec<_>>().join(": ");
    if said.is_empty() { output.status.to_string() } else { said }
}
