//! The time before there is a node: the agent waits for etcd, a configuration or a lease, and says so to whoever asks.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Message, Question, health::Health, metrics};
use crate::api::{
    events::Events,
    wire::{ApiError, Readiness, Status},
};

/// What the agent waits for, told to the log, to probes, to the service manager and to clients of the socket.
#[derive(Debug, Clone)]
pub struct Progress(Health);

impl Progress {
    pub fn new(health: Health) -> Self {
        Self(health)
    }

    /// One line that names what is missing and what to do. Logged when it changes.
    pub fn waits(&self, what: &str, detail: &str) {
        let text = format!("waiting for {what}: {detail}");
        if self.0.set_ready(Err(text.clone())) {
            warn!("{text}");
            self.0.say(&text);
        }
    }

    fn reason(&self) -> String {
        self.0.not_ready().unwrap_or_default()
    }
}

/// Answers until stopped, then hands the inbox over. ADD may be tried again. DEL too: the plugin goes on without the
/// agent, and the node finds at its start which interfaces are gone.
pub async fn answer(
    mut inbox: mpsc::UnboundedReceiver<Message>,
    progress: Progress,
    node: String,
    stop: CancellationToken,
) -> mpsc::UnboundedReceiver<Message> {
    while let Some(Some(message)) = stop.run_until_cancelled(inbox.recv()).await {
        let later = || ApiError { message: progress.reason(), try_again: true };
        match message {
            Message::Ask(Question::Status { reply }) => {
                let status = Status {
                    version: env!("CANAL_VERSION").to_owned(),
                    node: node.clone(),
                    problems: vec![progress.reason()],
                    ..Status::default()
                };
                let _ = reply.send(status);
            }
            Message::BeginEndpoint { reply, .. }
            | Message::AddEndpoint { reply, .. }
            | Message::DeleteEndpoint { reply, .. } => {
                let _ = reply.send(Err(later()));
            }
            Message::Collect { reply, .. } => drop(reply.send(Err(later()))),
            Message::Ask(Question::Endpoint { reply, .. }) => drop(reply.send(Err(later()))),
            Message::Ask(Question::Ready { reply }) => {
                let _ = reply.send(Readiness { reason: Some(progress.reason()), limited: false });
            }
            Message::Events { reply, .. } => drop(reply.send(Events::default())),
            Message::Ask(Question::Metrics { reply }) => drop(reply.send(metrics::while_waiting())),
            Message::Ask(Question::Rules { reply }) => drop(reply.send(Err(later()))),
            Message::Ask(Question::Explain { reply, .. }) => drop(reply.send(Err(later()))),
            // Nobody sends these before the node is there.
            _ => {}
        }
    }
    inbox
}
