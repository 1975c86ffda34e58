//! The process's memory, which holds keys: kept out of core dumps, of other processes' reach, and of swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

/// How well memory is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// None of it is ever written to swap.
    Yes,
    /// The limit is too small to lock everything; locking some of it would make later allocations fail.
    Limited {
        /// Bytes.
        limit: u64,
    },
    /// The kernel would not.
    Refused(i32),
}

/// No core dumps, nobody attaches, and nothing goes to swap where the limit allows that.
pub fn protect() -> Locked {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    match getrlimit(Resource::Memlock).current {
        // Pages are locked as they are touched: what is only reserved costs nothing.
        None => match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
            Ok(()) => Locked::Yes,
            Err(error) => Locked::Refused(error.raw_os_error()),
        },
        Some(limit) => Locked::Limited { limit },
    }
}

impl Locked {
    /// Says so in the log.
    pub fn say(self) {
        match self {
            Self::Yes => tracing::info!("memory is locked: keys are never written to swap"),
            Self::Limited { limit } => tracing::info!(
                "memory is not locked: the limit is {} KiB, and all or nothing is (LimitMEMLOCK=infinity, or no swap)",
                limit / 1024
            ),
            Self::Refused(code) => tracing::warn!(
                "memory is not locked: {}; keys may be written to swap",
                std::io::Error::from_raw_os_error(code)
            ),
        }
    }
}
