//! The key stores: Vault K/V, a directory, memory for tests, and the absence of a store.

pub mod fs;
pub mod memory;
pub mod nowhere;
pub mod vault;
