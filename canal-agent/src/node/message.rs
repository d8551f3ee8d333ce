//! What reaches the node's thread.

use tokio::sync::oneshot;

use crate::{
    api::{
        events::Events,
        explain::{Ask, Explanation},
        wire::{AddEndpoint, ApiError, Rules, Status},
    },
    model::EndpointKey,
    netlink,
    store::{LeaseEvent, StoreEvent},
};

#[derive(Debug)]
pub enum Message {
    Store(StoreEvent),
    Lease(LeaseEvent),
    Kernel(netlink::Change),
    AddEndpoint {
        endpoint: AddEndpoint,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    DeleteEndpoint {
        container_id: String,
        interface: String,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    Ask(Question),
    /// What the kernel told of; with `after`, not before something has come after that number.
    Events {
        after: Option<u64>,
        reply: oneshot::Sender<Events>,
    },
    /// The event ring has something.
    Ring,
    Published(Published),
    /// Look at everything again: something may have failed, or changed without a hint.
    Tick,
    Stop,
}

/// About what is; answered once the kernel has followed what came before.
#[derive(Debug)]
pub enum Question {
    Status {
        reply: oneshot::Sender<Status>,
    },
    Explain {
        ask: Ask,
        reply: oneshot::Sender<Result<Explanation, ApiError>>,
    },
    /// In Prometheus' text format.
    Metrics {
        reply: oneshot::Sender<String>,
    },
    Rules {
        reply: oneshot::Sender<Result<Rules, ApiError>>,
    },
}

/// Etcd no longer holds this endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published(pub EndpointKey);
