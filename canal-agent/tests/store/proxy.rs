//! A TCP relay that can be cut, or frozen so that the connection looks alive and says nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

const OPEN: u8 = 0;
const CUT: u8 = 1;
const FROZEN: u8 = 2;

#[derive(Clone)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<AtomicU8>,
    cut: Arc<Notify>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { address, state: Arc::default(), cut: Arc::default() };
        let relay = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if relay.state.load(Ordering::SeqCst) == CUT {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let relay = relay.clone();
                tokio::spawn(async move {
                    let cut = relay.cut.clone();
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    tokio::select! {
                        () = relay.pump(client_read, server_write) => {}
                        () = relay.pump(server_read, client_write) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        proxy
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cut(&self) {
        self.state.store(CUT, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    pub(crate) fn freeze(&self) {
        self.state.store(FROZEN, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        self.state.store(OPEN, Ordering::SeqCst);
    }

    async fn pump(&self, mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                // Frozen: what arrives is swallowed.
                Ok(_) if self.state.load(Ordering::SeqCst) == FROZEN => {}
                Ok(n) => {
                    if to.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
