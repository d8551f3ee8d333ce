//! The log: one line each to standard error.

use std::{
    io::{self, IsTerminal as _},
    sync::{Mutex, OnceLock, PoisonError},
};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::parameters::Severity;

/// Target of the lines that Log rules write.
pub(crate) const POLICY_LOG: &str = "policy_log";

/// By which the level changes, unless it is the environment's.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// `RUST_LOG` sets the level, else Felix's `LogSeverityScreen` (`info` until it is known); `CANAL_LOG_FORMAT=json` one
/// JSON object a line. Journald adds the time itself.
pub fn init() {
    // An empty variable is an unset one.
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.trim().is_empty());
    let given = wanted.and_then(|wanted| EnvFilter::try_new(wanted).ok());
    let follows = given.is_none();
    let (filter, handle) = reload::Layer::new(given.unwrap_or_else(|| EnvFilter::new("info")));
    let lines = fmt::layer().with_target(false).with_writer(io::stderr);
    let lines = if std::env::var("CANAL_LOG_FORMAT").is_ok_and(|format| format == "json") {
        lines.json().boxed()
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        lines.with_ansi(false).without_time().boxed()
    } else {
        lines.with_ansi(io::stderr().is_terminal()).boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    if follows {
        let _ = LEVEL.set(handle);
    }
}

/// Follows Felix's parameter; costs nothing when nothing changed.
pub(crate) fn follow(severity: Severity) {
    static NOW: Mutex<Severity> = Mutex::new(Severity::Info);
    let Some(level) = LEVEL.get() else { return };
    let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
    if *now != severity {
        *now = severity;
        let level_name = match severity {
            Severity::Off => "off",
            Severity::Error => "error",
            Severity::Warning => "warn",
            Severity::Info => "info",
            Severity::Debug => "debug",
            Severity::Trace => "trace",
        };
        // What Log rules say is wanted by whoever wrote them, however quiet the daemon is to be.
        let filter = EnvFilter::new(format!("{level_name},{POLICY_LOG}=info"));
        // Fails only when the subscriber is gone, and the log with it.
        let _ = level.reload(filter);
    }
}
