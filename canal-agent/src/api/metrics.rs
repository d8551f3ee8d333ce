//! `/metrics` on a TCP port, where Felix's parameters ask for it. However many read, the node is asked once a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use tokio::sync::{Mutex, mpsc};

use super::server;
use crate::node::Message;

/// Figures that are no older than this are served again.
const FRESH: Duration = Duration::from_secs(1);

/// `GET /metrics`, and nothing else.
pub fn router(messages: mpsc::UnboundedSender<Message>) -> Router {
    let figures = Arc::new(Figures { messages, last: Mutex::new(None) });
    Router::new().route("/metrics", get(metrics)).with_state(figures)
}

/// What was served last, and where there is more.
struct Figures {
    messages: mpsc::UnboundedSender<Message>,
    last: Mutex<Option<(Instant, String)>>,
}

async fn metrics(State(figures): State<Arc<Figures>>) -> Result<server::MetricsText, server::Refused> {
    // Held while the node is asked: who comes meanwhile gets the same.
    let mut last = figures.last.lock().await;
    let text = match &*last {
        Some((at, text)) if at.elapsed() < FRESH => text.clone(),
        _ => {
            let text = server::ask_metrics(&figures.messages).await?;
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    Ok(server::metrics_text(text))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        api::port::{self, tests::fetch},
        node::Question,
    };

    /// A node that knows one figure, and how often it was asked.
    fn asked_node() -> (mpsc::UnboundedSender<Message>, Arc<AtomicUsize>) {
        let (messages, mut inbox) = mpsc::unbounded_channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                counter.fetch_add(1, Ordering::Relaxed);
                match message {
                    Message::Ask(Question::Metrics { reply }) => drop(reply.send("canal_up 1\n".to_owned())),
                    other => panic!("metrics were asked for, not {other:?}"),
                }
            }
        });
        (messages, asked)
    }

    #[tokio::test]
    async fn many_readers_cost_the_node_one_look_a_second() {
        let (messages, asked) = asked_node();
        let port = port::tests::serving(router(messages)).await;
        let begun = Instant::now();
        let readers: JoinSet<_> = (0..100).map(|_| fetch(port, "/metrics")).collect();
        for answer in readers.join_all().await {
            assert!(answer.unwrap().contains("canal_up 1"));
        }
        let most = begun.elapsed().as_secs() + 1;
        assert!(asked.load(Ordering::Relaxed) as u64 <= most, "{asked:?} in {most} s");
    }

    #[tokio::test]
    async fn figures_come_in_prometheus_form_and_nothing_else_is_served() {
        let (messages, _) = asked_node();
        let port = port::tests::serving(router(messages)).await;
        let answer = fetch(port, "/metrics").await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"),
            "{answer}"
        );
        for path in ["/", "/v1/status", "/v1/endpoints", "/v1/explain"] {
            assert!(fetch(port, path).await.unwrap().starts_with("HTTP/1.1 404"), "{path}");
        }
    }
}
