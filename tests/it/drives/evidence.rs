//! Evidence on drives that real MinIO wrote: the right key, a replaced key, a missing key, a key that was replaced while in use, a tenant
//! without objects, and damaged files.

use crate::harness::{Agent, Minio, Tenant, succeeded, text};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::Path,
};

/// The default key.
const KEY: &str = "minio-default-key";
/// A key of one bucket.
const BUCKET_KEY: &str = "bucket-key";
const BY_S3: &str = "by-s3";
const BY_KMS: &str = "by-kms";
const PLAIN: &str = "plain";
/// Large enough for `mc` to put it in several parts.
const LARGE: u64 = 70 * 1024 * 1024;
const ODD_NAME: &str = "a b/ü+<1>&.bin";

#[test]
fn every_verdict_on_real_drives() {
    let mut tenant = Tenant::for_evidence();
    tenant.a_new_drive_is_told();
    tenant.starts();
    tenant.a_tenant_without_objects_has_evidence();
    tenant.objects_are_put();
    tenant.the_right_keys_open();
    tenant.everything_is_counted();
    tenant.without_a_key_store_nothing_is_tried();
    tenant.damaged_files_are_skipped_and_counted();
    tenant.a_missing_bucket_key_is_told();
    tenant.a_replaced_key_opens_nothing();
    tenant.a_key_that_was_replaced_while_in_use_is_mixed();
}

/// Each of four drives has a shard of each object's data, and all of its metadata.
#[test]
fn the_drives_of_an_erasure_set() {
    let mut tenant = Tenant::for_evidence();
    tenant.agent.run();
    tenant.agent.ready();
    let mut cluster = Minio::cluster(["first", "second"]);
    for node in &mut cluster {
        node.set(tenant.agent.minio_vars(KEY));
        node.start();
    }
    cluster.iter_mut().for_each(Minio::wait_live);
    let mc = cluster[0].mc("cluster");
    mc.make_bucket(BY_S3);
    mc.json(&["encrypt", "set", "sse-s3", &mc.place(BY_S3)]);
    for number in 0..5 {
        mc.put(&format!("{BY_S3}/{number}"), "content\n");
    }
    // The command line of a cluster names a drive by its URL.
    let path = |drive: &String| {
        let (_, rest) = drive.split_once("://").expect("a drive of a cluster must be a URL");
        rest[rest.find('/').expect("a URL must have a path")..].to_owned()
    };
    let drives: Vec<String> = cluster[0].drives().iter().map(path).collect();
    let all: Vec<&str> = drives.iter().map(String::as_str).collect();
    assert_eq!(all.len(), 4);

    let (code, told) = tenant.evidence(&all, &[]);
    assert_eq!(code, 0, "{told}");
    let key = the_key(&told, KEY);
    // The configuration is sealed as well, and one of the drives has the start of it.
    assert_eq!((key["records"].as_u64(), key["verdict"].as_str()), (Some(6), Some("opens")), "{told}");
    let (code, told) = tenant.evidence(&all, &["--all"]);
    assert_eq!((code, &told["buckets"][BY_S3]["sse_s3"]["objects"]), (0, &Value::from(5)), "{told}");
    for drive in all {
        let (code, told) = tenant.evidence(&[drive], &[]);
        assert_eq!(code, 0, "{told}");
        assert_eq!(the_key(&told, KEY)["verdict"], "opens", "{told}");
    }
}

// === impl Tenant ===

impl Tenant {
    /// Nothing runs yet; the default key is there.
    fn for_evidence() -> Self {
        // What a wrong key leaves on a drive is read here: no memory of the right key must refuse the wrong one.
        let tenant = Self::new("evidence", KEY, &[("KESWARDEN_MEMORY", "off".to_owned())]);
        tenant.make_key(KEY);
        tenant
    }

