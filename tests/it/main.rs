//! Integration tests: the real app in process on port 0, the real binary, and real peers.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and may ask what time it is"
)]

#[path = "../peers/mod.rs"]
mod peers;

mod api;
mod attack;
mod backup;
mod causes;
mod commands;
mod corpus;
mod differences;
mod directory;
mod doctor;
mod drain;
mod drop_in;
mod events;
mod evidence;
mod faults;
mod formats;
mod gate;
mod harness;
mod hazards;
mod in_between;
mod journey;
mod kept;
mod kes_cli;
mod kes_server;
mod keyring;
mod lease;
mod login;
mod logs;
mod machine;
mod machine_memory;
mod memory;
mod offline;
mod outage;
mod own_create;
mod pins;
mod proof;
mod reload;
mod remembered;
mod remote;
mod replay;
mod run_dir;
mod server;
mod settings;
mod silenced;
mod table;
mod vault_faults;
mod wrong_key;
