//! Three nodes, whose leader is killed, hangs or steps down, or which are too few to elect a leader. Standbys go on answering reads, and
//! may not have the latest writes. A login waits for a leader.

use super::Site;
use crate::harness::{Bao, Client, Proxy, SOON, eventually, key_text, policy, put_key, three_nodes};

/// An agent beside three nodes, the first of which is the site's own.
struct Cluster {
    site: Site,
    others: [Bao; 2],
}

const ALL: [usize; 3] = [0, 1, 2];
/// Metrics that must stay 0: no answer of a standby proves that a key is lost.
const LOST: [&str; 2] = [
    "keswarden_key_fingerprint_mismatch{key=\"my-key\"}",
    "keswarden_key_verifications_total{outcome=\"changed\"}",
];
const STALE: &str = "keswarden_vault_request_duration_seconds_count{code=\"404\",op=\"kv\"}";

fn all_but(gone: &[usize]) -> Vec<usize> {
    ALL.into_iter().filter(|at| !gone.contains(at)).collect()
}

// === impl Cluster ===

impl Cluster {
    /// An agent that has its key, and knows these addresses of the nodes.
    fn serving(addresses: impl FnOnce(&[Bao; 3]) -> String) -> Self {
        let nodes = three_nodes();
        nodes[0].setup_kv(2, "kv");
        put_key(&nodes[0], &key_text());
        let login = nodes[0].approle_pair(&policy(2));
        // A standby without the latest writes refuses a fresh pair as wrong, and a refused pair rests.
        let pair = serde_json::json!({ "role_id": login[0].1, "secret_id": login[1].1 });
        for node in &nodes {
            let log_in = || node.try_api("POST", "auth/approle/login", Some(&pair), None);
            eventually(SOON, "each node has heard of the role", || match log_in()? {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status} {answer}")),
            });
        }
        let addresses = addresses(&nodes);
        let [first, second, third] = nodes;
        // Nothing passes this proxy: a standby names its leader by the leader's own address.
        let proxy = Proxy::before(0);
        Self { site: Site::at(first, proxy, &addresses, &login), others: [second, third] }
    }

    fn node(&self, at: usize) -> &Bao {
        match at {
            0 => &self.site.bao,
            at => &self.others[at - 1],
        }
    }

    fn node_mut(&mut self, at: usize) -> &mut Bao {
        match at {
            0 => &mut self.site.bao,
            at => &mut self.others[at - 1],
        }
    }

    /// The leader among these nodes. Until there is a leader, MinIO's requests are answered.
    fn leader(&self, nodes: &[usize], when: &str) -> usize {
        eventually(SOON, &format!("{when}: there is a leader"), || {
            self.site.serves(when);
            nodes.iter().copied().find(|at| self.node(*at).is_leader())
        })
    }

    /// Starts nodes that were killed, and unseals them.
    fn start(&mut self, nodes: &[usize]) {
        for at in nodes {
            self.node_mut(*at).start();
        }
        for at in nodes {
            self.node(*at).unseal_node();
        }
    }

    /// There is a leader: pods start, the key is verified, and the key never seemed to be lost.
    fn is_well(&self, when: &str) {
        self.site.gate_passes();
        self.site.recovers();
        for line in LOST {
            assert_eq!(self.site.metric(line), 0.0, "{when}: {line}");
        }
    }
}

#[test]
fn leaders_that_die_hang_and_step_down_and_a_lost_quorum() {
    let mut cluster = Cluster::serving(|nodes| nodes.each_ref().map(Bao::addr).join(","));

    let when = "after the leader was killed";
    let leader = cluster.leader(&ALL, "at first");
    cluster.node_mut(leader).stop();
    cluster.leader(&all_but(&[leader]), when);
    cluster.is_well(when);
    cluster.start(&[leader]);

    let when = "while the former leader hangs";
    let leader = cluster.leader(&ALL, "with three nodes");
    cluster.node_mut(leader).process().signal("STOP");
    cluster.leader(&all_but(&[leader]), when);
    cluster.is_well(when);
    cluster.node_mut(leader).process().signal("CONT");
    eventually(SOON, "the former leader follows", || !cluster.node(leader).is_leader());

    let when = "after the leader stepped down";
    let leader = cluster.leader(&ALL, "with three nodes again");
    cluster.node(leader).ok(&["operator", "step-down"], "");
    cluster.leader(&ALL, when);
    cluster.is_well(when);

    // The node that is left redirects to the leader that it knew, or was the leader itself.
    for leader_is_left in [false, true] {
        let when = format!("without a quorum, the leader left: {leader_is_left}");
        let leader = cluster.leader(&ALL, "with a quorum");
        let left = if leader_is_left { leader } else { all_but(&[leader])[0] };
        let killed = all_but(&[left]);
        for at in &killed {
            cluster.node_mut(*at).stop();
        }
        // A leader without followers steps down after a moment.
        eventually(SOON, "nobody leads", || {
            cluster.site.serves(&when);
            !cluster.node(left).is_leader()
        });
        cluster.site.gate_says("vault_standby_without_leader");
        // A client with a token reads on.
        cluster.site.recovers();
        cluster.start(&killed);
        cluster.leader(&ALL, &when);
        cluster.is_well(&when);
    }
}

#[test]
fn a_key_that_the_leader_has_just_made_is_there_for_an_agent_at_a_standby() {
    let cluster = Cluster::serving(|nodes| {
        let standby = nodes.iter().find(|node| !node.is_leader());
        standby.expect("one of three leads").addr()
    });
    let leader = cluster.leader(&ALL, "with three nodes");
    let mut pod = cluster.site.pod();
    pod.set("KESWARDEN_VAULT_ADDR", &cluster.node(leader).addr());
    pod.run();
    pod.ready();
    let (maker, user) = (Client::of(&pod), Client::of(&cluster.site.agent));
    for round in 0..10 {
        let key = format!("made-{round}");
        let made = maker.call("POST", &format!("/v1/key/create/{key}"), None);
        assert_eq!(made.status, 200, "{}", made.body);
        let (_, sealed) = user.generate(&key, "{}");
        assert_eq!(maker.decrypt(&key, &sealed, "{}").status, 200, "{key}");
    }
    let stale = cluster.site.metric(STALE);
    assert!(stale > 0.0, "the standby was never behind, so this has shown nothing");
}
