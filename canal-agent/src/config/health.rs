//! flanneld's place for health.

use super::{
    ConfigError, RunArgs,
    environment::{Environment, Value},
};
use crate::api::port::Address;

/// Where health is to be told; `None`: nowhere.
pub(super) fn address(
    args: &RunArgs,
    environment: &Environment,
    notices: &mut Vec<String>,
) -> Result<Option<Address>, ConfigError> {
    let Some(port) = environment.find("healthz-port", args.healthz_port.clone()) else { return Ok(None) };
    let port = port.read(number, notices)?.filter(|port| *port > 0);
    let host = environment.find("healthz-ip", args.healthz_ip.clone());
    let host = host.map_or_else(|| "0.0.0.0".to_owned(), |value| value.text);
    Ok(port.map(|port| Address { host, port }))
}

/// Whatever is below zero is zero, as with flanneld.
fn number(value: &Value) -> Result<u16, ConfigError> {
    let port = value.text.parse::<i64>().ok().and_then(|port| port.max(0).try_into().ok());
    port.ok_or_else(|| value.wrong("is not a port; write 1 to 65535, or 0 for none"))
}
