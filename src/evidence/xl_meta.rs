//! The parser of `xl.meta`, the metadata of one object's versions. Any bytes are parsed without a panic and
//! without much memory.
//!
//! ```text
//! "XL2 " u16 major=1 u16 minor=3 · bin{ header version=3, meta version=3, N, N × (bin header, bin version) }
//! uint checksum · 0x01 · map{ version or "null": inline data }
//! ```

use super::msgpack::{Reader, Value};
use crate::go::json::{self, Kind as Member, Wanted};

/// One version of an object.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The time of the version, in nanoseconds since 1970.
    pub mtime: i64,
    /// The kind of the version.
    pub kind: Kind,
    /// The stored bytes. Sealed data is a little longer than the client's data.
    pub size: u64,
    /// The number of parts.
    pub parts: u32,
    /// The number of the drive's shard of the data; 1 is the first.
    pub shard: u64,
    /// The encryption of the data.
    pub encryption: Encryption,
}

/// The kind of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object.
    Object,
    /// A delete marker.
    DeleteMarker,
    /// An unknown kind.
    Other,
}

/// The encryption of a version's data.
#[derive(Debug, PartialEq, Eq)]
pub enum Encryption {
    /// No encryption.
    Plain,
    /// SSE-C, with a key that only the client has.
    SseC,
    /// SSE-S3, with the default EK.
    SseS3(Box<Sealed>),
    /// SSE-KMS, with a named EK.
    SseKms(Box<Sealed>),
    /// An unknown encryption.
    Unknown,
}

/// A DEK that a KMS sealed.
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The name of the EK, 1 to 256 bytes.
    pub key_name: String,
    /// The sealed DEK, never empty.
    pub ciphertext: Vec<u8>,
    /// The client's own context in JSON, or empty. `context::of_object` makes the whole context.
    pub client_context: Vec<u8>,
}

/// The reason that bytes are not parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The magic number is missing.
    #[error("it does not start as xl.meta does")]
    NoXlMeta,
    /// The file's, header's or metadata's version is unknown.
    #[error("it is of a version that this program does not know")]
    UnknownVersion,
    /// The bytes end early or are damaged.
    #[error("it is cut short or damaged")]
    Malformed,
}

/// The prefix of metadata about encryption.
const ENCRYPTION_PREFIX: &[u8] = b"X-Minio-Internal-Server-Side-Encryption-";
/// The prefix that MinIO adds to the names of keys in some places.
const KEY_ARN_PREFIX: &str = "arn:aws:kms:";
/// Bytes of a key's name at most, more than any KMS takes.
const KEY_NAME_BYTES_MAX: usize = 256;
/// Bytes of the bitrot hash before inline data.
const HASH_BYTES: usize = 32;

/// Parses all versions, the newest first. The bytes may end after the metadata block.
///
/// # Errors
/// When the bytes are no `xl.meta`, of an unknown version, cut short or damaged.
pub fn parse(bytes: &[u8]) -> Result<Vec<Version>, Unreadable> {
    let (block, _) = split(bytes)?;
    versions(block)
}

/// The number of bytes that [`parse`] needs, from the file's first bytes; nothing when these are too few or
/// of another form.
pub fn needed(start: &[u8]) -> Option<u64> {
    let rest = start.get(8..)?;
    let (width, length) = match rest.first()? {
        0xc4 => (1, u64::from(*rest.get(1)?)),
        0xc5 => (2, u64::from(u16::from_be_bytes(rest.get(1..3)?.try_into().ok()?))),
        0xc6 => (4, u64::from(u32::from_be_bytes(rest.get(1..5)?.try_into().ok()?))),
        _ => return None,
    };
    Some(8 + 1 + width + length)
}

/// One of MinIO's own files, as far as one drive shows the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Own {
    /// A sealed file: the time of writing in nanoseconds since 1970, and the sealed DEK.
    Sealed(i64, Sealed),
    /// A file that may be sealed, and whose first shard, which names the key, is on another drive.
    Elsewhere,
    /// A file that is not sealed, or was deleted.
    Plain,
}

