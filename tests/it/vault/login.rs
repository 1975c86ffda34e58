//! Ways to log in to a real OpenBao, the token that one process leaves to the next, and several addresses.

use crate::harness::{
    Agent, Bao, KEY, SOON, Var, closed_port, eventually, finish, key_text, policy, succeeded, text,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fs, path::Path, process::Command};

const ROLE: &str = "auth/approle/role/minio-sidecar";

/// An OpenBao with a key, the policy `minio-sidecar`, and an AppRole with OpenBao's default lockout.
fn vault() -> Bao {
    let bao = Bao::with_kv(2);
    bao.ok(&["policy", "write", "minio-sidecar", "-"], &policy(2));
    bao.ok(&["kv", "put", "-cas=0", "-mount=kv", "minio/my-key", "my-key=-"], &key_text());
    bao.ok(&["auth", "enable", "approle"], "");
    role(&bao, "secret_id_num_uses=0");
    bao
}

fn role(bao: &Bao, more: &str) {
    bao.ok(&["write", ROLE, "token_policies=minio-sidecar", "token_period=20m", more], "");
}

fn role_id(bao: &Bao) -> String {
    bao.ok(&["read", "-field=role_id", &format!("{ROLE}/role-id")], "").trim().to_owned()
}

fn secret_id(bao: &Bao) -> String {
    bao.ok(&["write", "-f", "-field=secret_id", &format!("{ROLE}/secret-id")], "").trim().to_owned()
}

fn agent(bao: &Bao, more: &[Var]) -> Agent {
    let mut settings = bao.vars();
    settings.extend([
        ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
        ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
    ]);
    settings.extend_from_slice(more);
    Agent::new("login", &settings)
}

#[test]
fn a_secret_id_that_can_be_used_once_serves_init_and_run_and_a_restart() {
    let bao = vault();
    role(&bao, "secret_id_num_uses=1");
    let pair = [("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)), ("KESWARDEN_VAULT_SECRET_ID", secret_id(&bao))];
    let mut agent = agent(&bao, &pair);
    assert_eq!(agent.init().wait(SOON), 0);
    for _ in 0..2 {
        agent.run();
        agent.ready();
        let logins = "keswarden_vault_login_total{method=\"approle\",outcome=\"ok\"}";
        assert_eq!(agent.metric(logins), 0.0, "the token of init is used on");
        agent.kill();
    }
    let file = agent.run_dir().join("agent/vault-token.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // A kept token that has ended, is of another role, or is garbage: a login follows.
    let doctor = agent.output(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(0), "doctor uses the agent's login: {}", text(&doctor.stdout));
    assert!(text(&doctor.stdout).contains("secret_id_expiring"), "nothing will follow that token");
    let kept = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let used_up = agent.output(&["doctor"]);
    assert_eq!(used_up.status.code(), Some(77), "without the token the secret_id is used up");
    fs::write(&file, kept).unwrap();
    role(&bao, "secret_id_num_uses=0");
    agent.set("KESWARDEN_VAULT_SECRET_ID", &secret_id(&bao));
    bao.ok(&["lease", "revoke", "-prefix", "-force", "auth/approle/login"], "");
    agent.run();
    agent.ready();
    agent.kill();
    for content in ["", "{}", "garbage", r#"{"session":1,"who":"another","token":"s.another"}"#] {
        fs::write(&file, content).unwrap();
        agent.run();
        agent.ready();
        agent.kill();
    }
}

#[test]
fn a_wrapped_secret_id_is_opened_once_and_only_when_it_was_wrapped_for_us() {
    let bao = vault();
    let wrapped = |path: &str| {
        let wrap = ["write", "-f", "-wrap-ttl=60s", "-field=wrapping_token", path];
        bao.ok(&wrap, "").trim().to_owned()
    };
    let role_id = role_id(&bao);
    let with = |token: String| {
        agent(
            &bao,
            &[("KESWARDEN_VAULT_ROLE_ID", role_id.clone()), ("KESWARDEN_VAULT_WRAPPED_SECRET_ID", token)],
        )
    };
    let good = wrapped(&format!("{ROLE}/secret-id"));
    let mut first = with(good.clone());
    assert_eq!(first.init().wait(SOON), 0);
    first.run();
    first.ready();
    first.kill();

    // The wrapping was opened before: the message says so.
    let mut second = with(good);
    second.run();
    second.process().says(SOON, "secret_id_expired_or_used");
    second.process().says(SOON, "was opened before");

    // Something else in a wrapping.
    bao.ok(&["auth", "enable", "-path=other", "approle"], "");
    bao.ok(&["write", "auth/other/role/minio-sidecar", "token_policies=minio-sidecar"], "");
    let mut third = with(wrapped("auth/other/role/minio-sidecar/secret-id"));
    third.run();
    third.process().says(SOON, "was made by 'auth/other/role/minio-sidecar/secret-id'");
}

/// The wrapped secret_id is used up and the token ends: the pair is sent once more, and then rests.
#[test]
fn a_wrapped_pair_that_is_used_up_is_sent_once_more_and_then_rests() {
    let bao = vault();
    role(&bao, "secret_id_num_uses=1");
    let path = format!("{ROLE}/secret-id");
    let wrapped = bao.ok(&["write", "-f", "-wrap-ttl=60s", "-field=wrapping_token", &path], "");
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)),
        ("KESWARDEN_VAULT_WRAPPED_SECRET_ID", wrapped.trim().to_owned()),
    ];
    let mut agent = agent(&bao, &pair);
    agent.run();
    agent.ready();
    bao.ok(&["lease", "revoke", "-prefix", "-force", "auth/approle/login"], "");
    let failed = || agent.metric("keswarden_key_verifications_total{outcome=\"failed\"}");
    eventually(SOON, "many verifications fail", || failed() > 8.0);
    let refused = "keswarden_vault_request_duration_seconds_count{code=\"400\",op=\"login\"}";
    assert_eq!(agent.metric(refused), 1.0, "{}", agent.logs());
    // The role is not locked out: a right secret_id logs in.
    let (role, secret) = (format!("role_id={}", role_id(&bao)), format!("secret_id={}", secret_id(&bao)));
    bao.ok(&["write", "auth/approle/login", &role, &secret], "");
}

