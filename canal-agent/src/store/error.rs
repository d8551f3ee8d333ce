//! What went wrong between us and etcd, in words an operator can act on.

use std::{error::Error as _, fmt};

use super::EtcdOptions;

/// One failed call: what was tried, where, why, and what to do about it, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {operation} (etcd at {endpoints}): {cause}{}", hint(.cause))]
pub struct StoreError {
    pub operation: String,
    pub endpoints: String,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    Refused,
    /// No connection came to be, for another reason.
    Unreachable(String),
    /// The connection broke in a way that has no entry of its own here.
    Broken(String),
    TimedOut,
    UnknownHost,
    /// The server's certificate does not verify against the CA that we were given.
    UntrustedServer(String),
    /// The server wants a client certificate, or refuses ours.
    ClientCertificate(String),
    /// Our certificate and our key are of two different pairs.
    KeyMismatch,
    /// The server cut the line after the TLS handshake. TLS 1.3 lets the client finish first, so the refusal of its
    /// certificate often arrives as no more than this.
    ClosedTls,
    ClosedPlain,
    /// One side speaks TLS, the other does not.
    NotTls,
    WrongCredentials,
    /// The server has users; we gave none, or not one that may do this.
    CredentialsNeeded,
    PermissionDenied,
    NoLeader,
    /// The revision is compacted away or from the future: list again.
    RevisionGone,
    /// The etcd lease is gone.
    LeaseGone,
    File(String),
    Other(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable(why) | Self::Broken(why) | Self::File(why) | Self::Other(why) => {
                f.write_str(why)
            }
            Self::TimedOut => f.write_str("no answer in time"),
            Self::UnknownHost => f.write_str("the host name does not resolve"),
            Self::UntrustedServer(why) => write!(f, "the server's certificate is not trusted ({why})"),
            Self::ClientCertificate(why) => {
                write!(f, "the server does not accept our client certificate ({why})")
            }
            Self::KeyMismatch => f.write_str("our client certificate and key do not belong together"),
            Self::ClosedTls => f.write_str("the server closed the TLS connection"),
            Self::ClosedPlain => f.write_str("the server closed the connection"),
            Self::NotTls => f.write_str("the server does not answer TLS"),
            Self::WrongCredentials => f.write_str("wrong user name or password"),
            Self::CredentialsNeeded => f.write_str("the server asks for a user name and password"),
            Self::PermissionDenied => f.write_str("permission denied"),
            Self::NoLeader => f.write_str("the etcd cluster has no leader"),
            Self::RevisionGone => f.write_str("the revision is not in the store"),
            Self::LeaseGone => f.write_str("the etcd lease does not exist any more"),
        }
    }
}

fn hint(cause: &Cause) -> &'static str {
    match cause {
        Cause::Refused => "; is etcd running there? check --etcd-endpoints",
        Cause::Unreachable(_) | Cause::Broken(_) => "; check the network and --etcd-endpoints",
        Cause::TimedOut => {
            "; check that etcd is healthy, that it speaks http or https as --etcd-endpoints says, and firewalls"
        }
        Cause::UnknownHost => "; check --etcd-endpoints",
        Cause::UntrustedServer(_) => {
            "; check --etcd-cafile, and that the certificate names the host of --etcd-endpoints"
        }
        Cause::ClientCertificate(_) | Cause::KeyMismatch => "; check --etcd-certfile and --etcd-keyfile",
        Cause::ClosedTls => "; if it asks for client certificates, check --etcd-certfile and --etcd-keyfile",
        Cause::ClosedPlain => "; if it speaks TLS, write https:// in --etcd-endpoints",
        Cause::NotTls => "; write http:// in --etcd-endpoints, or enable TLS on the server",
        Cause::WrongCredentials => "; check --etcd-username and --etcd-password",
        Cause::CredentialsNeeded => "; set --etcd-username and --etcd-password",
        Cause::PermissionDenied => {
            "; grant the user's role read on all below --etcd-prefix, and readwrite on its subnets/ and on \
             /calico/resources/v3/projectcalico.org/ (etcdctl role grant-permission --prefix)"
        }
        Cause::NoLeader => "; check the health of its members",
        Cause::RevisionGone | Cause::LeaseGone | Cause::File(_) | Cause::Other(_) => "",
    }
}

