//! `keswarden doctor` on a real OpenBao: a failure has an exit code, a coming failure is a warning, and both have a fix.

use crate::harness::{Agent, Bao, KEY, Var, closed_port, key_text, policy, text};
use serde_json::Value;

/// An OpenBao with a key, and the agent whose doctor is asked.
struct Patient {
    bao: Bao,
    role_id: String,
    agent: Agent,
}

const ROLE: &str = "auth/approle/role/minio-sidecar";

impl Patient {
    fn new() -> Self {
        let bao = Bao::with_kv(2);
        bao.ok(&["kv", "put", "-cas=0", "-mount=kv", "minio/my-key", "my-key=-"], &key_text());
        let (role_id, _) = bao.setup_approle(&policy(2));
        let mut site = Self { bao, role_id, agent: Agent::new("nobody", &[]) };
        site.anew(&[]);
        site
    }

    /// A secret_id of its own, a run directory of its own, and these settings.
    fn anew(&mut self, more: &[Var]) {
        let secret_id = self.bao.ok(&["write", "-f", "-field=secret_id", &format!("{ROLE}/secret-id")], "");
        let mut settings = self.bao.vars();
        settings.extend([
            ("KESWARDEN_VAULT_ROLE_ID", self.role_id.clone()),
            ("KESWARDEN_VAULT_SECRET_ID", secret_id.trim().to_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ]);
        settings.extend_from_slice(more);
        self.agent = Agent::new("doctor", &settings);
    }

    /// The exit code, and the rows as JSON, each of them whole.
    fn rows(&self) -> (i32, Vec<Value>) {
        let output = self.agent.output(&["doctor", "--json"]);
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
        for row in &rows {
            let has = |members: &[&str]| members.iter().all(|member| row[*member].is_string());
            assert!(has(&["check"]) && row["seconds"].as_f64().is_some(), "{row}");
            assert!(
                match row["state"].as_str().unwrap() {
                    "ok" => has(&["seen"]),
                    "skipped" => has(&["why"]),
                    "warning" | "failed" => has(&["cause", "seen", "fix"]),
                    _ => false,
                },
                "{row}"
            );
        }
        (output.status.code().unwrap(), rows)
    }

    /// The doctor ends with this code, and has such a row.
    #[track_caller]
    fn tells(&self, code: i32, state: &str, cause: &str, words: &str) {
        let (ended, rows) = self.rows();
        assert_eq!(ended, code, "{rows:#?}");
        let row = rows.iter().find(|row| row["state"] == state && row["cause"] == cause);
        let row = row.unwrap_or_else(|| panic!("no {state} {cause} in {rows:#?}"));
        assert!(row.to_string().contains(words), "{words:?} is not in {row}");
    }
}

#[test]
fn all_is_well_and_then_what_will_not_stay_so_is_told() {
    let mut site = Patient::new();
    let (code, rows) = site.rows();
    let is_well = |row: &Value| row["state"] == "ok" || row["state"] == "skipped";
    assert!(code == 0 && rows.iter().all(is_well), "{rows:#?}");
    let table = text(&site.agent.output(&["doctor"]).stdout);
    for words in ["STATE", "TOOK", "the settings", "the key store", "the login", "certificates", "probe"] {
        assert!(table.contains(words), "{words:?} is not in {table}");
    }

    let role = |limit: &str| {
        let role = ["write", ROLE, "token_policies=minio-sidecar", "token_no_default_policy=true"];
        site.bao.ok(&[&role[..], &["token_period=20m", limit]].concat(), "");
    };
    role("secret_id_ttl=1h");
    site.anew(&[]);
    site.tells(0, "warning", "secret_id_expiring", "ends at 20");
    let role = |limits: [&str; 2]| {
        let role = ["write", ROLE, "token_policies=minio-sidecar", "token_period=20m"];
        site.bao.ok(&[&role[..], &limits].concat(), "");
    };
    role(["secret_id_ttl=0", "secret_id_num_uses=3"]);
    site.anew(&[]);
    site.tells(0, "warning", "secret_id_expiring", "can be used 2 times more");
    site.bao.ok(&["write", ROLE, "secret_id_num_uses=0", "token_num_uses=50"], "");
    site.anew(&[]);
    site.tells(0, "warning", "token_uses_limited", "token_num_uses=0");
    // Without these two rights the end of a token cannot be foreseen.
    site.bao.ok(&["write", ROLE, "token_num_uses=0", "token_no_default_policy=true"], "");
    let lines = policy(2);
    let blind: Vec<_> = lines.lines().filter(|line| !line.contains("auth/token/")).collect();
    site.bao.ok(&["policy", "write", "minio-sidecar", "-"], &blind.join("\n"));
    site.anew(&[]);
    site.tells(0, "warning", "token_rights_missing", "auth/token/renew-self");
}

#[test]
fn what_fails_has_an_exit_code_of_its_own() {
    let mut site = Patient::new();
    site.anew(&[("KESWARDEN_KEY_NMAE", "typo".to_owned())]);
    site.tells(64, "failed", "setting_doubtful", "did you mean KESWARDEN_KEY_NAME?");
    // Every key of the settings is checked, and a good key does not hide a bad key.
    site.anew(&[("KESWARDEN_PINS", "other-key=00112233445566778899aabbccddeeff".to_owned())]);
    site.tells(69, "failed", "key_missing", "other-key");
    let nobody = format!("http://127.0.0.1:{}", closed_port());
    site.anew(&[("KESWARDEN_MINIO_ENDPOINT", nobody)]);
    site.tells(69, "failed", "minio_unreachable", "KESWARDEN_MINIO_ENDPOINT");
    site.anew(&[]);
    site.bao.seal();
    site.tells(69, "failed", "vault_sealed", "bao operator unseal");
    let (_, rows) = site.rows();
    assert!(rows.iter().any(|row| row["check"] == "the login" && row["state"] == "skipped"), "{rows:#?}");
}
