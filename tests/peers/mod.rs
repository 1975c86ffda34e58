//! Real peers for the tests: OpenBao, MinIO, its client `mc`, and the keswarden binary beside them.
//!
//! Ports come from the OS, every wait is a condition with a deadline, every process is ended by its own handle, and
//! every panic tells what was seen last. Nothing is ever skipped: a test that cannot run fails.
#![allow(dead_code, reason = "each test uses its own part of it")]

mod agent;
mod bao;
mod cluster;
mod http;
mod minio;
mod process;
mod proxy;

#[allow(unused_imports, reason = "each test uses its own part of it")]
pub use self::{
    agent::Agent,
    bao::{Bao, policy},
    cluster::three_nodes,
    http::{answers, http_get},
    minio::{Mc, Minio},
    process::{Holder, Process, finish, succeeded},
    proxy::{Proxy, Wire},
};

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The deadline of a wait for peers: a moment on an idle machine, much longer on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The deadline of a wait for keswarden alone: no peer has to start or to answer.
pub const IN_PROCESS: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// A setting: name and value.
pub type Var = (&'static str, String);

/// The result of one look at a condition: the value, or the state in its place.
pub trait Look {
    type Value;

    fn seen(self) -> Result<Self::Value, String>;
}

/// A peer's binary.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("KESWARDEN_PEERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers"), PathBuf::from);
    let path = folder.join("bin").join(name);
    assert!(path.exists(), "{} is missing: run tests/peers/install first", path.display());
    path
}

/// The library that gives a process another clock.
pub fn faketime() -> PathBuf {
    let folder = std::env::var_os("KESWARDEN_PEERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers"), PathBuf::from);
    let path = folder.join("lib/libfaketime.so.1");
    assert!(path.exists(), "{} is missing: run tests/peers/install first", path.display());
    path
}

/// A port that no other caller gets while the tests run: each port is given once, also while its server is down. The ports are below those
/// that the OS gives to clients, and to servers that ask for any.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    // Two runs on one machine begin at different places.
    let offset = std::process::id().wrapping_mul(101) % COUNT;
    for _ in 0..COUNT {
        let number = offset + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + number % COUNT).expect("a port has 16 bits");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} to {} is free", FIRST + COUNT);
}

/// Looks until the condition holds; panics at the deadline with the state that was seen last.
pub fn eventually<L: Look>(deadline: Duration, what: &str, mut look: impl FnMut() -> L) -> L::Value {
    let end = Instant::now() + deadline;
    loop {
        match look().seen() {
            Ok(value) => return value,
            Err(state) => {
                assert!(Instant::now() < end, "not within {deadline:?}: {what}; last seen: {state}")
            }
        }
        thread::sleep(POLL);
    }
}

/// Bytes for people.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// === impl Look ===

impl<T> Look for Option<T> {
    type Value = T;

    fn seen(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T> Look for Result<T, String> {
    type Value = T;

    fn seen(self) -> Self {
        self
    }
}

impl Look for bool {
    type Value = ();

    fn seen(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not yet".to_owned()) }
    }
}
