//! An answer, held against the one that the model demands.

use super::{model::ROWS, requests::Then, version_of};
use crate::harness::{Client, Reply, block_on};
use serde_json::{Value, json};

/// The answer that must come back.
#[derive(Debug)]
pub struct Wanted {
    pub status: u16,
    pub accept: Option<&'static str>,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Nothing,
    /// A body as a template: see `fits`.
    Json(String),
    /// An object whose order of members the spec leaves open, apart from its `created_at`.
    Members(Value),
    /// The array of `/v1/api`, in any order.
    Rows,
    Metrics,
}

pub fn done() -> Wanted {
    Wanted { status: 200, accept: None, content: Content::Nothing }
}

pub fn json_of(template: impl Into<String>) -> Wanted {
    Wanted { status: 200, accept: None, content: Content::Json(template.into()) }
}

/// The line end comes before the closing brace.
pub fn refusal_text(message: &str) -> String {
    format!("{{\"message\":\"{message}\"\n}}")
}

pub fn refused(status: u16, message: &str) -> Wanted {
    Wanted { status, accept: None, content: Content::Json(refusal_text(message)) }
}

pub fn template_of(then: Then) -> Wanted {
    match then {
        Then::Says("") => done(),
        Then::Says(template) => json_of(template),
        other => unreachable!("{other:?} is no template"),
    }
}

/// Whether a text fits a template: `⟨time⟩`, `⟨number⟩`, `⟨word⟩` and `⟨base64 length⟩` stand for values that no test can know, the rest
/// for itself.
fn fits(template: &str, text: &str) -> bool {
    let mut pieces = template.split('⟨');
    let Some(mut text) = text.strip_prefix(pieces.next().unwrap()) else { return false };
    for piece in pieces {
        let (what, literal) = piece.split_once('⟩').unwrap();
        let within = |letter: char| letter.is_ascii_alphanumeric() || "-_.:+/=".contains(letter);
        let (value, rest) = text.split_at(text.find(|letter: char| !within(letter)).unwrap_or(text.len()));
        let good = match what {
            "time" => value.ends_with('Z') && value.parse::<jiff::Timestamp>().is_ok(),
            "number" => value.parse::<u64>().is_ok(),
            "word" => !value.is_empty(),
            _ => {
                use base64::Engine;
                let decoded = base64::engine::general_purpose::STANDARD.decode(value);
                what == format!("base64 {}", value.len()) && decoded.is_ok()
            }
        };
        match rest.strip_prefix(literal) {
            Some(rest) if good => text = rest,
            _ => return false,
        }
    }
    text.is_empty()
}

/// The rows of `/v1/api`, sorted by path.
fn rows_of_api(rows: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|row| row["path"].to_string());
    rows
}

impl Wanted {
    /// What is wrong with an answer to `method`.
    pub fn problem(&self, method: &str, http1: bool, got: &Reply) -> Option<String> {
        let header = |name: &str| got.headers.get(name).map(String::as_str);
        let (kind, length) = match &self.content {
            Content::Nothing => (None, 0),
            // An answer to HEAD has the length of the body that GET would get.
            Content::Json(text) if method == "HEAD" => (Some("application/json"), text.len()),
            Content::Metrics => (header("content-type"), got.body.len()),
            _ => (Some("application/json"), got.body.len()),
        };
        let body = match &self.content {
            _ if method == "HEAD" => got.body.is_empty(),
            Content::Nothing => got.body.is_empty(),
            Content::Json(template) => fits(template, &got.body),
            Content::Members(wanted) => match serde_json::from_str::<Value>(&got.body) {
                Ok(Value::Object(mut members)) if got.body.ends_with("}\n") => {
                    let at = members.remove("created_at");
                    at.is_some_and(|at| at.as_str().is_some_and(|at| fits("⟨time⟩", at)))
                        && Value::Object(members) == *wanted
                }
                _ => false,
            },
            Content::Rows => match serde_json::from_str::<Vec<Value>>(&got.body) {
                Ok(rows) => {
                    let wanted = ROWS.iter().map(|row| {
                        json!({
                            "method": row.method, "path": row.path, "max_body": row.max_body, "timeout": row.seconds,
                        })
                    });
                    rows_of_api(rows) == rows_of_api(wanted)
                }
                Err(_) => false,
            },
            Content::Metrics => got.body.contains("kes_system_up_time"),
        };
        let length = length.to_string();
        // A long page may come in chunks.
        let is_page = matches!(self.content, Content::Rows | Content::Metrics);
        let problem = match () {
            () if got.version != version_of(http1) => "the protocol",
            () if got.status != self.status => "the status",
            () if !body => "the body",
            () if header("content-type") != kind => "content-type",
            () if matches!(self.content, Content::Metrics)
                && !kind.is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4; charset=utf-8")) =>
            {
                "content-type"
            }
            () if header("content-length").map_or(!is_page, |said| said != length) => "content-length",
            () if header("accept") != self.accept => "accept",
            () if header("server").is_some() => "server",
            () if header("date").is_none() => "date",
            () => return None,
        };
        Some(format!("{problem} is wrong\n  expected {self:?}\n  got {got:?}"))
    }
}

/// Collects what is wrong over both protocols.
#[derive(Default)]
pub struct Findings(pub Vec<String>);

impl Findings {
    /// Sends, and holds the answer against `wanted`.
    pub fn check(
        &mut self,
        (client, http1): (&Client, bool),
        request: (&str, &str, Option<&str>),
        wanted: &Wanted,
    ) {
        let (method, path, body) = request;
        let problem = match block_on(client.send(method, path, body)) {
            Ok(got) => wanted.problem(method, http1, &got),
            Err(error) => Some(format!("no answer\n  expected {wanted:?}\n  got {error:?}")),
        };
        if let Some(problem) = problem {
            let body = body.map(|body| body.chars().take(120).collect::<String>());
            self.0.push(format!("{method} {path} over {}, body {body:?}: {problem}", version_of(http1)));
        }
    }

    /// Sends without a body, and asks whether the answer is `good`.
    pub fn judge(
        &mut self,
        (client, http1): (&Client, bool),
        (method, path): (&str, &str),
        about: &str,
        good: impl FnOnce(&Reply) -> bool,
    ) {
        match block_on(client.send(method, path, None)) {
            Ok(got) if good(&got) => {}
            other => {
                self.0.push(format!("{method} {path} over {}, {about}: got {other:?}", version_of(http1)))
            }
        }
    }
}

/// Panics with the first failures, and their number.
pub fn none_of(failures: &[String]) {
    let shown = failures[..failures.len().min(25)].join("\n");
    assert!(failures.is_empty(), "{} failures, of which:\n{shown}", failures.len());
}
