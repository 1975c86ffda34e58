//! Keys: their forms, their bytes in memory, what a verification believes of them, and their backups.

mod backup;
mod directory;
mod formats;
mod kept;
mod keyring;
mod machine;
mod memory;
mod outage;
mod wrong_key;
