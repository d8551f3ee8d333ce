//! The store against a real etcd: one process per test, on free loopback ports, with its own data directory.

mod etcd;
mod proxy;

mod access;
mod lease;
mod publish;
mod watch;
