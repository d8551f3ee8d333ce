use proptest::prelude::*;

use super::Selector;
use crate::model::Labels;

/// `a:x b: c` → labels; a bare name has the empty value.
fn labels(text: &str) -> Labels {
    text.split_whitespace()
        .map(|pair| pair.split_once(':').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn selectors_match_the_labels_they_describe() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("", &["", "a:x"], &[]),
        (" \t ", &["", "a:x"], &[]),
        ("all()", &["", "a"], &[]),
        ("all( \t)", &["", "a"], &[]),
        ("global()", &["", "a"], &[]),
        ("role == 'db'", &["role:db", "role:db a:b"], &["", "role:DB", "role", "rol:db"]),
        ("role==\"db\"", &["role:db"], &["role:d"]),
        ("role != 'db'", &["", "role:web", "role"], &["role:db"]),
        ("role in {'db', \"web\"}", &["role:db", "role:web"], &["", "role:cache", "role"]),
        ("role in{'db',}", &["role:db"], &["role:web"]),
        ("role in {}", &[], &["", "role:db"]),
        ("role not in {'db','web',}", &["", "role:cache"], &["role:db", "role:web"]),
        ("role notin{}", &["", "role:db"], &[]),
        ("role not \t in {'db'}", &["", "role:web"], &["role:db"]),
        ("role contains 'b'", &["role:db", "role:b", "role:abc"], &["", "role:d", "role:B"]),
        ("role contains ''", &["role", "role:db"], &[""]),
        ("role starts with 'd'", &["role:d", "role:db"], &["", "role:xd"]),
        ("role startswith 'd'", &["role:db"], &["role:xd"]),
        ("role ends with 'b'", &["role:b", "role:db"], &["", "role:bx"]),
        ("role endswith 'b'", &["role:db"], &["role:bx"]),
        ("has(role)", &["role", "role:db"], &["", "rol"]),
        ("has( role )", &["role"], &[""]),
        ("!has(role)", &["", "x"], &["role"]),
        ("!!has(role)", &["role"], &[""]),
        ("! ! !has(role)", &[""], &["role"]),
        ("!has(a) || a starts with \"p/\"", &["", "a:p/1"], &["a:q", "a"]),
        ("! a == \"x\" && b == \"y\"", &["b:y", "a:z b:y"], &["a:x b:y", "a:z", ""]),
        ("!(a == \"x\" && b == \"y\")", &["", "a:x", "b:y"], &["a:x b:y"]),
        ("has(a) && has(b) || has(c)", &["a b", "c", "a c"], &["a", "b", ""]),
        ("has(c) || has(a) && has(b)", &["a b", "c"], &["a", "b"]),
        ("has(a)&&(has(b)||has(c))", &["a c", "a b"], &["c", "b", "a"]),
        ("(((has(a))))", &["a"], &[""]),
        ("in in {\"in\"}", &["in:in"], &["in:out"]),
        ("has == 'x' && all != 'y' && not in {'z'}", &["has:x not:z"], &["has:x not:z all:y", "has:x"]),
        ("has(has)", &["has"], &[""]),
        ("contains contains 'c'", &["contains:ccc"], &["contains:x"]),
        ("k8s.io/app.name-x_1 == '1'", &["k8s.io/app.name-x_1:1"], &["k8s.io/app.name-x_1:2"]),
        ("-- == '/'", &["--:/"], &["-:/"]),
        ("a == 'it is \"it\"'", &[], &["a:it"]),
        ("a == 'grün'", &["a:grün"], &["a:grun"]),
    ];
    for (text, matching, other) in table {
        let selector = Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        for have in *matching {
            assert!(selector.matches(&labels(have)), "{text} should match {have:?}");
        }
        for have in *other {
            assert!(!selector.matches(&labels(have)), "{text} should not match {have:?}");
        }
    }
}

#[test]
fn errors_say_where() {
    let table = [
        ("a == \"b", 5),
        ("a == 'b\"", 5),
        ("a = \"b\"", 2),
        ("a == \"b\" & c == \"d\"", 9),
        ("a == \"b\" | c == \"d\"", 9),
        ("a == b", 5),
        ("\"x\" == a", 0),
        ("a", 1),
        ("a \"x\"", 2),
        ("a b", 2),
        ("has()", 4),
        ("has(a", 5),
        ("has (a)", 4),
        ("has('a')", 4),
        ("all", 3),
        ("all(a)", 4),
        ("global(a)", 7),
        ("a in \"x\"", 5),
        ("a in {b}", 6),
        ("a in {\"b\"", 9),
        ("a in {\"b\" \"c\"}", 10),
        ("a in {,}", 6),
        ("a inx {}", 2),
        ("a not {}", 2),
        ("a not contains \"x\"", 2),
        ("()", 1),
        ("(has(a)", 7),
        ("has(a))", 6),
        ("has(a) has(b)", 7),
        ("&& has(a)", 0),
        ("has(a) ||", 9),
        ("has(a) !", 7),
        ("!", 1),
        ("a ! == 'x'", 2),
        ("a == 'x' # no", 9),
        ("a ==\n'x'", 4),
        ("has(a)\n", 6),
        ("a@b == 'x'", 1),
        ("grün == 'x'", 2),
    ];
    for (text, at) in table {
        let error = Selector::parse(text).expect_err(text);
        assert_eq!(error.at, at, "{text}: {error}");
    }
}

#[test]
fn label_names_are_limited_to_512_bytes() {
    assert!(Selector::parse(&format!("has({})", "a".repeat(512))).is_ok());
    assert!(Selector::parse(&format!("has({})", "a".repeat(513))).is_err());
}

