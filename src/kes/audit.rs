//! The audit trail and the log streams: one line for each change of a key, and for each refused request.
//!
//! Audit lines go to stdout. Each line is written whole, so that a log rotation never sees half a line. A
//! reader that stops reading loses lines and never delays the API; lost lines are counted. Text lines are
//! logfmt, as KES writes them.

use super::{
    Peer,
    refusal::Refusal,
    routes::{Op, Route},
};
use crate::{
    http::{Body, Feed},
    metrics::Registry,
    names::Name,
    telemetry::{Format, Lines},
};
use jiff::Timestamp;
use prometheus::IntCounter;
use serde_json::json;
use std::{borrow::Cow, time::Duration};

/// A change of a key through the API.
#[derive(Clone, Debug)]
pub enum Change {
    /// The key was created.
    Created(Name),
    /// The key was imported.
    Imported(Name),
    /// The key was deleted.
    Deleted(Name),
}

/// The place that audit lines are written to, beside the streams at `/v1/log/audit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Audit lines go to the streams at `/v1/log/audit` only.
    #[default]
    Off,
    /// Audit lines go to stdout as well.
    Stdout(Format),
}

/// The audit trail, and the log streams of the API.
pub struct Audit {
    changes: Feed,
    errors: Feed,
    stdout: Option<(Lines, Format)>,
    change_events: IntCounter,
    error_events: IntCounter,
    dropped: IntCounter,
}

/// The parts of one request that a line shows.
pub struct Record<'a> {
    /// The route of the request.
    pub route: &'a Route,
    /// The decoded path. Lines have 200 bytes of the path at most.
    pub path: &'a str,
    /// The client.
    pub peer: &'a Peer,
    /// The time of the answer.
    pub at: Timestamp,
    /// The HTTP status; 0 when nothing is answered.
    pub code: u16,
    /// The time from the route to the answer.
    pub took: Duration,
}

// === impl Audit ===

impl Audit {
    /// An audit trail whose counters are on `page` under KES's names, and in `registry` under keswarden's.
    pub fn new(output: Output, page: &Registry, registry: &Registry) -> Self {
        let dropped = "Audit lines that were not written, because nobody reads standard output fast enough";
        Self {
            changes: Feed::default(),
            errors: Feed::default(),
            stdout: match output {
                Output::Off => None,
                Output::Stdout(format) => Lines::to_stdout("audit")
                    .inspect_err(|error| tracing::error!("audit lines are not written: no thread: {error}"))
                    .ok()
                    .map(|lines| (lines, format)),
            },
            change_events: page.counter(
                "kes_log_audit_events",
                "Number of audit log events written to the audit log targets.",
            ),
            error_events: page.counter(
                "kes_log_error_events",
                "Number of error log events written to the error log targets.",
            ),
            dropped: registry.counter("keswarden_audit_dropped_lines_total", dropped),
        }
    }

    /// A body of the audit records from now on, as JSON lines.
    pub fn changes(&self) -> Body {
        self.changes.listen()
    }

    /// A body of the error lines from now on, as JSON lines.
    pub fn errors(&self) -> Body {
        self.errors.listen()
    }

    /// Ends the streams, because the server drains.
    pub fn close(&self) {
        self.changes.close();
        self.errors.close();
    }

    /// Writes the audit line of a change.
    pub fn changed(&self, record: &Record<'_>, change: &Change) {
        self.write(record, &change.words());
    }

    /// Reports a request that gets no answer, because the deadline of `timeout` passed.
    pub fn late(&self, record: &Record<'_>, timeout: Duration) {
        let (Record { route, peer, .. }, path) = (record, record.path());
        let words = format!("no answer within {timeout:?}: the connection or stream is closed");
        tracing::warn!(req.method = route.method, req.path = &*path, req.ip = %peer.address.ip(), "{words}");
        self.report(record, "ERROR", &words);
    }

