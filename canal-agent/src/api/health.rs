//! Health for probes, under flanneld's names (`/healthz`, `/readyz`) and Felix's (`/liveness`, `/readiness`): 200, or 503 with
//! the reason as text. Answered without the node's thread, which may be the one that is not well.

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::node::health::Health;

type Answer = (StatusCode, String);

pub fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/liveness", get(alive))
        .route("/readyz", get(ready))
        .route("/readiness", get(ready))
        .with_state(health)
}

async fn alive(State(health): State<Health>) -> Answer {
    answer("canal-agent is running", health.stuck())
}

async fn ready(State(health): State<Health>) -> Answer {
    answer("canal-agent is ready", health.stuck().or_else(|| health.not_ready()))
}

fn answer(well: &str, problem: Option<String>) -> Answer {
    match problem {
        None => (StatusCode::OK, format!("{well}\n")),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("canal-agent is not ready: {problem}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn probes_are_told_whether_and_why_not() {
        let health = Health::new();
        let asked = async |health: &Health| {
            (alive(State(health.clone())).await.0, ready(State(health.clone())).await)
        };
        let (alive, (code, text)) = asked(&health).await;
        assert_eq!((alive, code), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
        assert!(text.contains("just started"), "{text}");
        health.set_ready(Err("waiting for etcd: connection refused".to_owned()));
        let (alive, (code, text)) = asked(&health).await;
        assert_eq!((alive, code), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(text, "canal-agent is not ready: waiting for etcd: connection refused\n");
        health.set_ready(Ok(()));
        assert_eq!(asked(&health).await.1.0, StatusCode::OK);
    }
}
