//! A Vault identity that never lapses, over simulated time: the pure machine through thirty days, and several pods of the real client
//! through hours of outages, revocations, refused credentials, late standbys, suspended machines and clocks that are set.
//!
//! More schedules: `KESWARDEN_LEASE_SCHEDULES=1000000 KESWARDEN_CLIENT_SCHEDULES=10000 cargo test --release --test it lease`. One schedule
//! again: `KESWARDEN_SEED=…` with the seed that a failure prints.

mod model;
mod six_hours;
mod thirty_days;

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}

/// The seeds of as many schedules as the variable says, or the one seed in `KESWARDEN_SEED`.
fn seeds(variable: &str, usual: u64) -> std::ops::Range<u64> {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("must be a number"));
    match number("KESWARDEN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number(variable).unwrap_or(usual),
    }
}

/// Prints how to run a failed schedule again.
struct Again(u64, &'static str);

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: KESWARDEN_SEED={} cargo test --test it {}", self.0, self.1);
        }
    }
}
