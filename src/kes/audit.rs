//! The audit trail and the log streams: a line for everything that changes keys, or was refused.
//!
//! Audit lines go to stdout, a whole line at a time, so that whoever rotates them never sees a torn one; a reader that
//! stops reading loses lines, which are counted, and never holds up the API. Text lines are what KES writes (logfmt).

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

/// What was changed.
#[derive(Clone, Debug)]
pub enum Change {
    Created(Name),
    Imported(Name),
    Deleted(Name),
}

/// Where audit lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Only to those who listen at `/v1/log/audit`.
    #[default]
    Off,
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

/// One request, as it is written down.
pub struct Record<'a> {
    pub route: &'a Route,
    pub path: &'a str,
    pub peer: &'a Peer,
    pub at: Timestamp,
    pub code: u16,
    pub took: Duration,
}

// === impl Audit ===

impl Audit {
    /// `page` is KES's own metrics page, `registry` ours.
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

    /// Audit records from now on, as JSON lines.
    pub fn changes(&self) -> Body {
        self.changes.listen()
    }

    /// Error lines from now on, as JSON lines.
    pub fn errors(&self) -> Body {
        self.errors.listen()
    }

    /// The streams end: the server drains.
    pub fn close(&self) {
        self.changes.close();
        self.errors.close();
    }

    /// A key was made, imported or deleted.
    pub fn changed(&self, record: &Record<'_>, change: &Change) {
        self.write(record, &change.words());
    }

    /// A request's deadline passed: it gets no answer.
    pub fn late(&self, record: &Record<'_>, timeout: Duration) {
        let (Record { route, peer, .. }, path) = (record, record.path());
        let words = format!("no answer within {timeout:?}: the connection or stream is closed");
        tracing::warn!(req.method = route.method, req.path = &*path, req.ip = %peer.address.ip(), "{words}");
        self.report(record, "ERROR", &words);
    }

    /// A request was refused, or failed.
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
            // A missing key is how MinIO finds out that it has to make one, and what `describe` is for.
            Refusal::KeyMissing if record.route.op == Op::Describe => {}
            _ => {
                if matches!(refusal, Refusal::InvalidBody | Refusal::InvalidImportBody) {
                    self.report(record, "ERROR", &refusal.message());
                }
                // Names, patterns and methods in it are the client's, and as long as it pleases.
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

    /// A line as Go's `slog` writes one.
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
            go_duration(*took),
        )
    }

    /// A record as the SDK reads one, with what happened in words beside it.
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

/// What a client may fill a line with: names have at most 80 bytes, and lines wait in memory.
const LONGEST: usize = 200;

fn cut(text: &str) -> Cow<'_, str> {
    match text.len() {
        ..=LONGEST => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(LONGEST)])),
    }
}

/// A value of a logfmt line: quoted when it would not read as one word.
fn word(text: &str) -> String {
    let plain = |character: char| {
        !character.is_control() && !character.is_whitespace() && !matches!(character, '"' | '=' | '\\')
    };
    let simple = !text.is_empty() && text.chars().all(plain);
    if simple { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// A duration as Go prints it, to the nanosecond.
fn go_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos() as f64;
    match duration.as_nanos() {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", nanoseconds / 1e3),
        1_000_000..1_000_000_000 => format!("{}ms", nanoseconds / 1e6),
        _ => format!("{}s", nanoseconds / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (nanoseconds, text) in
            [(0, "0s"), (12, "12ns"), (1_500, "1.5µs"), (1_020_309, "1.020309ms"), (2_000_000_000, "2s")]
        {
            assert_eq!(go_duration(Duration::from_nanos(nanoseconds)), text);
        }
    }

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
