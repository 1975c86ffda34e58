//! Exit codes: what the process says to whoever started it, in one table (sysexits, `<sysexits.h>`).

/// Done, or drained after a signal.
pub const DONE: u8 = 0;
/// `keswarden health` only: the running agent says it is not ready, or nobody answers.
pub const NOT_READY: u8 = 1;
/// The settings cannot be used; every problem was printed.
pub const SETTINGS: u8 = 64;
/// Key data is malformed, or is not the key that was there before.
pub const DATA: u8 = 65;
/// Something needed was not available before the deadline.
pub const UNAVAILABLE: u8 = 69;
/// A task ended that must not end.
pub const TASK_ENDED: u8 = 70;
/// An address cannot be bound, or a mounted file or directory cannot be read or written.
pub const OS: u8 = 71;
/// Credentials were refused.
pub const CREDENTIALS: u8 = 77;

/// From the worst: wrong key data is worse than a wrong setting, and that is worse than what may pass by itself.
const ORDER: [u8; 6] = [DATA, TASK_ENDED, SETTINGS, CREDENTIALS, OS, UNAVAILABLE];

/// The worst of several ends.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    let rank = |code: &u8| ORDER.iter().position(|other| other == code).unwrap_or(ORDER.len());
    codes.into_iter().min_by_key(rank).unwrap_or(DONE)
}

/// One row of the exit code table.
pub struct Row {
    pub code: u8,
    pub meaning: &'static str,
}

/// Every exit code and what it means; docs/reference/exit-codes.md and `--help` have this table.
pub const TABLE: &[Row] = &[
    Row { code: DONE, meaning: "done, or drained after a signal" },
    Row { code: NOT_READY, meaning: "`health` only: the agent is not ready, or nobody answers" },
    Row { code: SETTINGS, meaning: "settings cannot be used; every problem was printed" },
    Row { code: DATA, meaning: "key data is malformed, or is not the key that was there before" },
    Row { code: UNAVAILABLE, meaning: "not available before the deadline" },
    Row { code: TASK_ENDED, meaning: "a task ended that must not end" },
    Row { code: OS, meaning: "cannot bind an address, or read or write a mounted file" },
    Row { code: CREDENTIALS, meaning: "credentials were refused" },
];
