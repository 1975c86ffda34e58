//! What concerns the pod that we may be in: Events on it, and where a container leaves its last words.

use super::{parse::Reader, safety::one_of};
use crate::kubernetes;
use std::path::PathBuf;

/// Where Kubernetes puts a service account's token, certificate authority and namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the kubelet reads the termination message, unless the container says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Events are posted in a pod, unless they are switched off.
pub(super) fn events(reader: &mut Reader) -> Option<kubernetes::Config> {
    let wanted = one_of(reader, "KESWARDEN_EVENTS", ["auto", "off"]) == "auto";
    let dir = reader.path("KESWARDEN_KUBERNETES_DIR").unwrap_or_else(|| SERVICE_ACCOUNT.into());
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
    reader.path("KESWARDEN_TERMINATION_LOG").unwrap_or_else(|| TERMINATION_LOG.into())
}
