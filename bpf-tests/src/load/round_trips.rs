//! One byte there and back over one TCP connection.
//!
//! Both ends share one processor: to wake another one from idle takes longer than any path, and as long on each.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    PATIENCE, Path, WARM_UP, port,
    seat::{Seat, join, spawn},
};

/// Every round trip of a measurement, in nanoseconds, shortest first.
#[derive(Debug, Clone)]
pub struct RoundTrips {
    sorted_ns: Vec<u64>,
}

impl RoundTrips {
    /// There is at least one.
    pub(super) fn of(mut times_ns: Vec<u64>) -> Result<Self> {
        ensure!(!times_ns.is_empty(), "not one round trip");
        times_ns.sort_unstable();
        Ok(Self { sorted_ns: times_ns })
    }

    pub fn count(&self) -> usize {
        self.sorted_ns.len()
    }

    /// The time that `per_mille` of 1000 round trips did not exceed.
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    pub fn quantile_us(&self, per_mille: usize) -> f64 {
        let last = self.sorted_ns.len() - 1;
        self.sorted_ns[last * per_mille.min(1000) / 1000] as f64 / 1000.0
    }
}

/// Round trips for `duration` after the warm-up.
pub fn round_trips(path: Path<'_>, duration: Duration) -> Result<RoundTrips> {
    let listener = path.to.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port::ROUND_TRIPS)))?;
    let listener = listener.context("cannot listen for round trips")?;
    let target = SocketAddrV4::new(path.to.ip(), port::ROUND_TRIPS);
    let client = path.from.netns().run(|| TcpStream::connect_timeout(&target.into(), PATIENCE))?;
    let client = client.with_context(|| format!("no connection to {target}"))?;
    let (server, _) = listener.accept().context("cannot accept")?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
    }
    thread::scope(|scope| {
        let server = spawn(scope, Seat::First, path.to.netns(), move || answer(server));
        let client = spawn(scope, Seat::First, path.from.netns(), move || ask(client, duration));
        let measured = join(client);
        let served = join(server);
        let measured = measured?;
        served?;
        Ok(measured)
    })
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte).context("no question came")? == 1 {
        stream.write_all(&byte).context("cannot answer")?;
    }
    Ok(())
}

fn ask(mut stream: TcpStream, duration: Duration) -> Result<RoundTrips> {
    let mut times = Vec::with_capacity(1 << 18);
    let (start, mut byte) = (Instant::now(), [1]);
    let mut sent = start;
    while sent - start < WARM_UP + duration {
        stream.write_all(&byte).context("cannot ask")?;
        ensure!(stream.read(&mut byte).context("no answer came")? == 1, "the server left early");
        let received = Instant::now();
        if sent - start >= WARM_UP {
            times.push(u64::try_from((received - sent).as_nanos()).unwrap_or(u64::MAX));
        }
        sent = received;
    }
    RoundTrips::of(times).with_context(|| format!("within {duration:?}"))
}
