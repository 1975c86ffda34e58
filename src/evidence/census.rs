//! Everything on the drives, counted: the fastest census there is of what is encrypted how, and with which key.

use super::{
    Samples,
    drive::{self, Drive, Folders},
    xl_meta::{self, Encryption, Kind, Version},
};
use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Versions of objects, and how much they take on the drives, before erasure coding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub objects: u64,
    pub bytes: u64,
}

/// What is in a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketCount {
    pub plain: Count,
    pub sse_s3: Count,
    pub sse_kms: Count,
    pub sse_c: Count,
    /// Of a form that this program does not know.
    pub unknown: Count,
    pub delete_markers: u64,
}

/// What is on the drives.
#[derive(Debug, Default)]
pub struct Census {
    pub samples: Samples,
    pub buckets: BTreeMap<String, BucketCount>,
}

const MAX_THREADS: usize = 4;

/// Reads everything. The drives of one erasure set hold the same metadata: the first of them that is named is read.
pub fn census(drives: &[PathBuf]) -> Census {
    let mut census = Census::default();
    let mut sets = HashSet::new();
    let queue = Queue::default();
    for path in drives {
        let drive = Drive::look(path);
        if !drive.is_unreadable() {
            drive.own_files(&mut census.samples);
            if drive.set().is_none_or(|set| sets.insert(set)) {
                for (name, root) in drive.buckets(&mut census.samples.tally.skipped) {
                    census.buckets.entry(name.clone()).or_default();
                    let folder = root.clone();
                    queue.push(Item { bucket: Arc::new(Bucket { name, root }), folder });
                }
            }
        }
        census.samples.drives.push(drive);
    }
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(MAX_THREADS));
    let queue = &queue;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || work(queue))).collect();
        for worker in workers {
            census.merge(worker.join().expect("whatever is on a drive must not panic"));
        }
    });
    census
}

/// Folders that wait to be looked at, and how many are being looked at.
#[derive(Default)]
struct Queue {
    state: Mutex<(Vec<Item>, usize)>,
    changed: Condvar,
}

struct Item {
    bucket: Arc<Bucket>,
    folder: PathBuf,
}

struct Bucket {
    name: String,
    root: PathBuf,
}

fn work(queue: &Queue) -> Census {
    let mut census = Census::default();
    while let Some(item) = queue.next() {
        visit(queue, &mut census, &item);
        queue.done();
    }
    census
}

/// Only folders that hold no object themselves go through the queue: there may be millions of the others.
fn visit(queue: &Queue, census: &mut Census, item: &Item) {
    let mut skipped = 0;
    if census.object(item) {
        nested(queue, item, &mut skipped);
    } else {
        for entry in Folders::of(&item.folder, &mut skipped) {
            let child = Item { bucket: item.bucket.clone(), folder: entry.path() };
            match census.object(&child) {
                true => nested(queue, &child, &mut census.samples.tally.skipped),
                false => queue.push(child),
            }
        }
    }
    census.samples.tally.skipped += skipped;
}

/// An object's folder may hold others, as `a` and `a/b`, beside the folders of its own data.
fn nested(queue: &Queue, item: &Item, skipped: &mut u64) {
    // Most file systems count the folders in a folder.
    if fs::symlink_metadata(&item.folder).is_ok_and(|about| about.nlink() == 2) {
        return;
    }
    for entry in Folders::of(&item.folder, skipped) {
        if !is_data(&entry.file_name()) {
            queue.push(Item { bucket: item.bucket.clone(), folder: entry.path() });
        }
    }
}

/// The folder of a version's data is called by a UUID.
fn is_data(name: &OsStr) -> bool {
    let is_dash = |place: usize| matches!(place, 8 | 13 | 18 | 23);
    let fits = |(place, byte): (usize, &u8)| match is_dash(place) {
        true => *byte == b'-',
        false => byte.is_ascii_hexdigit(),
    };
    name.len() == 36 && name.as_bytes().iter().enumerate().all(fits)
}

// === impl Count ===

impl Count {
    fn merge(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

// === impl BucketCount ===

impl BucketCount {
    fn take(&mut self, version: &Version) {
        let count = match (version.kind, &version.encryption) {
            (Kind::DeleteMarker, _) => {
                self.delete_markers += 1;
                return;
            }
            (Kind::Other, _) | (_, Encryption::Unknown) => &mut self.unknown,
            (_, Encryption::Plain) => &mut self.plain,
            (_, Encryption::SseC) => &mut self.sse_c,
            (_, Encryption::SseS3(_)) => &mut self.sse_s3,
            (_, Encryption::SseKms(_)) => &mut self.sse_kms,
        };
        count.merge(Count { objects: 1, bytes: version.size });
    }

    fn merge(&mut self, other: Self) {
        self.plain.merge(other.plain);
        self.sse_s3.merge(other.sse_s3);
        self.sse_kms.merge(other.sse_kms);
        self.sse_c.merge(other.sse_c);
        self.unknown.merge(other.unknown);
        self.delete_markers += other.delete_markers;
    }
}

// === impl Census ===

impl Census {
    /// Counts what is in an object's folder; false when it is none.
    fn object(&mut self, item: &Item) -> bool {
        let tally = &mut self.samples.tally;
        match drive::metadata(&item.folder) {
            Ok(None) => return false,
            Err(_) => tally.skipped += 1,
            Ok(Some(bytes)) => {
                tally.files += 1;
                tally.bytes += bytes.len() as u64;
                match xl_meta::parse(&bytes) {
                    Ok(versions) => self.count(&item.bucket.name, item.object(), versions),
                    Err(_) => tally.skipped += 1,
                }
            }
        }
        true
    }

    fn count(&mut self, bucket: &str, object: &Path, versions: Vec<Version>) {
        let counted = self.buckets.entry(bucket.to_owned()).or_default();
        versions.iter().for_each(|version| counted.take(version));
        self.samples.take(bucket, object.as_os_str().as_bytes(), versions);
    }

    fn merge(&mut self, other: Census) {
        self.samples.merge(other.samples);
        for (name, count) in other.buckets {
            self.buckets.entry(name).or_default().merge(count);
        }
    }
}

// === impl Item ===

impl Item {
    fn object(&self) -> &Path {
        self.folder.strip_prefix(&self.bucket.root).unwrap_or(&self.folder)
    }
}

// === impl Queue ===

impl Queue {
    fn push(&self, item: Item) {
        self.lock().0.push(item);
        self.changed.notify_one();
    }

    /// The next folder; nothing when none waits and nobody can find more.
    fn next(&self) -> Option<Item> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.0.pop() {
                state.1 += 1;
                return Some(item);
            }
            if state.1 == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self) {
        self.lock().1 -= 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Item>, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
