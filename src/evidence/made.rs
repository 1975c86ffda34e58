//! Files in the form that MinIO writes, made for the tests.

use std::{fs, path::Path};

/// A MessagePack text under construction.
#[derive(Default)]
pub(super) struct Pack(pub(super) Vec<u8>);

// === impl Pack ===

impl Pack {
    pub(super) fn uint(mut self, number: u64) -> Self {
        self.0.push(0xcf);
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn int(mut self, number: i64) -> Self {
        self.0.push(0xd3);
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.0.push(0xd9);
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self
    }

    pub(super) fn bin(mut self, bytes: &[u8]) -> Self {
        self.0.push(0xc6);
        self.0.extend((bytes.len() as u32).to_be_bytes());
        self.0.extend(bytes);
        self
    }

    pub(super) fn map(mut self, pairs: u8) -> Self {
        self.0.push(0x80 | pairs);
        self
    }

    pub(super) fn array(mut self, values: u8) -> Self {
        self.0.push(0x90 | values);
        self
    }

    pub(super) fn nil(mut self) -> Self {
        self.0.push(0xc0);
        self
    }
}

/// The body of one version, an object of 1000 bytes in one part.
pub(super) fn object(mtime: i64, shard: u64, system: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Pack::default().map(3).text("Type").uint(1).text("V2Obj").map(8);
    body = body.text("ID").bin(&[0; 16]).text("EcIndex").uint(shard);
    body = body.text("EcDist").array(2).uint(1).uint(2);
    body = body.text("PartNums").array(1).uint(1).text("PartETags").nil();
    body = body.text("Size").uint(1000).text("MTime").int(mtime).text("MetaSys").map(system.len() as u8);
    for (name, value) in system {
        body = body.text(name).bin(value);
    }
    body.text("v").uint(0).0
}

pub(super) fn delete_marker(mtime: i64) -> Vec<u8> {
    let body = Pack::default().map(2).text("Type").uint(2).text("DelObj").map(2);
    body.text("ID").bin(&[0; 16]).text("MTime").int(mtime).0
}

/// A whole `xl.meta` with inline data.
pub(super) fn file(versions: &[Vec<u8>], inline: &[u8]) -> Vec<u8> {
    let mut block = Pack::default().uint(3).uint(3).uint(versions.len() as u64);
    for version in versions {
        block = block.bin(&Pack::default().array(0).0).bin(version);
    }
    let mut file = b"XL2 \x01\x00\x03\x00".to_vec();
    file.extend(Pack::default().bin(&block.0).uint(7).0);
    file.push(1);
    file.extend(Pack::default().map(1).text("null").bin(inline).0);
    file
}

/// The metadata of SSE-KMS. `sealed` is base64.
pub(super) fn sse_kms<'a>(key: &'a str, sealed: &'a str) -> [(&'static str, &'a [u8]); 3] {
    [
        ("X-Minio-Internal-Server-Side-Encryption-S3-Kms-Key-Id", key.as_bytes()),
        ("X-Minio-Internal-Server-Side-Encryption-S3-Kms-Sealed-Key", sealed.as_bytes()),
        ("X-Minio-Internal-Server-Side-Encryption-Kms-Sealed-Key", b"c2VhbGVk"),
    ]
}

/// The start of a sealed `config.json`.
pub(super) fn config(key: &str, sealed: &str) -> Vec<u8> {
    let json = format!(r#"{{"keyid":"{key}","kmskey":"{sealed}","algorithm":"AES-256-GCM","nonce":"x"}}"#);
    let mut data = vec![0xaa; 32];
    data.push(1);
    data.extend((json.len() as u32).to_le_bytes());
    data.extend(json.as_bytes());
    data.extend(b"and what was sealed");
    data
}

pub(super) fn put(drive: &Path, folder: &str, bytes: &[u8]) {
    let folder = drive.join(folder);
    fs::create_dir_all(&folder).expect("a temporary folder must be made");
    fs::write(folder.join("xl.meta"), bytes).expect("a temporary file must be written");
}

/// Makes a directory a drive that MinIO has used.
pub(super) fn format(drive: &Path) {
    let system = drive.join(".minio.sys");
    fs::create_dir_all(&system).expect("a temporary folder must be made");
    let json = r#"{"version":"1","format":"xl","id":"d","xl":{"this":"b","sets":[["a"],["b","c"]]}}"#;
    fs::write(system.join("format.json"), json).expect("a temporary file must be written");
}