    fn a_new_drive_is_told(&self) {
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!((code, &told["new"], &told["keys"]), (0, &Value::from(false), &Value::from(vec![0; 0])));
        assert_eq!(
            told["drives"][0]["state"], "bare",
            "a plain directory may be a volume that is not mounted: {told}"
        );
        let absent = self.dir.path().join("absent");
        let (code, told) = self.evidence(&[&absent.to_string_lossy()], &[]);
        assert_eq!((code, &told["new"]), (71, &Value::from(false)), "{told}");
    }

    fn a_tenant_without_objects_has_evidence(&self) {
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!((code, &told["new"]), (0, &Value::from(false)), "{told}");
        let key = the_key(&told, KEY);
        assert_eq!(key["schemes"], Value::from(vec!["config", "IAM"]), "{told}");
        assert_eq!((&key["opened"], &key["verdict"]), (&Value::from(2), &Value::from("opens")), "{told}");
    }

    fn objects_are_put(&self) {
        for bucket in [BY_S3, BY_KMS, PLAIN] {
            self.mc.make_bucket(bucket);
        }
        self.mc.make_key(BUCKET_KEY);
        self.mc.json(&["encrypt", "set", "sse-s3", &self.mc.place(BY_S3)]);
        self.mc.set_default_key(BY_KMS, BUCKET_KEY);
        self.mc.json(&["version", "enable", &self.mc.place(BY_KMS)]);
        let large = self.dir.path().join("large");
        let file = File::create(&large).expect("a temporary file must be made");
        file.set_len(LARGE).expect("a temporary file must be written");
        for bucket in [BY_S3, BY_KMS] {
            for object in ["small", "a/b/c/deep", ODD_NAME] {
                self.mc.put(&format!("{bucket}/{object}"), "content\n");
            }
            let place = self.mc.place(&format!("{bucket}/large"));
            self.mc.json(&["cp", &large.to_string_lossy(), &place]);
        }
        self.mc.put(&format!("{BY_KMS}/small"), "another version\n");
        self.mc.json(&["rm", &self.mc.place(&format!("{BY_KMS}/small"))]);
        self.mc.put(&format!("{PLAIN}/small"), "content\n");
    }

    fn the_right_keys_open(&self) {
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!(code, 0, "{told}");
        for (key, opened) in [(KEY, 6), (BUCKET_KEY, 5)] {
            let row = the_key(&told, key);
            let seen = (row["opened"].as_u64(), row["failed"].as_u64(), row["verdict"].as_str());
            assert_eq!(seen, (Some(opened), Some(0), Some("opens")), "{key}: {told}");
        }
        assert_eq!((&told["skipped"], &told["unknown"]), (&Value::from(0), &Value::from(0)), "{told}");
        // The table says the same to people.
        let output = self.agent.output(&["evidence", &self.drive().to_string_lossy()]);
        let table = succeeded("keswarden evidence", &output);
        assert!(table.contains("SSE-S3+config+IAM") && table.contains("SSE-KMS"), "{table}");
    }

    fn everything_is_counted(&self) {
        let (code, told) = self.of_the_drive(&["--all"]);
        assert_eq!(code, 0, "{told}");
        for (bucket, scheme, objects) in [(BY_S3, "sse_s3", 4), (BY_KMS, "sse_kms", 5), (PLAIN, "plain", 1)] {
            let count = &told["buckets"][bucket];
            for other in ["plain", "sse_s3", "sse_kms", "sse_c", "unknown"] {
                let wanted = if other == scheme { objects } else { 0 };
                assert_eq!(count[other]["objects"], Value::from(wanted), "{bucket}, {other}: {told}");
            }
        }
        assert_eq!(told["buckets"][BY_KMS]["delete_markers"], Value::from(1), "{told}");
    }

    fn without_a_key_store_nothing_is_tried(&self) {
        let bare = Agent::new("bare", &[]);
        let output = bare.output(&["evidence", &self.drive().to_string_lossy()]);
        let table = succeeded("keswarden evidence", &output);
        assert!(table.contains("not tried") && table.contains(BUCKET_KEY), "{table}");
    }

