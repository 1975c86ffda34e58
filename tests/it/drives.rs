//! MinIO's drives: what their data prove about a key.

mod evidence;
mod proof;
mod remote;
