//! MinIO asks for its default key at its start, finds none, and asks for a new key under the name. Two nodes, each with a
//! `keswarden server` of its own, on real OpenBao; there are no settings but KES's own file.

use crate::harness::{Bao, Launch, Minio, SOON, Server, key_text, make_certificate, policy, vault_yaml};
use keswarden::identity::ApiKey;
use std::fs;
use tempfile::TempDir;

const KEY: &str = "minio-default-key";

struct Nodes {
    bao: Bao,
    dir: TempDir,
    servers: Vec<Server>,
    nodes: [Minio; 2],
    starts: u32,
}

// === impl Nodes ===

impl Nodes {
    fn new() -> Self {
        let bao = Bao::with_kv(2);
        let settings = bao.approle_vars(&policy(2));
        let dir = tempfile::tempdir().unwrap();
        let certificate = make_certificate(dir.path());
        let api_key = ApiKey::generate();
        let content = vault_yaml(dir.path(), &settings, api_key.identity().as_str());
        fs::write(dir.path().join("server-config.yaml"), content).unwrap();
        let nodes = Minio::cluster(["first", "second"]);
        let mut cluster = Self { bao, dir, servers: Vec::new(), nodes, starts: 0 };
        cluster.start_servers();
        for (node, server) in cluster.nodes.iter_mut().zip(&cluster.servers) {
            node.set(vec![
                ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", server.api.port())),
                ("MINIO_KMS_KES_API_KEY", api_key.to_text().expose().to_owned()),
                ("MINIO_KMS_KES_CAPATH", certificate.to_string_lossy().into_owned()),
                ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
            ]);
        }
        cluster
    }

    /// Starts both servers without keys in memory, on the ports in MinIO's settings.
    fn start_servers(&mut self) {
        self.starts += 1;
        let ports: Vec<_> = self.servers.drain(..).map(|server| server.api.port()).collect();
        let config = self.dir.path().join("server-config.yaml");
        for (at, name) in ["first", "second"].into_iter().enumerate() {
            let name = format!("{name}-{}", self.starts);
            let launch = Launch::with_file(&name, &config).on(ports.get(at).copied());
            self.servers.push(launch.start());
        }
        self.servers.iter_mut().for_each(Server::ready);
    }

    fn boots(&mut self) {
        self.nodes.iter_mut().for_each(Minio::restart);
        self.nodes.iter_mut().for_each(Minio::wait_live);
    }

    /// Everything starts anew, and each MinIO ends with an error rather than boot on another key.
    fn refuses_to_boot(&mut self) {
        self.nodes.iter_mut().for_each(Minio::stop);
        self.start_servers();
        let before = self.stored();
        self.nodes.iter_mut().for_each(Minio::start);
        for node in &mut self.nodes {
            assert_ne!(node.process().wait(SOON), 0, "{}", node.process().tail());
        }
        assert_eq!(self.stored(), before, "nothing is made or changed");
    }

    fn stored(&self) -> Option<String> {
        let field = format!("-field={KEY}");
        let output = self.bao.cli(&["kv", "get", "-mount=kv", &field, &format!("minio/{KEY}")]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn put(&self, key: &str) {
        let (place, field) = (format!("minio/{KEY}"), format!("{KEY}=-"));
        self.bao.ok(&["kv", "put", "-cas=0", "-mount=kv", &place, &field], key);
    }

    fn delete(&self) {
        self.bao.ok(&["kv", "metadata", "delete", "-mount=kv", &format!("minio/{KEY}")], "");
    }

    fn moves_to(&self, from: &str, to: &str) {
        let file = self.dir.path().join("server-config.yaml");
        let content = fs::read_to_string(&file).unwrap();
        assert!(content.contains(from));
        fs::write(file, content.replace(from, to)).unwrap();
    }
}

#[test]
fn a_minio_that_asks_for_a_new_key_under_an_old_name_gets_none_and_stops() {
    let mut cluster = Nodes::new();
    cluster.boots();
    let key = cluster.stored().expect("a first MinIO has its key made");
    let mc = cluster.nodes[0].mc("attacked");
    mc.make_bucket("bucket");
    mc.set_default_key("bucket", KEY);
    mc.put("bucket/object", "written before");
    let reads = |cluster: &mut Nodes| {
        cluster.start_servers();
        cluster.boots();
        assert_eq!(mc.cat("bucket/object"), "written before");
    };

    cluster.delete();
    cluster.refuses_to_boot();
    cluster.put(&key_text());
    cluster.refuses_to_boot();
    cluster.delete();
    cluster.put(&key);
    reads(&mut cluster);

    cluster.moves_to("prefix: minio", "prefix: minio/elsewhere");
    cluster.refuses_to_boot();
    cluster.moves_to("prefix: minio/elsewhere", "prefix: minio");
    reads(&mut cluster);
}
