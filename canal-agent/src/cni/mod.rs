//! The CNI plugin: attaches a container to the pod network, and detaches it.
//!
//! Owns: the protocol with the container runtime, the veth pair, and the call of `host-local`.
//! Promises: nothing is touched before everything was checked and the agent has taken note of what is coming; ADD returns
//! when the endpoint's policy is enforced in the kernel, or fails and leaves nothing behind, and gives the same answer
//! when it is repeated; DEL succeeds in any state of the node, any number of times. Whatever ends a call, its next one or the
//! agent finishes what it left.
//! Does not: attach programs, fill tables, add host routes or publish endpoints. That is the agent's, to which ADD
//! hands the endpoint. No runtime is started and no kernel object loaded, so a call costs milliseconds.
//!
//! ```json
//! {"cniVersion": "1.0.0", "name": "canal", "type": "canal-cni",
//!  "socket": "/run/canal/agent.sock", "subnetFile": "/run/flannel/subnet.env",
//!  "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks"},
//!  "args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}
//! ```
//!
//! All but the first three are optional.

mod attach;
mod call;
mod check;
mod config;
mod detach;
mod error;
mod exec;
mod gc;
mod interface;
mod ipam;
mod kubernetes;
mod names;
mod readiness;
mod request;
mod result;
mod status;
mod subnet;
mod undo;
mod workload;

#[cfg(test)]
mod attach_tests;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use call::Call;
pub use config::{
    Access, Before, Config, Dialect, LATEST, NodeName, Notebook, Policy, Range, Routes, Stored, Token,
    VERSIONS, ValidAttachment, Wishes,
};
pub use error::{CniError, Code};
pub use interface::{GATEWAY, HOST_MAC};
pub use kubernetes::{PodFacts, Port, PortProtocol};
pub use names::HOST_PREFIX;
pub use request::{Arguments, Attachment, Environment, PodName, Verb, search_path};
pub use subnet::Subnet;

/// A configuration is a few kilobytes; this much is an error or an attack.
const STDIN_MAX: u64 = 4 << 20;

/// The whole program.
pub fn main() -> ExitCode {
    // Variables that are not text cannot be meant for us.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let program = Dialect::of_program(&std::env::args_os().next().unwrap_or_default());
    let mut stdin = Vec::new();
    let answer = match io::stdin().lock().take(STDIN_MAX).read_to_end(&mut stdin) {
        Ok(_) => call_as(program, &environment, &stdin),
        Err(e) => Err(CniError::new(Code::Io, "cannot read standard input", e.to_string())),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(config::answer_version(program, &stdin)), ExitCode::FAILURE),
    };
    let line_end = if text.is_empty() { "" } else { "\n" };
    match write!(io::stdout().lock(), "{text}{line_end}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One call under our own name; what it returns belongs on standard output.
pub fn call(environment: &Environment, stdin: &[u8]) -> Result<String, CniError> {
    call_as(Dialect::Canal, environment, stdin)
}

/// One call under the name of a plugin.
pub fn call_as(program: Dialect, environment: &Environment, stdin: &[u8]) -> Result<String, CniError> {
    let verb = Verb::read(environment)?;
    if verb == Verb::Version {
        return config::versions(program, stdin);
    }
    let (arguments, config) = &match read(program, environment, stdin) {
        // A pod that was made must be able to go, whatever has become of the configuration since.
        Err(error) if verb == Verb::Del && error.is_of_content() => {
            call::note(&format!("DEL goes on without what cannot be used: {error}"));
            (Arguments::default(), Config::for_del(stdin).ok_or(error)?)
        }
        read => read?,
    };
    verb.is_in(config.version)?;
    for line in &config.notes {
        call::note(line);
    }
    let silent = |()| String::new();
    match verb {
        Verb::Status => status::status(config, environment, &search_path(environment)?).map(silent),
        Verb::Gc => {
            search_path(environment)?;
            gc::gc(config).map(silent)
        }
        Verb::Add | Verb::Del | Verb::Check | Verb::Version => {
            let attachment = &Attachment::read(verb, environment)?;
            let call = Call { config, attachment, arguments, environment };
            match verb {
                Verb::Add => {
                    let made = attach::add(call)?;
                    Ok(made.to_json(config.version, config.prev_result.as_ref()))
                }
                Verb::Check => check::check(call).map(silent),
                _ => detach::del(call).map(silent),
            }
        }
    }
}

fn read(program: Dialect, environment: &Environment, stdin: &[u8]) -> Result<(Arguments, Config), CniError> {
    let arguments = Arguments::read(environment)?;
    let config = Config::read(program, stdin, &arguments)?;
    Ok((arguments, config))
}
