//! Rust source as tokens, so that comments and strings confuse no rule, and the paths that it names.

use std::str::FromStr;

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// A path as it is written: `std::fs::read` in an expression, or a branch of a `use` tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPath {
    pub(super) segments: Vec<String>,
    /// Of its last segment, from 1.
    pub(super) line: usize,
    /// Whether it is called as a macro.
    pub(super) is_macro: bool,
}

/// The tokens of a file, or the line at which it stops being Rust.
pub(super) fn parse(text: &str) -> Result<Vec<TokenTree>, usize> {
    match TokenStream::from_str(text) {
        Ok(stream) => Ok(stream.into_iter().collect()),
        Err(error) => Err(error.span().start().line),
    }
}

/// Every path in code that is not for tests only. A word by itself is a path of one segment.
pub(super) fn paths(tokens: &[TokenTree]) -> Vec<NamedPath> {
    let mut found = Vec::new();
    collect(tokens, &[], &mut found);
    found
}

/// `prefix` is what stands before the braces of a `use` tree, and empty elsewhere.
fn collect(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<NamedPath>) {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = match token {
            TokenTree::Punct(_) => end_of_test_item(tokens, at).unwrap_or(at + 1),
            TokenTree::Ident(first) => read_path(tokens, at, first, prefix, found),
            TokenTree::Group(group) => {
                collect(&inside(group), &[], found);
                at + 1
            }
            TokenTree::Literal(_) => at + 1,
        };
    }
}

/// Reads the path that begins at `start` and returns where it ends.
fn read_path(
    tokens: &[TokenTree],
    start: usize,
    first: &Ident,
    prefix: &[String],
    found: &mut Vec<NamedPath>,
) -> usize {
    let mut segments = prefix.to_vec();
    segments.push(first.to_string());
    let mut line = first.span().start().line;
    let mut at = start + 1;
    while is_punct(tokens, at, ':') && is_punct(tokens, at + 1, ':') {
        match tokens.get(at + 2) {
            Some(TokenTree::Ident(next)) => {
                segments.push(next.to_string());
                line = next.span().start().line;
                at += 3;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                collect(&inside(group), &segments, found);
                return at + 3;
            }
            _ => break,
        }
    }
    let is_macro = is_punct(tokens, at, '!') && !is_punct(tokens, at + 1, '=');
    found.push(NamedPath {
        segments,
        line,
        is_macro,
    });
    at
}

/// Where the item ends that the attribute at `at` keeps for tests; `None` if there is no such attribute.
fn end_of_test_item(tokens: &[TokenTree], at: usize) -> Option<usize> {
    if !is_punct(tokens, at, '#') {
        return None;
    }
    let of_the_file = is_punct(tokens, at + 1, '!');
    let attribute = at + 1 + usize::from(of_the_file);
    let Some(TokenTree::Group(group)) = tokens.get(attribute) else {
        return None;
    };
    if !is_for_tests(&inside(group)) {
        return None;
    }
    if of_the_file {
        return Some(tokens.len());
    }
    let body = tokens.iter().skip(attribute + 1).position(ends_item);
    Some(body.map_or(tokens.len(), |length| attribute + length + 2))
}

/// Whether an attribute is `test`, or a `cfg` that holds in tests only.
fn is_for_tests(attribute: &[TokenTree]) -> bool {
    match attribute {
        [TokenTree::Ident(name)] => name == "test",
        [TokenTree::Ident(name), TokenTree::Group(condition)] if name == "cfg" => {
            match inside(condition).as_slice() {
                [TokenTree::Ident(word)] => word == "test",
                [TokenTree::Ident(word), TokenTree::Group(all)] if word == "all" => inside(all)
                    .iter()
                    .any(|part| matches!(part, TokenTree::Ident(word) if word == "test")),
                _ => false,
            }
        }
        _ => false,
    }
}

fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    }
}

/// The tokens between a group's brackets.
pub(super) fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// Whether the token at `at` is this sign.
pub(super) fn is_punct(tokens: &[TokenTree], at: usize, sign: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        let tokens = parse(text).unwrap();
        paths(&tokens)
            .iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_are_unfolded() {
        assert_eq!(
            named("use std::{fs, net::{self, IpAddr}, io::*};"),
            ["use", "std::fs", "std::net::self", "std::net::IpAddr", "std::io"]
        );
    }

    #[test]
    fn paths_in_macros_and_after_turbofish_are_seen() {
        assert_eq!(named("vec![std::env::args()]"), ["vec", "std::env::args"]);
        assert_eq!(named("f::<std::fs::File>()"), ["f", "std::fs::File"]);
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        assert_eq!(
            named("// std::fs\n/* std::env */ a(\"std::net\", r#\"std::io\"#, 'x')"),
            ["a"]
        );
    }

    #[test]
    fn code_for_tests_is_left_out() {
        assert_eq!(named("#[cfg(test)] mod tests { use std::fs; } a"), ["a"]);
        assert_eq!(
            named("#[cfg(all(test, unix))] use std::{fs, io}; #[test] fn b() { c() } a"),
            ["a"]
        );
        assert_eq!(named("#![cfg(test)] use std::fs;"), [""; 0]);
        assert!(named("#[cfg(not(test))] use std::fs;").contains(&"std::fs".to_owned()));
        assert!(named("#[cfg(any(test, feature = \"x\"))] use std::fs;").contains(&"std::fs".to_owned()));
    }
}
