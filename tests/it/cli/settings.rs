//! Settings: all mistakes are told at once, and the tables of the documents are the code's.

use crate::harness::inputs;
use keswarden::{
    config::{self, vars::VARS},
    exit,
};
use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Command,
};

fn problems(more: &[(&str, &str)]) -> String {
    config::load(inputs(Path::new("/nonexistent"), more))
        .err()
        .map(|problems| problems.to_string())
        .unwrap_or_default()
}

#[test]
fn each_wrong_setting_is_named_with_its_value_and_the_reason() {
    for (name, value, says) in [
        ("KESWARDEN_ADDR", "nonsense", "KESWARDEN_ADDR=\"nonsense\" invalid socket address"),
        ("KESWARDEN_GATE_TIMEOUT", "5", "is no duration"),
        ("KESWARDEN_VERIFY_INTERVAL", "0s", "must be longer than nothing"),
        ("KESWARDEN_KEY_CREATE", "always", "is none of never, if-new"),
        ("KESWARDEN_KEY_NAME", "my.key", "contains invalid characters"),
        ("KESWARDEN_TLS_NAMES", "a b", "is neither a DNS name nor an IP address"),
        ("KESWARDEN_IDENTITIES", "abc", "is no identity"),
        ("KESWARDEN_API_KEY", "kes:v1:abc", "KESWARDEN_API_KEY is no API key"),
        ("KESWARDEN_API_KEY_FILE", "/nonexistent/file", "cannot read /nonexistent/file"),
        ("KESWARDEN_ALLOW_DELETE", "perhaps", "is neither on nor off"),
        ("KESWARDEN_SSE_DEFAULT", "aes", "is none of sse-kms, sse-s3, off"),
        ("KESWARDEN_MINIO_ENDPOINT", "localhost:9000", "is not an http:// or https:// address"),
        ("KESWARDEN_MINIO_ENDPOINT", "http://u:p@h:9000", "holds a user name or password"),
        ("KESWARDEN_LOG", "loud", "is none of error, warn, info, debug, trace"),
        ("KESWARDEN_LOG_FORMAT", "xml", "is neither text nor json"),
        ("KESWARDEN_RUN_DIR", "", "KESWARDEN_RUN_DIR is set but empty"),
        ("KESWARDEN_VAULT_ADDR", "https://v:8200", "KESWARDEN_FS_DIR is set beside KESWARDEN_VAULT_ADDR"),
    ] {
        let text = problems(&[(name, value)]);
        assert!(text.contains(says), "{name}={value}: {text}");
        assert_eq!(text.lines().count(), 2, "one problem and no more: {text}");
    }
}

#[test]
fn all_that_is_wrong_is_said_in_one_run_and_no_secret_is_shown() {
    let environment: Vec<(OsString, OsString)> = [
        ("KESWARDEN_VAULT_ADDR", "ftp://vault"),
        ("KESWARDEN_VAULT_TOKEN", "hunter2\u{1}"),
        ("KESWARDEN_VAULT_ROLE_ID", "role"),
        ("KESWARDEN_VAULT_KV_MOUNT", "a//b"),
        ("KESWARDEN_VAULT_KV_VERSION", "3"),
        ("KESWARDEN_ADDR", ":7373"),
        ("KESWARDEN_GATE_TIMEOUT", "soon"),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .chain([
        ("KESWARDEN_LOG".into(), OsString::from_vec(vec![0xff])),
        (OsString::from_vec(vec![0xfe]), "x".into()),
    ])
    .collect();
    let output = Command::new(env!("CARGO_BIN_EXE_keswarden"))
        .arg("run")
        .env_clear()
        .envs(environment)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(exit::SETTINGS)), "{text}");
    for name in [
        "VAULT_ADDR",
        "VAULT_TOKEN",
        "VAULT_SECRET_ID",
        "VAULT_KV_MOUNT",
        "VAULT_KV_VERSION",
        "KEY_NAME",
        "ADDR",
        "GATE_TIMEOUT",
        "LOG",
    ] {
        assert!(text.contains(&format!("KESWARDEN_{name}")), "{name} is missing from: {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn unknown_names_are_warned_about_and_kubernetes_own_are_not() {
    let settings = config::load(inputs(
        Path::new("/nonexistent"),
        &[
            ("KESWARDEN_KEY_CRAETE", "if-new"),
            ("KESWARDEN_SERVICE_HOST", "10.0.0.1"),
            ("KESWARDEN_PORT_7373_TCP", "tcp://10.0.0.1:7373"),
        ],
    ));
    let warnings = settings.unwrap_or_else(|problems| panic!("{problems}")).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("KESWARDEN_KEY_CRAETE")
            && warnings[0].contains("did you mean KESWARDEN_KEY_CREATE?")
    );
}

