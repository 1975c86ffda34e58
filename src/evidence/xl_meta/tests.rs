//! Tests of the parser on bytes as MinIO writes them, on pieces of such bytes, and on any bytes.

use super::*;
use crate::evidence::made::{Pack, config as sealed_config, delete_marker, file, object, sse_kms};
use proptest::prelude::*;

const S3_SEALED: (&str, &[u8]) = ("X-Minio-Internal-Server-Side-Encryption-S3-Sealed-Key", b"c2VhbGVk");
const CLIENT_SEALED: (&str, &[u8]) = ("X-Minio-Internal-Server-Side-Encryption-Sealed-Key", b"c2VhbGVk");
const ALGORITHM: (&str, &[u8]) =
    ("X-Minio-Internal-Server-Side-Encryption-Seal-Algorithm", b"DAREv2-HMAC-SHA256");
const CONTEXT: (&str, &[u8]) = ("X-Minio-Internal-Server-Side-Encryption-Context", b"eyJhIjoiMSJ9");

fn encryption_of(system: &[(&str, &[u8])]) -> Encryption {
    let mut versions = parse(&file(&[object(5, 1, system)], b"")).expect("it must parse");
    versions.pop().expect("there must be a version").encryption
}

#[test]
fn the_forms_of_encryption_are_told_apart() {
    let sealed = |client_context: &[u8]| {
        Box::new(Sealed {
            key_name: "k".to_owned(),
            ciphertext: b"ciphertext".to_vec(),
            client_context: client_context.to_vec(),
        })
    };
    let [name, ciphertext, kms_sealed] = sse_kms("k", "Y2lwaGVydGV4dA==");
    let [arn, ..] = sse_kms("arn:aws:kms:k", "");
    let [_, garbled, _] = sse_kms("k", "no base64");
    assert_eq!(encryption_of(&[("x-minio-internal-inline-data", b"true")]), Encryption::Plain);
    assert_eq!(encryption_of(&[ALGORITHM, CLIENT_SEALED]), Encryption::SseC);
    assert_eq!(encryption_of(&[name, ciphertext, S3_SEALED, ALGORITHM]), Encryption::SseS3(sealed(b"")));
    assert_eq!(encryption_of(&[arn, ciphertext, kms_sealed]), Encryption::SseKms(sealed(b"")));
    let with_context = encryption_of(&[CONTEXT, name, ciphertext, kms_sealed]);
    assert_eq!(with_context, Encryption::SseKms(sealed(b"{\"a\":\"1\"}")));
    for system in
        [&[ALGORITHM][..], &[name, kms_sealed], &[ciphertext, S3_SEALED], &[name, garbled, S3_SEALED]]
    {
        assert_eq!(encryption_of(system), Encryption::Unknown, "{system:?}");
    }
}

#[test]
fn versions_keep_their_order_and_say_what_they_are() {
    let body = Pack::default().map(2).text("Type").uint(9).text("What").nil().0;
    let versions = parse(&file(&[delete_marker(9), object(5, 3, &[]), body], b"")).expect("it must parse");
    let kinds: Vec<_> = versions.iter().map(|version| version.kind).collect();
    assert_eq!(kinds, [Kind::DeleteMarker, Kind::Object, Kind::Other]);
    let [first, second, _] = &versions[..] else { panic!("three versions: {versions:?}") };
    assert_eq!((first.mtime, second.mtime), (9, 5));
    assert_eq!((second.size, second.parts, second.shard), (1000, 1, 3));
}

#[test]
fn the_configuration_is_read_from_the_first_shard_only() {
    let data = sealed_config("k", "Y2lwaGVydGV4dA==");
    let Ok(Own::Sealed(mtime, sealed)) = own(&file(&[object(5, 1, &[])], &data)) else {
        panic!("it is sealed")
    };
    assert_eq!((mtime, sealed.key_name.as_str(), &sealed.ciphertext[..]), (5, "k", &b"ciphertext"[..]));
    assert_eq!(own(&file(&[object(5, 2, &[])], &data)), Ok(Own::Elsewhere));
    let plain = [&[0xaa; 32], &b"{\"plain\":1}\0\0"[..]].concat();
    assert_eq!(own(&file(&[object(5, 1, &[])], &plain)), Ok(Own::Plain));
    assert_eq!(own(&file(&[object(5, 2, &[])], &plain)), Ok(Own::Plain));
    assert_eq!(own(&file(&[], &data)), Ok(Own::Plain));
    // With this many shards the first shard ends before the key does.
    assert_eq!(own(&file(&[object(5, 1, &[])], &data[..60])), Ok(Own::Elsewhere));
}

#[test]
fn other_versions_of_the_format_are_not_guessed() {
    let good = file(&[object(5, 1, &[])], b"");
    // Minor version; header version; meta version.
    for place in [6, 8 + 5 + 8, 8 + 5 + 9 + 8] {
        let mut other = good.clone();
        other[place] = 2;
        assert_eq!(parse(&other), Err(Unreadable::UnknownVersion), "byte {place}");
    }
    assert_eq!(parse(b"PK\x03\x04"), Err(Unreadable::NoXlMeta));
    assert_eq!(parse(b""), Err(Unreadable::NoXlMeta));
}

#[test]
fn a_file_that_is_cut_short_is_refused_until_its_metadata_is_whole() {
    let [name, ciphertext, kms_sealed] = sse_kms("k", "Y2lwaGVydGV4dA==");
    let versions = [object(9, 1, &[name, ciphertext, kms_sealed]), delete_marker(5), object(1, 1, &[])];
    let good = file(&versions, &sealed_config("k", "Y2lwaGVydGV4dA=="));
    let whole = usize::try_from(needed(&good).expect("it must be known")).expect("it must be short");
    for end in 0..good.len() {
        let (parsed, read) = (parse(&good[..end]), own(&good[..end]));
        assert_eq!(parsed.is_ok(), end >= whole, "cut at {end}");
        assert_eq!(read.is_ok(), end >= whole, "cut at {end}");
    }
    assert_eq!(parse(&good).map(|versions| versions.len()), Ok(3));
}

#[test]
fn what_claims_to_be_large_costs_nothing() {
    let many = Pack::default().uint(3).uint(3).uint(u64::MAX).0;
    let mut bytes = b"XL2 \x01\x00\x03\x00".to_vec();
    bytes.extend(Pack::default().bin(&many).0);
    assert_eq!(parse(&bytes), Err(Unreadable::Malformed));
    assert_eq!(parse(b"XL2 \x01\x00\x03\x00\xc6\xff\xff\xff\xff"), Err(Unreadable::Malformed));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (parse(&bytes), own(&bytes), needed(&bytes));
        let mut block = Pack::default().uint(3).uint(3).uint(3).0;
        block.extend(&bytes);
        let mut bytes = b"XL2 \x01\x00\x03\x00".to_vec();
        bytes.extend(Pack::default().bin(&block).0);
        let _ = (parse(&bytes), own(&bytes));
    }

    #[test]
    fn no_damage_panics(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let [name, ciphertext, kms_sealed] = sse_kms("k", "Y2lwaGVydGV4dA==");
        let good = object(9, 1, &[CONTEXT, name, ciphertext, kms_sealed]);
        let mut bytes = file(&[good, delete_marker(5)], &sealed_config("k", "Y2lwaGVydGV4dA=="));
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = (parse(&bytes), own(&bytes), needed(&bytes));
    }
}
