//! Reads a tree by names, with `${NAME}` replaced, and remembers what was wrong, and what was not asked for.

use super::{super::vars::distance, Entry, Node, Value};
use crate::{go, secret::Secret};
use std::{collections::BTreeMap, sync::Arc};

/// A scalar with its references replaced, and its line.
pub struct Text {
    pub text: Arc<Secret>,
    pub line: usize,
    plain: bool,
    replaced: bool,
}

/// Reads values, and remembers what was wrong.
pub struct Reader<'a> {
    environment: &'a BTreeMap<String, String>,
    /// A reference to a variable that is not set: fatal, or a warning where the section does not matter.
    pub strict: bool,
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
    /// Values of the wrong type, which Go reports together.
    kinds: Vec<String>,
}

/// The members of a map that are read by name.
pub struct Section<'n> {
    path: String,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
}

// === impl Section ===

impl<'n> Section<'n> {
    /// The value of a member that is known.
    pub fn get(&mut self, name: &'static str) -> Option<&'n Node> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        Some(&entry.node).filter(|node| !matches!(node.value, Value::Null))
    }

    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub fn new(environment: &'a BTreeMap<String, String>) -> Self {
        Self { environment, strict: true, problems: Vec::new(), warnings: Vec::new(), kinds: Vec::new() }
    }

    /// Every problem, those of types first, as one: so does Go.
    pub fn finish(self) -> (Vec<String>, Vec<String>) {
        let mut problems = self.problems;
        if !self.kinds.is_empty() {
            problems.insert(0, format!("yaml: unmarshal errors:\n  {}", self.kinds.join("\n  ")));
        }
        (problems, self.warnings)
    }

    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// The members of a map; none when it is not there.
    pub fn section<'n>(&mut self, node: Option<&'n Node>, path: &str) -> Section<'n> {
        let entries = match node {
            None => &[],
            Some(node) => self.entries(node, "a section"),
        };
        Section { path: path.to_owned(), entries, asked: Vec::new() }
    }

    /// The entries of a map whose names are the operator's.
    pub fn entries<'n>(&mut self, node: &'n Node, into: &str) -> &'n [Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.wrong_kind(node, into);
                &[]
            }
        }
    }

    pub fn items<'n>(&mut self, node: Option<&'n Node>) -> &'n [Node] {
        match node.map(|node| (node, &node.value)) {
            None | Some((_, Value::Null)) => &[],
            Some((_, Value::List(items))) => items,
            Some((node, _)) => {
                self.wrong_kind(node, "a list");
                &[]
            }
        }
    }

    /// The section was read: what was not asked for is unknown.
    pub fn done(&mut self, section: Section<'_>) {
        for Entry { name, node } in section.entries {
            if section.asked.contains(&name.as_str()) {
                continue;
            }
            let nearest = section.asked.iter().map(|known| (distance(known, name), *known)).min();
            let meant = match nearest {
                Some((edits, known)) if edits <= 1 + name.len() / 4 => {
                    format!("; did you mean {}?", section.path_of(known))
                }
                _ => String::new(),
            };
            let path = section.path_of(name);
            self.warnings
                .push(format!("{path} (line {}) is unknown to KES, and is ignored{meant}", node.line));
        }
    }

    /// A scalar, with `${NAME}` replaced.
    pub fn text(&mut self, node: Option<&Node>) -> Option<Text> {
        let node = node?;
        let Value::Scalar { text, plain } = &node.value else {
            self.wrong_kind(node, "string");
            return None;
        };
        let (line, plain) = (node.line, *plain);
        let trimmed = text.expose().trim();
        let Some(name) = trimmed.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
            return Some(Text { text: text.clone(), line, plain, replaced: false });
        };
        match self.environment.get(name.trim()) {
            Some(value) => {
                let text = Arc::new(Secret::new(value.clone()));
                Some(Text { text, line, plain, replaced: true })
            }
            None => {
                let missing =
                    format!("kesconf: referenced env. variable '{}' in line '{line}' not found", name.trim());
                if self.strict {
                    self.problems.push(missing)
                } else {
                    self.warnings.push(missing)
                }
                None
            }
        }
    }

    /// A scalar that is no secret; empty when it is absent.
    pub fn word(&mut self, node: Option<&Node>) -> String {
        self.text(node).map(|text| text.text.expose().to_owned()).unwrap_or_default()
    }

    /// A switch, as YAML 1.1 spells it; what came from the environment may be spelt in any of these ways too.
    pub fn switch(&mut self, node: Option<&Node>) -> bool {
        let Some(text) = self.text(node) else { return false };
        match text.text.expose() {
            _ if !text.plain && !text.replaced => {}
            "true" | "True" | "TRUE" | "on" | "On" | "ON" | "yes" | "Yes" | "YES" | "y" | "Y" => return true,
            "false" | "False" | "FALSE" | "off" | "Off" | "OFF" | "no" | "No" | "NO" | "n" | "N" => {
                return false;
            }
            _ => {}
        }
        self.kinds.push(format!("line {}: cannot unmarshal !!str into bool", text.line));
        false
    }

    /// A duration in Go's syntax, in nanoseconds.
    pub fn nanoseconds(&mut self, node: Option<&Node>) -> Option<i64> {
        let text = self.text(node)?;
        let shown = text.text.expose();
        let number = text.plain && shown.parse::<i64>().is_ok();
        match go::duration::parse_signed(shown).filter(|_| !number || shown == "0") {
            Some(nanoseconds) => Some(nanoseconds),
            None => {
                let kind = if number { "!!int" } else { "!!str" };
                let shown: String = shown.chars().take(20).collect();
                let kinds = &mut self.kinds;
                kinds.push(format!(
                    "line {}: cannot unmarshal {kind} `{shown}` into time.Duration",
                    text.line
                ));
                None
            }
        }
    }

    fn wrong_kind(&mut self, node: &Node, into: &str) {
        let kind = match node.value {
            Value::Null => "!!null",
            Value::Scalar { .. } => "!!str",
            Value::List(_) => "!!seq",
            Value::Map(_) => "!!map",
        };
        self.kinds.push(format!("line {}: cannot unmarshal {kind} into {into}", node.line));
    }
}
