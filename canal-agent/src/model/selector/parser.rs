//! Tokens to tree, by recursive descent.
//!
//! ```text
//! selector := nothing | or
//! or       := and { "||" and }
//! and      := unary { "&&" unary }
//! unary    := { "!" } primary
//! primary  := "has(" label ")" | "all(" ")" | "global(" ")" | "(" or ")"
//!           | label comparison literal | label ("in" | "not in") "{" [ literal { "," literal } [","] ] "}"
//! ```

use std::collections::BTreeSet;

use super::{
    SelectorError,
    ast::Node,
    lexer::{Token, tokens},
};

/// Parentheses within parentheses. Evaluation and printing recurse as deep as the text nests; this bounds them.
const MAX_DEPTH: usize = 100;

pub(super) fn parse(text: &str) -> Result<Node, SelectorError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    if *parser.peek() == Token::End {
        return Ok(Node::All);
    }
    let node = parser.or(0)?;
    parser.expect(&Token::End, "`&&`, `||` or the end")?;
    Ok(node)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].1
    }

    /// The end is never passed, so `peek` always has something to look at.
    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn accept(&mut self, token: &Token) -> bool {
        let found = self.peek() == token;
        if found {
            self.take();
        }
        found
    }

    fn error<T>(&self, wanted: &str) -> Result<T, SelectorError> {
        let (at, found) = &self.tokens[self.at];
        Err(SelectorError { at: *at, problem: format!("want {wanted}, found {}", describe(found)) })
    }

    fn expect(&mut self, token: &Token, wanted: &str) -> Result<(), SelectorError> {
        if self.accept(token) { Ok(()) } else { self.error(wanted) }
    }

    fn or(&mut self, depth: usize) -> Result<Node, SelectorError> {
        self.list(&Token::Or, Node::Or, |parser| parser.and(depth))
    }

    fn and(&mut self, depth: usize) -> Result<Node, SelectorError> {
        self.list(&Token::And, Node::And, |parser| parser.unary(depth))
    }

    fn list(
        &mut self,
        separator: &Token,
        join: fn(Vec<Node>) -> Node,
        mut operand: impl FnMut(&mut Self) -> Result<Node, SelectorError>,
    ) -> Result<Node, SelectorError> {
        let first = operand(self)?;
        if self.peek() != separator {
            return Ok(first);
        }
        let mut nodes = vec![first];
        while self.accept(separator) {
            nodes.push(operand(self)?);
        }
        Ok(join(nodes))
    }

    fn unary(&mut self, depth: usize) -> Result<Node, SelectorError> {
        let mut negated = false;
        while self.accept(&Token::Not) {
            negated = !negated;
        }
        let node = self.primary(depth)?;
        Ok(match (negated, node) {
            (false, node) => node,
            (true, Node::Not(inner)) => *inner,
            (true, node) => Node::Not(Box::new(node)),
        })
    }

    fn primary(&mut self, depth: usize) -> Result<Node, SelectorError> {
        match self.peek() {
            Token::Has => {
                self.take();
                let Token::Label(label) = self.peek().clone() else { return self.error("a label name") };
                self.take();
                self.expect(&Token::CloseParen, "`)`")?;
                Ok(Node::Has(label))
            }
            Token::All => self.function(Node::All),
            Token::Global => self.function(Node::Global),
            Token::OpenParen if depth >= MAX_DEPTH => self.error("at most 100 nested parentheses"),
            Token::OpenParen => {
                self.take();
                let node = self.or(depth + 1)?;
                self.expect(&Token::CloseParen, "`)`")?;
                Ok(node)
            }
            Token::Label(_) => self.comparison(),
            _ => self.error("a label, has(…), all(), global() or `(`"),
        }
    }

    fn function(&mut self, node: Node) -> Result<Node, SelectorError> {
        self.take();
        self.expect(&Token::CloseParen, "`)`")?;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, SelectorError> {
        let Token::Label(label) = self.take() else { return self.error("a label name") };
        match self.peek().clone() {
            Token::Compare(op) => {
                self.take();
                let Token::Literal(value) = self.peek().clone() else { return self.error("a quoted string") };
                self.take();
                Ok(Node::Compare { label, op, value })
            }
            Token::In => self.members(label, false),
            Token::NotIn => self.members(label, true),
            _ => self.error("an operator after the label"),
        }
    }

    fn members(&mut self, label: String, negated: bool) -> Result<Node, SelectorError> {
        self.take();
        self.expect(&Token::OpenBrace, "`{`")?;
        let mut values = BTreeSet::new();
        loop {
            match self.peek().clone() {
                Token::CloseBrace => break,
                Token::Literal(value) => {
                    self.take();
                    values.insert(value);
                }
                _ => return self.error("a quoted string or `}`"),
            }
            if !self.accept(&Token::Comma) {
                break;
            }
        }
        self.expect(&Token::CloseBrace, "`,` or `}`")?;
        Ok(Node::Member { label, values, negated })
    }
}

fn describe(token: &Token) -> String {
    let text = match token {
        Token::Label(name) => return format!("label `{name}`"),
        Token::Literal(text) => return format!("string {text:?}"),
        Token::Compare(_) => "a comparison",
        Token::In => "`in`",
        Token::NotIn => "`not in`",
        Token::Has => "`has(`",
        Token::All => "`all(`",
        Token::Global => "`global(`",
        Token::Not => "`!`",
        Token::And => "`&&`",
        Token::Or => "`||`",
        Token::OpenParen => "`(`",
        Token::CloseParen => "`)`",
        Token::OpenBrace => "`{`",
        Token::CloseBrace => "`}`",
        Token::Comma => "`,`",
        Token::End => "the end",
    };
    text.to_owned()
}
