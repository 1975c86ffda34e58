//! A gate that starts while something is wrong.

use super::{Agent, Bao, Process, SOON};
use std::time::{Duration, Instant};

/// A gate that starts names its cause within so long.
pub const TOLD: Duration = Duration::from_secs(10);

/// Stores a first key, as KES does in K/V version 2.
pub fn put_key(bao: &Bao, value: &str) {
    bao.ok(&["kv", "put", "-cas=0", "-mount=kv", "minio/my-key", "my-key=-"], value);
}

/// A gate of these settings names this cause within ten seconds, says what to do, and goes on waiting.
pub fn names_its_cause(pod: &mut Agent, cause: &str) -> Process {
    let begun = Instant::now();
    let mut init = pod.init();
    init.says(SOON, &format!(": {cause}: "));
    let took = begun.elapsed();
    let log = init.log();
    assert!(took < TOLD, "{cause}: told after {took:?}\n{log}");
    assert!(log.contains("fix: "), "{cause}: without a fix\n{log}");
    assert_eq!(init.ended(), None, "{cause}: it must wait\n{log}");
    init
}
