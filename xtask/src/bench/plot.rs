//! Owns: a figure as a picture: a bar for the median of each topology, and a line from the least to the most.

use std::fmt::Write as _;

use super::figures::Summary;

/// One topology.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) summary: Summary,
    pub(super) is_ours: bool,
}

const WIDTH: f64 = 720.0;
const NAMES: f64 = 80.0;
const NUMBERS: f64 = 90.0;
const TOP: f64 = 34.0;
const STEP: f64 = 24.0;
const THICK: f64 = 16.0;
/// Legible on a light and on a dark page.
const OURS: &str = "#d9822b";
const THEIRS: &str = "#7a8ca5";
const INK: &str = "#808080";

/// As SVG 1.1. Bars begin at zero.
pub(super) fn svg(title: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.summary.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let scale = (WIDTH - NAMES - NUMBERS) / most;
    let height = bars.iter().fold(TOP, |at, _| at + STEP) + 6.0;
    let mut text = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<title>{title} ({unit})</title>
<text x="0" y="18" fill="{INK}" font-size="15">{title} ({unit})</text>
"#
    );
    let mut at = TOP;
    for Bar { name, summary: Summary { median, min, max }, is_ours } in bars {
        let (middle, line) = (at + THICK / 2.0, at + THICK - 3.0);
        let [end, from, to] = [median, min, max].map(|value| NAMES + value * scale);
        let colour = if *is_ours { OURS } else { THEIRS };
        let (length, number) = (end - NAMES, super::report::number(*median));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            r#"<text x="{:.1}" y="{line:.1}" fill="{INK}" text-anchor="end">{name}</text>
<rect x="{NAMES}" y="{at:.1}" width="{length:.1}" height="{THICK}" fill="{colour}"/>
<path d="M{from:.1} {middle:.1}H{to:.1}" stroke="{INK}" stroke-width="2"/>
<text x="{:.1}" y="{line:.1}" fill="{INK}">{number}</text>
"#,
            NAMES - 6.0,
            to + 6.0,
        );
        at += STEP;
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_medians_say_and_the_longest_reading_fits() {
        let bar = |name: &str, median, max| Bar {
            name: name.to_owned(),
            summary: Summary { median, min: 1.0, max },
            is_ours: name == "C(10)",
        };
        let svg = svg("TCP bulk", "Gb/s", &[bar("L", 10.0, 11.0), bar("C(10)", 5.0, 6.0)]);
        let bars = svg.lines().filter(|line| line.starts_with("<rect"));
        let widths: Vec<f64> =
            bars.filter_map(|line| line.split_once(" width=\"")?.1.split_once('"')?.0.parse().ok()).collect();
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(NAMES + widths[0] * 1.1 <= WIDTH - NUMBERS + 0.1, "{widths:?}");
        assert!(svg.contains(OURS) && svg.contains(THEIRS) && svg.ends_with("</svg>\n"));
    }
}
