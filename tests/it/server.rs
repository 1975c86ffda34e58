//! `keswarden server`: KES's own file, its reload, its log streams, and the messages about a wrong file.

mod address;
mod attack;
mod drain;
mod drop_in;
mod logs;
mod own_create;
mod reload;

use crate::harness::{
    App, IN_PROCESS, KEY, admin_key, api_key, block_on, eventually, key_text, now, server_yaml,
};
use keswarden::{
    config::kes_yaml::{self, Purpose},
    identity::ApiKey,
    keystore::memory::MemoryStore,
    tls::{Pair, mint::RunDir},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn policy(allow: &str, deny: &str, who: &ApiKey) -> String {
    format!(
        "policy:\n  app:\n    allow: [{allow}]\n    deny: [{deny}]\n    identities: [{}]\n",
        who.identity()
    )
}

#[test]
fn a_changed_policy_is_in_force_within_five_seconds_and_a_broken_file_changes_nothing() {
    let app = api_key(1);
    let kes = App::server(&policy("/v1/key/*", "/v1/key/describe/secret", &app));
    kes.store.put("secret", &key_text());
    kes.store.put("open", &key_text());
    let client = kes.client(Some(&app), false);
    let status = |name: &str| client.call("GET", &format!("/v1/key/describe/{name}"), None).status;
    assert_eq!((status("open"), status("secret")), (200, 403));

    // Half a file, and then a file that does not parse: the deny rule holds all along.
    let whole = std::fs::read_to_string(kes.file()).unwrap();
    std::fs::write(kes.file(), &whole[..whole.len() / 2]).unwrap();
    let failed = "keswarden_config_reload_failed";
    eventually(IN_PROCESS, "the reload fails", || (kes.metric(failed)? == 1.0).then_some(()));
    assert_eq!((status("open"), status("secret")), (200, 403));

    let begun = std::time::Instant::now();
    kes.rewrite(&policy("/v1/key/*", "/v1/key/describe/open", &app));
    eventually(IN_PROCESS, "the new policy is in force", || (status("open") == 403).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(status("secret"), 200);
    eventually(IN_PROCESS, "the metric is back", || (kes.metric(failed)? == 0.0).then_some(()));
    assert!(kes.metric("keswarden_config_reloads_total{outcome=\"ok\"}").unwrap() >= 1.0);
}

#[test]
fn another_key_store_is_taken_only_with_the_keys_that_are_in_use() {
    let right = key_text();
    let kes = App::server_over_a_folder(&right);
    let client = kes.admin_client(false);
    let (_, sealed) = client.generate(KEY, "{}");
    let opens = || client.decrypt(KEY, &sealed, "{}").status == 200;
    let other = kes.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let moved = server_yaml(&kes.dir, "").replace("/keys\n", "/other\n");
    let failed = || kes.metric("keswarden_config_reload_failed");

    // A store without the key, and then with another key of its name: the former store stays.
    std::fs::write(kes.file(), &moved).unwrap();
    eventually(IN_PROCESS, "the reload fails", || (failed()? == 1.0).then_some(()));
    assert!(opens());
    std::fs::write(other.join(KEY), key_text()).unwrap();
    let errors = || kes.metric("keswarden_config_reloads_total{outcome=\"failed\"}").unwrap_or(0.0);
    let before = errors();
    eventually(IN_PROCESS, "it is tried again", || (errors() > before).then_some(()));
    assert!(opens());

    std::fs::write(other.join(KEY), &right).unwrap();
    eventually(IN_PROCESS, "the new store is in use", || (failed()? == 0.0).then_some(()));
    std::fs::remove_dir_all(kes.dir.path().join("keys")).unwrap();
    assert!(opens());
}

#[test]
fn new_connections_get_the_new_certificate() {
    let kes = App::server("");
    let other = tempfile::tempdir().unwrap();
    let mint = RunDir::new(other.path().to_owned(), &["kes.example".to_owned()]);
    mint.ensure(now()).unwrap();
    for file in ["server.key", "server.crt"] {
        std::fs::copy(other.path().join(file), kes.dir.path().join(file)).unwrap();
    }
    // The new CA is the issuer now.
    eventually(IN_PROCESS, "the new certificate is served", || {
        std::fs::copy(other.path().join("ca.crt"), kes.dir.path().join("ca.crt")).unwrap();
        let client = kes.admin_client(false);
        block_on(client.send("GET", "/version", None)).is_ok().then_some(())
    });
}

#[test]
fn keys_of_the_file_are_made_once_and_those_of_a_new_file_too() {
    let store = Arc::new(MemoryStore::new());
    let text = key_text();
    store.put("there", &text);
    let kes = App::start_server(store, "keys: [{name: there}, {name: fresh}]\n", &[]);
    kes.wait_ready();
    let admin = kes.admin_client(true);
    let described = admin.call("GET", "/v1/key/describe/fresh", None);
    assert!(described.body.contains(admin_key().identity().as_str()), "{}", described.body);
    assert_eq!(kes.store.text("there").as_deref(), Some(text.as_str()), "what is there is not touched");
    kes.rewrite("keys: [{name: there}, {name: later}]\n");
    eventually(IN_PROCESS, "the key of the new file is made", || kes.store.text("later").map(drop));
}

#[test]
fn a_route_that_skips_authentication_is_open_and_the_others_are_not() {
    let kes = App::server("api:\n  /v1/ready:\n    skip_auth: true\n    timeout: 3s\n");
    let nobody = kes.client(None, true);
    assert_eq!(nobody.call("GET", "/v1/ready", None).status, 200);
    let refused = nobody.call("GET", "/v1/status", None);
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (400, "{\"message\":\"tls: client certificate is required\"\n}")
    );
    let api = kes.admin_client(true).call("GET", "/v1/api", None).body;
    assert!(api.contains(r#""path":"/v1/ready","max_body":0,"timeout":3}"#), "{api}");
    assert!(api.contains(r#""path":"/v1/log/audit","max_body":0,"timeout":0}"#), "{api}");
}

#[test]
fn two_certificates_or_a_ca_are_no_client() {
    let kes = App::server("");
    let (one, other) = (admin_key().certificate(now()), api_key(9).certificate(now()));
    let two = kes.client_with_chain(vec![one.0, other.0], one.1, true);
    let refused = two.call("GET", "/v1/status", None);
    assert!(refused.body.contains("received more than one client certificate"), "{}", refused.body);
    let ca = Pair::read(&kes.dir.path().join("ca.crt"), &kes.dir.path().join("ca.key")).unwrap();
    let refused = kes.client_with_chain(ca.chain, ca.key, true).call("GET", "/v1/status", None);
    assert!(refused.body.contains("client certificate is required"), "{}", refused.body);
}

#[test]
fn the_log_streams_begin_at_once_tell_what_happens_and_end_with_the_server() {
    for http1 in [true, false] {
        let kes = App::server("");
        kes.store.put(KEY, &key_text());
        let admin = kes.admin_client(http1);
        let open = |path: &str| block_on(admin.get(path)).unwrap();
        let (mut audit, mut errors) = (open("/v1/log/audit"), open("/v1/log/error"));
        assert_eq!(audit.headers()["content-type"], "application/x-ndjson");
        assert_eq!(admin.call("PUT", "/v1/key/create/one", None).status, 200);
        let line = |answer: &mut reqwest::Response| {
            let chunk =
                block_on(async { tokio::time::timeout(Duration::from_secs(10), answer.chunk()).await });
            let chunk = chunk.expect("a line must come, or the end").expect("the stream must not be cut");
            chunk.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).filter(|line| !line.is_empty())
        };
        let record: serde_json::Value = serde_json::from_str(&line(&mut audit).unwrap()).unwrap();
        assert_eq!(record["request"]["path"], "/v1/key/create/one");
        assert_eq!(record["request"]["ip"], "127.0.0.1");
        assert_eq!(record["response"]["code"], 200);
        assert_eq!(record["request"]["identity"], admin_key().identity().as_str());
        assert_eq!(admin.call("POST", &format!("/v1/key/encrypt/{KEY}"), Some("{")).status, 400);
        let record: serde_json::Value = serde_json::from_str(&line(&mut errors).unwrap()).unwrap();
        let message = record["message"].as_str().unwrap();
        assert!(message.contains("level=ERROR msg=\"invalid request body\" req.method=PUT"), "{message}");
        assert!(line(&mut audit).unwrap().contains("refused"));
        kes.stop().unwrap();
        assert_eq!((line(&mut audit), line(&mut errors)), (None, None), "the streams end, they are not cut");
    }
}

fn environment() -> BTreeMap<String, String> {
    [("SET", "value"), ("EMPTY", ""), ("YES", "on"), ("HOUR", "1h")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

const GOOD: &str = "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: /keys}}\n";

#[test]
fn what_is_wrong_with_the_file_is_said_in_the_words_of_kes() {
    const VAULT: &str = "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {vault: {";
    for (yaml, says) in [
        ("", "EOF"),
        (
            "tls: {key: k, cert: c}\nkeystore: {fs: {path: /p}}",
            "kesconf: invalid admin identity: no admin identity",
        ),
        (
            "admin: {identity: a}\ntls: {cert: c}\nkeystore: {fs: {path: /p}}",
            "kesconf: invalid tls config: no private key",
        ),
        (
            "admin: {identity: a}\ntls: {key: k}\nkeystore: {fs: {path: /p}}",
            "kesconf: invalid tls config: no certificate",
        ),
        ("admin: {identity: a}\ntls: {key: k, cert: c}", "kesconf: no keystore specified"),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: ''}}",
            "kesconf: invalid fs keystore: no path specified",
        ),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: /p}, vault: {endpoint: 'https://v'}}",
            "kesconf: invalid keystore config: more than once keystore specified",
        ),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {aws: {secretsmanager: {}}}",
            "keystore.aws is not implemented by keswarden",
        ),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {kes: {}}",
            "kesconf: no keystore specified",
        ),
        (&format!("{GOOD}version: v2\n"), "edge: invalid server config version 'v2'"),
        (&format!("{GOOD}address: kes.example:7373\n"), "'kes.example' is not a valid IP address"),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c, auth: maybe}\nkeystore: {fs: {path: /p}}",
            "kesconf: invalid tls config: invalid auth '{ maybe}'",
        ),
        (
            "admin: {identity: a}\ntls: {key: k, cert: c, proxy: {identities: [a]}}\nkeystore: {fs: {path: /p}}",
            "kesconf: invalid tls proxy: identity 'a' is already admin",
        ),
        (
            &format!("{GOOD}policy: {{p: {{identities: [a]}}}}\n"),
            "kesconf: invalid policy 'p': identity 'a' is already admin",
        ),
        (
            &format!("{GOOD}policy: {{p.q: {{identities: []}}}}\n"),
            "kes: policy name 'p.q' is empty, too long or contains invalid characters",
        ),
        (
            &format!("{GOOD}policy: {{p: {{identities: ['b c']}}}}\n"),
            "kes: identity 'b c' is empty, too long or contains invalid characters",
        ),
        (
            &format!("{GOOD}policy: {{p: {{identities: [b, b]}}}}\n"),
            "kes: cannot assign policy 'p' to 'b': identity already has a policy",
        ),
        (&format!("{GOOD}cache: {{expiry: {{any: -5s}}}}\n"), "kesconf: invalid cache expiry '-5s'"),
        (
            &format!("{GOOD}cache:\n  expiry:\n    any: 10\n"),
            "yaml: unmarshal errors:\n  line 6: cannot unmarshal !!int `10` into time.Duration",
        ),
        (
            &format!("{GOOD}api: {{/v1/ready: {{timeout: -1s}}}}\n"),
            "kesconf: invalid timeout '-1000000000' for API '/v1/ready'",
        ),
        (&format!("{GOOD}api: {{/v1/ready: {{skip_auth: 'true'}}}}\n"), "into bool"),
        (&format!("{GOOD}log: {{error: loud}}\n"), "kesconf: invalid log level 'LOUD'"),
        (&format!("{GOOD}log: {{error: INFO+x}}\n"), "kesconf: invalid log level suffix '+X'"),
        (
            &format!("{GOOD}keys: [{{name: k}}, {{name: k}}]\n"),
            "kesconf: invalid key config: key 'k' is defined multiple times",
        ),
        (
            &format!("{GOOD}address: ${{ UNSET }}\n"),
            "kesconf: referenced env. variable 'UNSET' in line '4' not found",
        ),
        (
            &format!("{GOOD}admin: {{identity: b}}\n"),
            "line 4: mapping key \"admin\" already defined at line 1",
        ),
        (
            &format!("{VAULT}approle: {{id: i, secret: s}}}}}}"),
            "kesconf: invalid vault keystore: no endpoint specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v'}}}}"),
            "kesconf: invalid vault keystore: no authentication method specified",
        ),
        (
            &format!(
                "{VAULT}endpoint: 'https://v', approle: {{id: i, secret: s}}, kubernetes: {{jwt: j}}}}}}"
            ),
            "kesconf: invalid vault keystore: more than one authentication method specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', approle: {{secret: s}}}}}}"),
            "kesconf: invalid vault keystore: invalid approle config: no approle ID specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', approle: {{id: '${{EMPTY}}', secret: s}}}}}}"),
            "invalid approle config: no approle ID specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', approle: {{id: i}}}}}}"),
            "kesconf: invalid vault keystore: invalid approle config: no approle secret specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', kubernetes: {{role: r}}}}}}"),
            "kesconf: invalid vault keystore: invalid kubernetes config: no JWT specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', kubernetes: {{role: r, jwt: /nonexistent}}}}}}"),
            "kesconf: failed to read vault kubernetes JWT from '/nonexistent'",
        ),
        (
            &format!(
                "{VAULT}endpoint: 'https://v', approle: {{id: i, secret: s}}, transit: {{engine: t}}}}}}"
            ),
            "kesconf: invalid vault keystore: invalid transit config: no key name specified",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', approle: {{id: i, secret: s}}, tls: {{key: k}}}}}}"),
            "kesconf: invalid vault keystore: invalid tls config: no TLS certificate provided",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', approle: {{id: i, secret: s}}, tls: {{cert: k}}}}}}"),
            "kesconf: invalid vault keystore: invalid tls config: no TLS private key provided",
        ),
        (
            &format!("{VAULT}endpoint: 'https://v', version: v3, approle: {{id: i, secret: s}}}}}}"),
            "vault: invalid engine API version 'v3'",
        ),
    ] {
        let problems = kes_yaml::parse(yaml, &environment(), Purpose::Server).err();
        let problems = problems.unwrap_or_else(|| panic!("must be refused:\n{yaml}"));
        assert!(problems[0].contains(says), "{yaml}\nsays {problems:?}\nand not {says}");
        assert_eq!(problems.len(), 1, "{yaml}\nsays {problems:?}");
    }
}

