//! Reaching one member of etcd: TLS, credentials, and the pings by which a half-open connection is noticed.

use std::{fs, path::Path, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tracing::warn;

use super::{
    error::{Cause, auth_is_off},
    options::EtcdOptions,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Where distributions keep the certificates that a program trusts when it was not given any.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client for one member. With credentials this is a call; without, nothing is sent yet.
pub(super) async fn dial(options: &EtcdOptions, index: usize) -> Result<Client, Cause> {
    let endpoint = [&options.endpoints[index]];
    let plain = connect_options(options)?;
    let Some(user) = &options.credentials else {
        return Client::connect(endpoint, Some(plain)).await.map_err(|e| Cause::of(&e, options));
    };
    let with_user =
        plain.clone().with_user(&user.username, user.password.reveal()).with_auto_token_refresh(true);
    match Client::connect(endpoint, Some(with_user)).await {
        Err(e) if auth_is_off(&e) => {
            warn!(
                user = user.username,
                "etcd has no authentication enabled; going on without the credentials"
            );
            Client::connect(endpoint, Some(plain)).await.map_err(|e| Cause::of(&e, options))
        }
        done => done.map_err(|e| Cause::of(&e, options)),
    }
}

fn connect_options(options: &EtcdOptions) -> Result<ConnectOptions, Cause> {
    let wanted = ConnectOptions::new()
        .with_keep_alive(PING_EVERY, PING_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_tcp_keepalive(PING_EVERY)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_require_leader(true);
    if !options.is_tls() {
        return Ok(wanted);
    }
    let roots = match &options.tls.ca {
        Some(ca) => read(ca)?,
        None => SYSTEM_ROOTS.iter().find_map(|path| fs::read(path).ok()).ok_or_else(|| {
            Cause::File("this system has no trusted certificates: give the CA with --etcd-cafile".into())
        })?,
    };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(roots));
    if let Some(client) = &options.tls.client {
        tls = tls.identity(Identity::from_pem(read(&client.certificate)?, read(&client.key)?));
    }
    Ok(wanted.with_tls(tls))
}

fn read(path: &Path) -> Result<Vec<u8>, Cause> {
    fs::read(path).map_err(|e| Cause::File(format!("cannot read {}: {e}", path.display())))
}
