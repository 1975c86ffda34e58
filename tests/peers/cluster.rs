//! Three OpenBaos that are one cluster.

use super::{Bao, SOON, eventually};
use serde_json::json;
use std::fs;

/// Without these settings a node that joins has no vote for the first 10 to 20 seconds.
const STORAGE: &str = r#"  autopilot_reconcile_interval = "500ms"
  autopilot_update_interval    = "250ms"
"#;

/// Three nodes with one CA and the same key shares, each of which has a vote. The first one leads.
pub fn three_nodes() -> [Bao; 3] {
    let mut first = Bao::prepared(None, STORAGE, "");
    first.start();
    first.init();
    first.unseal();
    let soon = json!({ "server_stabilization_time": "500ms" });
    let path = "sys/storage/raft/autopilot/configuration";
    let (status, answer) = first.api("POST", path, Some(&soon), Some(first.root_token()));
    assert_eq!(status, 204, "the settings of autopilot must be taken: {answer}");
    let others = [(); 2].map(|()| joined(&first));
    eventually(SOON, "every node has a vote", || {
        let path = "sys/storage/raft/configuration";
        let (_, answer) = first.try_api("GET", path, None, Some(first.root_token()))?;
        let servers = answer["data"]["config"]["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let voters = servers.iter().filter(|server| server["voter"] == json!(true)).count();
        if voters == 3 { Ok(()) } else { Err(answer.to_string()) }
    });
    let [second, third] = others;
    [first, second, third]
}

/// One more node of the first node's cluster.
fn joined(first: &Bao) -> Bao {
    let mut node = Bao::prepared(Some(first), STORAGE, "");
    node.start();
    let ca = fs::read_to_string(first.ca_path()).expect("the CA must be there");
    let leader = json!({ "leader_api_addr": first.addr(), "leader_ca_cert": ca });
    let (status, answer) = node.api("POST", "sys/storage/raft/join", Some(&leader), None);
    assert_eq!(status, 200, "a node must join: {answer}");
    node.unseal_node();
    node
}

// === impl Bao ===

impl Bao {
    /// The node says that it leads its cluster. A node that hangs must not be asked.
    pub fn is_leader(&self) -> bool {
        matches!(self.try_api("GET", "sys/health", None, None), Ok((200, _)))
    }
}
