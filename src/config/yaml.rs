//! A YAML document as a tree that knows its lines.
//!
//! Scalars keep their text: an identity of digits is an identity, not a number. Secrets may be anywhere in it, so no
//! error quotes what a string holds.

mod reader;

use crate::secret::Secret;
use granit_parser::{Event, Parser, ScalarStyle, Span};
pub use reader::{Reader, Section};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A value and the line that it stands on.
#[derive(Clone)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Clone)]
pub enum Value {
    Null,
    Scalar { text: Arc<Secret>, plain: bool },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub node: Node,
}

/// Deeper nesting is no configuration.
const MAX_DEPTH: usize = 64;
/// More values than this, aliases counted as often as they are used, are an attack.
const MAX_NODES: usize = 100_000;

/// The first document; nothing when there is none.
pub fn parse(text: &str) -> Result<Option<Node>, String> {
    let mut events = Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    loop {
        match events.next()? {
            None | Some((Event::StreamEnd, _)) => return Ok(None),
            Some((Event::StreamStart | Event::DocumentEnd | Event::DocumentStart(..), _)) => {}
            Some((event, span)) => return events.node(event, span, 0).map(Some),
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

// === impl Builder ===

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, String> {
        loop {
            match self.parser.next() {
                None => return Ok(None),
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(next)) => return Ok(Some(next)),
                // The parser's own words may quote the line, which may hold a secret.
                Some(Err(error)) => return Err(format!("yaml: line {}: is not YAML", error.marker().line())),
            }
        }
    }

    fn must(&mut self) -> Result<(Event<'a>, Span), String> {
        self.next()?.ok_or_else(|| "yaml: unexpected end of the document".to_owned())
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, String> {
        let line = span.start.line();
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(format!("yaml: line {line}: the document is too large or nested too deeply"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = match plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    true => Value::Null,
                    false => Value::Scalar { text: Arc::new(Secret::new(text.into_owned())), plain },
                };
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| format!("yaml: line {line}: unknown anchor referenced"))?;
                self.nodes += size(&node);
                return Ok(Node { line, ..node });
            }
            _ => return Err(format!("yaml: line {line}: is not YAML")),
        };
        let node = Node { line, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        loop {
            match self.must()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        let (mut entries, mut lines): (Vec<Entry>, BTreeMap<String, usize>) = Default::default();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.must()?;
            let line = span.start.line();
            let name = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(format!("yaml: line {line}: a name must be a word")),
            };
            let (event, span) = self.must()?;
            let node = self.node(event, span, depth + 1)?;
            if name == "<<" {
                merged.push(node);
                continue;
            }
            if let Some(before) = lines.insert(name.clone(), line) {
                return Err(format!(
                    "yaml: unmarshal errors:\n  line {line}: mapping key {name:?} already defined at line {before}"
                ));
            }
            entries.push(Entry { name, node });
        }
        for node in merged {
            merge(&mut entries, node);
        }
        Ok(Value::Map(entries))
    }
}

/// `<<`: what is not there is taken from the other map, or maps.
fn merge(entries: &mut Vec<Entry>, node: Node) {
    match node.value {
        Value::Map(others) => {
            for other in others {
                if !entries.iter().any(|entry| entry.name == other.name) {
                    entries.push(other);
                }
            }
        }
        Value::List(nodes) => nodes.into_iter().for_each(|node| merge(entries, node)),
        Value::Null | Value::Scalar { .. } => {}
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Scalar { .. } => 0,
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_bounded() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let last = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{last}"); 10].join(", "));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(10_000)).is_err());
        assert!(parse("a: &x {b: 1}\nc: {<<: *x, d: 2}").is_ok());
    }
}
