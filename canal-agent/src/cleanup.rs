//! `canal-agent cleanup`: takes Canal off a node.

use std::{path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    config::{Config, Parameters, parameters},
    dataplane::{masquerade, overlay, pins::Pins, routes},
    endpoint::{Registry, status_files},
    lock::AgentLock,
    netlink::Netlink,
    node::Memory,
    store::{Store, StoreError, initial::read_nodename, machine, publish::delete_if},
};

/// Removes every trace of Canal from this node, and its endpoints from etcd if that answers; the lease there expires by
/// itself. `net.ipv4.ip_forward` stays as it is: others may rely on it by now.
pub fn run(config: &Config) -> anyhow::Result<Vec<String>> {
    let _lock = AgentLock::take()?;
    let mut done = withdraw_endpoints(config)?;
    if Pins::open(&config.bpffs)?.remove_all()? {
        done.push(format!(
            "detached the programs and removed the tables below {}",
            config.bpffs.join("canal").display()
        ));
    }
    let mut netlink = Netlink::open()?;
    for device in overlay::remove(&mut netlink)? {
        done.push(format!("removed {device} with its address and route"));
    }
    done.extend(routes::remove_all(&mut netlink)?);
    if masquerade::remove().unwrap_or(false) {
        done.push("removed the masquerade table".to_owned());
    }
    for path in [&config.subnet_file, &config.socket] {
        if std::fs::remove_file(path).is_ok() {
            done.push(format!("removed {}", path.display()));
        }
    }
    done.extend(remove_status_files(config)?);
    // Its name stays known to a node that has it from nowhere else.
    let names_us = read_nodename(&config.nodename_file).is_some_and(|name| name == config.node_name);
    if names_us && !config.name_is_stored && std::fs::remove_file(&config.nodename_file).is_ok() {
        done.push(format!("removed {}", config.nodename_file.display()));
        if let Some(folder) = config.nodename_file.parent() {
            // Only if nobody else keeps anything there.
            let _ = std::fs::remove_dir(folder);
        }
    }
    let endpoints = Registry::folder(&config.state_dir);
    if remove_dir(&endpoints)? {
        done.push(format!("removed {}", endpoints.display()));
    }
    if Memory::forget(&config.state_dir) {
        done.push("forgot the other nodes".to_owned());
    }
    if machine::forget(&config.state_dir) {
        done.push("forgot this machine's number".to_owned());
    }
    // Only if nobody else keeps anything there.
    if std::fs::remove_dir(&config.state_dir).is_ok() {
        done.push(format!("removed {}", config.state_dir.display()));
    }
    Ok(done)
}

/// Where etcd had Felix's parameter otherwise, the files go with the next boot: they are below /var/run or the like.
pub(crate) fn remove_status_files(config: &Config) -> anyhow::Result<Option<String>> {
    let parameters = parameters::merge(&config.felix, &Parameters::default()).parameters;
    let Some(prefix) = parameters.status_files else { return Ok(None) };
    let removed = status_files::remove_all(&prefix)?;
    Ok(removed.then(|| format!("removed the endpoint status files below {}", prefix.display())))
}

/// What this node has published would go on applying to whoever gets its pods' addresses next.
fn withdraw_endpoints(config: &Config) -> anyhow::Result<Vec<String>> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let known = Registry::open_existing(&config.state_dir, &config.node_name)?;
    let Some((registry, _)) = known else { return Ok(Vec::new()) };
    if registry.records().is_empty() {
        return Ok(Vec::new());
    }
    let own = registry.present().chain(registry.former()).map(|(key, record)| (key.clone(), record));
    let published: Vec<_> = own.chain(registry.leaving()).collect();
    let withdraw = async {
        let store = Store::connect(&config.etcd).await?;
        let mut done = Vec::new();
        for (key, record) in &published {
            if delete_if(&store, &key.store_key(), |value| record.owns(value)).await? {
                done.push(format!("removed endpoint {key} from etcd"));
            }
        }
        Ok::<_, StoreError>(done)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stays = |why: String| {
        let keys: Vec<_> = published.iter().map(|(key, _)| key.store_key()).collect();
        vec![format!("NOT removed from etcd ({why}): {}", keys.join(" "))]
    };
    Ok(match runtime.block_on(async { tokio::time::timeout(PATIENCE, withdraw).await }) {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => stays(error.to_string()),
        Err(_) => stays("it does not answer".to_owned()),
    })
}

fn remove_dir(path: &Path) -> anyhow::Result<bool> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
}
