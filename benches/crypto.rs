//! Seal, open and generate, as ratios to the bare cipher, in one run.

use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
use criterion::{Criterion, criterion_group, criterion_main};
use keswarden::crypto::{Key, Kind};
use std::hint::black_box;
use zeroize::Zeroizing;

const CONTEXT: &[u8] = b"{\"bucket\":\"bucket/some/object/name.bin\"}";

fn operations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("32 bytes");
    group.bench_function("bare AES-256-GCM, key schedule included", |bencher| {
        bencher.iter(|| {
            let mut buffer = [7; 32];
            let cipher = Aes256Gcm::new(&[1; 32].into());
            cipher.encrypt_inout_detached(&[2; 12].into(), CONTEXT, buffer.as_mut_slice().into())
        });
    });
    for kind in [Kind::Aes256, Kind::ChaCha20] {
        let key = Key::new(kind, Zeroizing::new([9; 32]), None);
        let sealed = key.seal(&[7; 32], CONTEXT);
        group.bench_function(format!("open {}", kind.name()), |bencher| {
            bencher.iter(|| key.open(black_box(&sealed), CONTEXT));
        });
        group.bench_function(format!("generate {}", kind.name()), |bencher| {
            bencher.iter(|| key.generate(black_box(CONTEXT)));
        });
    }
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
