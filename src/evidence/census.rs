//! The census: every version on the drives, counted by bucket, encryption and key.

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

/// A number of versions and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Versions of objects.
    pub objects: u64,
    /// Stored bytes, before erasure coding.
    pub bytes: u64,
}

/// The versions in a bucket, by encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketCount {
    /// Versions that are not encrypted.
    pub plain: Count,
    /// Versions under SSE-S3.
    pub sse_s3: Count,
    /// Versions under SSE-KMS.
    pub sse_kms: Count,
    /// Versions under SSE-C.
    pub sse_c: Count,
    /// Versions in an unknown form, or with an unknown encryption.
    pub unknown: Count,
    /// Delete markers, which have no data.
    pub delete_markers: u64,
}

/// The versions on the drives.
#[derive(Debug, Default)]
pub struct Census {
    /// The records of keys.
    pub samples: Samples,
    /// The versions by bucket.
    pub buckets: BTreeMap<String, BucketCount>,
}

/// Threads that read drives at most.
const THREADS_MAX: usize = 4;

/// Reads all metadata on the drives. Of one erasure set only the first named drive is read, because the
/// drives of a set have the same metadata.
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
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let queue = &queue;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || work(queue))).collect();
        for worker in workers {
            census.merge(worker.join().expect("whatever is on a drive must not panic"));
        }
    });
    census
}

/// The folders that the threads share.
#[derive(Default)]
struct Queue {
    folders: Mutex<Queued>,
    changed: Condvar,
}

#[derive(Default)]
struct Queued {
    /// Folders that wait for a thread.
    waiting: Vec<Item>,
    /// The number of folders that threads are reading.
    active: usize,
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

/// Reads a folder and its children. Folders of objects do not go through the queue, because there may be
/// millions.
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

/// Queues the folders in an object's folder that are no data: the object `a/b` is in the folder of the object
/// `a`.
fn nested(queue: &Queue, item: &Item, skipped: &mut u64) {
    // On most file systems the link count of a folder is two more than its number of folders.
    if fs::symlink_metadata(&item.folder).is_ok_and(|about| about.nlink() == 2) {
        return;
    }
    for entry in Folders::of(&item.folder, skipped) {
        if !is_data(&entry.file_name()) {
            queue.push(Item { bucket: item.bucket.clone(), folder: entry.path() });
        }
    }
}

/// Whether a folder has a version's data. Such a folder is called by a UUID.
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
    /// Counts the versions in an object's folder. False when the folder is no object's.
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
        self.lock().waiting.push(item);
        self.changed.notify_one();
    }

    /// The next folder; nothing when no folder waits and no thread is reading one.
    fn next(&self) -> Option<Item> {
        let mut folders = self.lock();
        loop {
            if let Some(item) = folders.waiting.pop() {
                folders.active += 1;
                return Some(item);
            }
            if folders.active == 0 {
                return None;
            }
            folders = self.changed.wait(folders).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self) {
        self.lock().active -= 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
