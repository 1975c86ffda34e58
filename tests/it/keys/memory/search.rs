//! A search of a process's memory, and of files, for bytes that give a key away.

use super::{
    KEYS, seed,
    smaps::{Mapping, mappings},
};
use crate::harness::base64;
use keswarden::{
    crypto::{Key, Kind, key_version::KeyVersion},
    secret::hex,
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt};
use zeroize::Zeroizing;

/// Copies of a key's 32 bytes while the key is served: the keyring's.
const KEY_COPIES: usize = 1;
/// Copies of its HMAC key's 32 bytes: the keyring's.
const HMAC_KEY_COPIES: usize = 1;

/// How much of freed memory an allocator overwrites: the search is for the rest.
const HEAD: usize = 16;
/// The length of the search's window.
const WINDOW: usize = 16;
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
/// The least memory of a running process: a search that read less has failed.
pub const LEAST_READ: u64 = 1 << 20;
/// A key whose bytes the test knows.
pub struct TestKey {
    pub name: &'static str,
    pub bytes: [u8; 32],
    pub hmac_key: [u8; 32],
    pub stored: String,
}

// === impl TestKey ===

impl TestKey {
    pub fn new(seed: u64, (name, kind): (&'static str, Kind)) -> Self {
        let random = |part: &str| -> [u8; 32] { Sha256::digest(format!("{seed}/{name}/{part}")).into() };
        let (bytes, hmac_key) = (random("key"), random("HMAC key"));
        let key = Key::new(kind, Zeroizing::new(bytes), Some(Zeroizing::new(hmac_key)));
        let version =
            KeyVersion { key, created_at: jiff::Timestamp::UNIX_EPOCH, created_by: "me".to_owned() };
        Self { name, bytes, hmac_key, stored: version.to_text().expose().to_owned() }
    }
}

/// Bytes that give a key away.
pub struct Secret {
    pub key: &'static str,
    pub what: String,
    pub bytes: Vec<u8>,
    pub copies: usize,
}

// === impl Secret ===

impl Secret {
    fn tail(&self) -> &[u8] {
        &self.bytes[HEAD..]
    }
}

/// Looks for all secrets at once, a window's length at a step (Wu and Manber's way).
pub struct Search {
    pub secrets: Vec<Secret>,
    /// How far the window may go on, by its last two bytes; 0: a secret may be in it.
    pub skip: Vec<usize>,
}

/// The result of a search of memory.
pub struct Found {
    pub hits: Vec<Hit>,
    pub read: u64,
}

/// A copy in memory.
pub struct Hit {
    pub what: String,
    /// The address of its tail.
    pub address: u64,
    pub is_whole: bool,
    pub mapping: Mapping,
}

// === impl Search ===

impl Default for Search {
    fn default() -> Self {
        Self { secrets: Vec::new(), skip: vec![WINDOW - 1; 1 << 16] }
    }
}

impl Search {
    pub fn add(&mut self, key: &TestKey) {
        for (name, bytes, copies) in
            [("key", key.bytes, KEY_COPIES), ("HMAC key", key.hmac_key, HMAC_KEY_COPIES)]
        {
            let padded = |pad: u8| bytes.map(|byte| byte ^ pad).to_vec();
            let text = base64(&bytes);
            self.put(key, name, bytes.to_vec(), copies);
            self.put(key, &format!("{name} in HMAC's inner pad"), padded(0x36), 0);
            self.put(key, &format!("{name} in HMAC's outer pad"), padded(0x5c), 0);
            self.put(key, &format!("{name} in base64"), text.trim_end_matches('=').into(), 0);
            self.put(key, &format!("{name} in hex"), hex(&bytes).into(), 0);
            self.put(key, &format!("{name} in upper-case hex"), hex(&bytes).to_uppercase().into(), 0);
        }
        self.put(key, "stored text", key.stored.trim_end_matches('=').into(), 0);
    }

    fn put(&mut self, key: &TestKey, what: &str, bytes: Vec<u8>, copies: usize) {
        let secret = Secret { key: key.name, what: format!("{}: {what}", key.name), bytes, copies };
        for (at, pair) in secret.tail()[..WINDOW].windows(2).enumerate() {
            let skip = &mut self.skip[index(pair)];
            *skip = (*skip).min(WINDOW - 2 - at);
        }
        self.secrets.push(secret);
    }

    pub fn expect_nothing_of(&mut self, key: &str) {
        self.secrets.iter_mut().filter(|secret| secret.key == key).for_each(|secret| secret.copies = 0);
    }

    /// Passes when each secret has as many copies as it may; fails with the copies that are there.
    pub fn judge(&self, hits: &[Hit]) -> Result<(), String> {
        let mut told = String::new();
        for secret in &self.secrets {
            let found: Vec<_> = hits.iter().filter(|hit| hit.what == secret.what).collect();
            if found.len() != secret.copies {
                let (copies, wanted) = (found.len(), secret.copies);
                told.push_str(&format!("\n{}: {copies} copies, not {wanted}\n", secret.what));
                found.iter().for_each(|hit| told.push_str(&hit.tell()));
            }
        }
        if told.is_empty() { Ok(()) } else { Err(told) }
    }

