//! `canal-agent cni install` and `uninstall`: the plugin and its configuration, where container runtimes look for them.
//!
//! Runtimes take a node to be ready for pods when a configuration appears, so it comes last, when the agent is ready, and
//! goes first. What was there before under a name of ours is kept beside it, and comes back.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{
    api::client::{Client, SOCKET},
    cni::{self, Arguments, Dialect},
    file,
};

/// What is installed unless a file is named.
const LIST: &str = include_str!("../dist/10-canal.conflist");
const PLUGIN: &str = "canal-cni";
/// Names that the plugin can have as well.
const OTHER_NAMES: [&str; 2] = ["flannel", "calico"];
/// Put behind the name of what ours takes the place of. No runtime reads a configuration that ends so.
const BEFORE: &str = ".before-canal";
/// Where distributions and runtimes have plugins.
const PLUGIN_FOLDERS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, clap::Args)]
pub struct Places {
    /// Where runtimes look for plugins
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where runtimes look for configurations
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The configuration's name there [default: 10-canal.conflist for a list, 10-canal.conf for a single plugin]
    #[arg(long, value_name = "FILE")]
    pub conf_name: Option<String>,
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
    #[arg(long = "as", value_name = "NAME", value_parser = OTHER_NAMES)]
    pub also: Vec<String>,
    /// The agent's socket
    #[arg(long, value_name = "FILE", default_value = SOCKET, env = "CANAL_SOCKET")]
    pub socket: PathBuf,
    /// Seconds to wait for the agent to be ready; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
}

/// A text that runtimes may be given.
struct Configuration {
    text: String,
    /// Its name in the folder of configurations.
    name: String,
    /// The type of our plugin in it.
    kind: String,
    /// The programs that a pod of it needs, but for ours.
    others: Vec<String>,
}

/// A line for each thing that was done.
pub fn install(args: &InstallArgs) -> anyhow::Result<Vec<String>> {
    let configuration = Configuration::read(args)?;
    let program = program(args)?;
    let bin = &args.places.bin_dir;
    let mut done = vec![put(&program, &bin.join(PLUGIN))?];
    for name in &args.also {
        done.extend(link(&bin.join(name))?);
    }
    let missing = |name: &&String| {
        let mut folders = PLUGIN_FOLDERS.iter().map(Path::new).chain([bin.as_path()]);
        !folders.any(|folder| folder.join(name).is_file())
    };
    done.extend(configuration.others.iter().filter(missing).map(|name| {
        format!(
            "NOTE: there is no plugin {name} in {} or {}: without it no pod starts (Debian: containernetworking-plugins)",
            bin.display(),
            PLUGIN_FOLDERS.join(", ")
        )
    }));
    wait_for_agent(args)?;
    done.extend(configuration.put(&args.places.conf_dir)?);
    let name = &configuration.name;
    done.extend(
        before(&args.places.conf_dir, name)?
            .map(|first| format!("NOTE: runtimes take {first}, which comes before {name}: remove it")),
    );
    Ok(done)
}

/// A line for each thing that was removed.
pub fn uninstall(places: &Places) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    let usual = vec![usual_name(true), usual_name(false)];
    for name in places.conf_name.as_deref().map_or(usual, |name| vec![name]) {
        take_back(&places.conf_dir.join(name), &mut done)?;
    }
    for name in OTHER_NAMES {
        let place = places.bin_dir.join(name);
        if is_link(&place) {
            remove(&place, &mut done)?;
        }
        // Somebody's new program stays, and what was kept stays beside it.
        if !is_there(&place) {
            put_back(&place, &mut done)?;
        }
    }
    let plugin = places.bin_dir.join(PLUGIN);
    if is_there(&plugin) {
        remove(&plugin, &mut done)?;
    }
    Ok(done)
}

fn usual_name(is_list: bool) -> &'static str {
    if is_list { "10-canal.conflist" } else { "10-canal.conf" }
}

