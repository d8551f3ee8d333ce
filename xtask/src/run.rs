//! Owns: running other programs, with the user told what runs and for how long.
//! Promises: a failed command is an error that names the command, its status and what it last said; nothing of
//! the surrounding `cargo run` leaks into a cargo called from here.
//! Does not: know what any command is for.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How much of a failed command's log is shown.
const TAIL_LINES: usize = 25;

/// How often a quiet command's progress line is written anew, on a terminal and elsewhere.
const TICK: Duration = Duration::from_millis(250);
const QUIET_TICK: Duration = Duration::from_secs(30);

/// One line about what xtask does, set apart from the output of what it calls.
pub(crate) fn say(message: impl AsRef<str>) {
    let message = message.as_ref();
    if std::io::stderr().is_terminal() && wants_colour() {
        eprintln!("\x1b[1;36m▸\x1b[0m {message}");
    } else {
        eprintln!("▸ {message}");
    }
}

/// What the user asked for by environment: <https://no-color.org>.
pub(crate) fn wants_colour() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A command in `directory` with its own environment: cargo sets variables for what it runs (`CARGO_PKG_*`,
/// `CARGO_MANIFEST_DIR`, the library path, …), and a cargo below it must see none of them.
pub(crate) fn command(program: impl AsRef<OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory);
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if is_set_by_cargo(text) {
            command.env_remove(&name);
        }
    }
    command
}

/// The user's cargo, on the toolchain that the user chose for this workspace.
pub(crate) fn cargo(directory: &Path) -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), directory)
}

fn is_set_by_cargo(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_BIN_")
        || matches!(
            variable,
            "CARGO"
                | "CARGO_CRATE_NAME"
                | "CARGO_MANIFEST_DIR"
                | "CARGO_MANIFEST_PATH"
                | "CARGO_PRIMARY_PACKAGE"
        )
        || matches!(variable, "OUT_DIR" | "RUST_RECURSION_COUNT" | "LD_LIBRARY_PATH")
}

/// The command as one could type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![program_name(command)];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.contains([' ', '"', '\'']) { format!("{word:?}") } else { word.into_owned() }
    }));
    words.join(" ")
}

fn program_name(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Runs with the user's terminal: the command's own progress is the progress.
pub(crate) fn visible(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {}", shown(command), ended(status));
    }
    Ok(())
}

/// Runs silently and returns what it printed. For short questions.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", shown(command), ended(output.status), said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` did not answer in UTF-8", shown(command)))
}

/// Runs a long and talkative command with its output in `log`, one line of progress on the terminal, and the end
/// of the log if it fails.
pub(crate) fn logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let second = file.try_clone().with_context(|| format!("cannot share {}", log.display()))?;
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let status = watch(what, child, log, start)?;
    if !status.success() {
        bail!(
            "`{}` failed: {}; the end of {}:\n{}",
            shown(command),
            ended(status),
            log.display(),
            tail(&read_lossy(log), TAIL_LINES)
        );
    }
    say(format!("{what}: done in {}", seconds(start.elapsed())));
    Ok(())
}

fn watch(what: &str, mut child: Child, log: &Path, start: Instant) -> Result<ExitStatus> {
    let terminal = std::io::stderr().is_terminal();
    let mut next_quiet_line = QUIET_TICK;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {what}"))? {
            if terminal {
                eprint!("\r\x1b[K");
            }
            return Ok(status);
        }
        let elapsed = start.elapsed();
        if terminal {
            let text = read_lossy(log);
            let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
            let last: String = last.chars().filter(|c| !c.is_control()).take(60).collect();
            eprint!("\r\x1b[K  {what}: {} {last}", seconds(elapsed));
            std::io::stderr().flush().context("cannot write to the terminal")?;
        } else if elapsed >= next_quiet_line {
            eprintln!("  {what}: {}", seconds(elapsed));
            next_quiet_line += QUIET_TICK;
        }
        thread::sleep(TICK);
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// `4.2 s`, `3 min 12 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_mins(1) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

/// The full path of `program` in `PATH`, or where cargo installs programs: root's PATH often lacks the latter.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fallback = ["/usr/sbin", "/sbin"].into_iter().map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(cargo_bin())
        .chain(fallback)
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

/// `$CARGO_HOME/bin`, by default `~/.cargo/bin`.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
    Some(home.join("bin"))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_with_its_status_and_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("logs/sh.log");
        let mut failing = command("sh", directory.path());
        failing.args(["-c", "echo first; echo the reason >&2; exit 3"]);
        let error = logged("trying", &mut failing, &log).unwrap_err().to_string();
        assert!(error.contains("sh -c"), "{error}");
        assert!(error.contains("exit status 3"), "{error}");
        assert!(error.ends_with("first\nthe reason"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_that_names_it() {
        let error = answer(&mut command("no-such-program-here", Path::new("/"))).unwrap_err().to_string();
        assert_eq!(error, "cannot start `no-such-program-here`");
    }

    #[test]
    fn the_tail_of_a_short_log_is_the_whole_log() {
        assert_eq!(tail("a\nb", 5), "a\nb");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn what_cargo_sets_for_us_is_hidden_and_what_the_user_sets_is_kept() {
        for hidden in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH"] {
            assert!(is_set_by_cargo(hidden), "{hidden}");
        }
        for kept in
            ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "RUSTFLAGS", "PATH", "RUSTUP_HOME"]
        {
            assert!(!is_set_by_cargo(kept), "{kept}");
        }
    }

    #[test]
    fn durations_read_like_a_person_says_them() {
        assert_eq!(seconds(Duration::from_millis(4240)), "4.2 s");
        assert_eq!(seconds(Duration::from_secs(192)), "3 min 12 s");
    }
}
