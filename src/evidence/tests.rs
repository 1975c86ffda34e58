//! Tests of verdicts, and of both walks over drives that [`super::made`] makes.

use super::{
    made::{config, delete_marker, file, format, object, put, sse_kms},
    *,
};
use crate::clock::Clock;
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;

const SEALED: &str = "Y2lwaGVydGV4dA==";

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary folder must be made")
}

/// Records of `count` objects, each with another ciphertext.
fn records(count: i64) -> Samples {
    records_of(count, count)
}

/// Records of `objects` objects in turns: further records are versions of the same objects.
fn records_of(count: i64, objects: i64) -> Samples {
    let mut samples = Samples::default();
    for mtime in 1..=count {
        let ciphertext = mtime.to_be_bytes().to_vec();
        let sealed = Sealed { key_name: "k".to_owned(), ciphertext, client_context: Vec::new() };
        samples.add(sealed, Scheme::SseS3, ((mtime % objects).to_string().into_bytes(), None), mtime);
    }
    samples
}

/// The verdict on records, the oldest first: `y` opens, `n` does not open, `?` could not be tried, any other
/// has no key.
fn verdict_of(results: &str) -> Verdict {
    let samples = records(results.len() as i64);
    let findings = judge(&samples, |_, ciphertext, _| {
        let number = usize::from(*ciphertext.last().expect("it must not be empty"));
        match results.as_bytes()[number - 1] {
            b'y' => Opened::Yes,
            b'n' => Opened::No,
            b'?' => Opened::Unknown,
            _ => Opened::NoSuchKey,
        }
    });
    findings.first().map_or(Verdict::NoEvidence, |finding| finding.verdict)
}

#[test]
fn verdicts_follow_from_what_opens() {
    for (results, wanted) in [
        ("", Verdict::NoEvidence),
        ("??", Verdict::NoEvidence),
        ("y", Verdict::Opens),
        ("yyyy", Verdict::Opens),
        ("y??", Verdict::Opens),
        ("n", Verdict::TooFew),
        ("nn", Verdict::TooFew),
        ("n?n", Verdict::TooFew),
        ("nnn", Verdict::NoneOpen),
        ("nnnnnnnnnnnnnnnn", Verdict::NoneOpen),
        ("ny", Verdict::Opens),
        ("nyyy", Verdict::Opens),
        ("yyyn", Verdict::Opens),
        ("nnyy", Verdict::Mixed),
        ("yynn", Verdict::Mixed),
        ("ynyn", Verdict::Opens),
        ("ynynyn", Verdict::Mixed),
        ("--", Verdict::MissingKey),
        ("n-", Verdict::MissingKey),
    ] {
        assert_eq!(verdict_of(results), wanted, "{results}");
    }
}

#[test]
fn the_versions_of_one_object_prove_no_more_than_one() {
    let none_opens = |objects| judge(&records_of(12, objects), |_, _, _| Opened::No)[0].verdict;
    assert_eq!(none_opens(1), Verdict::TooFew);
    assert_eq!(none_opens(2), Verdict::TooFew);
    assert_eq!(none_opens(3), Verdict::NoneOpen);
}

#[test]
fn the_oldest_and_the_newest_are_kept() {
    let samples = records(100);
    let kept = &samples.keys["k"];
    let times: Vec<_> = kept.each().into_iter().map(|record| record.mtime).collect();
    assert_eq!(times, (1..=8).chain(93..=100).collect::<Vec<_>>());
    let findings = judge(&samples, |_, _, _| Opened::Yes);
    let [finding] = &findings[..] else { panic!("one key: {findings:?}") };
    assert_eq!((finding.records, finding.opened, finding.failed), (100, 16, 0));
    assert_eq!((finding.oldest, finding.newest), (Some(1), Some(100)));
}

#[test]
fn a_drive_says_what_it_is() {
    let dir = temporary();
    let (new, used, file) = (dir.path().join("new"), dir.path().join("used"), dir.path().join("file"));
    fs::create_dir(&new).expect("a temporary folder must be made");
    format(&used);
    fs::write(&file, "").expect("a temporary file must be written");
    let state = |path: &PathBuf| Drive::look(path).state;
    assert_eq!(state(&new), State::Bare, "no volume is mounted there");
    assert_eq!(state(&PathBuf::from("/proc")), State::New, "a mount point without format.json");
    assert_eq!(state(&used), State::Used);
    assert!(matches!(state(&file), State::Unreadable(_)));
    assert!(matches!(state(&dir.path().join("absent")), State::Unreadable(_)));
    assert_eq!(Drive::look(&used).set(), Some(("d".to_owned(), 1)));

    let look = |drives: &[PathBuf]| sample(drives, &Limits::default(), &Clock::system());
    assert!(
        !look(std::slice::from_ref(&new)).is_new(),
        "it may be the place of a volume that is not mounted"
    );
    assert!(!look(&[new.clone(), used]).is_new());
    assert!(!look(&[new, dir.path().join("absent")]).is_new());
    assert!(!look(&[]).is_new());

    let stripped = drive();
    fs::remove_dir_all(stripped.path().join(".minio.sys")).expect("a temporary folder must be removed");
    let samples = look(&[stripped.path().to_owned()]);
    assert!(samples.drives[0].state == State::Bare && !samples.is_new() && !samples.keys.is_empty());
}