/// Five refusals lock a role out for all of its pods: a pod that restarts for ever must not cause that.
#[test]
fn a_refused_pair_is_not_sent_again_by_the_next_process() {
    let bao = vault();
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("secret-id");
    fs::write(&file, "2b2d7d2c-0000-0000-0000-000000000000").unwrap();
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)),
        ("KESWARDEN_VAULT_SECRET_ID_FILE", file.to_string_lossy().into_owned()),
    ];
    let mut agent = agent(&bao, &pair);
    for _ in 0..8 {
        agent.run();
        agent.process().says(SOON, "login_refused");
        agent.kill();
    }
    agent.run();
    agent.process().says(SOON, "the same pair is not sent again for");
    // The right secret_id is tried at once, and the role is not locked out.
    fs::write(&file, secret_id(&bao)).unwrap();
    agent.ready();
    let tries = "keswarden_vault_login_total{method=\"approle\",outcome=\"ok\"}";
    assert_eq!(agent.metric(tries), 1.0);
}

#[test]
fn a_sighup_has_a_refused_pair_tried_again() {
    let bao = vault();
    let id = "2b2d7d2c-0000-0000-0000-000000000001".to_owned();
    let mut agent =
        agent(&bao, &[("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)), ("KESWARDEN_VAULT_SECRET_ID", id.clone())]);
    agent.run();
    agent.process().says(SOON, "the same pair is not sent again for");
    bao.ok(&["write", &format!("{ROLE}/custom-secret-id"), &format!("secret_id={id}")], "");
    agent.process().signal("HUP");
    agent.ready();
}

/// `openssl LINE` in a folder.
fn openssl(dir: &Path, line: &str) {
    let mut command = Command::new("openssl");
    let output = finish(command.current_dir(dir).args(line.split_whitespace()), "", SOON);
    succeeded(&format!("openssl {line}"), &output);
}

#[test]
fn by_jwt() {
    let bao = vault();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    openssl(dir.path(), "genrsa -out key.pem 2048");
    openssl(dir.path(), "rsa -in key.pem -pubout -out public.pem");
    bao.ok(&["auth", "enable", "jwt"], "");
    bao.ok(&["write", "auth/jwt/config", &format!("jwt_validation_pubkeys=@{}", file("public.pem"))], "");
    bao.ok(
        &[
            "write",
            "auth/jwt/role/minio",
            "role_type=jwt",
            "user_claim=sub",
            "bound_audiences=vault",
            "bound_subject=system:serviceaccount:minio:minio-sa",
            "token_policies=minio-sidecar",
        ],
        "",
    );
    let now = keswarden::clock::Clock::system().unix_seconds() as u64;
    let claims = |subject: &str| {
        let claims = serde_json::json!({ "sub": subject, "aud": "vault", "iat": now, "exp": now + 600 });
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part("{\"alg\":\"RS256\",\"typ\":\"JWT\"}"), part(&claims.to_string()));
        fs::write(dir.path().join("signed"), &signed).unwrap();
        openssl(dir.path(), "dgst -sha256 -sign key.pem -out signature signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fs::read(dir.path().join("signature")).unwrap()))
    };
    fs::write(dir.path().join("jwt"), claims("system:serviceaccount:minio:somebody")).unwrap();
    let settings =
        [("KESWARDEN_VAULT_JWT_ROLE", "minio".to_owned()), ("KESWARDEN_VAULT_JWT_FILE", file("jwt"))];
    let mut agent = agent(&bao, &settings);
    agent.run();
    agent.process().says(SOON, "error validating token");
    fs::write(dir.path().join("jwt"), claims("system:serviceaccount:minio:minio-sa")).unwrap();
    agent.ready();
    agent.drain();
}

#[test]
fn by_certificate_which_may_be_replaced() {
    let bao = vault();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::write(file("client.ext"), "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n").unwrap();
    let certificate = |name: &str, ca: &str| {
        openssl(
            dir.path(),
            &format!("req -new -newkey rsa:2048 -nodes -subj /CN=minio -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            dir.path(),
            &format!(
                "x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -set_serial 7 -days 2 -extfile client.ext -out {name}.crt"
            ),
        );
    };
    for ca in ["ca", "stranger"] {
        openssl(
            dir.path(),
            &format!(
                "req -new -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.crt"
            ),
        );
    }
    certificate("wrong", "stranger");
    certificate("right", "ca");
    bao.ok(&["auth", "enable", "cert"], "");
    let ca = format!("certificate=@{}", file("ca.crt"));
    bao.ok(&["write", "auth/cert/certs/minio", &ca, "token_policies=minio-sidecar", "token_ttl=4s"], "");
    let put = |name: &str| {
        fs::copy(file(&format!("{name}.key")), file("client.key")).unwrap();
        fs::copy(file(&format!("{name}.crt")), file("client.crt")).unwrap();
    };
    put("wrong");
    let mut agent = agent(
        &bao,
        &[
            ("KESWARDEN_VAULT_CERT_LOGIN", "on".to_owned()),
            ("KESWARDEN_VAULT_CERT_ROLE", "minio".to_owned()),
            ("KESWARDEN_VAULT_CLIENT_CERT", file("client.crt")),
            ("KESWARDEN_VAULT_CLIENT_KEY", file("client.key")),
        ],
    );
    agent.run();
    agent.process().says(SOON, "invalid certificate or no client certificate supplied");
    put("right");
    agent.ready();
    // Renewals carry the certificate too.
    eventually(SOON, "the token is renewed", || {
        agent.metric("keswarden_vault_token_last_renewal_timestamp_seconds") > 0.0
    });
    agent.drain();
}

#[test]
fn another_address_serves_while_one_is_down_or_sealed() {
    let (bao, other) = (vault(), Bao::sealed());
    let cas = tempfile::tempdir().unwrap();
    let both = format!(
        "{}{}",
        fs::read_to_string(bao.ca_path()).unwrap(),
        fs::read_to_string(other.ca_path()).unwrap()
    );
    fs::write(cas.path().join("ca.crt"), both).unwrap();
    let addresses = format!("https://127.0.0.1:{}, {}, {}", closed_port(), other.addr(), bao.addr());
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)),
        ("KESWARDEN_VAULT_SECRET_ID", secret_id(&bao)),
        ("KESWARDEN_VAULT_ADDR", addresses),
        ("KESWARDEN_VAULT_CACERT", cas.path().join("ca.crt").to_string_lossy().into_owned()),
    ];
    let mut agent = agent(&bao, &pair);
    agent.run();
    agent.ready();
    assert_eq!(agent.metric(&format!("keswarden_vault_address_up{{address=\"{}\"}}", bao.addr())), 1.0);
    // The node that serves is sealed, and another node is not: the message tells of all nodes.
    bao.seal();
    agent.kill();
    agent.run();
    agent.process().says(SOON, "vault_sealed");
    bao.unseal();
    agent.ready();
}

#[test]
fn a_ca_file_that_is_put_right_is_read_again() {
    let (bao, other) = (vault(), Bao::uninitialised());
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.crt");
    fs::copy(other.ca_path(), &ca).unwrap();
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)),
        ("KESWARDEN_VAULT_SECRET_ID", secret_id(&bao)),
        ("KESWARDEN_VAULT_CACERT", ca.to_string_lossy().into_owned()),
    ];
    let mut agent = agent(&bao, &pair);
    agent.run();
    agent.process().says(SOON, "vault_tls_unknown_ca");
    fs::copy(bao.ca_path(), &ca).unwrap();
    agent.ready();
}

#[test]
fn doctor_tells_of_rights_beyond_need_and_of_a_history_that_is_too_short() {
    let bao = vault();
    let pair = [("KESWARDEN_VAULT_ROLE_ID", role_id(&bao)), ("KESWARDEN_VAULT_SECRET_ID", secret_id(&bao))];
    let agent = agent(&bao, &pair);
    let notes = || {
        let output = agent.output(&["doctor"]);
        let table = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{table}");
        table
    };
    let least = notes();
    assert!(!least.contains("note: the login may"), "{least}");
    let more = "path \"kv/*\" { capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"] }";
    bao.ok(&["policy", "write", "minio-sidecar", "-"], &format!("{}\n{more}", policy(2)));
    bao.ok(&["write", "kv/config", "cas_required=false", "max_versions=3"], "");
    let table = notes();
    for says in [
        "may `delete, update` kv/destroy/minio/my-key",
        "may `list` kv/metadata/",
        "cas_required=true",
        "keeps 3 versions",
    ] {
        assert!(table.contains(says), "{says:?} is not in {table}");
    }
}
