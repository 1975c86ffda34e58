//! What keeps keys safe: the sealed copy, what the API may make, and how long a key is used that cannot be verified.

use super::parse::Reader;
use crate::{kes::policy::Makeable, keyring::Limits, names::Name, offline};
use std::time::Duration;

/// What the API may make; without the setting, everything but the default EK, where there is one.
pub(super) fn makeable(reader: &mut Reader, key: Option<&Name>) -> Makeable {
    let patterns = reader.list("KESWARDEN_CREATE_NAMES");
    match (patterns.as_slice(), key) {
        ([], None) => Makeable::Any,
        ([], Some(key)) => Makeable::AllBut(key.clone()),
        ([none], _) if none == "none" => Makeable::These(Vec::new()),
        _ => Makeable::These(patterns),
    }
}

/// How long keys are used while they cannot be verified.
pub(super) fn limits(reader: &mut Reader, interval: Duration) -> Limits {
    let closed = reader.word("KESWARDEN_OUTAGE") == "closed";
    let default = closed.then_some(interval * 2);
    let mut limit = |name: &'static str, otherwise: Option<Duration>| match reader.text(name).as_deref() {
        Some("unlimited") => None,
        Some(_) => reader.duration(name),
        None => default.or(otherwise),
    };
    Limits {
        open: limit("KESWARDEN_STALE_OPEN_MAX", None),
        seal: limit("KESWARDEN_STALE_SEAL_MAX", Some(Duration::from_secs(72 * 3600))),
    }
}

pub(super) fn offline_settings(reader: &mut Reader) -> Option<offline::Config> {
    let max_age = reader.interval("KESWARDEN_OFFLINE_MAX");
    let tenant = reader.plain("KESWARDEN_TENANT").unwrap_or_default();
    match (reader.path("KESWARDEN_OFFLINE_DIR"), reader.path("KESWARDEN_OFFLINE_KEY_FILE")) {
        (Some(dir), Some(wrapping_key)) => Some(offline::Config { dir, wrapping_key, max_age, tenant }),
        (None, None) => None,
        (Some(_), None) => reader.refuse(
            "KESWARDEN_OFFLINE_KEY_FILE",
            "is not set, but KESWARDEN_OFFLINE_DIR is: sealed with what?",
        ),
        (None, Some(_)) => reader.refuse(
            "KESWARDEN_OFFLINE_DIR",
            "is not set, but KESWARDEN_OFFLINE_KEY_FILE is: where is the copy?",
        ),
    }
}
