//! `xl.meta`: what a drive says of one object's versions, from any bytes, without a panic and without much memory.
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
    /// Nanoseconds since 1970.
    pub mtime: i64,
    pub kind: Kind,
    /// As stored: sealed data is a little longer than what the client sent.
    pub size: u64,
    pub parts: u32,
    /// Which shard of the data this drive has; 1 is the first.
    pub shard: u64,
    pub encryption: Encryption,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Object,
    DeleteMarker,
    /// What this program does not know.
    Other,
}

/// How a version's data is encrypted.
#[derive(Debug, PartialEq, Eq)]
pub enum Encryption {
    Plain,
    /// With a key that only the client has.
    SseC,
    SseS3(Box<Sealed>),
    SseKms(Box<Sealed>),
    /// In a way that this program does not know.
    Unknown,
}

/// A data key that a KMS sealed.
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    pub key_name: String,
    pub ciphertext: Vec<u8>,
    /// The client's own context, JSON; empty when it gave none. `context::of_object` makes the whole of it.
    pub client_context: Vec<u8>,
}

/// Why the bytes were not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it does not start as xl.meta does")]
    NoXlMeta,
    #[error("it is of a version that this program does not know")]
    UnknownVersion,
    #[error("it is cut short or damaged")]
    Malformed,
}

const PREFIX: &[u8] = b"X-Minio-Internal-Server-Side-Encryption-";
const ARN: &str = "arn:aws:kms:";
/// Longer than any name a KMS takes.
const MAX_NAME: usize = 256;
/// The bitrot hash before inline data.
const HASH: usize = 32;

/// All versions, the newest first. What follows the metadata block need not be there.
pub fn parse(bytes: &[u8]) -> Result<Vec<Version>, Unreadable> {
    let (block, _) = split(bytes)?;
    versions(block)
}

/// How many bytes of the file are needed to parse it, when its first bytes say so.
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

/// What one drive shows of a file of MinIO's own.
#[derive(Debug, PartialEq, Eq)]
pub enum Own {
    /// When it was written, and the data key that it was sealed with.
    Sealed(i64, Sealed),
    /// It is sealed, as far as this drive shows, and the drive with its first shard names the key.
    Elsewhere,
    /// It is not sealed, or was deleted.
    Plain,
}

/// Reads a file of MinIO's own, such as `config.json`: only the drive with the first shard has its sealed data key.
pub fn own(bytes: &[u8]) -> Result<Own, Unreadable> {
    let (block, rest) = split(bytes)?;
    let newest = versions(block)?.into_iter().next();
    let Some(newest) = newest.filter(|newest| newest.kind == Kind::Object) else { return Ok(Own::Plain) };
    let data = inline(rest).and_then(|data| data.get(HASH..)).unwrap_or_default();
    let sealed = if newest.shard == 1 { sealed_at_start(data) } else { None };
    Ok(match sealed {
        Some(sealed) => Own::Sealed(newest.mtime, sealed),
        None if !data.is_empty() && is_text(data) => Own::Plain,
        None => Own::Elsewhere,
    })
}

/// What is not sealed is JSON, padded with zeros where it is cut into shards.
fn is_text(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| {
        text.trim_end_matches('\0')
            .chars()
            .all(|character| !character.is_control() || character.is_whitespace())
    })
}

/// The metadata block, and what follows it.
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
    // Nothing is set aside for `count`: it is only what the bytes say.
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
    // An object of another form is none that we know.
    if version.kind == Kind::Object && !described {
        version.kind = Kind::Other;
    }
    Some(version)
}

/// The inline data of the object without versions.
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

/// MinIO's own files start with the sealed data key: 0x01, a length, JSON.
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
    let name = name.strip_prefix(ARN).unwrap_or(name);
    let usable = !name.is_empty() && name.len() <= MAX_NAME && !ciphertext.is_empty();
    usable.then(|| Sealed { key_name: name.to_owned(), ciphertext, client_context })
}

/// What `MetaSys` says of encryption.
#[derive(Default)]
struct Seals<'a> {
    key_name: &'a [u8],
    ciphertext: &'a [u8],
    client_context: &'a [u8],
    by_s3: bool,
    by_kms: bool,
    by_client: bool,
    /// Anything else of encryption.
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
        match name.strip_prefix(PREFIX) {
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