// The numbers of gRPC's status codes; tonic's enum is not ours to name.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const FAILED_PRECONDITION: i32 = 9;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

impl StoreError {
    pub(super) fn new(operation: impl Into<String>, options: &EtcdOptions, cause: Cause) -> Self {
        let mut endpoints = options.endpoints.join(",");
        if options.by_default {
            endpoints.push_str(", as no --etcd-endpoints are given");
        }
        Self { operation: operation.into(), endpoints, cause }
    }
}

impl Cause {
    pub(super) fn of(error: &etcd_client::Error, options: &EtcdOptions) -> Self {
        classify(error, options.credentials.is_some(), options.is_tls())
    }

    /// Another member of the cluster may do better.
    pub(super) fn is_of_the_member(&self) -> bool {
        self.was_not_sent()
            || matches!(
                self,
                Self::Broken(_)
                    | Self::TimedOut
                    | Self::UntrustedServer(_)
                    | Self::ClosedTls
                    | Self::ClosedPlain
                    | Self::NotTls
                    | Self::NoLeader
            )
    }

    /// A request about another key may do better.
    pub fn is_of_the_key(&self) -> bool {
        matches!(self, Self::PermissionDenied | Self::Other(_))
    }

    /// The request cannot have had an effect.
    pub(super) fn was_not_sent(&self) -> bool {
        matches!(self, Self::Refused | Self::Unreachable(_) | Self::UnknownHost)
    }
}

/// The server has no users at all: credentials are superfluous, not wrong.
pub(super) fn auth_is_off(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if status.code() as i32 == FAILED_PRECONDITION && status.message().contains("not enabled"))
}

fn classify(error: &etcd_client::Error, has_user: bool, tls: bool) -> Cause {
    use etcd_client::Error;
    match error {
        Error::GRpcStatus(status) => {
            let chain = chain(status.message(), status.source());
            match status.code() as i32 {
                DEADLINE_EXCEEDED => Cause::TimedOut,
                PERMISSION_DENIED => Cause::PermissionDenied,
                OUT_OF_RANGE => Cause::RevisionGone,
                UNAUTHENTICATED if !has_user => Cause::CredentialsNeeded,
                UNAUTHENTICATED => Cause::WrongCredentials,
                // etcd answers these with a code that says nothing, so its text has to.
                INVALID_ARGUMENT if chain.contains("user name is empty") => Cause::CredentialsNeeded,
                INVALID_ARGUMENT if chain.contains("authentication failed") => Cause::WrongCredentials,
                UNAVAILABLE if chain.contains("no leader") => Cause::NoLeader,
                UNAVAILABLE | UNKNOWN | CANCELLED => transport(&chain, tls),
                _ => Cause::Other(one_line(&chain)),
            }
        }
        Error::TransportError(e) => transport(&chain(&e.to_string(), e.source()), tls),
        Error::IoError(e) => Cause::Broken(one_line(&e.to_string())),
        Error::LeaseKeepAliveError(_) => Cause::LeaseGone,
        other => Cause::Other(one_line(&other.to_string())),
    }
}

