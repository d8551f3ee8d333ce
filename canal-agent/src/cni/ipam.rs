//! Addresses by the real `host-local`: what it is told, and what its answer means.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    call::Call,
    error::{CniError, Code},
    exec,
};

pub(super) const PLUGIN: &str = "host-local";
/// Spoken by every `host-local` since 2019, whatever version the runtime asked us for.
const VERSION: &str = "0.4.0";

/// `host-local` for one attachment.
#[derive(Debug)]
pub(super) struct Ipam<'a> {
    call: Call<'a>,
    program: PathBuf,
}

/// What the pod gets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Allocation {
    pub(super) ip: Ipv4Addr,
    /// Resolver settings to pass on, where the IPAM configuration asks for them.
    pub(super) dns: Option<Value>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Vec<Ip>,
    dns: Option<Value>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

impl<'a> Ipam<'a> {
    /// Fails where `host-local` is not there.
    pub(super) fn find(call: Call<'a>) -> Result<Self, CniError> {
        Ok(Self { call, program: exec::find(PLUGIN, &call.attachment.path)? })
    }

    /// Takes an address of the node's subnet: the one that is wished for, or the next.
    pub(super) fn add(
        &self,
        subnet: Ipv4Net,
        ranges: &Value,
        wish: Option<Ipv4Addr>,
    ) -> Result<Allocation, CniError> {
        let stdin = self.stdin(ranges, wish);
        let stdout = match self.run("ADD", &stdin) {
            // It is ours already: of a call that was cut off.
            Err(error) if error.details.contains("duplicate allocation") => {
                self.del()?;
                self.run("ADD", &stdin)
            }
            answered => answered,
        };
        let stdout = stdout.map_err(|error| explained(error, wish))?;
        read_answer(&stdout, subnet).inspect_err(|_| {
            // An address was taken, even if it is one that we cannot use.
            self.del().ok();
        })
    }

    /// Gives back what the attachment has; nothing is as good.
    pub(super) fn del(&self) -> Result<(), CniError> {
        // It wants a range here as well, and looks only at the container.
        self.run("DEL", &self.stdin(&json!([[{"subnet": "192.0.2.0/24"}]]), None)).map(drop)
    }

    fn run(&self, verb: &str, stdin: &Value) -> Result<Vec<u8>, CniError> {
        // What is in CNI_ARGS was read, and goes the way that is the same in all versions.
        let environment: BTreeMap<_, _> = self
            .call
            .environment
            .iter()
            .filter(|(name, _)| *name != "CNI_ARGS")
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .chain([("CNI_COMMAND", verb)])
            .collect();
        let output = exec::run(&self.program, &environment, stdin.to_string())?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(CniError::new(Code::PluginFailed, format!("{PLUGIN} failed ({verb})"), exec::said(&output)))
    }

    /// The configuration that `host-local` sees.
    fn stdin(&self, ranges: &Value, wish: Option<Ipv4Addr>) -> Value {
        let mut ipam = self.call.config.ipam.clone();
        ipam.insert("ranges".to_owned(), ranges.clone());
        let mut stdin = json!({"cniVersion": VERSION, "name": self.call.config.network, "ipam": ipam});
        if let Some(ip) = wish {
            stdin["runtimeConfig"] = json!({"ips": [ip]});
        }
        stdin
    }
}

/// All its errors have one code, so its words are all that tells a full pool, or an address that is taken, from something
/// broken.
fn explained(error: CniError, wish: Option<Ipv4Addr>) -> CniError {
    if let Some(ip) = wish.filter(|_| error.details.contains("requested IP")) {
        let hint = format!("ask for another, or for none ({})", error.details);
        return CniError::new(Code::AddressTaken, format!("the address {ip} cannot be had"), hint);
    }
    if error.details.contains("no IP addresses available") {
        return CniError::pool_full(&format!(" ({})", error.details));
    }
    error
}

fn read_answer(stdout: &[u8], subnet: Ipv4Net) -> Result<Allocation, CniError> {
    let failed = |details: String| {
        CniError::new(Code::PluginFailed, format!("{PLUGIN} gave no usable address"), details)
    };
    let answer: Answer = serde_json::from_slice(stdout).map_err(|e| failed(e.to_string()))?;
    let [ip] = answer.ips.as_slice() else {
        return Err(failed(format!("want one address, got {}", answer.ips.len())));
    };
    let net: Ipv4Net = ip.address.parse().map_err(|_| failed(format!("{:?} is not IPv4", ip.address)))?;
    if !subnet.contains(&net.addr()) {
        return Err(failed(format!("{} is outside {subnet}", net.addr())));
    }
    let dns = answer.dns.filter(|d| d.as_object().is_some_and(|o| !o.is_empty()));
    Ok(Allocation { ip: net.addr(), dns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_old_and_new_versions_are_read_and_nonsense_is_refused() {
        let subnet: Ipv4Net = "10.100.7.0/24".parse().unwrap();
        let ip = |a: &str| Ok(Allocation { ip: a.parse().unwrap(), dns: None });
        for (answer, wanted) in [
            (
                r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.100.7.2/24","gateway":"10.100.7.1"}],"dns":{}}"#,
                ip("10.100.7.2"),
            ),
            (r#"{"ips":[{"address":"10.100.7.3/24"}]}"#, ip("10.100.7.3")),
            (r#"{"ips":[]}"#, Err("want one address, got 0")),
            (
                r#"{"ips":[{"address":"10.100.7.3/24"},{"address":"10.100.7.4/24"}]}"#,
                Err("want one address, got 2"),
            ),
            (r#"{"ips":[{"address":"fd00::1/64"}]}"#, Err(r#""fd00::1/64" is not IPv4"#)),
            (r#"{"ips":[{"address":"10.99.7.3/24"}]}"#, Err("10.99.7.3 is outside 10.100.7.0/24")),
            ("", Err("EOF while parsing a value at line 1 column 0")),
        ] {
            let got = read_answer(answer.as_bytes(), subnet).map_err(|e| e.details);
            assert_eq!(got, wanted.map_err(str::to_owned), "{answer}");
        }
    }
}
