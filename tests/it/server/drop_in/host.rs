//! One host with keswarden in the place of KES, and every use of keys by MinIO and `mc` there.

use super::{BY_KMS, BY_S3, KEY, Store, key_names, make_key, temporary, vault};
use crate::harness::{Agent, Bao, Mc, Minio, SOON, eventually, finish, succeeded, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    process::Command,
};
use tempfile::TempDir;

/// A key that MinIO makes through keswarden.
const NEW_KEY: &str = "made-by-mc";
/// Large enough for `mc` to put it in several parts.
const LARGE: u64 = 70 * 1024 * 1024;

/// One host: keswarden, MinIO and `mc`, and OpenBao where there is one.
pub struct Host {
    store: Store,
    bao: Option<Bao>,
    pub agent: Agent,
    pub minio: Minio,
    pub mc: Mc,
    /// Every object that must be read back.
    kept: Vec<Kept>,
    /// Contents, and the keys when they are in a directory.
    dir: TempDir,
}

struct Kept {
    /// `BUCKET/OBJECT`
    place: String,
    /// The newest when absent.
    version: Option<String>,
    sha256: String,
}

// === impl Host ===

impl Host {
    /// MinIO runs beside a keswarden whose default key was made by hand.
    pub fn running(store: Store) -> Self {
        let dir = temporary();
        let keys = dir.path().join("keys");
        fs::create_dir(&keys).expect("a temporary folder must be made");
        let (bao, mut settings) = match store {
            Store::Directory => (None, vec![("KESWARDEN_FS_DIR", keys.to_string_lossy().into_owned())]),
            _ => {
                let (bao, settings) = vault(store);
                (Some(bao), settings)
            }
        };
        settings.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
        if store == Store::Transit {
            settings.push(("KESWARDEN_VAULT_TRANSIT_KEY", "wrap".to_owned()));
        }
        let agent = Agent::new("drop-in", &settings);
        let minio = Minio::new("drop-in");
        let mc = minio.mc("site");
        let mut site = Self { store, bao, agent, minio, mc, kept: Vec::new(), dir };

        let key = succeeded("keswarden key new", &site.agent.output(&["key", "new", KEY]));
        site.store_key(KEY, key.trim());
        site.agent.run();
        site.agent.ready();
        site.minio.set(site.agent.minio_vars(KEY));
        site.minio.start();
        site.minio.wait_live();
        site
    }

    /// Stores a key by hand, as KES keeps it.
    fn store_key(&self, name: &str, key: &str) {
        let Some(bao) = &self.bao else {
            fs::write(self.dir.path().join("keys").join(name), key).expect("a key file must be written");
            return;
        };
        let stored = match self.store {
            Store::Transit => {
                let wrap = ["write", "-field=ciphertext", "transit/encrypt/wrap", "plaintext=-"];
                bao.ok(&wrap, &STANDARD.encode(key)).trim().to_owned()
            }
            _ => key.to_owned(),
        };
        let (place, field) = (format!("minio/{name}"), format!("{name}=-"));
        let mut arguments = vec!["kv", "put"];
        if self.store != Store::KvVersion1 {
            arguments.push("-cas=0");
        }
        arguments.extend_from_slice(&["-mount=kv", &place, &field]);
        bao.ok(&arguments, &stored);
    }

    /// The text that the store holds under a name.
    fn stored_key(&self, name: &str) -> String {
        match &self.bao {
            None => {
                fs::read_to_string(self.dir.path().join("keys").join(name)).expect("a key must be a file")
            }
            Some(bao) => {
                let (place, field) = (format!("minio/{name}"), format!("-field={name}"));
                bao.ok(&["kv", "get", "-mount=kv", &field, &place], "")
            }
        }
    }

    pub fn keys_are_made_listed_and_tried(&self) {
        let mc = &self.mc;
        assert_eq!(key_names(mc), [KEY]);
        mc.make_key(NEW_KEY);
        assert_eq!(key_names(mc), [NEW_KEY, KEY]);
        for key in [KEY, NEW_KEY] {
            assert_eq!(mc.key_works(key), Ok(()));
        }
        // Both errors reach the administrator as MinIO words them for KES.
        let again = make_key(mc, NEW_KEY).expect_err("a key must not be made twice");
        assert!(again.contains("already exi"), "{again}");
        let absent = mc.key_works("nobody-made-it").expect_err("a key that is not there must not work");
        assert!(absent.contains("does not exist"), "{absent}");

        let wrapped = self.stored_key(NEW_KEY).starts_with("vault:v1:");
        assert_eq!(wrapped, self.store == Store::Transit, "is the new key wrapped, in {:?}", self.store);
    }

    /// The bucket takes versions, and encrypts a small object and an object in parts.
    pub fn a_bucket_encrypts(&mut self, bucket: &str) {
        self.mc.make_bucket(bucket);
        let place = self.mc.place(bucket);
        match bucket {
            BY_KMS => {
                self.mc.set_default_key(bucket, NEW_KEY);
                assert_eq!(self.mc.default_key(bucket), Ok(NEW_KEY.to_owned()));
            }
            _ => {
                self.mc.json(&["encrypt", "set", "sse-s3", &place]);
                let told = self.mc.json(&["encrypt", "info", &place]);
                assert_eq!(told[0]["encryption"]["algorithm"], "AES256", "{told:?}");
            }
        }
        self.mc.json(&["version", "enable", &place]);

        self.put(&format!("{bucket}/small.bin"), 1000);
        let large = format!("{bucket}/large.bin");
        self.put(&large, LARGE);
        let told = self.mc.json(&["stat", &self.mc.place(&large)]);
        // S3 writes the number of parts behind the ETag.
        let etag = told[0]["etag"].as_str().unwrap_or_default();
        assert!(etag.contains('-'), "{large} must have been put in several parts: {told:?}");
    }

