//! The protection of memory that holds keys: from core dumps, from other processes, and from swap.

use region::LockGuard;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};
use std::{
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
};

/// A value on pages of its own, which are locked, as far as the limit allows, and so never written to swap.
/// The value is dropped before the pages are unlocked.
pub struct Locked<T> {
    value: Box<Pages<Option<T>>>,
    lock: Option<LockGuard>,
}

/// A value aligned to a page of x86-64. Larger pages are locked as a whole.
#[repr(align(4096))]
struct Pages<T>(T);

/// Whether all memory is locked. Keys are not locked again then, because unlocking a key would unlock its
/// page.
static ALL_LOCKED: AtomicBool = AtomicBool::new(false);
/// Whether the warning about the limit was logged.
static WARNED: AtomicBool = AtomicBool::new(false);

/// The protection from swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All memory is locked.
    Yes,
    /// Only keys are locked: with this limit, locking all memory would make later allocations fail.
    KeysOnly {
        /// RLIMIT_MEMLOCK in bytes.
        limit: u64,
    },
    /// The kernel refused to lock memory, with this errno.
    Refused(i32),
}

/// Forbids core dumps and debuggers, and locks all memory where RLIMIT_MEMLOCK is unlimited.
pub fn protect() -> Kept {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    match getrlimit(Resource::Memlock).current {
        // ONFAULT locks a page at its first use, so reserved memory costs nothing.
        None => match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
            Ok(()) => {
                ALL_LOCKED.store(true, Ordering::Relaxed);
                Kept::Yes
            }
            Err(error) => Kept::Refused(error.raw_os_error()),
        },
        Some(limit) => Kept::KeysOnly { limit },
    }
}

// === impl Locked ===

impl<T> Locked<T> {
    /// Moves a value to locked pages. Where the limit forbids the lock, one warning is logged for all values.
    pub fn new(value: T) -> Self {
        // The pages are allocated empty. Moving a value inside `Pages` would leave a copy on the stack, and
        // the alignment would keep later calls from overwriting the copy.
        let mut pages = Box::new(Pages(None));
        let lock = match ALL_LOCKED.load(Ordering::Relaxed) {
            true => None,
            false => region::lock(&raw const *pages, size_of::<Pages<Option<T>>>()).map_err(warn_once).ok(),
        };
        pages.0 = Some(value);
        Self { value: pages, lock }
    }
}

fn warn_once(error: region::Error) {
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "not every key is locked in memory, some may be written to swap: {error} (raise LimitMEMLOCK, or use no swap)"
        );
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.0.as_ref().expect("a value must be there until it is dropped")
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // The value wipes itself while the pages are locked. The pages are unlocked before the allocator gets
        // them back.
        self.value.0 = None;
        self.lock = None;
    }
}

// === impl Kept ===

impl Kept {
    /// Logs the protection.
    pub fn say(self) {
        match self {
            Self::Yes => tracing::info!("memory is locked: keys are never written to swap"),
            Self::KeysOnly { limit } => tracing::info!(
                "only keys are locked in memory: the limit is {} KiB (LimitMEMLOCK=infinity, or no swap, keeps the rest out of swap)",
                limit / 1024
            ),
            Self::Refused(code) => tracing::warn!(
                "memory is not locked: {}; keys may be written to swap",
                std::io::Error::from_raw_os_error(code)
            ),
        }
    }
}
