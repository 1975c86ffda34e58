//! Secret text and bytes, without `Debug`, `Clone` or `Serialize`, wiped on drop, and compared in constant
//! time.

use std::{fs::File, io::Read, path::Path};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret text, such as a token, a secret_id or an API key.
#[derive(Default)]
pub struct Secret(Zeroizing<String>);

/// The 32 secret bytes of a key.
pub type Bytes32 = Zeroizing<[u8; 32]>;

/// The reason that a secret file is not used. No variant has text of the file; each has the path.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path.
        path: String,
        /// The failure.
        source: std::io::Error,
    },
    /// The file has nothing but line ends and blanks.
    #[error("{0} is empty")]
    Empty(String),
    /// The file is larger than 64 KiB.
    #[error("{0} is larger than 64 KiB, which no secret is: is it the right file?")]
    TooLarge(String),
    /// The file has bytes that are not UTF-8, or control characters.
    #[error("{0} is not text: it holds bytes that are not UTF-8, or control characters")]
    NotText(String),
}

/// Bytes of a secret file at most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

// === impl Secret ===

impl Secret {
    /// A secret that owns `text`.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, which the caller keeps out of logs, errors and metrics.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether both texts are equal, compared in constant time. Only the length shows.
    pub fn same(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// Reads a secret from a file. A byte order mark, and line ends and blanks around the text, are dropped,
    /// because editors and `echo` add them.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, is larger than 64 KiB, or is not text of one line.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let name = || path.display().to_string();
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|source| FileError::Read { path: name(), source })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
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

/// Whether both are equal, compared in constant time.
pub fn same32(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// Fills `buffer` from the operating system's generator.
///
/// # Panics
/// When the operating system gives no randomness, because no key may be made then.
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
