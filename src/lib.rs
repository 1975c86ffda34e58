//! keswarden: a gate in front of MinIO, a KES-compatible key server beside it, and a guard over its keys.
//!
//! ```text
//!  environment, KES yaml, flags
//!      │  config::load            every problem at once, else exit 64
//!      ▼
//!  Settings ───► keystore::{vault,fs} ──► Arc<dyn store::KeyStore>
//!                                             │  gate::pass     retries to a deadline, else 65 / 69 / 77
//!                                             ▼
//!                               (Keyring, KeyringWriter)
//!                                read │        │ write
//!                                     ▼        ▼
//!                 kes::Server (loopback TLS)  verifier (fetch again, compare, try, mark)
//!                                     │
//!                                     │  serving; then MinIO answers (never part of our readiness)
//!                                     ▼
//!                                 sse::Enforcer ───► S3: bucket default encryption
//!
//!  all of them ──write──►  health, metrics  ◄──read──  admin::Server
//! ```
//!
//! ARCHITECTURE.md has the map of the modules; `tests/layers.rs` holds it to the code.
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;

pub mod admin;
pub mod control;
pub mod gate;
pub mod kes;
pub mod sse;
pub mod verifier;

pub mod backup;
pub mod http;
pub mod keyring;
pub mod keystore;
pub mod offline;
pub mod pins;

pub mod crypto;
pub mod evidence;
pub mod kes_client;
pub mod known;
pub mod kubernetes;
pub mod s3;
pub mod store;
pub mod tls;
pub mod vault;

pub mod files;
pub mod health;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod retry;
pub mod shutdown;
pub mod telemetry;

pub mod cause;
pub mod clock;
pub mod exit;
pub mod go;
pub mod names;
pub mod secret;
pub mod version;
