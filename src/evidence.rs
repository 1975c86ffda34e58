//! Evidence: the keys that the drives of a MinIO name, and whether the keys at hand open the sealed DEKs
//! there.
//!
//! Evidence proves more than a pin. Every drive has sealed DEKs, with the key's name and the context in the
//! clear. One DEK that opens proves that the key is right. Several DEKs that all fail prove that the key is
//! wrong. Drives are only read.

mod census;
pub mod context;
mod drive;
mod msgpack;
mod sample;
pub mod xl_meta;

#[cfg(test)]
mod made;

pub use census::{BucketCount, Census, Count, census};
pub use drive::{Drive, State, expand};
pub use sample::{Limits, sample};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use xl_meta::{Encryption, Kind, Sealed, Version};

/// The encryption that a DEK belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// SSE-S3 of an object.
    SseS3,
    /// SSE-KMS of an object.
    SseKms,
    /// MinIO's own configuration.
    Config,
    /// MinIO's own users, groups, policies and service accounts.
    Iam,
}

/// One sealed DEK, with the context that MinIO would send to KES. Records are ordered by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The time of the version or file, in nanoseconds since 1970.
    pub mtime: i64,
    /// The encryption of the version or file.
    pub scheme: Scheme,
    /// The sealed DEK.
    pub ciphertext: Vec<u8>,
    /// The context that today's MinIO seals with.
    pub context: Vec<u8>,
    /// The context that earlier versions of MinIO sealed the same file with.
    pub legacy_context: Option<Vec<u8>>,
}

/// The records of one key. `oldest` and `newest` are by time, 8 each, and overlap when there are few records.
#[derive(Debug, Default)]
pub struct Records {
    /// The oldest records of objects.
    pub oldest: BTreeSet<Record>,
    /// The newest records of objects.
    pub newest: BTreeSet<Record>,
    /// The records of MinIO's own files, which prove most. No record of an object replaces one of these.
    pub own: BTreeSet<Record>,
    /// The encryptions of all records, kept or not.
    pub schemes: BTreeSet<Scheme>,
    /// The number of all records, kept or not.
    pub seen: u64,
}

/// The counts of a reading, besides records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files and folders that could not be read, or are damaged, or in an unknown form.
    pub skipped: u64,
    /// Versions with an unknown encryption.
    pub unknown: u64,
}

/// The result of reading drives.
#[derive(Debug, Default)]
pub struct Samples {
    /// Records by the key's name, as MinIO wrote the name.
    pub keys: BTreeMap<String, Records>,
    /// The counts of the reading.
    pub tally: Tally,
    /// The drives, in the order of the request.
    pub drives: Vec<Drive>,
    /// Paths of MinIO's own files that some drive shows to be sealed with a named key, or not sealed.
    own_shown: BTreeSet<String>,
    /// Paths of MinIO's own files of which some drive has only a later shard.
    own_elsewhere: BTreeSet<String>,
    /// Whether a limit ended the reading before the end of the drives.
    pub cut_short: bool,
}

/// The result of trying one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The key opens the record.
    Yes,
    /// The key does not open the record.
    No,
    /// No key has this name.
    NoSuchKey,
    /// The record could not be tried.
    Unknown,
}

/// The verdict of the records on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key sealed the records.
    Opens,
    /// Another key sealed the records.
    NoneOpen,
    /// The key sealed some of the records, and another key of the same name sealed others.
    Mixed,
    /// No record was tried.
    NoEvidence,
    /// No record opens, and there are too few for a proof.
    TooFew,
    /// The drives name the key, and no such key is at hand.
    MissingKey,
}

/// The result of trying one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key's name, as MinIO wrote the name.
    pub key: String,
    /// The encryptions that name the key.
    pub schemes: BTreeSet<Scheme>,
    /// The number of records. Only the kept ones were tried.
    pub records: u64,
    /// The number of records that opened.
    pub opened: usize,
    /// The number of records that did not open.
    pub failed: usize,
    /// The time of the oldest record, in nanoseconds since 1970.
    pub oldest: Option<i64>,
    /// The time of the newest record, in nanoseconds since 1970.
    pub newest: Option<i64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Records of objects that are kept for each key at each end of time, at most.