    fn damaged_files_are_skipped_and_counted(&self) {
        let bucket = self.drive().join(BY_KMS);
        let (cut, garbled) = (bucket.join("small/xl.meta"), bucket.join("a/b/c/deep/xl.meta"));
        let before = [&cut, &garbled].map(|path| fs::read(path).expect("a file of MinIO must be readable"));
        fs::write(&cut, &before[0][..200]).expect("a file must be written");
        fs::write(&garbled, [0xc1_u8; 500]).expect("a file must be written");
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!((code, &told["skipped"]), (0, &Value::from(2)), "{told}");
        assert_eq!(the_key(&told, BUCKET_KEY)["verdict"], "opens", "{told}");
        for (path, bytes) in [&cut, &garbled].into_iter().zip(before) {
            fs::write(path, bytes).expect("a file must be written");
        }
    }

    fn a_missing_bucket_key_is_told(&self) {
        let (file, aside) = (self.key_file(BUCKET_KEY), self.dir.path().join("aside"));
        fs::rename(&file, &aside).expect("a key file must be moved");
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!(code, 69, "{told}");
        assert_eq!(the_key(&told, BUCKET_KEY)["verdict"], "missing_key", "{told}");
        assert_eq!(the_key(&told, KEY)["verdict"], "opens", "{told}");
        // Evidence about the default key alone passes.
        assert_eq!(self.of_the_drive(&["--key", KEY]).0, 0);
        fs::rename(&aside, &file).expect("a key file must be moved");
    }

    fn a_replaced_key_opens_nothing(&self) {
        let file = self.key_file(KEY);
        let before = fs::read(&file).expect("a key file must be readable");
        self.make_key(KEY);
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!(code, 65, "{told}");
        assert_eq!(the_key(&told, KEY)["verdict"], "none_open", "{told}");
        assert_eq!(the_key(&told, BUCKET_KEY)["verdict"], "opens", "{told}");
        fs::write(&file, before).expect("a key file must be written");
        assert_eq!(self.of_the_drive(&[]).0, 0);
    }

    /// The agent starts anew on another key of the same name, as after a wrong restore, and MinIO writes with it.
    fn a_key_that_was_replaced_while_in_use_is_mixed(&mut self) {
        self.agent.drain();
        self.make_key(BUCKET_KEY);
        self.agent.run();
        self.agent.ready();
        for object in ["later-1", "later-2"] {
            self.mc.put(&format!("{BY_KMS}/{object}"), "content\n");
        }
        let (code, told) = self.of_the_drive(&[]);
        assert_eq!(code, 65, "{told}");
        let row = the_key(&told, BUCKET_KEY);
        let seen = (row["opened"].as_u64(), row["failed"].as_u64(), row["verdict"].as_str());
        assert_eq!(seen, (Some(2), Some(5), Some("mixed")), "{told}");
    }

    /// A fresh key under this name, whatever was there.
    fn make_key(&self, name: &str) {
        let key = succeeded("keswarden key new", &self.agent.output(&["key", "new", name]));
        fs::write(self.key_file(name), key.trim()).expect("a key file must be written");
    }

    fn drive(&self) -> &Path {
        Path::new(&self.minio.drives()[0])
    }

    fn of_the_drive(&self, options: &[&str]) -> (i32, Value) {
        self.evidence(&[&self.drive().to_string_lossy()], options)
    }

    /// The exit code and the output of `keswarden evidence --json`.
    fn evidence(&self, drives: &[&str], options: &[&str]) -> (i32, Value) {
        let arguments = [&["evidence", "--json"][..], options, drives].concat();
        let output = self.agent.output(&arguments);
        let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr));
        });
        (output.status.code().unwrap_or(-1), told)
    }
}

fn the_key<'a>(told: &'a Value, key: &str) -> &'a Value {
    let rows = told["keys"].as_array().expect("there must be a list of keys");
    rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key} must be told of: {told}"))
}