    /// Writes the audit line of a refusal, or reports the failure behind the refusal.
    pub fn refused(&self, record: &Record<'_>, refusal: &Refusal) {
        match refusal {
            Refusal::Store { finding, .. } | Refusal::NotReady(finding) => {
                let (Record { route, peer, code, .. }, path) = (record, record.path());
                let (ip, identity) = (peer.address.ip(), peer.caller.name());
                tracing::error!(
                    req.method = route.method, req.path = &*path, req.ip = %ip, req.identity = identity, res.code = code,
                    cause = finding.cause.id(), "{}: {finding}", refusal.message()
                );
                let level = if matches!(refusal, Refusal::NotReady(_)) { "WARN" } else { "ERROR" };
                self.report(record, level, &format!("{}: {finding}", refusal.message()));
            }
            Refusal::KeyLost | Refusal::Stale => {
                let words = match refusal {
                    Refusal::Stale => {
                        "the key could not be verified for longer than KESWARDEN_STALE_OPEN_MAX or _SEAL_MAX allows"
                    }
                    _ => "nothing is sealed with this key: the store no longer holds it",
                };
                let path = record.path();
                tracing::error!(req.path = &*path, "{words}");
                self.report(record, "ERROR", words);
                self.write(record, &format!("refused: {words}"));
            }
            // MinIO asks for a key before creating the key, so a missing key is no event.
            Refusal::KeyMissing if record.route.op == Op::Describe => {}
            _ => {
                if matches!(refusal, Refusal::InvalidBody | Refusal::InvalidImportBody) {
                    self.report(record, "ERROR", &refusal.message());
                }
                // The message repeats names, patterns and methods of the client, of any length.
                self.write(record, &format!("refused: {}", cut(&refusal.message())));
            }
        }
    }

    fn write(&self, record: &Record<'_>, words: &str) {
        self.change_events.inc_by(self.changes.send(|| record.json(words)) as u64);
        let Some((stdout, format)) = &self.stdout else { return };
        let line = match format {
            Format::Text => record.text("INFO", words, "") + "\n",
            Format::Json => record.json(words),
        };
        if stdout.send(line.into_bytes()).is_err() {
            self.dropped.inc();
        }
    }

    fn report(&self, record: &Record<'_>, level: &str, words: &str) {
        let line = || format!("{}\n", json!({ "message": record.text(level, words, "<unknown>") }));
        self.error_events.inc_by(self.errors.send(line) as u64);
    }
}

// === impl Change ===

impl Change {
    fn words(&self) -> String {
        match self {
            Self::Created(name) => format!("secret key '{name}' created"),
            Self::Imported(name) => format!("secret key '{name}' imported"),
            Self::Deleted(name) => format!("secret key '{name}' deleted"),
        }
    }
}

// === impl Record ===

impl Record<'_> {
    fn path(&self) -> Cow<'_, str> {
        cut(self.path)
    }

    /// The record as a line of Go's `slog`.
    fn text(&self, level: &str, words: &str, unknown: &str) -> String {
        let Self { route, peer, at, code, took, .. } = self;
        let identity = match peer.caller.name() {
            "" => unknown,
            identity => identity,
        };
        format!(
            "time={at:.3} level={level} msg={} req.method={} req.path={} req.ip={} req.identity={} res.code={code} res.time={}",
            word(words),
            route.method,
            word(&self.path()),
            peer.address.ip().to_canonical(),
            word(identity),
            crate::go::duration::print(*took),
        )
    }

    /// The record as the KES SDK reads records, with `message` added.
    fn json(&self, words: &str) -> String {
        let Self { peer, at, code, took, .. } = self;
        let mut request = serde_json::Map::new();
        request.insert("ip".to_owned(), peer.address.ip().to_canonical().to_string().into());
        request.insert("path".to_owned(), self.path().into());
        if !peer.caller.name().is_empty() {
            request.insert("identity".to_owned(), peer.caller.name().into());
        }
        let response = json!({ "code": code, "time": u64::try_from(took.as_millis()).unwrap_or(u64::MAX) });
        let at = at.to_string();
        format!("{}\n", json!({ "time": at, "message": words, "request": request, "response": response }))
    }
}

/// Bytes of a client's text that a line shows at most. Names have at most 80 bytes, and lines wait in memory.
const CLIENT_TEXT_BYTES_MAX: usize = 200;

fn cut(text: &str) -> Cow<'_, str> {
    match text.len() {
        ..=CLIENT_TEXT_BYTES_MAX => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(CLIENT_TEXT_BYTES_MAX)])),
    }
}

/// A value of a logfmt line. A value that is not one word is quoted.
fn word(text: &str) -> String {
    let plain = |character: char| {
        !character.is_control() && !character.is_whitespace() && !matches!(character, '"' | '=' | '\\')
    };
    let simple = !text.is_empty() && text.chars().all(plain);
    if simple { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_fills_no_line() {
        assert_eq!(cut("/v1/key/create/my-key"), "/v1/key/create/my-key");
        assert_eq!(cut(&"ü".repeat(30_000)), format!("{}…", "ü".repeat(100)));
        assert_eq!(cut(&format!("x{}", "ü".repeat(30_000))), format!("x{}…", "ü".repeat(99)));
    }

    #[test]
    fn words_are_quoted_when_they_must_be() {
        for (text, shown) in [("a/b", "a/b"), ("", "\"\""), ("a b", "\"a b\""), ("a\nb", "\"a\\nb\"")] {
            assert_eq!(word(text), shown);
        }
    }
}