/// A connection that did not come to be, or broke: the layers below us tell why only in their texts.
fn transport(chain: &str, tls: bool) -> Cause {
    let lower = chain.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["connection refused"]) {
        Cause::Refused
    } else if has(&["received corrupt message", "handshake eof"]) {
        Cause::NotTls
    } else if has(&["keymismatch"]) {
        Cause::KeyMismatch
    } else if let Some(alert) = after(chain, "received fatal alert: ") {
        Cause::ClientCertificate(alert)
    } else if let Some(why) = after(chain, "invalid peer certificate: ") {
        Cause::UntrustedServer(why)
    } else if has(&["failed to lookup", "name or service", "no address associated"]) {
        Cause::UnknownHost
    } else if let Some(why) = after(chain, "tcp connect error: ") {
        Cause::Unreachable(if why.contains("deadline") { "no answer to the connection".into() } else { why })
    } else if has(&["timed out", "timeout", "deadline"]) {
        Cause::TimedOut
    } else if has(&["broken pipe", "connection reset", "close_notify", "connection closed"]) {
        if tls { Cause::ClosedTls } else { Cause::ClosedPlain }
    } else {
        Cause::Broken(one_line(chain))
    }
}

/// The error and its causes, outermost first, without repetitions.
fn chain(first: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut parts = vec![first.to_owned()];
    while let Some(error) = source {
        let text = error.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = error.source();
    }
    parts.join(": ")
}

/// What a layer said after `marker`, without what the layers around it added.
fn after(chain: &str, marker: &str) -> Option<String> {
    let (_, rest) = chain.split_once(marker)?;
    Some(one_line(rest.split(": ").next().unwrap_or(rest)))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{EtcdPrefix, RESOURCES, TlsFiles};

    #[test]
    fn transport_texts_become_causes() {
        for (text, tls, want) in [
            ("transport error: tcp connect error: Connection refused (os error 111)", false, Cause::Refused),
            (
                "transport error: tcp connect error: deadline has elapsed",
                false,
                Cause::Unreachable("no answer to the connection".into()),
            ),
            (
                "transport error: tcp connect error: No route to host (os error 113)",
                false,
                Cause::Unreachable("No route to host (os error 113)".into()),
            ),
            ("dns error: failed to lookup address information", false, Cause::UnknownHost),
            (
                "invalid peer certificate: UnknownIssuer: transport error",
                true,
                Cause::UntrustedServer("UnknownIssuer".into()),
            ),
            ("transport error: keys may not be consistent: KeyMismatch", true, Cause::KeyMismatch),
            (
                "h2: received fatal alert: CertificateRequired",
                true,
                Cause::ClientCertificate("CertificateRequired".into()),
            ),
            ("received corrupt message of type InvalidContentType", true, Cause::NotTls),
            ("stream closed because of a broken pipe", true, Cause::ClosedTls),
            ("stream closed because of a broken pipe", false, Cause::ClosedPlain),
            ("something\nnew", false, Cause::Broken("something new".into())),
        ] {
            assert_eq!(transport(text, tls), want, "{text}");
        }
    }

    #[test]
    fn an_error_is_one_line_with_operation_object_cause_and_hint() {
        let mut options = EtcdOptions {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            by_default: false,
            prefix: EtcdPrefix::new("/coreos.com/network").unwrap(),
            tls: TlsFiles::default(),
            credentials: None,
        };
        let refused = |options: &EtcdOptions| {
            StoreError::new("read /coreos.com/network/config", options, Cause::Refused).to_string()
        };
        assert_eq!(
            refused(&options),
            "cannot read /coreos.com/network/config (etcd at http://127.0.0.1:2379): connection refused; \
             is etcd running there? check --etcd-endpoints"
        );
        options.by_default = true;
        assert_eq!(
            refused(&options),
            "cannot read /coreos.com/network/config (etcd at http://127.0.0.1:2379, as no --etcd-endpoints are given): \
             connection refused; is etcd running there? check --etcd-endpoints"
        );
        let denied =
            StoreError::new("list /coreos.com/network/", &options, Cause::PermissionDenied).to_string();
        for words in
            ["permission denied", "read on all below --etcd-prefix", "readwrite on its subnets/", RESOURCES]
        {
            assert!(denied.contains(words), "{denied}");
        }
    }
}
