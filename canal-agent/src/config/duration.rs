//! Durations as Go writes them: `90s`, `1h30m`, `1.5h`, `500ms`.

use std::time::Duration;

/// Unit and its length in seconds. Longer names come first.
const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// `None`: not a duration, or a negative one.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let (unit, length) = UNITS.iter().find(|(unit, _)| {
            rest.strip_prefix(unit).is_some_and(|then| !then.starts_with(|c: char| c.is_alphabetic()))
        })?;
        seconds += value * length;
        rest = &rest[unit.len()..];
        parts += 1;
    }
    if parts == 0 { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_takes_is_taken() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
            ("1m1.5s", 61_500),
            ("+2s", 2_000),
            (".5s", 500),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in
            ["", "1", "s", "-1s", "1 s", "1d", "1sec", "1h30", "1..5s", "1e3s", "999999999999999999999h"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
