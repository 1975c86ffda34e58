//! A key in the memory of the real binary: one copy, in locked pages, none once it is deleted; and in no log or file.

use crate::{
    harness::{Client, base64, block_on},
    kes_server::{Kes, now},
    peers::{Process, SOON, answers, eventually, free_port},
};
use keswarden::{
    crypto::{Key, Kind, key_version::KeyVersion},
    secret::hex,
    tls::{self, Pair, mint::RunDir, trust::Trust},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// Copies of a key's 32 bytes while it is served: the one that the keyring holds.
const KEY_COPIES: usize = 1;
/// Copies of its HMAC key's 32 bytes: beside it.
const HMAC_KEY_COPIES: usize = 1;

const KEYS: [(&str, Kind); 2] = [("one", Kind::Aes256), ("other", Kind::ChaCha20)];
const CONNECTIONS: usize = 8;
/// Of each connection, with each key: one generates, one decrypts, one computes an HMAC.
const ROUNDS: usize = 20;
/// What is in flight is gone by then.
const SETTLED: Duration = Duration::from_secs(5);

/// How much of freed memory an allocator overwrites: what is looked for is the rest.
const HEAD: usize = 16;
/// The least that is looked for at once.
const WINDOW: usize = 16;
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
/// A running process has more than this; less was not read.
const LEAST_READ: u64 = 1 << 20;

#[test]
fn a_served_key_is_in_memory_once_and_a_deleted_one_nowhere() {
    let mut site = Site::under_load();
    site.holds_its_keys_once();
    for (name, _) in KEYS {
        let reply = site.client(false).call("DELETE", &format!("/v1/key/delete/{name}"), None);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(!site.key_file(name).exists(), "the key '{name}' must be gone");
        site.search.expect_nothing_of(name);
        site.holds_its_keys_once();
    }
}

#[test]
fn key_bytes_are_in_locked_memory() {
    let mut site = Site::under_load();
    assert_all_locked(&site.holds_its_keys_once());
}

/// That a search finds nothing would else mean nothing.
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

/// Every copy is in pages that are never written to swap.
fn assert_all_locked(hits: &[Hit]) {
    let exposed: Vec<_> = hits.iter().filter(|hit| !hit.mapping.is_locked()).collect();
    let told = exposed.iter().map(|hit| hit.tell()).collect::<String>();
    assert!(
        exposed.is_empty(),
        "{} of {} copies are not in locked memory:\n{told}",
        exposed.len(),
        hits.len()
    );
}

fn must_be_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test reads the memory of a process that nobody may attach to: it must run as root"
    );
}