    /// Calls `found` with the start of each secret's tail.
    fn find<'a>(&'a self, bytes: &[u8], mut found: impl FnMut(usize, &'a Secret)) {
        let mut end = WINDOW;
        while end <= bytes.len() {
            let skip = self.skip[index(&bytes[end - 2..end])];
            if skip == 0 {
                let start = end - WINDOW;
                let here = self.secrets.iter().filter(|secret| bytes[start..].starts_with(secret.tail()));
                here.for_each(|secret| found(start, secret));
            }
            end += skip.max(1);
        }
    }

    pub fn names_in(&self, bytes: &[u8]) -> Vec<&str> {
        let mut names = Vec::new();
        self.find(bytes, |_, secret| names.push(secret.what.as_str()));
        names
    }

    /// Searches those mappings of a process.
    pub fn memory(&self, pid: u32, wanted: impl Fn(&Mapping) -> bool) -> Found {
        let path = format!("/proc/{pid}/mem");
        let memory = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut found = Found { hits: Vec::new(), read: 0 };
        for mapping in mappings(pid).into_iter().filter(|mapping| mapping.is_readable() && wanted(mapping)) {
            self.mapping(&memory, &mapping, &mut found);
        }
        found
    }

    /// Searches chunk by chunk; each chunk is searched behind the end of the chunk before, so that no secret is cut.
    fn mapping(&self, memory: &File, mapping: &Mapping, found: &mut Found) {
        let longest = self.secrets.iter().map(|secret| secret.bytes.len()).max().unwrap_or_default();
        let mut buffer = vec![0_u8; longest + CHUNK];
        let (mut kept, mut hits) = (0, BTreeMap::new());
        for start in mapping.range.clone().step_by(CHUNK) {
            let length = usize::try_from(mapping.range.end - start).unwrap().min(CHUNK);
            found.read += read(memory, start, &mut buffer[kept..kept + length]);
            let (bytes, base) = (&buffer[..kept + length], start - kept as u64);
            self.find(bytes, |at, secret| {
                let is_whole = bytes[..at].ends_with(&secret.bytes[..HEAD]);
                hits.entry((base + at as u64, secret.what.as_str())).or_insert(is_whole);
            });
            let next = bytes.len().min(longest);
            buffer.copy_within(kept + length - next..kept + length, 0);
            kept = next;
        }
        found.hits.extend(hits.into_iter().map(|((address, what), is_whole)| Hit {
            what: what.to_owned(),
            address,
            is_whole,
            mapping: mapping.clone(),
        }));
    }
}

fn index(pair: &[u8]) -> usize {
    usize::from(pair[0]) << 8 | usize::from(pair[1])
}

/// How many bytes were read. A page that cannot be read, such as a page beyond the end of a file, is left zero.
fn read(memory: &File, address: u64, buffer: &mut [u8]) -> u64 {
    if memory.read_exact_at(buffer, address).is_ok() {
        return buffer.len() as u64;
    }
    let mut count = 0;
    for (page, address) in buffer.chunks_mut(PAGE).zip((address..).step_by(PAGE)) {
        match memory.read_exact_at(page, address) {
            Ok(()) => count += page.len() as u64,
            Err(_) => page.fill(0),
        }
    }
    count
}

// === impl Hit ===

impl Hit {
    pub fn tell(&self) -> String {
        let Mapping { line, locked, flags, .. } = &self.mapping;
        let part = if self.is_whole { "whole" } else { "without its first bytes" };
        let (what, start) = (&self.what, self.address - HEAD as u64);
        format!("  {what}, {part}, at {start:#x} in {line}; Locked: {locked}; VmFlags: {flags}\n")
    }
}

/// Without this test, a search that finds nothing would prove nothing.
#[test]
fn the_search_finds_whatever_part_of_a_secret_an_allocator_leaves() {
    let key = TestKey::new(seed(), KEYS[0]);
    let mut search = Search::default();
    search.add(&key);
    for secret in &search.secrets {
        let whole = secret.bytes.repeat(3 * CHUNK / secret.bytes.len());
        let mut freed = vec![0_u8; 3 * PAGE];
        freed[PAGE..PAGE + secret.bytes.len() - HEAD].copy_from_slice(&secret.bytes[HEAD..]);
        for (planted, wanted, is_whole) in
            [(&whole[..], whole.len() / secret.bytes.len(), true), (&freed[..], 1, false)]
        {
            let start = planted.as_ptr().addr() as u64;
            let place = start..start + planted.len() as u64;
            let is_near = |mapping: &Mapping| mapping.range.contains(&place.start);
            let hits = search.memory(std::process::id(), is_near).hits;
            let found = hits.iter().filter(|hit| hit.what == secret.what && place.contains(&hit.address));
            let found: Vec<_> = found.collect();
            assert_eq!(found.len(), wanted, "{}", secret.what);
            assert!(found.iter().all(|hit| hit.is_whole == is_whole), "{}", secret.what);
        }
    }
}
