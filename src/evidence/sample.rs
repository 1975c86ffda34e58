//! A bounded reading of the drives: some objects of every bucket, the oldest and the newest first, within
//! seconds.
//!
//! A folder's time of change is about the time of its object, so the oldest and newest folders of a large
//! folder are read. Buckets take turns. In each bucket the walk reaches an object first, and widens
//! afterwards.

use super::{
    Samples,
    drive::{self, Drive, Folders},
    xl_meta,
};
use crate::clock::{Clock, Instant};
use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    ffi::OsString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The limits of a reading of drives, all drives together. The default is 2000 files, 64 MiB and 2 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files that are read, or cannot be read, at most.
    pub files: u64,
    /// Bytes that are read at most.
    pub bytes: u64,
    /// The time of the reading.
    pub time: Duration,
}

/// Folders in one folder that are visited at each end of time, at most.
const FOLDERS_PER_END_MAX: usize = 256;
/// Folders of a bucket that wait at most. Further folders are not visited.
const WAITING_FOLDERS_MAX: usize = 4096;

/// Reads every drive within the limits. MinIO's own files are read whatever the limits.
pub fn sample(drives: &[PathBuf], limits: &Limits, clock: &Clock) -> Samples {
    let (seen, samples) = (HashSet::new(), Samples::default());
    let mut walk = Walk { limits, clock, since: clock.now(), seen, samples };
    let mut branches = walk.start(drives);
    while let Some(mut branch) = branches.pop_front() {
        if walk.is_over() {
            walk.samples.cut_short = true;
            break;
        }
        if let Some(folder) = branch.waiting.pop_front() {
            walk.visit(&mut branch, &folder);
            branches.push_back(branch);
        }
    }
    walk.samples
}

struct Walk<'a> {
    limits: &'a Limits,
    clock: &'a Clock,
    since: Instant,
    /// `BUCKET/OBJECT` of each object that was read on any drive.
    seen: HashSet<PathBuf>,
    samples: Samples,
}

/// One bucket on one drive.
struct Branch {
    bucket: String,
    root: PathBuf,
    waiting: VecDeque<PathBuf>,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { files: 2000, bytes: 64 << 20, time: Duration::from_secs(2) }
    }
}

// === impl Walk ===

impl Walk<'_> {
    fn start(&mut self, drives: &[PathBuf]) -> VecDeque<Branch> {
        let mut branches = VecDeque::new();
        for path in drives {
            let drive = Drive::look(path);
            if !drive.is_unreadable() {
                drive.own_files(&mut self.samples);
                for (bucket, root) in drive.buckets(&mut self.samples.tally.skipped) {
                    let waiting = VecDeque::from([root.clone()]);
                    branches.push_back(Branch { bucket, root, waiting });
                }
            }
            self.samples.drives.push(drive);
        }
        branches
    }

    fn is_over(&self) -> bool {
        let tally = &self.samples.tally;
        tally.files + tally.skipped >= self.limits.files
            || tally.bytes >= self.limits.bytes
            || self.left() == Duration::ZERO
    }

    fn left(&self) -> Duration {
        self.limits.time.saturating_sub(self.clock.now() - self.since)
    }

    fn visit(&mut self, branch: &mut Branch, folder: &Path) {
        let object = folder.strip_prefix(&branch.root).unwrap_or(folder);
        let place = Path::new(&branch.bucket).join(object);
        if self.seen.contains(&place) {
            return;
        }
        match drive::metadata(folder) {
            Ok(Some(bytes)) => {
                self.samples.tally.files += 1;
                self.samples.tally.bytes += bytes.len() as u64;
                match xl_meta::parse(&bytes) {
                    Ok(versions) => {
                        self.samples.take(&branch.bucket, object.as_os_str().as_bytes(), versions);
                        self.seen.insert(place);
                    }
                    Err(_) => self.samples.tally.skipped += 1,
                }
            }
            Ok(None) => {
                let children = self.ends(folder);
                self.samples.cut_short |= branch.wait(folder, children);
            }
            Err(_) => self.samples.tally.skipped += 1,
        }
    }

    /// The names of the oldest and newest folders in a folder, by turns.
    fn ends(&mut self, folder: &Path) -> Vec<OsString> {
        // One folder takes a quarter of the remaining time at most.
        let until = self.clock.now() + self.left() / 4;
        let (mut oldest, mut newest) = (BTreeSet::new(), BTreeSet::new());
        for entry in Folders::of(folder, &mut self.samples.tally.skipped) {
            let changed = entry.metadata().and_then(|about| about.modified());
            let child = (changed.unwrap_or(SystemTime::UNIX_EPOCH), entry.file_name());
            oldest.insert(child.clone());
            newest.insert(child);
            if oldest.len() > FOLDERS_PER_END_MAX {
                oldest.pop_last();
                newest.pop_first();
                // Folders in the middle of time may be left out.
                self.samples.cut_short = true;
            }
            if self.clock.now() > until {
                self.samples.cut_short = true;
                break;
            }
        }
        by_turns(oldest, newest)
    }
}

/// The names in the order oldest, newest, second oldest and so on, each once.
fn by_turns<T: Ord>(oldest: BTreeSet<(T, OsString)>, newest: BTreeSet<(T, OsString)>) -> Vec<OsString> {
    let mut seen = HashSet::new();
    let pairs = oldest.into_iter().zip(newest.into_iter().rev());
    let names = pairs.flat_map(|((_, old), (_, new))| [old, new]);
    names.filter(|name| seen.insert(name.clone())).collect()
}

// === impl Branch ===

impl Branch {
    /// Queues the children of a folder, the oldest and the newest child first, so that an object is soon
    /// found. True when some children find no room.
    fn wait(&mut self, folder: &Path, children: Vec<OsString>) -> bool {
        let mut children = children.into_iter().map(|name| folder.join(name));
        let first: Vec<_> = children.by_ref().take(2).collect();
        let room = WAITING_FOLDERS_MAX.saturating_sub(self.waiting.len());
        self.waiting.extend(children.by_ref().take(room));
        let no_room = children.next().is_some();
        first.into_iter().rev().for_each(|child| self.waiting.push_front(child));
        no_room
    }
}