fn seed() -> u64 {
    let seed = match std::env::var("KESWARDEN_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("memory: KESWARDEN_TEST_SEED={seed}");
    seed
}

/// `keswarden server` over a directory with the keys, all of it in one folder.
struct Site {
    pid: u32,
    process: Process,
    kes_port: u16,
    search: Search,
    dir: TempDir,
}

// === impl Site ===

impl Site {
    /// The keys were used a lot, and nobody is connected any more.
    fn under_load() -> Self {
        must_be_root();
        let dir = tempfile::tempdir().unwrap();
        RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        for folder in ["keys", "tmp"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let (seed, mut search) = (seed(), Search::default());
        for of in KEYS {
            let key = TestKey::new(seed, of);
            fs::write(dir.path().join("keys").join(key.name), &key.stored).unwrap();
            search.add(&key);
        }
        let mut site = Self::start(dir, search);
        site.load();
        assert_eq!(site.process.ended(), None, "{}", site.process.tail());
        site
    }

    fn start(dir: TempDir, search: Search) -> Self {
        let config = dir.path().join("server-config.yaml");
        fs::write(&config, Kes::yaml(&dir, "")).unwrap();
        let (kes_port, admin_port) = (free_port(), free_port());
        let mut command = Command::new("sh");
        // The shell tells its own number, which stays when it becomes the server.
        command.args(["-c", "echo $$ > pid && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_keswarden"), "server"]);
        command.arg("--config").arg(&config).arg("--addr").arg(format!("127.0.0.1:{kes_port}"));
        command.current_dir(dir.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("XDG_STATE_HOME", dir.path().join("state"));
        command.env("HOME", dir.path().join("tmp")).env("TMPDIR", dir.path().join("tmp"));
        command.env("KESWARDEN_ADMIN_ADDR", format!("127.0.0.1:{admin_port}"));
        command.env("KESWARDEN_ALLOW_DELETE", "on").env("KESWARDEN_LOG", "debug");
        // Every verification fetches all keys again.
        command.env("KESWARDEN_VERIFY_INTERVAL", "300ms");
        let mut process = Process::spawn("keswarden server", command, dir.path().join("keswarden.log"));
        process.until(SOON, "is ready", || answers(admin_port, "/readyz", 200));
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        Self { pid, process, kes_port, search, dir }
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("keys").join(name)
    }

    /// One connection, closed when dropped.
    fn client(&self, http1: bool) -> Client {
        let (certificate, key) = Kes::admin().certificate(now());
        let trust = Trust::only(&self.dir.path().join("ca.crt")).unwrap();
        let config = tls::client_config(trust, Some(Pair { chain: vec![certificate], key })).unwrap();
        Client::new(config, http1, format!("127.0.0.1:{}", self.kes_port).parse().unwrap())
    }

    fn load(&self) {
        std::thread::scope(|scope| {
            for connection in 0..CONNECTIONS {
                scope.spawn(move || {
                    let client = self.client(connection % 2 == 0);
                    for round in 0..ROUNDS {
                        for (name, _) in KEYS {
                            use_key(&client, name, &format!("{connection}/{round}"));
                        }
                    }
                });
            }
        });
    }

    /// As many copies as there may be, in memory, logs and files; where they are in memory.
    fn holds_its_keys_once(&mut self) -> Vec<Hit> {
        let found = eventually(SETTLED, "there are as many copies as there may be", || {
            let found = self.search.memory(self.pid, |_| true);
            self.search.judge(&found.hits).map(|()| found)
        });
        assert_eq!(self.process.ended(), None, "{}", self.process.tail());
        assert!(found.read >= LEAST_READ, "only {} bytes of memory could be read", found.read);
        let exempt = KEYS.map(|(name, _)| self.key_file(name));
        let files = files(self.dir.path());
        assert!(files.iter().any(|file| file.ends_with("keswarden.log")), "{files:?}");
        for file in files.iter().filter(|file| !exempt.contains(file)) {
            let found = self.search.names_in(&fs::read(file).unwrap());
            assert!(found.is_empty(), "{} holds {found:?}", file.display());
        }
        found.hits
    }
}

fn use_key(client: &Client, name: &str, context: &str) {
    let (plaintext, ciphertext) = client.generate(name, context);
    let opened = client.decrypt(name, &ciphertext, context);
    assert!(opened.status == 200 && opened.body.contains(&plaintext), "{}", opened.body);
    let body = serde_json::json!({ "message": base64(context.as_bytes()) }).to_string();
    let reply = block_on(client.send("POST", &format!("/v1/key/hmac/{name}"), Some(&body))).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let below = |entry: fs::DirEntry| match entry.file_type().unwrap() {
        found if found.is_dir() => files(&entry.path()),
        found if found.is_file() => vec![entry.path()],
        _ => Vec::new(),
    };
    entries.flat_map(below).collect()
}

/// A key that is known here.
struct TestKey {
    name: &'static str,
    bytes: [u8; 32],
    hmac_key: [u8; 32],
    stored: String,
}

// === impl TestKey ===

impl TestKey {
    fn new(seed: u64, (name, kind): (&'static str, Kind)) -> Self {
        let random = |part: &str| -> [u8; 32] { Sha256::digest(format!("{seed}/{name}/{part}")).into() };
        let (bytes, hmac_key) = (random("key"), random("HMAC key"));
        let key = Key::new(kind, Zeroizing::new(bytes), Some(Zeroizing::new(hmac_key)));
        let version =
            KeyVersion { key, created_at: jiff::Timestamp::UNIX_EPOCH, created_by: "me".to_owned() };
        Self { name, bytes, hmac_key, stored: version.to_text().expose().to_owned() }
    }
}

/// Bytes that give a key away.
struct Secret {
    key: &'static str,
    what: String,
    bytes: Vec<u8>,
    copies: usize,
}

// === impl Secret ===

impl Secret {
    fn tail(&self) -> &[u8] {
        &self.bytes[HEAD..]
    }
}

/// Looks for all secrets at once, a window's length at a step (Wu and Manber's way).
struct Search {
    secrets: Vec<Secret>,
    /// How far the window may go on, by its last two bytes; 0: a secret may be in it.
    skip: Vec<usize>,
}

/// What a search of memory found.
struct Found {
    hits: Vec<Hit>,
    read: u64,
}

/// A copy in memory.
struct Hit {
    what: String,
    /// Of its tail.
    address: u64,
    is_whole: bool,
    mapping: Mapping,
}

// === impl Search ===

impl Default for Search {
    fn default() -> Self {
        Self { secrets: Vec::new(), skip: vec![WINDOW - 1; 1 << 16] }
    }
}

impl Search {
    fn add(&mut self, key: &TestKey) {
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

    fn expect_nothing_of(&mut self, key: &str) {
        self.secrets.iter_mut().filter(|secret| secret.key == key).for_each(|secret| secret.copies = 0);
    }

    /// As many copies of each as there may be, or what is there in their place.
    fn judge(&self, hits: &[Hit]) -> Result<(), String> {
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

    /// Says where the tail of a secret starts.
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

    fn names_in(&self, bytes: &[u8]) -> Vec<&str> {
        let mut names = Vec::new();
        self.find(bytes, |_, secret| names.push(secret.what.as_str()));
        names
    }

    /// What is in those mappings of a process.
    fn memory(&self, pid: u32, wanted: impl Fn(&Mapping) -> bool) -> Found {
        let path = format!("/proc/{pid}/mem");
        let memory = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut found = Found { hits: Vec::new(), read: 0 };
        for mapping in mappings(pid).into_iter().filter(|mapping| mapping.is_readable() && wanted(mapping)) {
            self.mapping(&memory, &mapping, &mut found);
        }
        found
    }

    /// Chunk by chunk; each is searched behind the end of the one before, so that no secret is cut.
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

/// How many bytes were read. What cannot be, such as a page beyond the end of a file, is left zero.
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
    fn tell(&self) -> String {
        let Mapping { line, locked, flags, .. } = &self.mapping;
        let part = if self.is_whole { "whole" } else { "without its first bytes" };
        let (what, start) = (&self.what, self.address - HEAD as u64);
        format!("  {what}, {part}, at {start:#x} in {line}; Locked: {locked}; VmFlags: {flags}\n")
    }
}

/// A row of `/proc/PID/smaps`.
#[derive(Clone)]
struct Mapping {
    range: Range<u64>,
    /// As in `/proc/PID/maps`.
    line: String,
    locked: String,
    flags: String,
}

// === impl Mapping ===

impl Mapping {
    fn is_readable(&self) -> bool {
        let readable = self.line.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with('r'));
        readable && !["[vvar", "[vdso", "[vsyscall"].iter().any(|special| self.line.contains(special))
    }

    fn is_locked(&self) -> bool {
        self.flags.split_whitespace().any(|flag| flag == "lo")
    }
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(range) = range(line) {
            let (locked, flags) = (String::new(), String::new());
            mappings.push(Mapping { range, line: line.to_owned(), locked, flags });
        } else if let (Some(mapping), Some((name, value))) = (mappings.last_mut(), line.split_once(':')) {
            match name {
                "Locked" => mapping.locked = value.trim().to_owned(),
                "VmFlags" => mapping.flags = value.trim().to_owned(),
                _ => {}
            }
        }
    }
    each_once(mappings)
}

/// Cuts off what an earlier row has covered: while another thread maps memory, a row may come twice, and longer the second time.
fn each_once(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut covered = 0;
    let cut = |mut mapping: Mapping| {
        mapping.range.start = mapping.range.start.max(covered);
        covered = covered.max(mapping.range.end);
        (!mapping.range.is_empty()).then_some(mapping)
    };
    mappings.into_iter().filter_map(cut).collect()
}

#[test]
fn a_row_of_smaps_that_comes_twice_is_read_once() {
    let row = |range: Range<u64>| Mapping {
        range,
        line: String::new(),
        locked: String::new(),
        flags: String::new(),
    };
    let rows = vec![row(0..10), row(10..20), row(0..10), row(10..30), row(40..50)];
    let read: Vec<_> = each_once(rows).into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(read, [0..10, 10..20, 20..30, 40..50]);
}

/// `START-END`, in hexadecimal, at the start of a line.
fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}
