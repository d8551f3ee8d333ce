//! Messages that come together are one change: the kernel follows once.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::message::Message;

/// The kernel waits no longer than this for further messages, however many there are.
const LONGEST: Duration = Duration::from_millis(50);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Burst {
    /// Nothing that the kernel has to follow.
    Quiet,
    Changed,
    /// The last message was [`Message::Stop`].
    Stop,
}

/// Gives `first` and what waits behind it to `handle`, which says whether the kernel may have to follow.
pub(super) fn take_in(
    first: Message,
    messages: &mut mpsc::UnboundedReceiver<Message>,
    mut handle: impl FnMut(Message) -> bool,
) -> Burst {
    let begun = Instant::now();
    let mut next = Some(first);
    let mut changed = false;
    while let Some(message) = next {
        if matches!(message, Message::Stop) {
            return Burst::Stop;
        }
        changed |= handle(message);
        next = if begun.elapsed() < LONGEST { messages.try_recv().ok() } else { None };
    }
    if changed { Burst::Changed } else { Burst::Quiet }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_without_end_do_not_keep_the_kernel_waiting() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let begun = Instant::now();
        let burst = take_in(Message::Tick, &mut messages, |message| {
            assert!(begun.elapsed() < Duration::from_secs(10), "the burst does not end");
            sender.send(Message::Ring).unwrap();
            matches!(message, Message::Tick)
        });
        assert_eq!(burst, Burst::Changed);
        assert!(messages.try_recv().is_ok(), "what is left comes next");
    }

    #[test]
    fn what_waits_is_taken_in_together_up_to_the_word_to_stop() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let handled = |messages: &mut _| {
            let mut handled = 0;
            let burst = take_in(Message::Ring, messages, |_| {
                handled += 1;
                false
            });
            (burst, handled)
        };
        for message in [Message::Ring, Message::Ring] {
            sender.send(message).unwrap();
        }
        assert_eq!(handled(&mut messages), (Burst::Quiet, 3));
        for message in [Message::Ring, Message::Stop, Message::Ring] {
            sender.send(message).unwrap();
        }
        assert_eq!(handled(&mut messages), (Burst::Stop, 2));
    }
}