const RECORDS_PER_END_MAX: usize = 8;
/// Records of MinIO's users, groups and policies that are kept for each key, at most. Its configuration is
/// always kept.
const OWN_RECORDS_MAX: usize = 32;
/// Failures that prove a wrong key. Fewer prove nothing: a renamed or replicated object may be sealed with
/// another context.
const FAILURES_FOR_PROOF: usize = 3;
/// Names of keys that are taken from the drives, at most. MinIO uses fewer; records of further names count as
/// unknown.
const KEYS_MAX: usize = 1024;

/// Tries every kept record with `open(key, ciphertext, context)`, and gives a finding for each key, by name.
pub fn judge(samples: &Samples, mut open: impl FnMut(&str, &[u8], &[u8]) -> Opened) -> Vec<Finding> {
    let finding = |(key, records): (&String, &Records)| {
        let tried: Vec<_> = records
            .each()
            .into_iter()
            .map(|record| {
                let mut opened = Opened::No;
                for context in record.contexts() {
                    if opened == Opened::No {
                        opened = open(key, &record.ciphertext, context);
                    }
                }
                Tried { mtime: record.mtime, scheme: record.scheme, context: &record.context, opened }
            })
            .collect();
        let count = |wanted| tried.iter().filter(|tried| tried.opened == wanted).count();
        Finding {
            key: key.clone(),
            schemes: records.schemes.clone(),
            records: records.seen,
            opened: count(Opened::Yes),
            failed: count(Opened::No),
            oldest: records.each().iter().map(|record| record.mtime).min(),
            newest: records.each().iter().map(|record| record.mtime).max(),
            verdict: verdict(&tried),
        }
    };
    samples.keys.iter().map(finding).collect()
}

/// A record that was tried.
struct Tried<'a> {
    mtime: i64,
    scheme: Scheme,
    /// The context. Records of one context prove as much as one record: they are versions of one object.
    context: &'a [u8],
    opened: Opened,
}

fn verdict(tried: &[Tried<'_>]) -> Verdict {
    let times = |wanted| {
        let mut times: Vec<_> =
            tried.iter().filter(|tried| tried.opened == wanted).map(|tried| tried.mtime).collect();
        times.sort_unstable();
        times
    };
    if tried.iter().any(|tried| tried.opened == Opened::NoSuchKey) {
        return Verdict::MissingKey;
    }
    let (good, bad) = (times(Opened::Yes), times(Opened::No));
    // Once a record opens, users and policies that do not open come from another MinIO at worst, and count
    // for nothing.
    let counts = |tried: &&Tried<'_>| good.is_empty() || tried.scheme != Scheme::Iam;
    let failed: Vec<_> = tried.iter().filter(|tried| tried.opened == Opened::No).filter(counts).collect();
    // MinIO's own files are never moved, so only the default key of this deployment can have sealed them.
    let is_proof = |scheme| failed.iter().any(|tried| tried.scheme == scheme);
    match (good.len(), failed.iter().map(|tried| tried.context).collect::<BTreeSet<_>>().len()) {
        (0, 0) => Verdict::NoEvidence,
        (_, 0) => Verdict::Opens,
        (0, _) if is_proof(Scheme::Config) || is_proof(Scheme::Iam) => Verdict::NoneOpen,
        (1.., _) if is_proof(Scheme::Config) => Verdict::Mixed,
        (0, failed) if failed >= FAILURES_FOR_PROOF => Verdict::NoneOpen,
        (0, _) => Verdict::TooFew,
        (_, 1) => Verdict::Opens,
        (_, failed) if failed >= FAILURES_FOR_PROOF || apart(&good, &bad) => Verdict::Mixed,
        _ => Verdict::Opens,
    }
}

/// Whether all times of one list are before all times of the other. Both are sorted.
fn apart(one: &[i64], other: &[i64]) -> bool {
    let before = |one: &[i64], other: &[i64]| one.last() < other.first();
    before(one, other) || before(other, one)
}

// === impl Scheme ===

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SseS3 => "SSE-S3",
            Self::SseKms => "SSE-KMS",
            Self::Config => "config",
            Self::Iam => "IAM",
        })
    }
}

