//! Readiness gates: URLs that must answer well before a pod is attached, as Calico's configuration may ask.

use std::{
    thread,
    time::{Duration, Instant},
};

use ureq::Agent;

use super::error::{CniError, Code};

/// Calico's.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
/// A gate that is asked last has this long as well.
const ANSWER: Duration = Duration::from_secs(5);

/// Returns when each gate has answered with success, or says which has not.
pub(super) fn wait_for_gates(gates: &[String]) -> Result<(), CniError> {
    wait(gates, PATIENCE, PAUSE)
}

fn wait(gates: &[String], patience: Duration, pause: Duration) -> Result<(), CniError> {
    if gates.is_empty() {
        return Ok(());
    }
    let end = Instant::now() + patience;
    let agent: Agent = Agent::config_builder().proxy(None).user_agent("canal-cni").build().into();
    for gate in gates {
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(ANSWER);
            let asked = agent.get(gate).config().timeout_global(Some(left)).build().call();
            let Err(error) = asked else { break };
            if Instant::now() + pause >= end {
                let msg = format!("the readiness gate {gate} is closed");
                let hint = format!(
                    "{error}; no success within {patience:?}: see what answers there, or take it out of `readiness_gates`"
                );
                return Err(CniError::new(Code::TryAgain, msg, hint));
            }
            thread::sleep(pause);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn a_gate_is_waited_for_and_named_when_it_stays_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = format!("http://{}/readiness", listener.local_addr().unwrap());
        thread::spawn(move || {
            for status in ["503 Busy", "200 OK", "503 Busy"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
                while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
            }
        });
        let pause = Duration::from_millis(1);
        assert_eq!(wait(&[], pause, pause), Ok(()));
        assert_eq!(wait(std::slice::from_ref(&gate), Duration::from_mins(1), pause), Ok(()));
        let error = wait(std::slice::from_ref(&gate), Duration::ZERO, pause).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        assert!(error.msg.contains(&gate) && error.details.contains("503"), "{error}");
    }
}
