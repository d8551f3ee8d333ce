//! `/metrics` on a TCP port, where Felix's parameters ask for it. Nobody who comes there can do anything but read figures.

use std::{future::pending, io, time::Duration};

use axum::Router;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tracing::{info, warn};

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

/// Answers `GET /metrics` to everybody who reaches the listener, and nothing else.
pub async fn serve(listener: TcpListener, messages: mpsc::UnboundedSender<Message>) -> io::Result<()> {
    axum::serve(listener, Router::new().merge(server::metrics_route()).with_state(messages)).await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

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
        let (messages, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Metrics { reply } => drop(reply.send("canal_up 1\n".to_owned())),
                    other => panic!("metrics were asked for, not {other:?}"),
                }
            }
        });
        messages
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
