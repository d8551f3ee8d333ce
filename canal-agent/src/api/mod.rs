//! The local socket between the agent and its two clients, the CNI plugin and `canalctl`: HTTP/1.1 with JSON
//! bodies over a UNIX socket, so `curl --unix-socket` can speak it too.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/endpoints` | [`wire::AddEndpoint`] | `200 {}` once the endpoint's policy is enforced, else [`wire::ApiError`] |
//! | `DELETE /v1/endpoints/{container}/{interface}` | | `200 {}`, also when there is none |
//! | `GET /v1/status` | | [`wire::Status`] |
//! | `GET /metrics` | | Prometheus' text format |
//! | `GET /v1/rules` | | [`wire::Rules`] |
//! | `GET /v1/events` | | [`events::Events`]: the latest |
//! | `GET /v1/events/after/{number}` | | the same, once there are any after that number, or after [`server::FOLLOW`] |
//! | `POST /v1/explain` | [`explain::Ask`] | [`explain::Explanation`], else [`wire::ApiError`] |

pub mod client;
pub mod events;
pub mod explain;
pub mod exposition;
pub mod health;
pub mod metrics;
pub mod port;
pub mod server;
pub mod wire;