#[test]
fn kes_s_own_file_is_a_whole_set_up() {
    let file = "
version: v1
address: 0.0.0.0:7373
admin:
  identity: ${MINIO_KES_IDENTITY}
tls: { key: /tmp/kes/server.key, cert: /tmp/kes/server.crt }
policy:
  minio:
    allow: [/v1/key/create/*, /v1/key/generate/*]
    deny: [/v1/key/*/internal]
    identities: [3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22]
cache: { expiry: { any: 5m0s, unused: 20s } }
log: { error: on, audit: off }
keystore:
  vault:
    endpoint: https://vault.example:8200/
    engine: secret/
    version: v2
    prefix: my-minio
    approle: { id: \"${ROLE_ID}\", secret: s3cr3t, retry: 15s }
    status: { ping: 10s }
";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server-config.yaml");
    std::fs::write(&path, file).unwrap();
    let load = |environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        config::load(config::Inputs {
            environment,
            config: Some(path.clone()),
            key: Some("my-key".to_owned()),
        })
    };
    let settings = load(&[("ROLE_ID", "r"), ("MINIO_KES_IDENTITY", "_")])
        .unwrap_or_else(|problems| panic!("{problems}"));
    let config::Store::Vault(configs) = &settings.store else { panic!("the store must be Vault") };
    let (vault, store) = &**configs;
    assert_eq!(vault.address, "https://vault.example:8200");
    assert_eq!((store.mount.as_str(), store.prefix.as_str()), ("secret", "my-minio"));
    assert_eq!(settings.policies.policies["minio"].allow.len(), 2);
    assert!(
        settings.warnings.iter().any(|warning| warning.contains("/v1/key/*/internal")),
        "{:?}",
        settings.warnings
    );
    let text = load(&[]).err().unwrap().to_string();
    assert!(text.contains("referenced env. variable 'ROLE_ID' in line '20' not found"), "{text}");
    assert_eq!(text.lines().count(), 2, "what only the policies refer to is a warning here: {text}");
    std::fs::write(&path, file.replace("vault:\n", "aws:\n")).unwrap();
    let text = load(&[("ROLE_ID", "r"), ("MINIO_KES_IDENTITY", "_")]).err().unwrap().to_string();
    assert!(text.contains("keystore.aws is not implemented by keswarden"), "{text}");
    assert!(!text.contains("s3cr3t"), "{text}");
}

#[test]
fn the_reference_s_tables_are_the_code_s() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let settings = std::fs::read_to_string(reference.join("settings.md")).unwrap();
    for var in VARS {
        let also = var.also.map(|also| format!(" (`{also}`)")).unwrap_or_default();
        let file = if var.secret { " or `_FILE`" } else { "" };
        let default = if var.default.is_empty() { String::new() } else { format!("`{}`", var.default) };
        let row = format!("| `{}`{file}{also} | {default} | {} |", var.name, var.doc);
        assert!(settings.contains(&row), "settings.md lacks the row:\n{row}");
    }
    let exit_codes = std::fs::read_to_string(reference.join("exit-codes.md")).unwrap();
    for row in exit::TABLE {
        let row = format!("| {} | {} |", row.code, row.meaning);
        assert!(exit_codes.contains(&row), "exit-codes.md lacks the row:\n{row}");
    }
}

/// The files of the tests below a folder.
fn test_files(folder: &Path) -> Vec<PathBuf> {
    let below = |path: PathBuf| if path.is_dir() { test_files(&path) } else { vec![path] };
    std::fs::read_dir(folder).unwrap().flat_map(|entry| below(entry.unwrap().path())).collect()
}

/// Whether the file is the module of this name, or one inside the module.
fn is_of_module(file: &Path, module: &str) -> bool {
    let inside = |path: String| format!("/{path}/").contains(&format!("/{}/", module.replace("::", "/")));
    inside(file.with_extension("").display().to_string())
}

#[test]
fn every_test_that_the_table_of_differences_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("docs/reference/differences.md")).unwrap();
    let tests = root.join("tests/it");
    let files: Vec<_> = test_files(&tests)
        .into_iter()
        .map(|file| (file.strip_prefix(&tests).unwrap().to_owned(), std::fs::read_to_string(&file).unwrap()))
        .collect();
    let mut seen = 0;
    for quoted in table.split('`').skip(1).step_by(2) {
        let Some((module, test)) = quoted.rsplit_once("::") else { continue };
        let is_there = files
            .iter()
            .any(|(file, text)| is_of_module(file, module) && text.contains(&format!("fn {test}()")));
        assert!(is_there, "there is no test {quoted}");
        seen += 1;
    }
    assert!(seen > 25, "only {seen} tests are named");
}
