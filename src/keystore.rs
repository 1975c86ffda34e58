//! The key stores: Vault K/V, a directory, and memory for tests.

pub mod fs;
pub mod memory;
pub mod nowhere;
pub mod vault;
