//! The seeds of `fuzz/`, and mutations of the seeds: the checks of the fuzz targets, on every run of the tests.

#[path = "../../../fuzz/checks.rs"]
mod checks;

use std::path::Path;

/// Mutations of each seed.
const ROUNDS: usize = 400;

/// xorshift64*: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{} has only {} seeds", dir.display(), files.len());
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let seed = match std::env::var("KESWARDEN_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) << 20 | 1,
    };
    println!("{target}: KESWARDEN_TEST_SEED={seed}");
    let mut random = Random(seed);
    for content in &seeds {
        check(content);
        for _ in 0..ROUNDS {
            let mut mutant = content.clone();
            for _ in 0..=random.next(3) {
                mutate(&mut mutant, &seeds, &mut random);
            }
            check(&mutant);
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.next(bytes.len() + 1);
    match random.next(5) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.next(8),
        1 => bytes.truncate(at),
        2 => bytes.insert(at, random.next(256) as u8),
        3 => {
            let other = &seeds[random.next(seeds.len())];
            let from = random.next(other.len() + 1);
            let to = from + random.next(other.len() - from + 1);
            drop(bytes.splice(at..at, other[from..to].iter().copied()));
        }
        _ => {
            let to = at + random.next(bytes.len() - at + 1);
            drop(bytes.drain(at..to));
        }
    }
}

#[test]
fn envelopes() {
    replay("envelope", checks::envelope);
}

#[test]
fn key_versions() {
    replay("key_version", checks::key_version);
}

#[test]
fn request_bodies() {
    replay("request_body", checks::request_body);
}

#[test]
fn policies() {
    replay("policy", checks::policy);
}

#[test]
fn server_configs() {
    replay("server_config", checks::server_config);
}

#[test]
fn metadata_files() {
    replay("xl_meta", checks::xl_meta);
}
