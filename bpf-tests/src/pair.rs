//! Two namespaces on one bare veth pair: what the machine can do at best, to measure against.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{netns::Netns, probe::Host, world::veth};

/// One end.
#[derive(Debug)]
pub struct End {
    netns: Netns,
    ip: Ipv4Addr,
}

impl Host for End {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

/// Two ends with MTU 1450, as pods have; their names begin with `prefix`, so its sweep finds them.
pub fn bare_pair(prefix: &str) -> Result<(End, End)> {
    let end = |last| -> Result<End> {
        let netns = Netns::create(&format!("{prefix}pair{last}"))?;
        Ok(End { netns, ip: Ipv4Addr::new(192, 168, 70, last) })
    };
    let (left, right) = (end(1)?, end(2)?);
    veth((&left.netns, "eth0"), (&right.netns, "eth0"))?;
    for end in [&left, &right] {
        end.netns.ip("link set eth0 mtu 1450 up")?;
        end.netns.ip(&format!("addr add {}/24 dev eth0", end.ip))?;
    }
    Ok((left, right))
}
