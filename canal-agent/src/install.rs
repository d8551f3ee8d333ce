//! `canal-agent cni install` and `uninstall`: the plugin and its configuration, where container runtimes look for them.
//!
//! Runtimes take a node to be ready for pods when a configuration appears, so it comes last, when the agent is ready, and
//! goes first.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{
    api::client::{Client, SOCKET},
    cni::Dialect,
    file,
};

/// What is installed unless a file is named.
const LIST: &str = include_str!("../dist/10-canal.conflist");
const PLUGIN: &str = "canal-cni";
/// Put behind the name of a plugin that ours takes the place of.
const BEFORE: &str = ".before-canal";
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, clap::Args)]
pub struct Places {
    /// Where runtimes look for plugins
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where runtimes look for configurations
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The configuration's name there
    #[arg(long, value_name = "FILE", default_value = "10-canal.conflist")]
    pub conf_name: String,
}

#[derive(Debug, Clone, clap::Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub places: Places,
    /// Configuration to install in the place of the usual one
    #[arg(long, value_name = "FILE")]
    pub conf: Option<PathBuf>,
    /// The plugin's program; by default beside this one
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// Install the plugin under this name as well (several times), for configurations that name it; an earlier program
    /// of that name is kept beside it
    #[arg(long = "as", value_name = "NAME", value_parser = ["flannel", "calico"])]
    pub also: Vec<String>,
    /// The agent's socket
    #[arg(long, value_name = "FILE", default_value = SOCKET, env = "CANAL_SOCKET")]
    pub socket: PathBuf,
    /// Seconds to wait for the agent to be ready; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
}

/// A line for each thing that was done.
pub fn install(args: &InstallArgs) -> anyhow::Result<Vec<String>> {
    let list = configuration(args)?;
    let program = program(args)?;
    let mut done = Vec::new();
    let plugin = args.places.bin_dir.join(PLUGIN);
    done.extend(put(&program, &plugin)?);
    for name in &args.also {
        let place = args.places.bin_dir.join(name);
        done.extend(keep(&place, &plugin)?);
        done.extend(put(&program, &place)?);
    }
    wait_for_agent(args)?;
    let conf = args.places.conf_dir.join(&args.places.conf_name);
    if fs::read(&conf).is_ok_and(|there| there == list.as_bytes()) {
        done.push(format!("{} is as it should be", conf.display()));
    } else {
        file::replace(&conf, list.as_bytes()).with_context(|| format!("cannot write {}", conf.display()))?;
        done.push(format!("wrote {}", conf.display()));
    }
    done.extend(before(&args.places)?.map(|first| {
        format!("NOTE: runtimes take {first}, which comes before {}: remove it", args.places.conf_name)
    }));
    Ok(done)
}

/// A line for each thing that was removed.
pub fn uninstall(places: &Places) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    let conf = places.conf_dir.join(&places.conf_name);
    match fs::read(&conf) {
        Ok(text) if is_ours(&text) => {
            fs::remove_file(&conf).with_context(|| format!("cannot remove {}", conf.display()))?;
            done.push(format!("removed {}", conf.display()));
        }
        Ok(_) => done.push(format!("{} is not Canal's: it stays", conf.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", conf.display())),
    }
    let plugin = places.bin_dir.join(PLUGIN);
    for name in ["flannel", "calico"] {
        let place = places.bin_dir.join(name);
        if same(&place, &plugin)? {
            remove(&place, &mut done)?;
            let earlier = beside(&place);
            if earlier.exists() {
                fs::rename(&earlier, &place)
                    .with_context(|| format!("cannot put {} back", earlier.display()))?;
                done.push(format!("put {} back", place.display()));
            }
        }
    }
    if plugin.exists() {
        remove(&plugin, &mut done)?;
    }
    Ok(done)
}

fn remove(path: &Path, done: &mut Vec<String>) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    done.push(format!("removed {}", path.display()));
    Ok(())
}

