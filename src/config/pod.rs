//! What concerns the pod that we may be in: Events on it, and where a container leaves its last words.

use super::parse::Reader;
use crate::kubernetes;
use std::path::PathBuf;

/// Events are posted in a pod, unless they are switched off.
pub(super) fn events(reader: &mut Reader) -> Option<kubernetes::Config> {
    let wanted = reader.word("KESWARDEN_EVENTS") == "auto";
    let dir = reader.path_or_default("KESWARDEN_KUBERNETES_DIR");
    let pod = reader.plain("KESWARDEN_POD");
    let environment = reader.environment();
    let (host, port) =
        (environment.get("KUBERNETES_SERVICE_HOST")?, environment.get("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let api = format!("https://{host}:{port}");
    let pod = pod.or_else(|| environment.get("HOSTNAME").cloned())?;
    wanted.then_some(kubernetes::Config { api, dir, pod })
}

pub(super) fn termination_log(reader: &mut Reader) -> PathBuf {
    reader.path_or_default("KESWARDEN_TERMINATION_LOG")
}
