//! `/metrics` on a TCP port, where Felix's parameters ask for it. Nobody who comes there can do anything but read figures,
//! nor keep the node from its work: how often these are taken, how many read at once and for how long is bounded.

use std::{
    future::pending,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, info, warn};

use super::server;
use crate::node::Message;

/// A host's name or address, or nothing for every address of this host; and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(10);
/// Figures that are no older than this are served again.
const FRESH: Duration = Duration::from_secs(1);
/// Connections at the same time; others wait until one of them has ended.
const CONNECTIONS: usize = 16;
/// So long a connection may take, for its one request and the answer.
const LONGEST: Duration = Duration::from_secs(5);

/// Serves where `wanted` says, and elsewhere or nowhere when it says so, until nobody can say any more.
pub async fn follow(mut wanted: watch::Receiver<Option<Address>>, messages: mpsc::UnboundedSender<Message>) {
    loop {
        let address = wanted.borrow_and_update().clone();
        let serving = async {
            match &address {
                Some(address) => keep_serving(address, &messages).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

async fn keep_serving(address: &Address, messages: &mpsc::UnboundedSender<Message>) {
    let Address { host, port } = address;
    let mut told = None;
    loop {
        let served = match listen(address).await {
            Ok(listener) => {
                info!(host, port, "serving metrics");
                told = None;
                serve(listener, messages.clone()).await
            }
            Err(error) => Err(error),
        };
        let error = served.err().map(|error| error.to_string());
        if error != told {
            warn!(host, port, error, "cannot serve metrics; trying again every {} s", RETRY.as_secs());
            told = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(address: &Address) -> io::Result<TcpListener> {
    let Address { host, port } = address;
    if !host.is_empty() {
        return TcpListener::bind((host.as_str(), *port)).await;
    }
    match TcpListener::bind(("::", *port)).await {
        // A host without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", *port)).await,
        other => other,
    }
}

/// Answers `GET /metrics` to everybody who reaches the listener, and nothing else; one request per connection.
pub async fn serve(listener: TcpListener, messages: mpsc::UnboundedSender<Message>) -> io::Result<()> {
    let figures = Arc::new(Figures { messages, last: Mutex::new(None) });
    let router = Router::new().route("/metrics", get(metrics)).with_state(figures);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends with this function, and so do the connections.
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = match listener.accept().await {
            // Who came has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            accepted => accepted?,
        };
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut http = http1::Builder::new();
            let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            match timeout(LONGEST, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a reader of metrics is gone"),
                Err(_) => debug!("a reader of metrics took longer than {} s", LONGEST.as_secs()),
            }
            drop(place);
        });
    }
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

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::node::Question;

    async fn get(port: u16, path: &str) -> io::Result<String> {
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
        tokio::spawn(serve(listener, messages));
        let begun = Instant::now();
        let readers: JoinSet<_> = (0..100).map(|_| get(port, "/metrics")).collect();
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
        tokio::spawn(serve(listener, messages));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let mut late = Box::pin(get(port, "/metrics"));
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
            if get(port, "/metrics").await.is_ok_and(|answer| answer.contains("canal_up 1")) == served {
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
        let task = tokio::spawn(follow(follower, node()));
        assert!(get(first, "/metrics").await.is_err(), "off unless asked for");
        let at = |host: &str, port| Some(Address { host: host.to_owned(), port });
        wanted.send_replace(at("127.0.0.1", first));
        assert!(soon(first, true).await);
        let answer = get(first, "/metrics").await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"),
            "{answer}"
        );
        for path in ["/", "/v1/status", "/v1/endpoints", "/v1/explain"] {
            assert!(get(first, path).await.unwrap().starts_with("HTTP/1.1 404"), "{path}");
        }
        wanted.send_replace(at("", second));
        assert!(soon(second, true).await && soon(first, false).await);
        wanted.send_replace(None);
        assert!(soon(second, false).await);
        drop(wanted);
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
}
