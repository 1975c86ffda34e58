//! Vault: logging in, keeping a token, reading a key, and every trouble on the way.

mod answers;
mod faults;
mod hazards;
mod in_between;
mod lease;
mod login;
