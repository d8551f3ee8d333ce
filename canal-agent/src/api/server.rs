//! The agent's end of the local socket. Root only: whoever can connect can open pods.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::{delete, get, post},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tracing::warn;

use super::{
    events::Events,
    explain::{Ask, Explanation},
    exposition,
    wire::{
        AddEndpoint, ApiError, AttachmentId, Collect, Collected, EndpointReport, Goodbye, Readiness, Rules,
        Status,
    },
};
use crate::node::{Message, Question};

type Sender = mpsc::UnboundedSender<Message>;
pub(super) type Refused = (StatusCode, Json<ApiError>);
type Answer<T> = Result<Json<T>, Refused>;

/// How long a question for further events stays open; clients then ask anew.
pub const FOLLOW: Duration = Duration::from_secs(20);

/// Takes the socket over from an agent that is gone (the node's lock says that it is).
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn serve(listener: UnixListener, messages: Sender) {
    let router = Router::new()
        .route("/v1/ready", get(ready))
        .route("/v1/endpoints", post(add).put(begin))
        .route("/v1/endpoints/{container}/{interface}", delete(remove).get(report))
        .route("/v1/collect", post(collect))
        .route("/v1/status", get(status))
        .route("/v1/explain", post(explain))
        .route("/metrics", get(metrics))
        .route("/v1/rules", get(rules))
        .route("/v1/events", get(events))
        .route("/v1/events/after/{number}", get(events_after))
        .with_state(messages);
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the local socket is gone");
    }
}

async fn metrics(State(messages): State<Sender>) -> Result<MetricsText, Refused> {
    Ok(metrics_text(ask_metrics(&messages).await?))
}

pub(super) type MetricsText = ([(HeaderName, &'static str); 1], String);

pub(super) fn metrics_text(text: String) -> MetricsText {
    ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], text)
}

pub(super) async fn ask_metrics(messages: &Sender) -> Result<String, Refused> {
    ask(messages, |reply| Message::Ask(Question::Metrics { reply })).await
}

async fn add(State(messages): State<Sender>, Json(endpoint): Json<AddEndpoint>) -> Answer<serde_json::Value> {
    ask(&messages, |reply| Message::AddEndpoint { endpoint, reply }).await?.map_err(refused)?;
    Ok(Json(serde_json::json!({})))
}

async fn begin(
    State(messages): State<Sender>,
    Json(endpoint): Json<AddEndpoint>,
) -> Answer<serde_json::Value> {
    ask(&messages, |reply| Message::BeginEndpoint { endpoint, reply }).await?.map_err(refused)?;
    Ok(Json(serde_json::json!({})))
}

async fn remove(
    State(messages): State<Sender>,
    UrlPath((container_id, interface)): UrlPath<(String, String)>,
    Json(goodbye): Json<Goodbye>,
) -> Answer<serde_json::Value> {
    let id = AttachmentId { container_id, interface };
    ask(&messages, |reply| Message::DeleteEndpoint { id, goodbye, reply }).await?.map_err(refused)?;
    Ok(Json(serde_json::json!({})))
}

async fn report(
    State(messages): State<Sender>,
    UrlPath((container_id, interface)): UrlPath<(String, String)>,
) -> Answer<Option<EndpointReport>> {
    let id = AttachmentId { container_id, interface };
    let report = ask(&messages, |reply| Message::Ask(Question::Endpoint { id, reply })).await?;
    Ok(Json(report.map_err(refused)?))
}

async fn collect(State(messages): State<Sender>, Json(asked): Json<Collect>) -> Answer<Collected> {
    Ok(Json(ask(&messages, |reply| Message::Collect { asked, reply }).await?.map_err(refused)?))
}

async fn ready(State(messages): State<Sender>) -> Answer<Readiness> {
    Ok(Json(ask(&messages, |reply| Message::Ask(Question::Ready { reply })).await?))
}

async fn status(State(messages): State<Sender>) -> Answer<Status> {
    Ok(Json(ask(&messages, |reply| Message::Ask(Question::Status { reply })).await?))
}

async fn explain(State(messages): State<Sender>, Json(asked): Json<Ask>) -> Answer<Explanation> {
    let explanation = ask(&messages, |reply| Message::Ask(Question::Explain { ask: asked, reply }))
        .await?
        .map_err(refused)?;
    Ok(Json(explanation))
}

async fn rules(State(messages): State<Sender>) -> Answer<Rules> {
    Ok(Json(ask(&messages, |reply| Message::Ask(Question::Rules { reply })).await?.map_err(refused)?))
}

async fn events(State(messages): State<Sender>) -> Answer<Events> {
    Ok(Json(ask(&messages, |reply| Message::Events { after: None, reply }).await?))
}

/// Waits until there is something, for a while.
async fn events_after(State(messages): State<Sender>, UrlPath(number): UrlPath<u64>) -> Answer<Events> {
    let answer = ask(&messages, |reply| Message::Events { after: Some(number), reply });
    match tokio::time::timeout(FOLLOW, answer).await {
        Ok(events) => Ok(Json(events?)),
        Err(_) => Ok(Json(Events { last: number, ..Events::default() })),
    }
}

async fn ask<T>(
    messages: &Sender,
    message: impl FnOnce(oneshot::Sender<T>) -> Message,
) -> Result<T, Refused> {
    let stopping = || refused(ApiError { message: "the agent is stopping".to_owned(), try_again: true });
    let (reply, answer) = oneshot::channel();
    messages.send(message(reply)).map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

fn refused(error: ApiError) -> Refused {
    let status = if error.try_again { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_REQUEST };
    (status, Json(error))
}
