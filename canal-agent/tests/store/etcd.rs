//! A real etcd that lives as long as its test.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use canal_agent::store::{EtcdOptions, EtcdPrefix, Store, TlsFiles};
use etcd_client::{Client, GetOptions};
use tempfile::TempDir;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const PREFIX: &str = "/coreos.com/network";

pub(crate) struct Etcd {
    folder: TempDir,
    port: u16,
    peer_port: u16,
    scheme: &'static str,
    flags: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        let mut etcd = Self::prepare("http", &[]);
        etcd.run();
        etcd.ready().await;
        etcd
    }

    /// Serves TLS; the caller waits for it in its own way.
    pub(crate) fn start_tls(flags: &[String]) -> Self {
        let mut etcd = Self::prepare("https", flags);
        etcd.run();
        etcd
    }

    fn prepare(scheme: &'static str, flags: &[String]) -> Self {
        let (port, peer_port) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        Self { folder, port, peer_port, scheme, flags: flags.to_vec(), process: None }
    }

    fn run(&mut self) {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::create(self.log()).unwrap();
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200", "--logger", "zap"])
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is on the PATH: install etcd-server");
        self.process = Some(process);
    }

    pub(crate) async fn ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut last = None;
        while Instant::now() < deadline {
            match Store::connect(&self.options()).await {
                Ok(_) => return,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("etcd did not start: {last:?}\n{}", fs::read_to_string(self.log()).unwrap_or_default());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// As after the loss of its disk.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// A copy of all that it holds.
    pub(crate) fn back_up(&self) {
        let file = self.folder.path().join("backup");
        let saved = ctl().args(["--endpoints", &self.endpoint(), "snapshot", "save"]).arg(file).output();
        assert!(saved.as_ref().is_ok_and(|output| output.status.success()), "{saved:?}");
    }

    /// Stops, and puts the copy in the place of what it held, as an operator would: same name, same addresses.
    pub(crate) fn put_back(&mut self) {
        self.wipe();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let restored = ctl()
            .args(["snapshot", "restore"])
            .arg(self.folder.path().join("backup"))
            .arg("--data-dir")
            .arg(self.data())
            .args(["--name", "default", "--initial-cluster", &format!("default={peer}")])
            .args(["--initial-advertise-peer-urls", &peer])
            .output();
        assert!(restored.as_ref().is_ok_and(|output| output.status.success()), "{restored:?}");
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        options(&self.endpoint())
    }

    pub(crate) async fn store(&self) -> Store {
        Store::connect(&self.options()).await.unwrap()
    }

    /// What an administrator's `etcdctl` would be.
    pub(crate) async fn admin(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn ctl() -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3");
    command
}

pub(crate) fn options(endpoint: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![endpoint.to_owned()],
        by_default: false,
        prefix: EtcdPrefix::new(PREFIX).unwrap(),
        tls: TlsFiles::default(),
        credentials: None,
    }
}

/// Number of etcd leases in the store: what a crash loop of flanneld lets grow.
pub(crate) async fn lease_count(admin: &mut Client) -> usize {
    admin.leases().await.unwrap().leases().len()
}

/// `key value mod_revision lease` of everything under `prefix`.
pub(crate) async fn dump(admin: &mut Client, prefix: &str) -> Vec<(String, String, i64, i64)> {
    let all = admin.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    all.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()), kv.mod_revision(), kv.lease())).collect()
}

/// Never the same twice in one run, and outside the range from which the kernel hands out ports.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).unwrap() * 100;
    (0..10_000)
        .map(|_| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("some port between 20000 and 30000 is free")
}