#[test]
fn what_kes_would_silently_ignore_is_said_and_references_are_replaced() {
    let yaml = format!(
        "{GOOD}adress: 1.2.3.4:7373\napi: {{/v1/redy: {{skip_auth: \"${{YES}}\"}}, /v1/ready: {{skip_auth: \"${{ YES }}\"}}}}\n\
         cache: {{expiry: {{any: \"${{HOUR}}\", unusd: 1s}}}}\nlog: {{audit: off, error: WARN+1}}\n\
         policy:\n  p:\n    paths: [/v1/*]\n    deny: ['/v1/key/*/internal']\n    identities: [ABC]\n"
    );
    let file = kes_yaml::parse(&yaml, &environment(), Purpose::Server)
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    for says in [
        "adress (line 4) is unknown to KES, and is ignored; did you mean address?",
        "api./v1/redy is no path of the API, and is ignored; did you mean /v1/ready?",
        "cache.expiry.unusd (line 6) is unknown to KES, and is ignored; did you mean cache.expiry.unused?",
        "policy.p.paths is the old name of allow",
        "\"/v1/key/*/internal\" has a wildcard inside",
        "\"ABC\" is no identity",
    ] {
        assert!(file.warnings.iter().any(|warning| warning.contains(says)), "{says}: {:?}", file.warnings);
    }
    assert!(file.routes.any_open());
    assert_eq!(file.cache.any, Duration::from_secs(3600));
    assert_eq!((file.log.audit, file.log.error), (9, 5));
    assert_eq!(file.address.to_string(), "[::]:7373");
}
