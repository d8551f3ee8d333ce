//! From a change in etcd to the first packet that is judged by it: packets go from one pod to another all the time,
//! and a policy lets them pass and does not, in turn.

use std::{
    net::UdpSocket,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bpf_tests::{Host as _, Pod};
use canal_agent::model::resource::{Kind, Resource};
use serde_json::{Value, json};

use super::store::{Entry, Store};

const PORT: u16 = 20_002;
/// Between two packets.
const PACE: Duration = Duration::from_micros(50);
/// So long without a packet: none comes any more.
const SILENCE: Duration = Duration::from_millis(60);
/// For one change to show.
const PATIENCE: Duration = Duration::from_secs(20);
const RULES_PER_POLICY: u32 = 10;

/// What one change took, in milliseconds.
pub(super) struct Change {
    /// Until etcd answered.
    pub(super) stored: f64,
    /// Until the first packet that the new policy judged was sent.
    pub(super) judged: f64,
}

/// Policies of so many rules for the receiver, none of which is about these packets.
pub(super) fn policies(rules: u32) -> Vec<Entry> {
    let rule = |number: u32| {
        let source = match number % 4 {
            0 => json!({ "nets": [format!("172.{}.{}.0/24", 16 + number / 1024 % 16, number / 4 % 256)] }),
            _ => json!({ "selector": format!("app == 'app{}'", number % 97) }),
        };
        let ports = [1000 + number * 7 % 60_000];
        json!({ "action": "Allow", "protocol": "TCP", "source": source, "destination": { "ports": ports } })
    };
    let all: Vec<u32> = (0..rules).collect();
    let policies = all.chunks(RULES_PER_POLICY as usize).enumerate().map(|(number, rules)| {
        let rules: Vec<Value> = rules.iter().map(|number| rule(*number)).collect();
        policy(&format!("passed-by{number}"), 100 + number, &rules)
    });
    policies.collect()
}

/// The policy that changes, behind all others.
pub(super) fn flip(action: &str) -> Entry {
    let rule = json!({ "action": action, "protocol": "UDP", "destination": { "ports": [PORT] } });
    policy("flip", 1_000_000, &[rule])
}

fn policy(name: &str, order: usize, rules: &[Value]) -> Entry {
    let spec =
        json!({ "order": order, "selector": "role == 'receiver'", "types": ["Ingress"], "ingress": rules });
    let value = json!({ "metadata": { "name": name }, "spec": spec });
    (Resource::new(Kind::GlobalNetworkPolicy, "", name).key(), value.to_string().into_bytes())
}

/// When packets were sent, in nanoseconds of a clock of their own.
#[derive(Default)]
struct Stamps(Mutex<Vec<u64>>);

impl Stamps {
    fn push(&self, stamp: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stamp);
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn last(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    fn first_after(&self, stamp: u64) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|sent| **sent > stamp).copied()
    }
}

/// Changes the policy so often while packets flow.
pub(super) fn measure(store: &mut Store, from: &Pod, to: &Pod, changes: u32) -> Result<Vec<Change>> {
    let receiver = to.netns().run(|| UdpSocket::bind(("0.0.0.0", PORT)))??;
    let sender = from.netns().run(|| UdpSocket::bind(("0.0.0.0", PORT)))??;
    sender.connect((to.ip(), PORT))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (sent, received, done) = (Stamps::default(), Stamps::default(), AtomicBool::new(false));
    let clock = Clock(Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let now = clock.now();
                // Refused while nobody listens, which is told by what comes.
                if sender.send(&now.to_ne_bytes()).is_ok() {
                    sent.push(now);
                }
                thread::sleep(PACE);
            }
        });
        scope.spawn(|| {
            let mut stamp = [0; 8];
            while !done.load(Ordering::Relaxed) {
                if receiver.recv(&mut stamp).is_ok_and(|length| length == stamp.len()) {
                    received.push(u64::from_ne_bytes(stamp));
                }
            }
        });
        // The first two find the agent busy with what came before.
        let result = (0..changes + 2).map(|change| {
            let flows = change % 2 == 0;
            sent.forget();
            received.forget();
            let begun = clock.now();
            store.put(flip(if flows { "Allow" } else { "Deny" }))?;
            let stored = clock.now();
            let first = wait(&clock, || {
                if flows {
                    return received.first_after(begun);
                }
                // What is sent and does not come, once nothing comes any more.
                let last = received.last().unwrap_or(begun);
                let is_over = clock.now() - last > nanoseconds(SILENCE);
                if is_over { sent.first_after(last) } else { None }
            })
            .with_context(|| format!("change {change} does not show"))?;
            Ok(Change { stored: milliseconds(stored - begun), judged: milliseconds(first - begun) })
        });
        let all: Result<Vec<Change>> = result.collect();
        done.store(true, Ordering::Relaxed);
        Ok(all?.split_off(2))
    })
}

fn wait(clock: &Clock, mut look: impl FnMut() -> Option<u64>) -> Option<u64> {
    let begun = clock.now();
    while clock.now() - begun < nanoseconds(PATIENCE) {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

struct Clock(Instant);

impl Clock {
    fn now(&self) -> u64 {
        nanoseconds(self.0.elapsed())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
