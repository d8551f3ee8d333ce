//! A TCP port of the host, where the configuration asks for one. Nobody who comes there can do anything but read, nor keep
//! the agent from its work: how many read at once and for how long is bounded.

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, info, warn};

/// A host's name or address, or nothing for every address of this host; and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(10);
/// Connections at the same time; others wait until one of them has ended.
pub(super) const CONNECTIONS: usize = 16;
/// So long a connection may take, for its one request and the answer.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// Serves `what` where `wanted` says, and elsewhere or nowhere when it says so, until nobody can say any more.
pub async fn follow(what: &'static str, mut wanted: watch::Receiver<Option<Address>>, router: Router) {
    loop {
        let address = wanted.borrow_and_update().clone();
        let serving = async {
            match &address {
                Some(address) => keep_serving(what, address, &router).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Serves `what` at one place, for as long as it is polled.
pub async fn keep_serving(what: &str, address: &Address, router: &Router) {
    let Address { host, port } = address;
    let mut told = None;
    loop {
        let served = match listen(address).await {
            Ok(listener) => {
                info!(host, port, "serving {what}");
                told = None;
                serve(listener, router).await
            }
            Err(error) => Err(error),
        };
        let error = served.err().map(|error| error.to_string());
        if error != told {
            warn!(host, port, error, "cannot serve {what}; trying again every {} s", RETRY.as_secs());
            told = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(address: &Address) -> io::Result<TcpListener> {
    let Address { host, port } = address;
    if !host.is_empty() {
        // As Go's programs do: `localhost` is both, and probes come by IPv4.
        let mut found: Vec<_> = tokio::net::lookup_host((host.as_str(), *port)).await?.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        return TcpListener::bind(&found[..]).await;
    }
    match TcpListener::bind(("::", *port)).await {
        // A host without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", *port)).await,
        other => other,
    }
}

/// Answers everybody who reaches the listener; one request per connection.
pub async fn serve(listener: TcpListener, router: &Router) -> io::Result<()> {
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
                Ok(Err(error)) => debug!(%error, "a reader is gone"),
                Err(_) => debug!("a reader took longer than {} s", LONGEST.as_secs()),
            }
            drop(place);
        });
    }
}