/// Removes a configuration of ours, and puts back what it took the place of.
fn take_back(conf: &Path, done: &mut Vec<String>) -> anyhow::Result<()> {
    match fs::read(conf) {
        // One of flannel's or Calico's is ours where `install` left its trace.
        Ok(text) => match kind_of(&text) {
            Some(kind) if kind == PLUGIN || is_there(&beside(conf)) => remove(conf, done)?,
            _ => {
                done.push(format!("{} is not Canal's: it stays", conf.display()));
                return Ok(());
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", conf.display())),
    }
    put_back(conf, done)
}

/// What was kept of an earlier file; an empty one says that there was none.
fn put_back(place: &Path, done: &mut Vec<String>) -> anyhow::Result<()> {
    let earlier = beside(place);
    let cannot = || format!("cannot put {} back", earlier.display());
    match fs::symlink_metadata(&earlier) {
        Ok(found) if found.is_file() && found.len() == 0 => fs::remove_file(&earlier).with_context(cannot),
        Ok(_) => {
            fs::rename(&earlier, place).with_context(cannot)?;
            done.push(format!("put {} back", place.display()));
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(cannot),
    }
}

fn remove(path: &Path, done: &mut Vec<String>) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    done.push(format!("removed {}", path.display()));
    Ok(())
}

impl Configuration {
    /// One that the plugin can read.
    fn read(args: &InstallArgs) -> anyhow::Result<Self> {
        let text = match &args.conf {
            None => LIST.to_owned(),
            Some(path) => {
                fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        let from = args.conf.as_deref().unwrap_or(Path::new(usual_name(true))).display();
        let mut whole: Value = serde_json::from_str(&text).with_context(|| format!("{from} is not JSON"))?;
        ensure!(
            whole.get("name").is_some_and(Value::is_string),
            "{from} has no `name`: it is no configuration of a network"
        );
        let is_list = whole.get("plugins").is_some();
        let name = args.places.conf_name.clone().unwrap_or_else(|| usual_name(is_list).to_owned());
        ensure!(
            is_list == name.ends_with(".conflist") && !name.contains('/'),
            "{from} is {}, and runtimes would not read it as {name}: choose a --conf-name that ends in {}",
            if is_list { "a list of plugins" } else { "the configuration of one plugin" },
            if is_list { ".conflist" } else { ".conf" }
        );
        let outer = whole.clone();
        let mut others = vec!["host-local".to_owned()];
        let mut ours = None;
        for plugin in plugins(&mut whole) {
            match dialect(plugin) {
                Some(dialect) if ours.is_none() => ours = Some((dialect, plugin)),
                _ => others.extend(plugin.get("type").and_then(Value::as_str).map(str::to_owned)),
            }
        }
        let Some((dialect, ours)) = ours else {
            bail!("no plugin in {from} has the type canal-cni, flannel or calico: it is not for Canal");
        };
        let kind = ours.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(
            kind == PLUGIN || args.also.contains(&kind),
            "{from} names the plugin {kind}: install it with --as {kind}"
        );
        // As runtimes give it to the plugin.
        let mut given = ours.clone();
        for key in ["name", "cniVersion"] {
            if let (Some(value), Some(given)) = (outer.get(key), given.as_object_mut()) {
                given.insert(key.to_owned(), value.clone());
            }
        }
        cni::Config::read(dialect, given.to_string().as_bytes(), &Arguments::default())
            .with_context(|| format!("the plugin would refuse {from}"))?;
        let text = if args.socket == Path::new(SOCKET) || ours.get("socket").is_some() {
            text
        } else {
            ours["socket"] = json!(args.socket);
            format!("{}\n", serde_json::to_string_pretty(&whole)?)
        };
        Ok(Self { text, name, kind, others })
    }

    fn put(&self, folder: &Path) -> anyhow::Result<Vec<String>> {
        let place = folder.join(&self.name);
        let cannot = || format!("cannot write {}", place.display());
        let there = match fs::read(&place) {
            Ok(there) if there == self.text.as_bytes() => {
                return Ok(vec![format!("{} is as it should be", place.display())]);
            }
            Ok(there) => Some(there),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(cannot),
        };
        let mut done = Vec::new();
        match there {
            Some(there) if kind_of(&there).as_deref() != Some(PLUGIN) => done.extend(keep(&place)?),
            // Later this one does not say by itself whose it is.
            None if self.kind != PLUGIN && !is_there(&beside(&place)) => {
                file::replace(&beside(&place), &[]).with_context(cannot)?;
            }
            _ => {}
        }
        file::replace(&place, self.text.as_bytes()).with_context(cannot)?;
        done.push(format!("wrote {}", place.display()));
        Ok(done)
    }
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

/// By which of our names a configuration calls the plugin.
fn kind_of(text: &[u8]) -> Option<String> {
    let mut list = serde_json::from_slice(text).ok()?;
    let ours = plugins(&mut list).into_iter().find(|plugin| dialect(plugin).is_some())?;
    ours["type"].as_str().map(str::to_owned)
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
fn put(program: &Path, place: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot install {}", place.display());
    if same(program, place)? {
        return Ok(format!("{} is as it should be", place.display()));
    }
    let folder = place.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(cannot)?;
    let mut new = tempfile::Builder::new().prefix(".canal.").tempfile_in(folder).with_context(cannot)?;
    io::copy(&mut File::open(program).with_context(cannot)?, &mut new).with_context(cannot)?;
    new.flush().with_context(cannot)?;
    new.as_file().set_permissions(Permissions::from_mode(0o755)).with_context(cannot)?;
    new.as_file().sync_all().with_context(cannot)?;
    new.persist(place).with_context(cannot)?;
    Ok(format!("installed {}", place.display()))
}

/// Another name for the plugin, so that all of them change at once. The plugin goes by the name that it is called by.
fn link(place: &Path) -> anyhow::Result<Vec<String>> {
    if is_link(place) {
        return Ok(vec![format!("{} is as it should be", place.display())]);
    }
    let cannot = || format!("cannot install {}", place.display());
    let mut done = keep(place)?;
    let folder = place.parent().unwrap_or(Path::new("/"));
    let make = |new: &Path| symlink(PLUGIN, new);
    let new = tempfile::Builder::new().prefix(".canal.").make_in(folder, make).with_context(cannot)?;
    new.into_temp_path().persist(place).with_context(cannot)?;
    done.push(format!("installed {}", place.display()));
    Ok(done)
}

/// Whether it is another name for the plugin beside it.
fn is_link(place: &Path) -> bool {
    fs::read_link(place).is_ok_and(|target| target == Path::new(PLUGIN))
}

/// Keeps what is in this place, for `uninstall` to put back. What was kept before stays: it is what was there first.
fn keep(place: &Path) -> anyhow::Result<Vec<String>> {
    let earlier = beside(place);
    if !is_there(place) || is_there(&earlier) {
        return Ok(Vec::new());
    }
    // A second name, so that the place is never empty.
    fs::hard_link(place, &earlier)
        .or_else(|_| fs::copy(place, &earlier).map(drop))
        .with_context(|| format!("cannot keep {} as {}", place.display(), earlier.display()))?;
    Ok(vec![format!("kept what was {} as {}", place.display(), earlier.display())])
}

/// Also where a link leads nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
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
        let (reason, hopeless) = match client.ready() {
            Ok(readiness) => match readiness.reason {
                None => return Ok(()),
                Some(reason) => (reason, false),
            },
            Err(error) => (error.to_string(), !error.try_again()),
        };
        if hopeless || end.is_some_and(|end| Instant::now() >= end) {
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
fn before(folder: &Path, ours: &str) -> anyhow::Result<Option<String>> {
    let cannot = || format!("cannot list {}", folder.display());
    let mut first = None;
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name().to_string_lossy().into_owned();
        let is_one = [".conflist", ".conf", ".json"].iter().any(|end| name.ends_with(end));
        if is_one && *name < *ours && first.as_ref().is_none_or(|f| name < *f) {
            first = Some(name);
        }
    }
    Ok(first)
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