/// Reads one of MinIO's own files, such as `config.json`. Only the drive with the first shard has the sealed
/// DEK.
///
/// # Errors
/// As [`parse`].
pub fn own(bytes: &[u8]) -> Result<Own, Unreadable> {
    let (block, rest) = split(bytes)?;
    let newest = versions(block)?.into_iter().next();
    let Some(newest) = newest.filter(|newest| newest.kind == Kind::Object) else { return Ok(Own::Plain) };
    let data = inline(rest).and_then(|data| data.get(HASH_BYTES..)).unwrap_or_default();
    let sealed = if newest.shard == 1 { sealed_at_start(data) } else { None };
    Ok(match sealed {
        Some(sealed) => Own::Sealed(newest.mtime, sealed),
        None if !data.is_empty() && is_text(data) => Own::Plain,
        None => Own::Elsewhere,
    })
}

/// Whether a shard is text. A file that is not sealed is JSON, padded with zeros when cut into shards.
fn is_text(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| {
        text.trim_end_matches('\0')
            .chars()
            .all(|character| !character.is_control() || character.is_whitespace())
    })
}

/// The metadata block, and a reader of the bytes after the block.
fn split(bytes: &[u8]) -> Result<(&[u8], Reader<'_>), Unreadable> {
    let rest = bytes.strip_prefix(b"XL2 ").ok_or(Unreadable::NoXlMeta)?;
    let (version, rest) = rest.split_at_checked(4).ok_or(Unreadable::Malformed)?;
    if version != [1, 0, 3, 0] {
        return Err(Unreadable::UnknownVersion);
    }
    let mut reader = Reader::new(rest);
    let block = reader.bytes().ok_or(Unreadable::Malformed)?;
    Ok((block, reader))
}

fn versions(block: &[u8]) -> Result<Vec<Version>, Unreadable> {
    let mut reader = Reader::new(block);
    let mut number = || reader.uint().ok_or(Unreadable::Malformed);
    let (header, meta, count) = (number()?, number()?, number()?);
    if (header, meta) != (3, 3) {
        return Err(Unreadable::UnknownVersion);
    }
    // No memory is reserved for `count`, because damaged bytes may give any number.
    let mut found = Vec::new();
    for _ in 0..count {
        let body = reader.bytes().and_then(|_header| reader.bytes());
        found.push(body.and_then(version).ok_or(Unreadable::Malformed)?);
    }
    Ok(found)
}

fn version(body: &[u8]) -> Option<Version> {
    let mut reader = Reader::new(body);
    let mut version =
        Version { mtime: 0, kind: Kind::Other, size: 0, parts: 0, shard: 0, encryption: Encryption::Plain };
    let mut described = false;
    for _ in 0..reader.map()? {
        match reader.bytes()? {
            b"Type" => {
                version.kind = match reader.uint()? {
                    1 => Kind::Object,
                    2 => Kind::DeleteMarker,
                    _ => Kind::Other,
                }
            }
            b"V2Obj" | b"DelObj" => {
                described = true;
                version.describe(&mut reader)?;
            }
            _ => reader.skip()?,
        }
    }
    // An object without `V2Obj` is in an unknown form.
    if version.kind == Kind::Object && !described {
        version.kind = Kind::Other;
    }
    Some(version)
}

/// The inline data of the version `null`.
fn inline(mut rest: Reader<'_>) -> Option<&[u8]> {
    let _checksum = rest.uint()?;
    if rest.byte()? != 1 {
        return None;
    }
    for _ in 0..rest.map()? {
        let (name, data) = (rest.bytes()?, rest.bytes()?);
        if name == b"null" {
            return Some(data);
        }
    }
    None
}