    /// MinIO opens the object with one key and seals it with the other, without `mc` seeing it.
    pub fn objects_are_copied_to_and_fro(&mut self) {
        for (from, to) in [(BY_S3, BY_KMS), (BY_KMS, BY_S3)] {
            for size in ["small", "large"] {
                let (from, to) = (format!("{from}/{size}.bin"), format!("{to}/{size}-copy.bin"));
                self.mc.json(&["cp", &self.mc.place(&from), &self.mc.place(&to)]);
                let kept = self.kept.iter().find(|kept| kept.place == from).expect("it must have been put");
                let sha256 = kept.sha256.clone();
                self.keep(&to, None, sha256);
            }
        }
    }

    pub fn versions_are_deleted_one_by_one(&mut self, bucket: &str) {
        let object = format!("{bucket}/versions.txt");
        let place = self.mc.place(&object);
        for content in ["first\n", "second\n", "third\n"] {
            self.mc.put(&object, content);
        }
        let versions = self.versions(&object);
        let [third, second, first] = &versions[..] else { panic!("three versions are there: {versions:?}") };

        self.mc.json(&["rm", "--version-id", third, &place]);
        assert_eq!(self.versions(&object), [second.clone(), first.clone()]);
        assert_eq!(self.mc.cat(&object), "second\n");
        assert_eq!(text(&self.read(&object, Some(first)).expect("an older version must be read")), "first\n");

        // A deletion without a version only hides the object.
        self.mc.json(&["rm", &place]);
        self.read(&object, None).expect_err("a deleted object must not be read");
        for version in [first, second] {
            let told = self.mc.json(&["stat", "--version-id", version, &place]);
            let algorithm = &told[0]["metadata"]["X-Amz-Server-Side-Encryption"];
            assert_eq!(algorithm, if bucket == BY_KMS { "aws:kms" } else { "AES256" }, "{told:?}");
            let content = self.read(&object, Some(version)).expect("an older version must be read");
            let sha256 = self.sha256(&content);
            self.keep(&object, Some(version.clone()), sha256);
        }
    }

    /// Every object has its content, and is encrypted as its bucket says.
    pub fn everything_reads_back(&self) {
        // After a restart, MinIO and keswarden may need a moment to connect.
        eventually(SOON, "MinIO reads", || self.read(&self.kept[0].place, None));
        for Kept { place, version, sha256 } in &self.kept {
            let content =
                self.read(place, version.as_deref()).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(&self.sha256(&content), sha256, "the content of {place}, version {version:?}");
            if version.is_none() {
                let wanted = match place.starts_with(BY_KMS) {
                    true => ("aws:kms".to_owned(), NEW_KEY.to_owned()),
                    false => ("AES256".to_owned(), String::new()),
                };
                assert_eq!(self.mc.encryption_of(place), wanted, "the encryption of {place}");
            }
        }
    }

    /// Puts random bytes.
    fn put(&mut self, place: &str, size: u64) {
        let path = self.dir.path().join("to-be-put");
        let random = File::open("/dev/urandom").expect("the OS must give randomness");
        let mut file = File::create(&path).expect("a temporary file must be made");
        let written = io::copy(&mut random.take(size), &mut file).expect("a temporary file must be written");
        assert_eq!(written, size, "the OS must give as much randomness as is wanted");
        self.mc.json(&["cp", &path.to_string_lossy(), &self.mc.place(place)]);
        self.keep(place, None, sha256(&path));
    }

    fn keep(&mut self, place: &str, version: Option<String>, sha256: String) {
        self.kept.push(Kept { place: place.to_owned(), version, sha256 });
    }

    fn read(&self, place: &str, version: Option<&str>) -> Result<Vec<u8>, String> {
        let place = self.mc.place(place);
        let mut arguments = vec!["cat"];
        if let Some(version) = version {
            arguments.extend_from_slice(&["--version-id", version]);
        }
        arguments.push(&place);
        let output = self.mc.run(&arguments);
        if output.status.success() { Ok(output.stdout) } else { Err(text(&output.stderr)) }
    }

    /// The versions of an object, the newest first.
    fn versions(&self, place: &str) -> Vec<String> {
        let rows = self.mc.json(&["ls", "--versions", &self.mc.place(place)]);
        rows.iter().map(|row| row["versionId"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn sha256(&self, content: &[u8]) -> String {
        let path = self.dir.path().join("was-read");
        fs::write(&path, content).expect("a temporary file must be written");
        sha256(&path)
    }
}

/// The digest by openssl: Rust that is built for tests takes seconds for a large object.
fn sha256(path: &Path) -> String {
    let mut command = Command::new("openssl");
    let line =
        succeeded("openssl dgst", &finish(command.args(["dgst", "-sha256", "-r"]).arg(path), "", SOON));
    line.split_whitespace().next().expect("openssl must print a digest").to_owned()
}
