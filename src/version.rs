//! What this build is called.

/// The version of the crate, for example `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from: 40 hex digits when the build said so (`KESWARDEN_COMMIT`), else zeros.
pub const COMMIT: &str = match option_env!("KESWARDEN_COMMIT") {
    Some(commit) => commit,
    None => "0000000000000000000000000000000000000000",
};
