//! A function is at most [`MAX_LINES`] lines long, from its `fn` to its closing brace: what fits on a screen can be
//! read as a whole.

use proc_macro2::{Delimiter, TokenTree};

use super::Finding;
use super::tokens::{inside, is_punct};

/// Lines of a function, its signature included.
const MAX_LINES: usize = 70;

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    name: String,
    /// Of its `fn`, from 1.
    line: usize,
    /// From `fn` to the closing brace.
    pub(super) lines: usize,
}

/// The functions that are too long.
pub(super) fn check(path: &str, tokens: &[TokenTree]) -> Vec<Finding> {
    let too_long = all(tokens)
        .into_iter()
        .filter(|function| function.lines > MAX_LINES);
    too_long
        .map(|Function { name, line, lines }| {
            Finding::new(
                path,
                line,
                format!("`{name}` has {lines} lines, more than {MAX_LINES}: name its parts and make them functions"),
            )
        })
        .collect()
}

/// Every function with a body, also methods, functions inside functions, and those that a macro makes.
pub(super) fn all(tokens: &[TokenTree]) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "fn" => found.extend(read_function(tokens, at)),
            TokenTree::Group(group) => found.extend(all(&inside(group))),
            _ => {}
        }
    }
    found
}

fn read_function(tokens: &[TokenTree], at: usize) -> Option<Function> {
    // In the pattern of a macro the name may be a variable.
    let name_at = at + 1 + usize::from(is_punct(tokens, at + 1, '$'));
    let Some(TokenTree::Ident(name)) = tokens.get(name_at) else {
        return None;
    };
    let rest = &tokens[name_at..];
    let end = (0..rest.len())
        .find(|at| is_punct(rest, *at, ';'))
        .unwrap_or(rest.len());
    let body = rest[..end].iter().find_map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        _ => None,
    })?;
    let line = tokens[at].span().start().line;
    let lines = body.span_close().end().line - line + 1;
    Some(Function {
        name: name.to_string(),
        line,
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tokens::parse;
    use super::*;

    #[test]
    fn a_long_function_is_found() {
        let tokens = parse(include_str!("../../fixtures/long-function.rs")).unwrap();
        assert_eq!(
            check("crates/api/src/x.rs", &tokens),
            [Finding::new(
                "crates/api/src/x.rs",
                6,
                "`too_long` has 71 lines, more than 70: name its parts and make them functions"
            )]
        );
    }

    #[test]
    fn methods_and_nested_functions_are_counted_and_pointers_and_declarations_are_not() {
        let text = "trait T { fn declared(&self); fn given(&self) {\n}\n}\n\
                    fn outer(f: fn(u8) -> u8) {\n  let s = \"}\"; // }\n  fn inner() {}\n}\n";
        let names: Vec<_> = all(&parse(text).unwrap())
            .into_iter()
            .map(|f| (f.name, f.lines))
            .collect();
        assert_eq!(
            names,
            [("given".into(), 2), ("outer".into(), 4), ("inner".into(), 1)]
        );
    }
}
