//! The process's memory, which holds keys: kept out of core dumps, of other processes' reach, and of swap.

use region::LockGuard;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};
use std::{
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
};

/// A value on pages of its own, which are never written to swap as far as the limit allows; it is dropped before they are let go.
pub struct Locked<T> {
    value: Box<Pages<Option<T>>>,
    lock: Option<LockGuard>,
}

/// The size of a page on x86-64; larger pages are locked as a whole.
#[repr(align(4096))]
struct Pages<T>(T);

/// Everything is locked already: to lock a part, and to let it go, would let go of that part.
static EVERYTHING: AtomicBool = AtomicBool::new(false);
/// The limit was reached, and that was said.
static TOLD: AtomicBool = AtomicBool::new(false);

/// How well memory is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// None of it is ever written to swap.
    Yes,
    /// The limit is too small to lock everything, which would make later allocations fail: only keys are locked.
    KeysOnly {
        /// Bytes.
        limit: u64,
    },
    /// The kernel would not.
    Refused(i32),
}

/// No core dumps, nobody attaches, and nothing goes to swap where the limit allows that.
pub fn protect() -> Kept {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    match getrlimit(Resource::Memlock).current {
        // Pages are locked as they are touched: what is only reserved costs nothing.
        None => match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
            Ok(()) => {
                EVERYTHING.store(true, Ordering::Relaxed);
                Kept::Yes
            }
            Err(error) => Kept::Refused(error.raw_os_error()),
        },
        Some(limit) => Kept::KeysOnly { limit },
    }
}

// === impl Locked ===

impl<T> Locked<T> {
    pub fn new(value: T) -> Self {
        // The pages come first, empty: a value that is moved within pages leaves a copy on the stack, where their alignment keeps
        // later calls from writing over it.
        let mut pages = Box::new(Pages(None));
        let lock = match EVERYTHING.load(Ordering::Relaxed) {
            true => None,
            false => region::lock(&raw const *pages, size_of::<Pages<Option<T>>>()).map_err(tell).ok(),
        };
        pages.0 = Some(value);
        Self { value: pages, lock }
    }
}

fn tell(error: region::Error) {
    if !TOLD.swap(true, Ordering::Relaxed) {
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
        // It wipes itself while the pages are locked; they are let go before anybody else is given them.
        self.value.0 = None;
        self.lock = None;
    }
}

// === impl Kept ===

impl Kept {
    /// Says so in the log.
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
