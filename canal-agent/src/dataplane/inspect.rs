//! Loading without an agent, so that somebody can look at programs and tables with bpftool.

use std::{collections::HashMap, path::Path};

use canal_common::{names, settings::Settings};

use super::{
    hooks::{HookError, Hooks, Place},
    object::{Object, ObjectError},
    pins::{PinError, Pins},
};

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("there is no interface {0}; `ip -br link` lists them")]
    NoInterface(String),
    #[error("{0} is in use by a canal-agent; name another bpffs with --bpffs")]
    InUse(String),
}

/// Attaches `from_wire` to the interface: with settings that match no packet it lets everything pass untouched.
pub fn load(bpffs: &Path, interface: &str) -> Result<Vec<String>, InspectError> {
    let pins = Pins::open(bpffs)?;
    let mine = pins.link(interface, names::FROM_WIRE);
    if pins.links()?.iter().any(|(_, path)| *path != mine) {
        return Err(InspectError::InUse(pins.root().display().to_string()));
    }
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .map_err(|_| InspectError::NoInterface(interface.to_owned()))?;
    let mut object = Object::load(&Settings::default(), Some(&pins), &HashMap::new())?;
    Hooks::new(pins.clone()).attach(&mut object, Place::Uplink, interface, ifindex)?;
    let mut lines = vec![format!("from_wire is attached to {interface} and pinned at {}", mine.display())];
    lines.extend(
        names::MAPS.iter().map(|name| format!("bpftool map dump pinned {}", pins.table(name).display())),
    );
    lines.push(format!(
        "bpftool prog show pinned {}   (the link; `bpftool prog show name from_wire` the program)",
        mine.display()
    ));
    Ok(lines)
}

pub fn unload(bpffs: &Path, interface: &str) -> Result<Vec<String>, InspectError> {
    let pins = Pins::open(bpffs)?;
    let mine = pins.link(interface, names::FROM_WIRE);
    if pins.links()?.iter().any(|(_, path)| *path != mine) {
        return Err(InspectError::InUse(pins.root().display().to_string()));
    }
    let removed = pins.remove_all()?;
    Ok(vec![if removed {
        format!("removed everything below {}", pins.root().display())
    } else {
        "nothing to remove".to_owned()
    }])
}
