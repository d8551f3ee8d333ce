//! flanneld's place for health.

use std::net::{Ipv4Addr, SocketAddr};

use super::{ConfigError, RunArgs, environment::Environment};

/// Where health is to be told; `None`: nowhere.
pub(super) fn address(args: &RunArgs, environment: &Environment) -> Result<Option<SocketAddr>, ConfigError> {
    let ip = match environment.find("healthz-ip", args.healthz_ip.clone()) {
        Some(value) => value
            .text
            .parse()
            .map_err(|_| value.wrong("is not an address; write one of this node's, or 0.0.0.0 for all"))?,
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let port = match environment.find("healthz-port", args.healthz_port.clone()) {
        Some(value) => value
            .text
            .parse::<u16>()
            .map_err(|_| value.wrong("is not a port; write 1 to 65535, or 0 for none"))?,
        None => 0,
    };
    Ok((port != 0).then(|| SocketAddr::new(ip, port)))
}
