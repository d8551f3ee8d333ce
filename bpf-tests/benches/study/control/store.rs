//! The world's etcd, by a client that stays connected: what is timed is etcd and the agent, not `etcdctl`.

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{World, etcd};
use etcd_client::{Client, Txn, TxnOp};
use tokio::runtime::Runtime;

/// A key and its value.
pub(super) type Entry = (String, Vec<u8>);

/// etcd takes so many operations in one transaction, unless told otherwise.
const TRANSACTION: usize = 128;

pub(super) struct Store {
    runtime: Runtime,
    client: Client,
}

impl Store {
    pub(super) fn connect(world: &World) -> Result<Self> {
        world.hub().run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = runtime.block_on(async {
                let mut client = Client::connect([etcd::ENDPOINT], None).await?;
                // The connection is made with the first call, and is to be made in here.
                client.get("/", None).await?;
                Ok::<_, etcd_client::Error>(client)
            });
            Ok(Self { runtime, client: client.context("cannot connect to etcd")? })
        })?
    }

    pub(super) fn put(&mut self, (key, value): Entry) -> Result<()> {
        self.runtime.block_on(self.client.put(key, value, None)).context("cannot write to etcd").map(drop)
    }

    pub(super) fn put_all(&mut self, entries: Vec<Entry>) -> Result<()> {
        let mut operations = entries.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).peekable();
        while operations.peek().is_some() {
            let transaction = Txn::new().and_then(operations.by_ref().take(TRANSACTION).collect::<Vec<_>>());
            let answer =
                self.runtime.block_on(self.client.txn(transaction)).context("cannot write to etcd")?;
            ensure!(answer.succeeded(), "etcd refused a transaction");
        }
        Ok(())
    }
}
