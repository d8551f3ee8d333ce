//! Prometheus' text format, version 0.0.4: families of samples, each with its help and type in front.

use std::fmt::{Display, Write as _};

/// What the HTTP header calls the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Count and sum alone.
    Summary,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// Samples of one name; written as they come.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Exposition {
    /// Each name once: the format wants the samples of a family together.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
        Family { text: &mut self.text, name }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.part("", labels, value)
    }

    /// `_bucket`, `_sum` or `_count` of a histogram or summary.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        if !labels.is_empty() {
            let _ = write!(self.text, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.text, " {value}");
        self
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Samples by name and labels as written. Strict: anything that the format forbids is a panic.
    pub(crate) fn parse(text: &str) -> BTreeMap<String, f64> {
        assert!(text.is_empty() || text.ends_with('\n'), "the last line must end");
        let (mut families, mut samples) = (BTreeSet::new(), BTreeMap::new());
        let mut current: Option<(String, String)> = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, _) = rest.split_once(' ').expect("a help has a text");
                assert!(is_name(name) && families.insert(name.to_owned()), "{name} twice, or no name");
                let kind = lines
                    .next()
                    .and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")))
                    .expect("a type");
                assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{kind}");
                assert!(
                    kind != "counter" || name.ends_with("_total") || name.starts_with("felix_"),
                    "{name}"
                );
                current = Some((name.to_owned(), kind.to_owned()));
                continue;
            }
            let (family, kind) = current.as_ref().expect("a sample has a family");
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let name = series.split('{').next().unwrap_or_default();
            let suffix = name.strip_prefix(family.as_str()).expect("samples of a family stand together");
            match kind.as_str() {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{name}"),
                "summary" => assert!(["_sum", "_count"].contains(&suffix), "{name}"),
                _ => assert_eq!(suffix, "", "{name}"),
            }
            check_labels(&series[name.len()..]);
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite(), "{line}");
            assert_eq!(samples.insert(series.to_owned(), value), None, "{series} twice");
        }
        samples
    }

    fn is_name(text: &str) -> bool {
        text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }

    /// `{a="b",c="d"}` or nothing.
    fn check_labels(text: &str) {
        if text.is_empty() {
            return;
        }
        let mut rest =
            text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).expect("braces").chars().peekable();
        while rest.peek().is_some() {
            let name: String = std::iter::from_fn(|| rest.next_if(|c| *c != '=')).collect();
            assert!(is_name(&name), "{text}");
            assert_eq!((rest.next(), rest.next()), (Some('='), Some('"')), "{text}");
            loop {
                match rest.next().expect("a value ends") {
                    '\\' => assert!(matches!(rest.next(), Some('\\' | '"' | 'n')), "{text}"),
                    '"' => break,
                    '\n' => panic!("{text}"),
                    _ => {}
                }
            }
            assert!(matches!(rest.next(), None | Some(',')), "{text}");
        }
    }

    #[test]
    fn families_have_help_and_type_and_their_samples_labels() {
        let mut all = Exposition::default();
        all.family("canal_drops_total", Kind::Counter, "What was\ndropped, with a \\")
            .sample(&[("hook", "from_pod"), ("reason", "a\"b\\c\nd")], 7)
            .sample(&[], 8);
        all.family("canal_apply_seconds", Kind::Histogram, "Time")
            .part("_bucket", &[("le", "+Inf")], 1)
            .part("_sum", &[], 0.25)
            .part("_count", &[], 1);
        all.single("canal_up", Kind::Gauge, "Whether it is", 1);
        let text = all.into_text();
        assert_eq!(
            text,
            "# HELP canal_drops_total What was\\ndropped, with a \\\\\n\
             # TYPE canal_drops_total counter\n\
             canal_drops_total{hook=\"from_pod\",reason=\"a\\\"b\\\\c\\nd\"} 7\n\
             canal_drops_total 8\n\
             # HELP canal_apply_seconds Time\n\
             # TYPE canal_apply_seconds histogram\n\
             canal_apply_seconds_bucket{le=\"+Inf\"} 1\n\
             canal_apply_seconds_sum 0.25\n\
             canal_apply_seconds_count 1\n\
             # HELP canal_up Whether it is\n\
             # TYPE canal_up gauge\n\
             canal_up 1\n"
        );
        assert_eq!(parse(&text).len(), 6);
    }
}