#[test]
fn nesting_is_limited_and_long_flat_selectors_are_not() {
    let nested = |n: usize| format!("{}has(a){}", "(".repeat(n), ")".repeat(n));
    assert!(Selector::parse(&nested(100)).is_ok());
    assert!(Selector::parse(&nested(101)).is_err());
    assert!(Selector::parse(&nested(1_000_000)).is_err());
    assert!(Selector::parse(&format!("{}has(a)", "!".repeat(100_000))).is_ok());
    assert!(Selector::parse(&vec!["has(a)"; 10_000].join(" && ")).is_ok());
}

#[test]
fn the_canonical_text_is_one_per_meaning_as_written() {
    let table = [
        ("", "all()"),
        ("  all( )", "all()"),
        ("global( )", "global()"),
        ("has( a )", "has(a)"),
        ("a=='b'", "a == \"b\""),
        ("a==\"it's\"", "a == \"it's\""),
        ("a=='say \"x\"'", "a == 'say \"x\"'"),
        ("a!='b'", "a != \"b\""),
        ("a startswith 'b'", "a starts with \"b\""),
        ("a ends  with 'b'", "a ends with \"b\""),
        ("a in {'c','b','c',}", "a in {\"b\", \"c\"}"),
        ("a notin {}", "a not in {}"),
        ("has(a)&&has(b)&&has(c)", "(has(a) && has(b) && has(c))"),
        ("has(a)&&(has(b)&&has(c))", "(has(a) && (has(b) && has(c)))"),
        ("has(a)||has(b)&&!has(c)", "(has(a) || (has(b) && !has(c)))"),
        ("((has(a)))", "has(a)"),
        ("!!!a=='b'", "!a == \"b\""),
        ("!(has(a)||has(b))", "!(has(a) || has(b))"),
    ];
    for (text, canonical) in table {
        assert_eq!(Selector::parse(text).unwrap().canonical(), canonical, "{text}");
    }
}

#[test]
fn a_prefix_goes_to_every_label_name() {
    let selector = Selector::parse("a == 'x' || !(has(b) && c not in {'y'}) || all()").unwrap();
    assert_eq!(
        selector.prefixed("pcns.").canonical(),
        "(pcns.a == \"x\" || !(has(pcns.b) && pcns.c not in {\"y\"}) || all())"
    );
}

#[test]
fn joining_drops_what_says_nothing() {
    let (a, b) = (Selector::has("a"), Selector::has("b"));
    assert_eq!(Selector::all_of([]).canonical(), "all()");
    assert_eq!(Selector::all_of([Selector::all(), a.clone()]), a);
    assert_eq!(Selector::all_of([a.clone(), b.clone()]).canonical(), "(has(a) && has(b))");
    assert_eq!(a.negated().canonical(), "!has(a)");
    assert_eq!(a.negated().negated(), a);
}

/// Any well-formed selector over a few labels and values.
pub(crate) fn any_selector() -> impl Strategy<Value = String> {
    let label = || prop::sample::select(vec!["a", "b", "in", "has"]);
    let value = || prop::sample::select(vec!["'x'", "\"y\"", "''", "\"xy\""]);
    let op = prop::sample::select(vec!["==", "!=", "contains", "starts with", "endswith"]);
    let leaf =
        prop_oneof![
            Just("all()".to_owned()),
            label().prop_map(|l| format!("has({l})")),
            (label(), op, value()).prop_map(|(l, op, v)| format!("{l} {op} {v}")),
            (label(), prop::bool::ANY, prop::collection::vec(value(), 0..3)).prop_map(
                |(l, not, vs)| format!("{l} {} {{{}}}", if not { "notin" } else { "in" }, vs.join(","))
            ),
        ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|s| format!("!({s})")),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|s| format!("({})", s.join(" && "))),
            prop::collection::vec(inner, 2..4).prop_map(|s| format!("({})", s.join("||"))),
        ]
    })
}

pub(crate) fn any_labels() -> impl Strategy<Value = Labels> {
    let value = prop::sample::select(vec!["x", "y", "", "xy"]).prop_map(str::to_owned);
    prop::collection::btree_map(
        prop::sample::select(vec!["a", "b", "in", "has"]).prop_map(str::to_owned),
        value,
        0..4,
    )
}

proptest! {
    #[test]
    fn the_canonical_text_reads_back_as_itself_and_means_the_same(text in any_selector(), labels in any_labels()) {
        let selector = Selector::parse(&text).unwrap();
        let again = Selector::parse(selector.canonical()).unwrap();
        prop_assert_eq!(selector.canonical(), again.canonical());
        prop_assert_eq!(selector.matches(&labels), again.matches(&labels));
        prop_assert_ne!(selector.matches(&labels), selector.negated().matches(&labels));
    }

    #[test]
    fn what_matches_meets_the_requirement(text in any_selector(), labels in any_labels()) {
        use super::Requirement::{Label, Nothing, OneOf};
        let selector = Selector::parse(&text).unwrap();
        if selector.matches(&labels) {
            let met = match selector.requirement() {
                OneOf(pairs) => pairs.iter().any(|(k, v)| labels.get(*k).is_some_and(|have| have == v)),
                Label(label) => labels.contains_key(label),
                Nothing => true,
            };
            prop_assert!(met);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-b =!&|(){},\"'has in notcontains#é\\n\\t]{0,40}") {
        let _ = Selector::parse(&text);
    }
}
