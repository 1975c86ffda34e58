//! Integration tests: keswarden in process on port 0, the real binary, and real peers. Each module below is an area of the code;
//! `tests/README.md` says which test belongs where, and how long each area takes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and may ask what time it is"
)]

mod api;
mod cli;
mod drives;
mod gate;
mod harness;
mod keys;
mod server;
mod vault;