/// The text to install, which must be one that the plugin can read.
fn configuration(args: &InstallArgs) -> anyhow::Result<String> {
    let text = match &args.conf {
        None => LIST.to_owned(),
        Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let name = args.conf.as_deref().unwrap_or(Path::new(&args.places.conf_name)).display().to_string();
    let mut list: Value = serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
    ensure!(
        list.get("name").is_some_and(Value::is_string),
        "{name} has no `name`: it is no configuration of a network"
    );
    let Some(ours) = plugins(&mut list).into_iter().find(|plugin| dialect(plugin).is_some()) else {
        bail!("no plugin in {name} has the type canal-cni, flannel or calico: it is not for Canal");
    };
    let type_of = ours.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    ensure!(
        type_of == PLUGIN || args.also.contains(&type_of),
        "{name} names the plugin {type_of}: install it with --as {type_of}"
    );
    if args.socket == Path::new(SOCKET) || ours.get("socket").is_some() {
        return Ok(text);
    }
    ours["socket"] = json!(args.socket);
    Ok(format!("{}\n", serde_json::to_string_pretty(&list)?))
}

/// Of a list, or of a configuration with one plugin.
fn plugins(list: &mut Value) -> Vec<&mut Value> {
    if list.get("plugins").is_some() {
        return list["plugins"].as_array_mut().map(|all| all.iter_mut().collect()).unwrap_or_default();
    }
    vec![list]
}

fn dialect(plugin: &Value) -> Option<Dialect> {
    Dialect::named(plugin.get("type")?.as_str()?)
}

fn is_ours(text: &[u8]) -> bool {
    let Ok(mut list) = serde_json::from_slice(text) else { return false };
    plugins(&mut list).into_iter().any(|plugin| dialect(plugin).is_some())
}

fn program(args: &InstallArgs) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.plugin {
        ensure!(path.is_file(), "there is no program {}", path.display());
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let beside = own.parent().unwrap_or(Path::new("/")).join(PLUGIN);
    ensure!(beside.is_file(), "there is no {}: name the plugin's program with --plugin", beside.display());
    Ok(beside)
}

/// All or nothing, and not while it runs: a runtime may be calling the old one.
fn put(program: &Path, place: &Path) -> anyhow::Result<Option<String>> {
    let cannot = || format!("cannot install {}", place.display());
    if same(program, place)? {
        return Ok(Some(format!("{} is as it should be", place.display())));
    }
    let folder = place.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(cannot)?;
    let mut new = tempfile::Builder::new().prefix(".canal.").tempfile_in(folder).with_context(cannot)?;
    io::copy(&mut File::open(program).with_context(cannot)?, &mut new).with_context(cannot)?;
    new.flush().with_context(cannot)?;
    new.as_file().set_permissions(Permissions::from_mode(0o755)).with_context(cannot)?;
    new.as_file().sync_all().with_context(cannot)?;
    new.persist(place).with_context(cannot)?;
    Ok(Some(format!("installed {}", place.display())))
}

/// Another program of this name is kept, for `uninstall` to put back.
fn keep(place: &Path, plugin: &Path) -> anyhow::Result<Option<String>> {
    if !place.exists() || same(place, plugin)? {
        return Ok(None);
    }
    let earlier = beside(place);
    // What is there already is what was there before the first installation.
    if earlier.exists() {
        return Ok(None);
    }
    fs::copy(place, &earlier).with_context(|| format!("cannot keep {}", place.display()))?;
    Ok(Some(format!("kept what was {} as {}", place.display(), earlier.display())))
}

fn beside(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or(OsStr::new("plugin")).to_owned();
    name.push(BEFORE);
    place.with_file_name(name)
}

/// Whether two files have the same content. One that is not there has none.
fn same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let read = |path: &Path| -> anyhow::Result<Option<Vec<u8>>> {
        let mut content = Vec::new();
        match File::open(path).and_then(|mut file| file.read_to_end(&mut content)) {
            Ok(_) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    };
    let (one, other) = (read(one)?, read(other)?);
    Ok(one.is_some() && one == other)
}

fn wait_for_agent(args: &InstallArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.socket).timeout(Duration::from_secs(5));
    let end = (args.wait > 0).then(|| Instant::now() + Duration::from_secs(args.wait));
    let mut told = String::new();
    loop {
        let reason = match client.ready() {
            Ok(readiness) => match readiness.reason {
                None => return Ok(()),
                Some(reason) => reason,
            },
            Err(error) => error.to_string(),
        };
        if end.is_some_and(|end| Instant::now() >= end) {
            bail!(
                "the agent is not ready: {reason}; the plugin is installed, the configuration is not, so that no runtime \
                 begins yet"
            );
        }
        if told != reason {
            eprintln!("canal-agent: waiting for the agent: {reason}");
            told = reason;
        }
        thread::sleep(PAUSE);
    }
}