/// A drive with eight files, of which four have a record of `k`, and two are damaged.
fn drive() -> TempDir {
    let dir = temporary();
    let drive = dir.path();
    format(drive);
    let kms = |key: &str, mtime| object(mtime, 1, &sse_kms(key, SEALED));
    let whole = file(&[kms("k", 3)], b"");
    put(drive, ".minio.sys/config/config.json", &file(&[object(1, 1, &[])], &config("k", SEALED)));
    put(drive, ".minio.sys/tmp/noise", &whole);
    put(drive, "docs/a/b/c.bin", &whole);
    put(drive, "docs/a/b/c.bin/inner", &file(&[kms("k", 4)], b""));
    put(drive, "docs/a/b/c.bin/01234567-89ab-cdef-0123-456789abcdef", &whole);
    put(drive, "docs/versions", &file(&[delete_marker(9), kms("k", 8), object(5, 1, &[])], b""));
    put(drive, "docs/plain", &file(&[object(2, 1, &[])], b""));
    put(drive, "more/folder__XLDIR__", &file(&[kms("bucket-key", 6)], b""));
    put(drive, "more/short", &whole[..whole.len() / 2]);
    put(drive, "more/garbage", b"garbage");
    put(drive, "lost+found/x", &whole);
    fs::create_dir(drive.join("empty")).expect("a temporary folder must be made");
    std::os::unix::fs::symlink(drive.join("docs"), drive.join("docs/link")).expect("a link must be made");
    dir
}

fn contexts(samples: &Samples, key: &str) -> Vec<String> {
    let each = samples.keys[key].each();
    each.into_iter().map(|record| String::from_utf8_lossy(&record.context).into_owned()).collect()
}

#[test]
fn a_sample_finds_the_keys_of_every_bucket() {
    let dir = drive();
    let samples = sample(&[dir.path().to_owned()], &Limits::default(), &Clock::system());
    assert_eq!(contexts(&samples, "bucket-key"), [r#"{"more":"more/folder"}"#]);
    let wanted = [
        r#"{".minio.sys":".minio.sys/config/config.json"}"#,
        r#"{"docs":"docs/a/b/c.bin"}"#,
        r#"{"docs":"docs/versions"}"#,
    ];
    assert_eq!(contexts(&samples, "k"), wanted);
    // Only the census reads objects within objects.
    assert_eq!((samples.tally.files, samples.tally.skipped), (7, 2));
    assert!(!samples.cut_short);
}

#[test]
fn the_drives_of_a_set_are_read_once() {
    let (first, second) = (drive(), drive());
    let drives = [first.path().to_owned(), second.path().to_owned()];
    let samples = sample(&drives, &Limits::default(), &Clock::system());
    assert_eq!(samples.keys["bucket-key"].seen, 1);
    // An object that is damaged on one drive is read on the other.
    assert_eq!(samples.tally.skipped, 4);
    let census = census(&drives);
    assert_eq!(census.buckets["docs"].sse_kms.objects, 3);
}

#[test]
fn limits_end_a_sample() {
    let dir = drive();
    let drives = [dir.path().to_owned()];
    let limits = Limits { files: 3, ..Limits::default() };
    let samples = sample(&drives, &limits, &Clock::system());
    assert!(samples.cut_short && samples.tally.files <= 4, "{samples:?}");
    let limits = Limits { time: Duration::ZERO, ..Limits::default() };
    let samples = sample(&drives, &limits, &Clock::system());
    // MinIO's own files are read whatever the limits.
    assert!(samples.cut_short && samples.tally.files == 1, "{samples:?}");
}

#[test]
fn a_census_counts_everything() {
    let dir = drive();
    let census = census(&[dir.path().to_owned()]);
    let count = |objects| Count { objects, bytes: 1000 * objects };
    let docs =
        BucketCount { plain: count(2), sse_kms: count(3), delete_markers: 1, ..BucketCount::default() };
    let more = BucketCount { sse_kms: count(1), ..BucketCount::default() };
    assert_eq!(census.buckets["docs"], docs);
    assert_eq!(census.buckets["more"], more);
    assert_eq!(census.buckets["empty"], BucketCount::default());
    assert_eq!(census.buckets.len(), 3);
    assert_eq!(census.samples.keys["k"].seen, 4);
    assert_eq!((census.samples.tally.files, census.samples.tally.skipped), (8, 2));
}
