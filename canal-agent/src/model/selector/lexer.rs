//! Text to tokens. Words depend on context: after a label stands an operator, elsewhere a label or a function.

use super::{SelectorError, ast::Comparison};

/// Longest label name, in bytes.
const MAX_LABEL: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Label(String),
    Literal(String),
    /// `==`, `!=`, `contains`, `starts with`, `ends with`.
    Compare(Comparison),
    In,
    NotIn,
    /// `has(`, `all(`, `global(`: the parenthesis belongs to the token.
    Has,
    All,
    Global,
    Not,
    And,
    Or,
    OpenParen,
    CloseParen,
    OpenBrace,
    CloseBrace,
    Comma,
    End,
}

const PUNCTUATION: [(&str, Token); 10] = [
    ("==", Token::Compare(Comparison::Equal)),
    ("!=", Token::Compare(Comparison::NotEqual)),
    ("!", Token::Not),
    ("&&", Token::And),
    ("||", Token::Or),
    ("(", Token::OpenParen),
    (")", Token::CloseParen),
    ("{", Token::OpenBrace),
    ("}", Token::CloseBrace),
    (",", Token::Comma),
];

const FUNCTIONS: [(&str, Token); 3] =
    [("has(", Token::Has), ("all(", Token::All), ("global(", Token::Global)];

/// Words of each operator; between them stands any whitespace, or none.
const OPERATORS: [(&[&str], Token); 5] = [
    (&["contains"], Token::Compare(Comparison::Contains)),
    (&["starts", "with"], Token::Compare(Comparison::StartsWith)),
    (&["ends", "with"], Token::Compare(Comparison::EndsWith)),
    (&["not", "in"], Token::NotIn),
    (&["in"], Token::In),
];

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// Tokens with the byte where each begins; the last one is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, SelectorError> {
    let mut found = Vec::new();
    let mut rest = skip_blanks(text);
    while !rest.is_empty() {
        let at = text.len() - rest.len();
        let after_label = matches!(found.last(), Some((_, Token::Label(_))));
        let (token, length) = next(rest, after_label).map_err(|problem| SelectorError { at, problem })?;
        found.push((at, token));
        rest = skip_blanks(&rest[length..]);
    }
    found.push((text.len(), Token::End));
    Ok(found)
}

fn next(rest: &str, after_label: bool) -> Result<(Token, usize), String> {
    if let Some((text, token)) = PUNCTUATION.iter().find(|(text, _)| rest.starts_with(text)) {
        return Ok((token.clone(), text.len()));
    }
    let first = rest.chars().next().unwrap_or_default();
    match first {
        '"' | '\'' => {
            let end = rest[1..].find(first).ok_or("this string is not closed")?;
            Ok((Token::Literal(rest[1..=end].to_owned()), end + 2))
        }
        '=' => Err("a lone `=`; equality is `==`".to_owned()),
        '&' => Err("a lone `&`; conjunction is `&&`".to_owned()),
        '|' => Err("a lone `|`; disjunction is `||`".to_owned()),
        _ => {
            let word = rest.bytes().take_while(|byte| is_label_byte(*byte)).count();
            if word == 0 {
                Err(format!("unexpected character {first:?}"))
            } else if after_label {
                operator(rest).ok_or_else(|| {
                    format!("`{}` is not an operator; want one of == != in, not in, contains, starts with, ends with", &rest[..word])
                })
            } else if let Some((text, token)) = FUNCTIONS.iter().find(|(text, _)| rest.starts_with(text)) {
                Ok((token.clone(), text.len()))
            } else if word > MAX_LABEL {
                Err(format!("a label name of {word} bytes; the limit is {MAX_LABEL}"))
            } else {
                Ok((Token::Label(rest[..word].to_owned()), word))
            }
        }
    }
}

fn operator(text: &str) -> Option<(Token, usize)> {
    OPERATORS.iter().find_map(|(words, token)| {
        let mut rest = text;
        for word in *words {
            rest = skip_blanks(rest).strip_prefix(word)?;
        }
        let ends = !rest.bytes().next().is_some_and(is_label_byte);
        ends.then(|| (token.clone(), text.len() - rest.len()))
    })
}
