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
    use std::{
        io,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::watch,
        task::JoinSet,
        time::timeout,
    };

    use super::*;
    use crate::{
        api::port::{Address, CONNECTIONS, LONGEST, follow, serve},
        node::Question,
    };

    async fn fetch(port: u16, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// A node that knows one figure.
    fn node() -> mpsc::UnboundedSender<Message> {
        asked_node().0
    }

    /// The same, and how often it was asked.
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = router(messages);
        tokio::spawn(async move { serve(listener, &router).await });
        let begun = Instant::now();
        let readers: JoinSet<_> = (0..100).map(|_| fetch(port, "/metrics")).collect();
        for answer in readers.join_all().await {
            assert!(answer.unwrap().contains("canal_up 1"));
        }
        let most = begun.elapsed().as_secs() + 1;
        assert!(asked.load(Ordering::Relaxed) as u64 <= most, "{asked:?} in {most} s");
    }

    #[tokio::test]
    async fn readers_that_say_nothing_are_sent_away_and_make_room() {
        let (messages, _) = asked_node();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = router(messages);
        tokio::spawn(async move { serve(listener, &router).await });
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let mut late = Box::pin(fetch(port, "/metrics"));
        let early = timeout(Duration::from_millis(300), &mut late).await;
        assert!(early.is_err(), "there are {CONNECTIONS} places");
        let answer = timeout(LONGEST * 4, late).await.expect("a place becomes free").unwrap();
        assert!(answer.contains("canal_up 1"));
        let mut nothing = String::new();
        silent[0].read_to_string(&mut nothing).await.unwrap();
        assert_eq!(nothing, "");
    }

    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn soon(port: u16, served: bool) -> bool {
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while std::time::Instant::now() < until {
            if fetch(port, "/metrics").await.is_ok_and(|answer| answer.contains("canal_up 1")) == served {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    #[tokio::test]
    async fn metrics_are_served_where_they_are_wanted_and_nothing_else_is() {
        let [first, second] = [free_port().await, free_port().await];
        let (wanted, follower) = watch::channel(None);
        let task = tokio::spawn(follow("metrics", follower, router(node())));
        assert!(fetch(first, "/metrics").await.is_err(), "off unless asked for");
        let at = |host: &str, port| Some(Address { host: host.to_owned(), port });
        wanted.send_replace(at("127.0.0.1", first));
        assert!(soon(first, true).await);
        let answer = fetch(first, "/metrics").await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"),
            "{answer}"
        );
        for path in ["/", "/v1/status", "/v1/endpoints", "/v1/explain"] {
            assert!(fetch(first, path).await.unwrap().starts_with("HTTP/1.1 404"), "{path}");
        }
        wanted.send_replace(at("", second));
        assert!(soon(second, true).await && soon(first, false).await);
        wanted.send_replace(None);
        assert!(soon(second, false).await);
        drop(wanted);
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
}
