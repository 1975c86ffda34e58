//! Names of keys, policies and identities, and the patterns that list them (KES 2025-03-12, by observation).
//!
//! A name is 1–80 bytes of `0-9 A-Z a-z - _`, without `-` at either end, and not exactly `_`.

use std::{fmt, sync::Arc};

/// A valid name, safe in a URL path, a file name and a Vault path. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// The error of a text that is no valid name. The message shows 80 escaped characters at most.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is empty, too long or contains invalid characters (1-80 of 0-9 A-Z a-z - _, no - at either end)"
)]
pub struct InvalidName(String);

/// The pattern of a list request.
#[derive(Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Every name.
    All,
    /// Names with this prefix.
    Prefix(String),
}

/// Bytes of a name or pattern at most.
const NAME_BYTES_MAX: usize = 80;

// === impl Name ===

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// When the text is empty, too long, or outside the alphabet.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let valid = !text.is_empty() && text.len() <= NAME_BYTES_MAX && within_alphabet(text);
        if valid { Ok(Self(text.into())) } else { Err(InvalidName(shown(text))) }
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// === impl Pattern ===

impl Pattern {
    /// Reads a pattern. `*` and the empty text mean all names. A prefix may end with `*`. Nothing for an
    /// invalid pattern.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text == "*" {
            return Some(Self::All);
        }
        let prefix = text.strip_suffix('*').unwrap_or(text);
        let inner = within_alphabet_of_pattern(text, prefix);
        (text.len() <= NAME_BYTES_MAX && inner).then(|| Self::Prefix(prefix.to_owned()))
    }

    /// Whether the pattern matches a name.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

fn within_alphabet(text: &str) -> bool {
    text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-') && text != "_"
}

/// Whether a pattern is within the alphabet. The rule for `-` at the ends is for the whole text, so `key-*`
/// is valid and `key-` is not.
fn within_alphabet_of_pattern(text: &str, prefix: &str) -> bool {
    prefix.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-') && text != "_"
}

fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// The part of a stranger's text that a message shows.
fn shown(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).flat_map(char::escape_default).collect()
}
/// A path in Vault, of segments without odd characters; the slashes around it are dropped. Absent when a segment is empty, `.`, `..`, or has
/// other characters than letters, digits, `-`, `_` and `.`.
pub fn vault_path(text: &str) -> Option<String> {
    let path = text.trim().trim_matches('/');
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    path.split('/').all(segment).then(|| path.to_owned())
}
