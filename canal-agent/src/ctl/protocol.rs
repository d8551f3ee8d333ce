//! IP protocols by name and number.

const NAMES: [(u8, &str); 5] = [(1, "ICMP"), (6, "TCP"), (17, "UDP"), (132, "SCTP"), (136, "UDPLite")];

/// A name in any case, or a number from 1 to 255.
pub(super) fn parse(text: &str) -> Result<u8, String> {
    if let Some((number, _)) = NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)) {
        return Ok(*number);
    }
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("neither tcp, udp, icmp, sctp, udplite nor a number from 1 to 255".to_owned()),
    }
}

/// `-` for 0, which is none.
pub(super) fn name(number: u8) -> String {
    match NAMES.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => (*name).to_owned(),
        None if number == 0 => "-".to_owned(),
        None => number.to_string(),
    }
}

/// Whether events and questions about it have ports.
pub(super) const fn has_ports(number: u8) -> bool {
    matches!(number, 6 | 17 | 132)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_case_and_numbers_are_protocols_and_nothing_else() {
        for (text, number) in
            [("tcp", 6), ("UDP", 17), ("Icmp", 1), ("sctp", 132), ("udplite", 136), ("47", 47)]
        {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "256", "icmpv6", "-1", "t"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!([0, 6, 47].map(name), ["-", "TCP", "47"]);
    }
}
