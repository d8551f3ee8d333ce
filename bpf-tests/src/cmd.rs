//! THE way to run other programs: with a deadline, in a namespace, with errors that show what was run.
//!
//! Promises: a command that overruns its deadline is killed together with its children, and a background process
//! ends with its [`Proc`]. Children get a process group of their own, so that Ctrl-C at the terminal reaches
//! only the process that cleans up.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{sweep, wait::until};

const DEADLINE: Duration = Duration::from_secs(15);

/// A command to be.
#[derive(Debug)]
pub struct Cmd {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    deadline: Duration,
}

/// What a command that ended by itself left.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.status.success()
    }
}

impl Cmd {
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref().display().to_string();
        Self { argv: vec![program], env: Vec::new(), stdin: Vec::new(), deadline: DEADLINE }
    }

    /// From a line without quotes: `Cmd::line("ip link set lo up")`.
    pub fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or_default()).args(words)
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<str>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = text.into();
        self
    }

    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs in a named network namespace, which also shows that namespace's `/sys`.
    #[must_use]
    pub(crate) fn in_netns(mut self, name: &str) -> Self {
        self.argv.splice(0..0, ["ip", "netns", "exec", name].map(str::to_owned));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).envs(self.env.iter().map(|(n, v)| (n, v))).process_group(0);
        command
    }

    /// Standard output of a command that must succeed.
    pub fn run(self) -> Result<String> {
        let line = self.argv.join(" ");
        let output = self.output()?;
        if !output.ok() {
            let said = format!("{}{}", output.stdout, output.stderr);
            bail!("`{line}` failed ({}): {}", describe(output.status), said.trim());
        }
        Ok(output.stdout)
    }

    /// Runs to the end, whatever the exit status.
    pub fn output(self) -> Result<Output> {
        self.output_telling(|_| {})
    }

    /// The same; `started` is told the process id.
    pub fn output_telling(self, started: impl FnOnce(u32)) -> Result<Output> {
        let line = self.argv.join(" ");
        let making = sweep::making();
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        drop(making);
        started(child.id());
        let (done, finished) = mpsc::channel();
        let input = child.stdin.take();
        let stdin = self.stdin;
        let feeder = thread::spawn(move || {
            // A program may end without reading what it was offered.
            input.map(|mut pipe| drop(pipe.write_all(&stdin)))
        });
        let stdout = drain(child.stdout.take(), done.clone());
        let stderr = drain(child.stderr.take(), done);
        // Both pipes close when the command and all that it started are gone.
        let in_time = (0..2).all(|_| finished.recv_timeout(self.deadline).is_ok());
        if !in_time {
            signal_group(&child, Signal::SIGKILL);
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
        drop(feeder.join());
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        if !in_time {
            bail!("`{line}` did not end within {:?}; it said: {}", self.deadline, (stdout + &stderr).trim());
        }
        Ok(Output { status, stdout, stderr })
    }

    /// Starts it in the background, with its output appended to a file.
    pub fn start(self, log: &Path) -> Result<Proc> {
        let line = self.argv.join(" ");
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let copy = file.try_clone().context("cannot share the log")?;
        let _making = sweep::making();
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        Ok(Proc { child, line })
    }
}

/// A background process; it is killed when this is dropped.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    line: String,
}

impl Proc {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("cannot send {signal} to `{}`", self.line))
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let mut status = None;
        until(deadline, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status.with_context(|| format!("`{}` did not end within {deadline:?}", self.line))
    }

    /// Kills it without asking, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            signal_group(&self.child, Signal::SIGKILL);
            drop(self.child.wait());
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process that was waited for has no group any more, and then the signal goes nowhere.
fn signal_group(child: &Child, signal: Signal) {
    killpg(Pid::from_raw(child.id().cast_signed()), signal).ok();
}

fn drain(pipe: Option<impl Read + Send + 'static>, done: mpsc::Sender<()>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            drop(pipe.read_to_end(&mut bytes));
        }
        done.send(()).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => status.to_string(),
    }
}