/// The sealed DEK at the start of one of MinIO's own files: 0x01, a little-endian length of 4 bytes, JSON.
fn sealed_at_start(data: &[u8]) -> Option<Sealed> {
    const WANTED: Wanted = &[("keyid", Member::Text), ("kmskey", Member::Bytes)];
    let (mark, rest) = data.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if *mark != 1 {
        return None;
    }
    let object = json::first(rest.get(..length)?, WANTED)?;
    sealed(object.bytes("keyid"), object.bytes("kmskey").to_vec(), Vec::new())
}

fn sealed(key_name: &[u8], ciphertext: Vec<u8>, client_context: Vec<u8>) -> Option<Sealed> {
    let name = std::str::from_utf8(key_name).ok()?;
    let name = name.strip_prefix(KEY_ARN_PREFIX).unwrap_or(name);
    let usable = !name.is_empty() && name.len() <= KEY_NAME_BYTES_MAX && !ciphertext.is_empty();
    usable.then(|| Sealed { key_name: name.to_owned(), ciphertext, client_context })
}

/// The members of `MetaSys` about encryption.
#[derive(Default)]
struct Seals<'a> {
    key_name: &'a [u8],
    ciphertext: &'a [u8],
    client_context: &'a [u8],
    by_s3: bool,
    by_kms: bool,
    by_client: bool,
    /// Whether any other member about encryption is there.
    other: bool,
}

// === impl Version ===

impl Version {
    fn describe(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"MTime" => self.mtime = reader.int()?,
                b"Size" => self.size = reader.uint()?,
                b"EcIndex" => self.shard = reader.uint()?,
                b"PartNums" => self.parts = part_count(reader)?,
                b"MetaSys" => self.encryption = encryption(reader)?,
                _ => reader.skip()?,
            }
        }
        Some(())
    }
}

fn part_count(reader: &mut Reader<'_>) -> Option<u32> {
    let mut ahead = *reader;
    let count = match ahead.value()? {
        Value::Array(count) => count,
        Value::Nil => 0,
        _ => return None,
    };
    reader.skip()?;
    Some(count)
}

fn encryption(reader: &mut Reader<'_>) -> Option<Encryption> {
    let mut seals = Seals::default();
    for _ in 0..reader.map()? {
        let name = reader.bytes()?;
        match name.strip_prefix(ENCRYPTION_PREFIX) {
            Some(name) => seals.take(name, reader.bytes()?),
            None => reader.skip()?,
        }
    }
    Some(seals.encryption())
}

// === impl Seals ===

impl<'a> Seals<'a> {
    fn take(&mut self, name: &[u8], value: &'a [u8]) {
        match name {
            b"S3-Kms-Key-Id" => self.key_name = value,
            b"S3-Kms-Sealed-Key" => self.ciphertext = value,
            b"Context" => self.client_context = value,
            b"S3-Sealed-Key" => self.by_s3 = true,
            b"Kms-Sealed-Key" => self.by_kms = true,
            b"Sealed-Key" => self.by_client = true,
            _ => self.other = true,
        }
    }

    fn encryption(self) -> Encryption {
        match (self.by_s3 || self.by_kms, self.by_client) {
            (true, _) => match self.sealed() {
                Some(sealed) if self.by_s3 => Encryption::SseS3(Box::new(sealed)),
                Some(sealed) => Encryption::SseKms(Box::new(sealed)),
                None => Encryption::Unknown,
            },
            (false, true) => Encryption::SseC,
            (false, false) if self.other || !self.key_name.is_empty() || !self.ciphertext.is_empty() => {
                Encryption::Unknown
            }
            (false, false) => Encryption::Plain,
        }
    }

    fn sealed(&self) -> Option<Sealed> {
        let ciphertext = json::base64(self.ciphertext)?.to_vec();
        sealed(self.key_name, ciphertext, json::base64(self.client_context)?.to_vec())
    }
}

#[cfg(test)]
mod tests;
