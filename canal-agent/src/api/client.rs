//! The other side of the local socket, for the CNI plugin and `canalctl`.
//!
//! One request per connection over a blocking UNIX socket: enough HTTP/1.1 for our own server, and no runtime to
//! start. Promises: every call ends within its timeout, and tells an agent that is not there (nothing happened)
//! from one that refused (and why). Does not: retry.

use std::{
    io::{self, Read, Write},
    os::fd::AsRawFd,
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
    },
    time::{TimeVal, TimeValLike},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    explain::{Ask, Explanation},
    wire::{
        AddEndpoint, ApiError, AttachmentId, Collect, Collected, EndpointReport, Goodbye, Readiness, Status,
    },
};

/// Where the agent listens unless told otherwise.
pub const SOCKET: &str = "/run/canal/agent.sock";
/// Adding waits for policy to reach the kernel.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A status of ten thousand endpoints is a few megabytes.
const ANSWER_MAX: u64 = 64 << 20;

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot talk to canal-agent on {}: the socket is root's alone; run this as root", .socket.display())]
    Forbidden { socket: PathBuf },
    #[error("no canal-agent listens on {}: {source} (is it running? see `systemctl status canal-agent`)", .socket.display())]
    Down { socket: PathBuf, source: io::Error },
    #[error("canal-agent on {} did not answer within {after:?} (its log says what it waits for)", .socket.display())]
    Timeout { socket: PathBuf, after: Duration },
    #[error("talking to canal-agent on {}: {source}", .socket.display())]
    Io { socket: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(#[from] ApiError),
    #[error("the answer on {} is not one of canal-agent: {what}", .socket.display())]
    NotOurs { socket: PathBuf, what: String },
}

impl ClientError {
    /// The same call may succeed in a moment.
    pub fn try_again(&self) -> bool {
        match self {
            Self::Down { .. } | Self::Timeout { .. } | Self::Io { .. } => true,
            Self::Refused(e) => e.try_again,
            Self::NotOurs { .. } | Self::Forbidden { .. } => false,
        }
    }
}

/// Calls one agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: TIMEOUT }
    }

    /// For a whole call, connecting included.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Announces what is about to be made. The agent keeps it, and undoes it when it is not heard of again.
    pub fn begin_endpoint(&self, endpoint: &AddEndpoint) -> Result<(), ClientError> {
        self.send("PUT", "/v1/endpoints", endpoint).map(drop)
    }

    /// Returns when the endpoint's policy is enforced.
    pub fn add_endpoint(&self, endpoint: &AddEndpoint) -> Result<(), ClientError> {
        self.send("POST", "/v1/endpoints", endpoint).map(drop)
    }

    /// Succeeds also when there is none.
    pub fn delete_endpoint(&self, id: &AttachmentId, goodbye: &Goodbye) -> Result<(), ClientError> {
        self.send("DELETE", &endpoint_path(id), goodbye).map(drop)
    }

    /// `None`: the agent has no record of it.
    pub fn endpoint(&self, id: &AttachmentId) -> Result<Option<EndpointReport>, ClientError> {
        self.get(&endpoint_path(id))
    }

    /// Whether pods can be attached.
    pub fn ready(&self) -> Result<Readiness, ClientError> {
        self.get("/v1/ready")
    }

    /// Removes what a runtime does not list.
    pub fn collect(&self, asked: &Collect) -> Result<Collected, ClientError> {
        let answer = self.send("POST", "/v1/collect", asked)?;
        serde_json::from_slice(&answer).map_err(|e| self.not_ours(e.to_string()))
    }

    fn send(&self, method: &str, path: &str, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.not_ours(e.to_string()))?;
        self.call(method, path, &body)
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    pub fn explain(&self, ask: &Ask) -> Result<Explanation, ClientError> {
        let answer = self.send("POST", "/v1/explain", ask)?;
        serde_json::from_slice(&answer).map_err(|e| self.not_ours(e.to_string()))
    }

    /// In Prometheus' text format.
    pub fn metrics(&self) -> Result<String, ClientError> {
        let body = self.call("GET", "/metrics", &[])?;
        String::from_utf8(body).map_err(|e| self.not_ours(e.to_string()))
    }

    /// Any other readable resource.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.call("GET", path, &[])?;
        serde_json::from_slice(&body).map_err(|e| self.not_ours(e.to_string()))
    }

    /// Body of a successful answer.
    fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let end = Instant::now() + self.timeout;
        let mut stream = self.connect().map_err(|source| self.connect_failed(source))?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: canal\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        )
        .into_bytes();
        if !body.is_empty() {
            request.extend(b"Content-Type: application/json\r\n");
        }
        request.extend(b"\r\n");
        request.extend(body);
        stream.write_all(&request).map_err(|e| self.io(e))?;
        let answer = self.read(&mut stream, end)?;
        if answer.is_empty() {
            // It was killed, and may have done what it was asked for or not.
            return Err(self.io(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended without an answer")));
        }
        let (status, body) = parse(&answer).map_err(|what| self.not_ours(what))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(match serde_json::from_slice::<ApiError>(&body) {
            Ok(refusal) => refusal.into(),
            Err(_) => self.not_ours(format!("status {status}: {}", String::from_utf8_lossy(&body).trim())),
        })
    }

    /// A connect to an agent that does not accept blocks when its queue is full; the send timeout bounds that.
    fn connect(&self) -> io::Result<UnixStream> {
        let address = UnixAddr::new(self.socket.as_os_str().as_bytes())?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let milliseconds = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX).max(1);
        setsockopt(&fd, SendTimeout, &TimeVal::milliseconds(milliseconds))?;
        connect(fd.as_raw_fd(), &address)?;
        Ok(UnixStream::from(fd))
    }

    /// Everything up to the end of the connection.
    fn read(&self, stream: &mut UnixStream, end: Instant) -> Result<Vec<u8>, ClientError> {
        let mut answer = Vec::new();
        let mut buffer = [0; 16384];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timed_out());
            }
            stream.set_read_timeout(Some(left)).map_err(|e| self.io(e))?;
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(answer),
                Ok(size) => answer.extend_from_slice(&buffer[..size]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
            if answer.len() as u64 > ANSWER_MAX {
                return Err(self.not_ours("it does not end".to_owned()));
            }
        }
    }

    fn connect_failed(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::WouldBlock => self.timed_out(),
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket: self.socket.clone() },
            _ => ClientError::Down { socket: self.socket.clone(), source },
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timed_out(),
            _ => ClientError::Io { socket: self.socket.clone(), source },
        }
    }

    fn timed_out(&self) -> ClientError {
        ClientError::Timeout { socket: self.socket.clone(), after: self.timeout }
    }

    fn not_ours(&self, what: String) -> ClientError {
        ClientError::NotOurs { socket: self.socket.clone(), what }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn endpoint_path(id: &AttachmentId) -> String {
    format!("/v1/endpoints/{}/{}", escape(&id.container_id), escape(&id.interface))
}

/// One component of a path.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    escaped
}

