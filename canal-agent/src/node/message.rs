//! What reaches the node's thread.

use tokio::sync::oneshot;

use crate::{
    api::{
        events::Events,
        explain::{Ask, Explanation},
        wire::{
            AddEndpoint, ApiError, AttachmentId, Collect, Collected, EndpointReport, Goodbye, Readiness,
            Rules, Status,
        },
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
    /// The plugin is about to make this.
    BeginEndpoint {
        endpoint: AddEndpoint,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    AddEndpoint {
        endpoint: AddEndpoint,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    DeleteEndpoint {
        id: AttachmentId,
        goodbye: Goodbye,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    /// What the runtime does not list is to go.
    Collect {
        asked: Collect,
        reply: oneshot::Sender<Result<Collected, ApiError>>,
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
    /// One attachment.
    Endpoint {
        id: AttachmentId,
        reply: oneshot::Sender<Result<Option<EndpointReport>, ApiError>>,
    },
    /// Whether pods can be attached.
    Ready {
        reply: oneshot::Sender<Readiness>,
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

/// Etcd no longer holds this endpoint of that container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published(pub AttachmentId, pub EndpointKey);
