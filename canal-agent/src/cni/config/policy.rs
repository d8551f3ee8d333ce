//! Where labels and namespace of a pod come from.

use std::{fmt, path::PathBuf};

use super::{
    super::error::CniError,
    fields::{Fields, Notes},
};

/// Whose policy model the endpoint belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// The labels of the configuration are all there are.
    #[default]
    Network,
    /// Kubernetes knows the pod.
    Kubernetes(Access),
}

/// How to reach the API of Kubernetes. What is said here comes before what is in the kubeconfig.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub kubeconfig: Option<PathBuf>,
    /// `https://host:port`.
    pub server: Option<String>,
    pub certificate_authority: Option<PathBuf>,
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub token: Option<Token>,
}

/// A bearer's token, which must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Policy {
    /// Calico's `policy` and `kubernetes`.
    pub(super) fn of_calico(outer: &mut Fields, notes: &mut Notes) -> Result<Self, CniError> {
        let mut policy = outer.object("policy")?;
        let mut kubernetes = outer.object("kubernetes")?;
        let kind = policy.text("type")?;
        let of_policy = policy.text("k8s_api_root")?;
        let server = kubernetes.text("k8s_api_root")?.or(of_policy);
        let access = Access {
            kubeconfig: kubernetes.text("kubeconfig")?.map(PathBuf::from),
            server,
            certificate_authority: policy.text("k8s_certificate_authority")?.map(PathBuf::from),
            client_certificate: policy.text("k8s_client_certificate")?.map(PathBuf::from),
            client_key: policy.text("k8s_client_key")?.map(PathBuf::from),
            token: policy.text("k8s_auth_token")?.map(Token),
        };
        // It only chose the node whose podCIDR `usePodCidr` stood for.
        kubernetes.accept_texts(&["node_name"])?;
        let read = match kind.as_deref() {
            None => Self::Network,
            Some("k8s") => Self::Kubernetes(access),
            Some(other) => {
                return Err(policy.invalid(
                    "type",
                    other,
                    "known is `k8s`; leave it out where no Kubernetes is",
                ));
            }
        };
        policy.finish(notes);
        kubernetes.finish(notes);
        Ok(read)
    }

    /// Our own `kubernetes`, which has no switch beside it.
    pub(super) fn of_canal(outer: &mut Fields, notes: &mut Notes) -> Result<Self, CniError> {
        let mut kubernetes = outer.object("kubernetes")?;
        let kubeconfig = kubernetes.text("kubeconfig")?.map(PathBuf::from);
        kubernetes.finish(notes);
        Ok(match kubeconfig {
            None => Self::Network,
            kubeconfig => Self::Kubernetes(Access { kubeconfig, ..Access::default() }),
        })
    }
}
