//! Secret text and bytes: no `Debug`, no `Clone`, no `Serialize`, wiped on drop, compared in constant time.

use std::{fs::File, io::Read, path::Path};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret text, such as a token, a secret_id or an API key.
#[derive(Default)]
pub struct Secret(Zeroizing<String>);

/// 32 secret bytes: a key.
pub type Bytes32 = Zeroizing<[u8; 32]>;

/// Why a secret file was not used. Never holds what the file said.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{0} is empty")]
    Empty(String),
    #[error("{0} is larger than 64 KiB, which no secret is: is it the right file?")]
    TooLarge(String),
    #[error("{0} is not text: it holds bytes that are not UTF-8, or control characters")]
    NotText(String),
}

const MAX_FILE: u64 = 64 * 1024;

// === impl Secret ===

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself; the caller must not let it reach a log, an error or a metric.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Equal in constant time, apart from the length.
    pub fn same(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// Reads a secret from a file. A byte order mark, and line ends and blanks around the text, are
    /// dropped: editors and `echo` put them there.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let name = || path.display().to_string();
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|source| FileError::Read { path: name(), source })?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(FileError::TooLarge(name()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText(name()))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(FileError::Empty(name()));
        }
        if text.chars().any(char::is_control) {
            return Err(FileError::NotText(name()));
        }
        Ok(Self::new(text.to_owned()))
    }
}

/// Equal in constant time.
pub fn same32(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// Fills `buffer` from the operating system's generator.
///
/// # Panics
/// When the operating system has no randomness to give: no key may be made then.
pub fn fill_random(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system must give randomness");
}

/// Fresh random bytes that are no secret.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// 32 fresh random bytes.
pub fn random32() -> Bytes32 {
    let mut bytes = Zeroizing::new([0; 32]);
    fill_random(&mut *bytes);
    bytes
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Secret, FileError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file must open");
        std::fs::write(file.path(), bytes).expect("a temporary file must be written");
        Secret::read(file.path())
    }

    #[test]
    fn line_ends_and_a_byte_order_mark_are_dropped() {
        for bytes in ["s.abc", "s.abc\n", "s.abc\r\n", "\u{feff}s.abc\r\n\r\n", "  s.abc  "] {
            let secret = read(bytes.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(secret.expose(), "s.abc");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name_and_never_quoted() {
        for (bytes, says) in [
            (&b""[..], "is empty"),
            (b"\r\n", "is empty"),
            (b"top\xffsecret", "is not text"),
            (b"topsecret\0", "is not text"),
            (b"two\nlines", "is not text"),
            (&[b'x'; 70_000], "larger than 64 KiB"),
        ] {
            let error = read(bytes).err().expect("the file must be refused").to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("secret\0") && !error.contains("topsecret"), "{error}");
        }
        let error = Secret::read(Path::new("/nonexistent/token")).err().expect("must be refused");
        assert!(error.to_string().starts_with("cannot read /nonexistent/token"), "{error}");
    }
}
