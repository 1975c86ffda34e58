//! The output of `keswarden evidence`: tables for people, one JSON object for programs.

use crate::evidence::{BucketCount, Census, Count, Finding, Scheme, State, Verdict};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A report to print.
pub(super) struct Report<'a> {
    pub(super) census: &'a Census,
    pub(super) findings: &'a [Finding],
    /// The buckets are printed as well.
    pub(super) all: bool,
}

// === impl Report ===

impl Report<'_> {
    pub(super) fn table(&self) {
        let samples = &self.census.samples;
        for drive in &samples.drives {
            match &drive.state {
                State::Used => {}
                State::New => println!("{}: a new drive, without format.json", drive.path.display()),
                State::Bare => println!(
                    "{}: no format.json, and no mount point: a plain directory, or a volume that is not mounted",
                    drive.path.display()
                ),
                State::Unreadable(why) => println!("{}: cannot be read: {why}", drive.path.display()),
            }
        }
        if self.findings.is_empty() {
            println!("no evidence: nothing on these drives names a key");
        } else {
            let head = ["KEY", "SCHEME", "RECORDS", "OPENED", "FAILED", "OLDEST", "NEWEST", "VERDICT"];
            print_columns(&head.map(str::to_owned), self.findings.iter().map(row).collect());
        }
        if self.all {
            println!();
            let head = ["BUCKET", "PLAIN", "SSE-S3", "SSE-KMS", "SSE-C", "UNKNOWN", "DELETE MARKERS"];
            let rows = self.census.buckets.iter().map(|(bucket, count)| bucket_row(bucket, count));
            print_columns(&head.map(str::to_owned), rows.collect());
        }
        let tally = samples.tally;
        let more = if samples.cut_short { "; there is more on the drives: --all reads it" } else { "" };
        let unseen = match samples.unseen() {
            0 => String::new(),
            unseen => format!(
                ", {unseen} sealed files of MinIO's own not looked at: another drive has their first part"
            ),
        };
        println!("{} files read, {} skipped{unseen}{more}", tally.files, tally.skipped + tally.unknown);
    }

    pub(super) fn json(&self) {
        let samples = &self.census.samples;
        let drives: Vec<_> = samples
            .drives
            .iter()
            .map(|drive| json!({ "path": drive.path.to_string_lossy(), "state": state(&drive.state) }))
            .collect();
        let mut object = json!({
            "keys": self.findings.iter().map(key_json).collect::<Vec<_>>(),
            "drives": drives,
            "new": samples.is_new(),
            "files": samples.tally.files,
            "bytes": samples.tally.bytes,
            "skipped": samples.tally.skipped,
            "unknown": samples.tally.unknown,
            "unseen": samples.unseen(),
            "cut_short": samples.cut_short,
        });
        if self.all {
            let buckets = self.census.buckets.iter();
            let buckets: Map<_, _> =
                buckets.map(|(bucket, count)| (bucket.clone(), bucket_json(count))).collect();
            object["buckets"] = Value::Object(buckets);
        }
        println!("{object}");
    }
}

fn row(finding: &Finding) -> [String; 8] {
    let tried = |count: usize| match is_tried(finding) {
        true => count.to_string(),
        false => "not tried".to_owned(),
    };
    [
        // Escaped, since a name on a drive may have control characters.
        finding.key.escape_default().to_string(),
        schemes(&finding.schemes).join("+"),
        finding.records.to_string(),
        tried(finding.opened),
        tried(finding.failed),
        finding.oldest.map_or_else(String::new, time),
        finding.newest.map_or_else(String::new, time),
        words(finding.verdict).to_owned(),
    ]
}

fn is_tried(finding: &Finding) -> bool {
    !matches!(finding.verdict, Verdict::NoEvidence | Verdict::MissingKey)
}

fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Opens => "opens",
        Verdict::NoneOpen => "NONE OPENS: this is another key",
        Verdict::Mixed => "MIXED: some were sealed with another key of this name",
        Verdict::NoEvidence => "not tried",
        Verdict::TooFew => "none opens, but so few prove nothing",
        Verdict::MissingKey => "MISSING: there is no such key",
    }
}

fn id(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Opens => "opens",
        Verdict::NoneOpen => "none_open",
        Verdict::Mixed => "mixed",
        Verdict::NoEvidence => "no_evidence",
        Verdict::TooFew => "too_few",
        Verdict::MissingKey => "missing_key",
    }
}

fn state(state: &State) -> &str {
    match state {
        State::New => "new",
        State::Bare => "bare",
        State::Used => "used",
        State::Unreadable(why) => why,
    }
}

fn schemes(schemes: &BTreeSet<Scheme>) -> Vec<String> {
    schemes.iter().map(Scheme::to_string).collect()
}

/// A time in nanoseconds since 1970, as RFC 3339 to the second.
fn time(nanoseconds: i64) -> String {
    let time = Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000));
    time.map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

fn key_json(finding: &Finding) -> Value {
    json!({
        "key": finding.key,
        "schemes": schemes(&finding.schemes),
        "records": finding.records,
        "tried": is_tried(finding),
        "opened": finding.opened,
        "failed": finding.failed,
        "oldest": finding.oldest.map(time),
        "newest": finding.newest.map(time),
        "verdict": id(finding.verdict),
    })
}

fn bucket_row(bucket: &str, count: &BucketCount) -> [String; 7] {
    let cell = |Count { objects, bytes }: Count| format!("{objects} ({bytes} B)");
    [
        bucket.to_owned(),
        cell(count.plain),
        cell(count.sse_s3),
        cell(count.sse_kms),
        cell(count.sse_c),
        cell(count.unknown),
        count.delete_markers.to_string(),
    ]
}

fn bucket_json(count: &BucketCount) -> Value {
    let cell = |Count { objects, bytes }: Count| json!({ "objects": objects, "bytes": bytes });
    json!({
        "plain": cell(count.plain),
        "sse_s3": cell(count.sse_s3),
        "sse_kms": cell(count.sse_kms),
        "sse_c": cell(count.sse_c),
        "unknown": cell(count.unknown),
        "delete_markers": count.delete_markers,
    })
}

fn print_columns<const N: usize>(head: &[String; N], rows: Vec<[String; N]>) {
    let lines = || std::iter::once(head).chain(&rows);
    let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    for line in lines() {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
