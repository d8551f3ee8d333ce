//! A TCP port of the host, where the configuration asks for one. Nobody who comes there can do anything but read, nor keep
//! the agent from its work: how many read at once and for how long is bounded. Nor can who comes and asks nothing keep others
//! from reading.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

/// A host's name or address, or nothing for every address of this host; and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(10);
/// Connections at the same time. One more takes the place of those that have not asked for anything; where all have, it waits
/// until one of them is answered.
const CONNECTIONS: usize = 16;
/// So long nobody loses its place.
const FIRST_WORD: Duration = Duration::from_millis(10);
/// So long a connection may take, for its one request and the answer.
const LONGEST: Duration = Duration::from_secs(5);

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
        sleep(RETRY).await;
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
async fn serve(listener: TcpListener, router: &Router) -> io::Result<()> {
    // Ends with this function, and so do the connections.
    let mut readers = Readers::default();
    loop {
        let (stream, _) = match listener.accept().await {
            // Who came has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            accepted => accepted?,
        };
        readers.make_room().await;
        readers.add(stream, router);
    }
}

/// The open connections.
struct Readers {
    tasks: JoinSet<()>,
    /// Whether somebody waits for a place.
    full: watch::Sender<bool>,
}

impl Default for Readers {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), full: watch::Sender::new(false) }
    }
}

impl Readers {
    /// Returns when there is a place.
    async fn make_room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= CONNECTIONS {
            self.full.send_replace(true);
            self.tasks.join_next().await;
        }
        self.full.send_replace(false);
    }

    fn add(&mut self, stream: TcpStream, router: &Router) {
        self.tasks.spawn(answer(stream, router.clone(), self.full.subscribe()));
    }
}

/// Answers one request, if it comes in time.
async fn answer(stream: TcpStream, router: Router, full: watch::Receiver<bool>) {
    let has_asked = AtomicBool::new(false);
    let answers = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        answers.call(request)
    });
    let mut http = http1::Builder::new();
    let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // The request is looked for before anybody is told to leave.
        biased;
        ended = timeout(LONGEST, connection) => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a reader is gone"),
            Err(_) => debug!("a reader took longer than {} s", LONGEST.as_secs()),
        },
        () = must_leave(&has_asked, full) => debug!("a reader that asks for nothing makes room"),
    }
}

/// Returns when another needs the place of a reader that had its time and did not use it.
async fn must_leave(has_asked: &AtomicBool, mut full: watch::Receiver<bool>) {
    sleep(FIRST_WORD).await;
    if full.wait_for(|full| *full).await.is_err() {
        return;
    }
    // Where the agent had no time itself, a request may have come that it has not looked at: the runtime asks the kernel what
    // there is before this goes on.
    yield_now().await;
    if has_asked.load(Ordering::Relaxed) {
        pending::<()>().await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    pub(crate) async fn fetch(port: u16, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The port where it is served.
    pub(crate) async fn serving(router: Router) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { serve(listener, &router).await });
        port
    }

    fn here() -> Router {
        Router::new().route("/", get(async || "here"))
    }

    #[tokio::test]
    async fn who_asks_is_answered_at_once_however_many_say_nothing() {
        let port = serving(here()).await;
        let mut silent = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let begun = Instant::now();
        let answer = fetch(port, "/").await.unwrap();
        assert!(answer.contains("here"));
        assert!(begun.elapsed() < LONGEST, "before anybody's time is over: {:?}", begun.elapsed());
        let mut nothing = String::new();
        silent[0].read_to_string(&mut nothing).await.unwrap();
        assert_eq!(nothing, "");
    }

    #[tokio::test]
    async fn who_has_asked_is_answered_though_the_agent_had_no_time_to_hear_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut readers = Readers::default();
        let mut asking = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            std::io::Write::write_all(&mut stream, REQUEST).unwrap();
            stream.set_nonblocking(true).unwrap();
            asking.push(TcpStream::from_std(stream).unwrap());
            readers.add(listener.accept().await.unwrap().0, &here());
        }
        // Nothing else runs on this thread meanwhile.
        let begun = std::time::Instant::now();
        while begun.elapsed() < 2 * FIRST_WORD {
            std::hint::spin_loop();
        }
        readers.make_room().await;
        for mut stream in asking {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("here"), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_has_asked_keeps_its_place_until_it_is_answered() {
        let (release, held) = watch::channel(false);
        let slow = Router::new().route(
            "/",
            get(async move || {
                let _ = held.clone().wait_for(|released| *released).await;
                "here"
            }),
        );
        let port = serving(slow).await;
        let asking: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(fetch(port, "/"))).collect();
        let mut late = Box::pin(fetch(port, "/"));
        assert!(
            timeout(Duration::from_millis(300), &mut late).await.is_err(),
            "there are {CONNECTIONS} places"
        );
        release.send_replace(true);
        for answer in asking {
            assert!(answer.await.unwrap().unwrap().contains("here"));
        }
        assert!(late.await.unwrap().contains("here"));
    }

    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn soon(port: u16, served: bool) -> bool {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if fetch(port, "/").await.is_ok_and(|answer| answer.contains("here")) == served {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    #[tokio::test]
    async fn a_service_is_where_it_is_wanted_and_nowhere_else() {
        let [first, second] = [free_port().await, free_port().await];
        let (wanted, follower) = watch::channel(None);
        let task = tokio::spawn(follow("this", follower, here()));
        assert!(fetch(first, "/").await.is_err(), "off unless asked for");
        let at = |host: &str, port| Some(Address { host: host.to_owned(), port });
        wanted.send_replace(at("127.0.0.1", first));
        assert!(soon(first, true).await);
        wanted.send_replace(at("", second));
        assert!(soon(second, true).await && soon(first, false).await);
        wanted.send_replace(None);
        assert!(soon(second, false).await);
        drop(wanted);
        timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
}
