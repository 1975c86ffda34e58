//! A key in the memory of the real binary: one copy, in locked pages, none once it is deleted; and in no log or file.

mod search;
mod smaps;

use crate::harness::{Client, Launch, Server, base64, block_on, eventually, server_yaml};
use keswarden::crypto::Kind;
use search::{Hit, LEAST_READ, Search, TestKey};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

const KEYS: [(&str, Kind); 2] = [("one", Kind::Aes256), ("other", Kind::ChaCha20)];
const CONNECTIONS: usize = 8;
/// Of each connection, with each key: one generates, one decrypts, one computes an HMAC.
const ROUNDS: usize = 20;
/// Requests that were under way have ended by then.
const SETTLED: Duration = Duration::from_secs(5);

#[test]
fn a_served_key_is_in_memory_once_and_a_deleted_one_nowhere() {
    let mut site = Searched::under_load();
    site.holds_its_keys_once();
    for (name, _) in KEYS {
        let reply = site.server.admin_client(false).call("DELETE", &format!("/v1/key/delete/{name}"), None);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(!site.key_file(name).exists(), "the key '{name}' must be gone");
        site.search.expect_nothing_of(name);
        site.holds_its_keys_once();
    }
}

#[test]
fn key_bytes_are_in_locked_memory() {
    let mut site = Searched::under_load();
    assert_all_locked(&site.holds_its_keys_once());
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
struct Searched {
    server: Server,
    search: Search,
}

// === impl Searched ===

impl Searched {
    /// The keys were used a lot, and no client is connected any more.
    fn under_load() -> Self {
        must_be_root();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["keys", "tmp"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let (seed, mut search) = (seed(), Search::default());
        for of in KEYS {
            let key = TestKey::new(seed, of);
            fs::write(dir.path().join("keys").join(key.name), &key.stored).unwrap();
            search.add(&key);
        }
        let mut site = Self { server: start(dir), search };
        site.load();
        assert_eq!(site.server.process.ended(), None, "{}", site.server.process.tail());
        site
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.server.dir().join("keys").join(name)
    }

    fn load(&self) {
        std::thread::scope(|scope| {
            for connection in 0..CONNECTIONS {
                scope.spawn(move || {
                    let client = self.server.admin_client(connection % 2 == 0);
                    for round in 0..ROUNDS {
                        for (name, _) in KEYS {
                            use_key(&client, name, &format!("{connection}/{round}"));
                        }
                    }
                });
            }
        });
    }

    /// Each key is in memory as often as it may be, and in no log or file; the places in memory.
    fn holds_its_keys_once(&mut self) -> Vec<Hit> {
        let found = eventually(SETTLED, "there are as many copies as there may be", || {
            let found = self.search.memory(self.server.process.id(), |_| true);
            self.search.judge(&found.hits).map(|()| found)
        });
        assert_eq!(self.server.process.ended(), None, "{}", self.server.process.tail());
        assert!(found.read >= LEAST_READ, "only {} bytes of memory could be read", found.read);
        let exempt = KEYS.map(|(name, _)| self.key_file(name));
        let files = files(self.server.dir());
        assert!(files.iter().any(|file| file.ends_with("server.log")), "{files:?}");
        for file in files.iter().filter(|file| !exempt.contains(file)) {
            let found = self.search.names_in(&fs::read(file).unwrap());
            assert!(found.is_empty(), "{} holds {found:?}", file.display());
        }
        found.hits
    }
}

fn start(dir: TempDir) -> Server {
    fs::write(dir.path().join("server-config.yaml"), server_yaml(&dir, "")).unwrap();
    let tmp = dir.path().join("tmp").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    command.current_dir(dir.path());
    let settings = [
        ("PATH", std::env::var("PATH").unwrap_or_default()),
        ("HOME", tmp.clone()),
        ("TMPDIR", tmp),
        ("KESWARDEN_ALLOW_DELETE", "on".to_owned()),
        ("KESWARDEN_LOG", "debug".to_owned()),
        // Every verification fetches all keys again.
        ("KESWARDEN_VERIFY_INTERVAL", "300ms".to_owned()),
    ];
    Launch::in_folder(dir).by(command).set(&settings).ready()
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
