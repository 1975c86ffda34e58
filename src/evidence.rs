//! Evidence: which keys the drives of a MinIO name, and whether the keys at hand open what they sealed.
//!
//! No pin is as good as the data. Every drive holds sealed data keys, with their key's name and context in the clear: one
//! that opens proves that the key is right, a handful that all fail prove that it is wrong. Drives are only ever read.

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

/// How something was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    SseS3,
    SseKms,
    /// MinIO's own configuration.
    Config,
    /// MinIO's own users, groups, policies and service accounts.
    Iam,
}

/// One sealed data key, as MinIO would ask KES to open it. Ordered by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub mtime: i64,
    pub scheme: Scheme,
    pub ciphertext: Vec<u8>,
    pub context: Vec<u8>,
    /// What earlier versions of MinIO sealed the same file for.
    pub legacy_context: Option<Vec<u8>>,
}

/// What was seen of one key: the oldest records and the newest, each by time. They are the same ones when there are few.
#[derive(Debug, Default)]
pub struct Records {
    pub oldest: BTreeSet<Record>,
    pub newest: BTreeSet<Record>,
    /// Those of MinIO's own files, which prove most: none is left out for an object.
    pub own: BTreeSet<Record>,
    pub schemes: BTreeSet<Scheme>,
    /// How many there were in all.
    pub seen: u64,
}

/// What was read, besides records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files that were read.
    pub files: u64,
    pub bytes: u64,
    /// Files and folders that could not be read, or are damaged, or in a form that this program does not know.
    pub skipped: u64,
    /// Versions that are encrypted in a way this program does not know.
    pub unknown: u64,
}

/// What the drives say.
#[derive(Debug, Default)]
pub struct Samples {
    /// By the key's name, as MinIO wrote it.
    pub keys: BTreeMap<String, Records>,
    pub tally: Tally,
    pub drives: Vec<Drive>,
    /// Files of MinIO's own, by path: those that some drive showed whole, and those of which a drive has a later part.
    own_shown: BTreeSet<String>,
    own_elsewhere: BTreeSet<String>,
    /// A limit ended it: there is more on the drives.
    pub cut_short: bool,
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    Yes,
    No,
    /// There is no key of this name.
    NoSuchKey,
    /// Nobody could be asked.
    Unknown,
}

/// What the records say of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the key that sealed them.
    Opens,
    /// It is another key.
    NoneOpen,
    /// It sealed some of them; others of its name were sealed by another key.
    Mixed,
    /// Nothing was tried.
    NoEvidence,
    /// None opens, but so few prove nothing.
    TooFew,
    /// The drives name it, and it is not there.
    MissingKey,
}

/// What was found about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub key: String,
    pub schemes: BTreeSet<Scheme>,
    /// How many there are, of which the oldest and the newest were tried.
    pub records: u64,
    pub opened: usize,
    pub failed: usize,
    /// Nanoseconds since 1970.
    pub oldest: Option<i64>,
    pub newest: Option<i64>,
    pub verdict: Verdict,
}

/// How many of the oldest records are kept for each key, and of the newest.
const KEPT: usize = 8;
/// How many records of MinIO's own files are kept for each key.
const KEPT_OWN: usize = 32;
/// Fewer failures than this prove nothing: what was renamed or replicated may be sealed for another place.
const PROOF: usize = 3;
/// A drive that names more keys is not MinIO's work: what is beyond is skipped.
const MAX_KEYS: usize = 1024;

/// Tries every record, and says of each key what that means; in the order of their names.
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
    /// The versions of one object have one context: they prove no more than one.
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
    // Where anything opens, users and policies that do not are of another MinIO's making at worst, and stop nobody.
    let counts = |tried: &&Tried<'_>| good.is_empty() || tried.scheme != Scheme::Iam;
    let failed: Vec<_> = tried.iter().filter(|tried| tried.opened == Opened::No).filter(counts).collect();
    // Only the default key of this very deployment can have sealed MinIO's own files, and nobody moves them.
    let is_proof = |scheme| failed.iter().any(|tried| tried.scheme == scheme);
    match (good.len(), failed.iter().map(|tried| tried.context).collect::<BTreeSet<_>>().len()) {
        (0, 0) => Verdict::NoEvidence,
        (_, 0) => Verdict::Opens,
        (0, _) if is_proof(Scheme::Config) || is_proof(Scheme::Iam) => Verdict::NoneOpen,
        (1.., _) if is_proof(Scheme::Config) => Verdict::Mixed,
        (0, failed) if failed >= PROOF => Verdict::NoneOpen,
        (0, _) => Verdict::TooFew,
        (_, 1) => Verdict::Opens,
        (_, failed) if failed >= PROOF || apart(&good, &bad) => Verdict::Mixed,
        _ => Verdict::Opens,
    }
}

/// All of one are older than all of the other; both are sorted.
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
    /// What it may be sealed for, the likeliest first.
    pub fn contexts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.context.as_slice()).chain(self.legacy_context.as_deref())
    }
}

// === impl Records ===

impl Records {
    /// Every record that was kept, once, the oldest first.
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
            if self.own.len() < KEPT_OWN || record.scheme == Scheme::Config {
                self.own.insert(record);
            }
            return;
        }
        let is_old = self.oldest.len() < KEPT || self.oldest.last() > Some(&record);
        let is_new = self.newest.len() < KEPT || self.newest.first() < Some(&record);
        if is_old {
            self.oldest.insert(record.clone());
        }
        if is_new {
            self.newest.insert(record);
        }
        if self.oldest.len() > KEPT {
            self.oldest.pop_last();
        }
        if self.newest.len() > KEPT {
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
    /// Nobody has ever started a MinIO on any of the drives, and each is a mounted volume. False when one of them could not be looked
    /// at, and when there are objects all the same.
    pub fn is_new(&self) -> bool {
        let new = self.drives.iter().all(|drive| drive.state == State::New);
        new && !self.drives.is_empty() && self.tally == Tally::default()
    }

    /// How many files of MinIO's own, which may be sealed, have their first part on no drive that was looked at.
    pub fn unseen(&self) -> usize {
        self.own_elsewhere.difference(&self.own_shown).count()
    }

    /// Takes what the versions of one object say of keys.
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
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&sealed.key_name) {
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
