//! The store against a real etcd: one process per test, on free loopback ports, with its own data directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must panic, also in its helpers")]

mod etcd;
mod proxy;

mod access;
mod endpoints;
mod initial;
mod lease;
mod publish;
mod watch;
