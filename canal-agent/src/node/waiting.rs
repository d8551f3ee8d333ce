//! The time before there is a node: the agent waits for etcd, a configuration or a lease, and says so to whoever asks.

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Message, Question, metrics};
use crate::api::{
    events::Events,
    wire::{ApiError, Status},
};

/// What the agent waits for, told to systemd and to clients of the socket.
#[derive(Debug, Clone)]
pub struct Progress {
    waits_for: watch::Sender<String>,
}

impl Progress {
    pub fn new() -> Self {
        Self { waits_for: watch::Sender::new("the agent has just started".to_owned()) }
    }

    /// One line that names what is missing and what to do. Logged when it changes.
    pub fn waits(&self, what: &str, detail: &str) {
        let text = format!("waiting for {what}: {detail}");
        let changed = self.waits_for.send_if_modified(|known| {
            let changed = *known != text;
            if changed {
                known.clone_from(&text);
            }
            changed
        });
        if changed {
            warn!("{text}");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&text)]);
        }
    }

    fn reason(&self) -> String {
        self.waits_for.borrow().clone()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
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
            Message::AddEndpoint { reply, .. } | Message::DeleteEndpoint { reply, .. } => {
                let _ = reply.send(Err(later()));
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