/// The configuration that runtimes take in the place of ours: the first by name.
fn before(places: &Places) -> anyhow::Result<Option<String>> {
    let cannot = || format!("cannot list {}", places.conf_dir.display());
    let mut first = None;
    for entry in fs::read_dir(&places.conf_dir).with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name().to_string_lossy().into_owned();
        let is_one = [".conflist", ".conf", ".json"].iter().any(|end| name.ends_with(end));
        if is_one && name < places.conf_name && first.as_ref().is_none_or(|f| name < *f) {
            first = Some(name);
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> InstallArgs {
        let program = dir.join("built");
        fs::write(&program, "the plugin").unwrap();
        InstallArgs {
            places: Places {
                bin_dir: dir.join("bin"),
                conf_dir: dir.join("net.d"),
                conf_name: "10-canal.conflist".to_owned(),
            },
            conf: None,
            plugin: Some(program),
            also: Vec::new(),
            socket: dir.join("agent.sock"),
            wait: 1,
        }
    }

    #[test]
    fn without_an_agent_the_plugin_is_there_and_the_configuration_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        let error = install(&args).unwrap_err().to_string();
        assert!(error.contains("no canal-agent listens"), "{error}");
        let mode = fs::metadata(dir.path().join("bin/canal-cni")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(!dir.path().join("net.d").exists());
        let removed = uninstall(&args.places).unwrap();
        assert_eq!(removed, [format!("removed {}", dir.path().join("bin/canal-cni").display())]);
        assert!(uninstall(&args.places).unwrap().is_empty());
    }

    #[test]
    fn a_plugin_that_was_there_before_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path());
        fs::create_dir(&args.places.bin_dir).unwrap();
        let flannel = args.places.bin_dir.join("flannel");
        fs::write(&flannel, "flannel's own").unwrap();
        args.also = vec!["flannel".to_owned(), "calico".to_owned()];
        for _ in 0..2 {
            install(&args).unwrap_err(); // No agent is there.
            assert_eq!(fs::read_to_string(&flannel).unwrap(), "the plugin");
        }
        uninstall(&args.places).unwrap();
        assert_eq!(fs::read_to_string(&flannel).unwrap(), "flannel's own");
        assert_eq!(fs::read_dir(&args.places.bin_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_configuration_that_is_not_for_canal_is_neither_installed_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut args = args(dir.path());
        let file = dir.path().join("own.conflist");
        args.conf = Some(file.clone());
        for (text, words) in [
            ("{", "is not JSON"),
            (r#"{"plugins":[{"type":"canal-cni"}]}"#, "has no `name`"),
            (r#"{"name":"n","plugins":[{"type":"bridge"}]}"#, "not for Canal"),
            (r#"{"name":"n","type":"flannel"}"#, "--as flannel"),
        ] {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", install(&args).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        assert!(!args.places.bin_dir.exists(), "nothing was touched");
        fs::create_dir(&args.places.conf_dir).unwrap();
        let foreign = args.places.conf_dir.join("10-canal.conflist");
        fs::write(&foreign, r#"{"name":"n","plugins":[{"type":"bridge"}]}"#).unwrap();
        assert!(uninstall(&args.places).unwrap()[0].contains("is not Canal's"));
        assert!(foreign.exists());
    }
}