// === impl Record ===

impl Record {
    /// The contexts to try, the likeliest first.
    pub fn contexts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.context.as_slice()).chain(self.legacy_context.as_deref())
    }
}

// === impl Records ===

impl Records {
    /// Every kept record once, the oldest first.
    pub fn each(&self) -> BTreeSet<&Record> {
        self.own.iter().chain(&self.oldest).chain(&self.newest).collect()
    }

    fn add(&mut self, record: Record) {
        self.seen += 1;
        self.schemes.insert(record.scheme);
        self.keep(record);
    }

    fn keep(&mut self, record: Record) {
        if matches!(record.scheme, Scheme::Config | Scheme::Iam) {
            if self.own.len() < OWN_RECORDS_MAX || record.scheme == Scheme::Config {
                self.own.insert(record);
            }
            return;
        }
        let is_old = self.oldest.len() < RECORDS_PER_END_MAX || self.oldest.last() > Some(&record);
        let is_new = self.newest.len() < RECORDS_PER_END_MAX || self.newest.first() < Some(&record);
        if is_old {
            self.oldest.insert(record.clone());
        }
        if is_new {
            self.newest.insert(record);
        }
        if self.oldest.len() > RECORDS_PER_END_MAX {
            self.oldest.pop_last();
        }
        if self.newest.len() > RECORDS_PER_END_MAX {
            self.newest.pop_first();
        }
    }

    fn merge(&mut self, other: Records) {
        self.seen += other.seen;
        self.schemes.extend(other.schemes);
        other.own.into_iter().chain(other.oldest).chain(other.newest).for_each(|record| self.keep(record));
    }
}

// === impl Tally ===

impl Tally {
    fn merge(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.skipped += other.skipped;
        self.unknown += other.unknown;
    }
}

// === impl Samples ===

impl Samples {
    /// Whether no MinIO ever started on any of the drives, and each drive is a mounted volume. False when a
    /// drive could not be read, or has objects.
    pub fn is_new(&self) -> bool {
        let new = self.drives.iter().all(|drive| drive.state == State::New);
        new && !self.drives.is_empty() && self.tally == Tally::default()
    }

    /// The number of MinIO's own files that may be sealed, and whose first shard is on no drive that was
    /// read.
    pub fn unseen(&self) -> usize {
        self.own_elsewhere.difference(&self.own_shown).count()
    }

    /// Adds the records of one object's versions.
    fn take(&mut self, bucket: &str, object: &[u8], versions: Vec<Version>) {
        for version in versions {
            let (scheme, sealed) = match version.encryption {
                _ if version.kind == Kind::DeleteMarker => continue,
                Encryption::SseS3(sealed) => (Scheme::SseS3, sealed),
                Encryption::SseKms(sealed) => (Scheme::SseKms, sealed),
                Encryption::Plain | Encryption::SseC if version.kind == Kind::Object => continue,
                Encryption::Plain | Encryption::SseC | Encryption::Unknown => {
                    self.tally.unknown += 1;
                    continue;
                }
            };
            match context::of_object(bucket, object, &sealed.client_context) {
                Some(context) => self.add(*sealed, scheme, (context, None), version.mtime),
                None => self.tally.unknown += 1,
            }
        }
    }

    fn add(
        &mut self,
        sealed: Sealed,
        scheme: Scheme,
        (context, legacy_context): (Vec<u8>, Option<Vec<u8>>),
        mtime: i64,
    ) {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&sealed.key_name) {
            self.tally.unknown += 1;
            return;
        }
        let record = Record { mtime, scheme, ciphertext: sealed.ciphertext, context, legacy_context };
        self.keys.entry(sealed.key_name).or_default().add(record);
    }

    fn merge(&mut self, other: Samples) {
        self.tally.merge(other.tally);
        for (key, records) in other.keys {
            self.keys.entry(key).or_default().merge(records);
        }
    }
}

#[cfg(test)]
mod tests;