/// Status and body of a complete answer.
fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or("it has no complete head")?;
    let head = std::str::from_utf8(&answer[..head_end]).map_err(|_| "its head is not text")?;
    let body = &answer[head_end + 4..];
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| format!("it begins with {first:?}"))?;
    let header = |wanted: &str| {
        lines.clone().filter_map(|l| l.split_once(':')).find_map(|(name, value)| {
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return Ok((status, dechunk(body)?));
    }
    match header("content-length") {
        None => Ok((status, body.to_vec())),
        Some(length) => {
            let length: usize = length.parse().map_err(|_| format!("its length is {length:?}"))?;
            let body = body.get(..length).ok_or("it is cut short")?;
            Ok((status, body.to_vec()))
        }
    }
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|w| w == b"\r\n").ok_or("it is cut short")?;
        let line = std::str::from_utf8(&rest[..line_end]).map_err(|_| "a chunk's size is not text")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| format!("a chunk's size is {line:?}"))?;
        if size == 0 {
            return Ok(body);
        }
        rest = &rest[line_end + 2..];
        body.extend_from_slice(rest.get(..size).ok_or("it is cut short")?);
        rest = rest.get(size..).and_then(|r| r.strip_prefix(b"\r\n")).ok_or("a chunk does not end")?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// An agent that reads one request and gives one answer.
    fn agent(answer: &'static str) -> (tempfile::TempDir, Client, std::thread::JoinHandle<String>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let size = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..size]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
                let length = head.split("Content-Length: ").nth(1).and_then(|l| l.lines().next());
                if length.is_some_and(|l| l.parse::<usize>().unwrap() == body.len()) {
                    stream.write_all(answer.as_bytes()).unwrap();
                    return text;
                }
            }
        });
        (folder, Client::new(socket).timeout(Duration::from_secs(5)), thread)
    }

    #[test]
    fn an_endpoint_is_posted_as_json_and_deleted_by_an_escaped_path() {
        let (_folder, client, seen) = agent("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        let endpoint = AddEndpoint {
            container_id: "abc".into(),
            interface: "eth0".into(),
            host_interface: "caliabc".into(),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            addresses: vec![[10, 100, 1, 2].into()],
            network: "canal".into(),
            labels: [("app".into(), "web".into())].into(),
            ..AddEndpoint::default()
        };
        client.add_endpoint(&endpoint).unwrap();
        let request = seen.join().unwrap();
        assert!(request.starts_with("POST /v1/endpoints HTTP/1.1\r\n"), "{request}");
        let body = request.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(serde_json::from_str::<AddEndpoint>(body).unwrap(), endpoint);

        let (_folder, client, seen) = agent("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}");
        client.delete_endpoint(&AttachmentId::new("abc", "a/b%é"), &Goodbye::default()).unwrap();
        assert!(seen.join().unwrap().starts_with("DELETE /v1/endpoints/abc/a%2Fb%25%C3%A9 HTTP/1.1"));
    }

    #[test]
    fn a_refusal_keeps_its_reason_and_whether_to_try_again() {
        let body = r#"{"message":"pod abc: no policy yet","try_again":true}"#;
        let answer =
            format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (_folder, client, _seen) = agent(answer.leak());
        let error =
            client.delete_endpoint(&AttachmentId::new("abc", "eth0"), &Goodbye::default()).unwrap_err();
        assert!(matches!(&error, ClientError::Refused(e) if e.try_again), "{error:?}");
        assert_eq!(error.to_string(), "pod abc: no policy yet");
    }

    #[test]
    fn an_agent_that_dies_in_the_middle_may_be_asked_again() {
        let (_folder, client, _seen) = agent("");
        let error =
            client.delete_endpoint(&AttachmentId::new("abc", "eth0"), &Goodbye::default()).unwrap_err();
        assert!(matches!(&error, ClientError::Io { .. }) && error.try_again(), "{error:?}");
    }

    #[test]
    fn an_agent_that_is_not_there_is_told_from_one_that_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let client = Client::new(&socket).timeout(Duration::from_millis(50));
        let absent = client.status().unwrap_err();
        assert!(matches!(absent, ClientError::Down { .. }) && absent.try_again(), "{absent}");
        let silent = UnixListener::bind(&socket).unwrap();
        let error = client.status().unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }) && error.try_again(), "{error}");
        drop(silent);
        // A stale socket file. A child of another test may hold a copy of the listener until its exec.
        let end = Instant::now() + Duration::from_secs(5);
        while !matches!(client.status().unwrap_err(), ClientError::Down { .. }) {
            assert!(Instant::now() < end);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(head in "[ -~]{0,40}", body: Vec<u8>, sizes in "[0-9a-fA-F;]{0,20}") {
            let _ = parse(&body);
            for framing in [format!("Content-Length: {sizes}"), "Transfer-Encoding: chunked".to_owned()] {
                let mut answer = format!("HTTP/1.1 200 {head}\r\n{framing}\r\n\r\n{sizes}\r\n").into_bytes();
                answer.extend_from_slice(&body);
                let _ = parse(&answer);
            }
        }
    }

    #[test]
    fn bodies_come_whole_by_length_in_chunks_or_to_the_end() {
        for (answer, wanted) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", Ok((200, "abc"))),
            ("HTTP/1.0 404 Not Found\r\n\r\nabc", Ok((404, "abc"))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nA;x\r\n0123456789\r\n0\r\n\r\n",
                Ok((200, "ab0123456789")),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", Err("it is cut short")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
                Err("it is cut short"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nab",
                Err("a chunk's size is \"xyz\""),
            ),
            ("SSH-2.0\r\n\r\n", Err("it begins with \"SSH-2.0\"")),
            ("", Err("it has no complete head")),
        ] {
            let wanted = wanted.map(|(s, b)| (s, b.as_bytes().to_vec())).map_err(str::to_owned);
            assert_eq!(parse(answer.as_bytes()), wanted, "{answer}");
        }
    }
}
