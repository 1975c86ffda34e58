//! KES's command line, as scripts use it: its output, its errors, its exit codes.

use crate::harness::{App, KEY, admin_key, api_key, base64, key_text};
use serde_json::Value;
use std::process::{Command, Output};

struct Cli {
    server: String,
    ca: String,
    api_key: String,
}

impl Cli {
    fn of(kes: &App) -> Self {
        Self {
            server: format!("https://{}", kes.api),
            ca: kes.dir.path().join("ca.crt").display().to_string(),
            api_key: admin_key().to_text().expose().to_owned(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_keswarden"))
            .args(arguments)
            .env_clear()
            .env("MINIO_KES_SERVER", &self.server)
            .env("MINIO_KES_API_KEY", &self.api_key)
            .env("MINIO_KMS_KES_CAPATH", &self.ca)
            .output()
            .unwrap()
    }

    /// The output of a command that must succeed.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The stderr of a command that must fail.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn keys_are_made_used_and_listed() {
    let kes = App::server("");
    let cli = Cli::of(&kes);
    assert_eq!(cli.prints(&["key", "create", "one", "two"]), "");
    assert_eq!(cli.prints(&["key", "import", "three", &base64(&[7; 32])]), "");
    assert_eq!(cli.prints(&["key", "ls"]), "Key\none\nthree\ntwo\n");
    assert_eq!(cli.prints(&["ls", "t"]), "Key\nthree\ntwo\n");
    assert_eq!(json(&cli.prints(&["ls", "--json"])), serde_json::json!(["one", "three", "two"]));
    assert_eq!(cli.prints(&["ls", "none"]), "");

    let sealed = cli.prints(&["key", "encrypt", "one", "Hello"]);
    assert!(!sealed.ends_with('\n'));
    let ciphertext = json(&sealed)["ciphertext"].as_str().unwrap().to_owned();
    let opened = json(&cli.prints(&["key", "decrypt", "one", &ciphertext]));
    assert_eq!(opened["plaintext"], base64(b"Hello"));
    let dek = json(&cli.prints(&["key", "dek", "two", &base64(b"{}")]));
    let ciphertext = dek["ciphertext"].as_str().unwrap();
    let opened = json(&cli.prints(&["key", "decrypt", "two", ciphertext, &base64(b"{}")]));
    assert_eq!(opened["plaintext"], dek["plaintext"]);

    let info = cli.prints(&["key", "info", "three"]);
    assert!(info.contains("three") && info.contains("AES256") && !info.ends_with('\n'), "{info}");
    assert_eq!(json(&cli.prints(&["key", "info", "three", "--json"]))["algorithm"], "AES256");

    assert_eq!(
        cli.fails(&["key", "create", "one"], 1),
        "Error: failed to create key 'one': key already exists\n".to_owned()
    );
}

#[test]
fn what_goes_wrong_ends_with_one_and_usage_with_two() {
    let kes = App::server("");
    let cli = Cli::of(&kes);
    for arguments in [&["key", "info", "missing"][..], &["key", "rm", "missing"], &["key", "--no-such-flag"]]
    {
        assert!(cli.fails(arguments, 1).starts_with("Error: "), "{arguments:?}");
    }
    for arguments in [&["key"][..], &["key", "create", "--help"], &["policy"], &["status", "-h"]] {
        assert!(cli.fails(arguments, 2).contains("Usage"), "{arguments:?}");
    }
    let nobody = Cli { api_key: api_key(9).to_text().expose().to_owned(), ..Cli::of(&kes) };
    assert!(nobody.fails(&["key", "ls"], 1).contains("not authorized: insufficient permissions"));
    let garbage = Cli { api_key: "kes:v1:garbage".to_owned(), ..Cli::of(&kes) };
    assert!(!garbage.fails(&["key", "ls"], 1).contains("garbage"), "a key is never repeated");
    let nowhere = Cli { server: "https://127.0.0.1:1".to_owned(), ..Cli::of(&kes) };
    assert!(nowhere.fails(&["status"], 1).contains("127.0.0.1:1"));
}

#[test]
fn policies_identities_and_the_server_describe_themselves() {
    let app = api_key(1);
    let kes = App::server(&format!(
        "policy:\n  app:\n    allow: [/v1/key/*]\n    deny: [/v1/key/delete/*]\n    identities: [{}]\n",
        app.identity()
    ));
    let cli = Cli::of(&kes);
    assert_eq!(cli.prints(&["policy", "ls"]), "Policy\napp\n");
    let shown = json(&cli.prints(&["policy", "show", "app"]));
    assert!(shown["allow"]["/v1/key/*"].is_object() && shown["deny"]["/v1/key/delete/*"].is_object());
    let info = cli.prints(&["identity", "info", app.identity().as_str()]);
    assert!(info.contains("app") && info.contains("User"), "{info}");
    assert!(cli.prints(&["identity", "info"]).contains("Admin"));
    let listed = cli.prints(&["identity", "ls"]);
    assert!(listed.starts_with("Identity\n") && listed.contains(app.identity().as_str()), "{listed}");
    let status = cli.prints(&["status", "--api"]);
    assert!(status.contains(&kes.api.to_string()) && status.contains("/v1/key/create/"), "{status}");
    let status = json(&cli.prints(&["status", "--json"]));
    assert!(status["version"].is_string() && status["keystore_latency"].is_u64(), "{status}");
}

#[test]
fn identities_are_made_in_files_and_never_overwritten_by_accident() {
    let kes = App::server("");
    let cli = Cli::of(&kes);
    let dir = tempfile::tempdir().unwrap();
    let (key, cert) = (dir.path().join("app.key"), dir.path().join("app.crt"));
    let (key, cert) = (key.to_str().unwrap(), cert.to_str().unwrap());
    let new =
        ["identity", "new", "--key", key, "--cert", cert, "--dns", "localhost", "--ip", "127.0.0.1", "app"];
    let told = cli.prints(&new);
    let identity = cli.prints(&["identity", "of", cert]);
    assert!(told.contains(&identity), "{told}");
    let api_key = cli.prints(&["identity", key]);
    assert!(told.contains(&api_key), "a key file and an API key are one: {told}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(cli.fails(&new, 1).starts_with("Error: "));
    assert_ne!(cli.prints(&[&new[..], &["-f"]].concat()), told);
}

#[test]
fn migrate_copies_proves_resumes_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = |name: &str| {
        let keys = dir.path().join(name);
        std::fs::create_dir(&keys).unwrap();
        let file = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, format!("keystore: {{ fs: {{ path: {} }} }}\n", keys.display())).unwrap();
        (keys, file.display().to_string())
    };
    let ((from, from_file), (to, to_file)) = (store("from"), store("to"));
    for name in ["one", "two", "three", "other"] {
        std::fs::write(from.join(name), key_text()).unwrap();
    }
    // KES's older form is a key as well; a text that is no key is not copied.
    std::fs::write(from.join("legacy"), format!("{{\"bytes\":\"{}\"}}", base64(&[7; 32]))).unwrap();
    std::fs::write(to.join("two"), std::fs::read(from.join("two")).unwrap()).unwrap();
    let another = key_text();
    std::fs::write(to.join("three"), &another).unwrap();
    let run = |more: &[&str]| {
        let arguments = [&["migrate", "--from", &from_file, "--to", &to_file], more].concat();
        let output =
            Command::new(env!("CARGO_BIN_EXE_keswarden")).args(arguments).env_clear().output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, plan, _) = run(&["--dry-run"]);
    assert_eq!(code, 1, "a conflict is told beforehand: {plan}");
    for line in ["copy      one", "there     two", "conflict  three", "copy      legacy"] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    assert!(!to.join("one").exists(), "a plan does nothing");

    let (code, _, errors) = run(&["[lot]*e"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("three: ") && errors.contains("--force replaces it"), "{errors}");
    assert_eq!(std::fs::read(to.join("one")).unwrap(), std::fs::read(from.join("one")).unwrap());
    assert_eq!(std::fs::read_to_string(to.join("three")).unwrap(), another, "never overwritten unasked");
    assert!(!to.join("other").exists(), "the pattern names others");

    let (code, told, errors) = run(&["--merge"]);
    assert_eq!(
        (code, told.as_str()),
        (0, "Migrated 2 keys successfully! (2 there already, 1 skipped, 0 failed)\n"),
        "{errors}"
    );
    let (code, told, _) = run(&["--force"]);
    assert_eq!(
        (code, told.as_str()),
        (0, "Migrated 1 keys successfully! (4 there already, 0 skipped, 0 failed)\n")
    );
    assert_eq!(std::fs::read(to.join("three")).unwrap(), std::fs::read(from.join("three")).unwrap());

    std::fs::write(from.join("broken"), "no key at all").unwrap();
    let (code, _, errors) = run(&[]);
    assert!(code == 1 && errors.contains("broken: ") && errors.contains("is no key"), "{errors}");
    assert!(!to.join("broken").exists());
}

#[test]
fn shells_are_told_how_to_complete() {
    let kes = App::server("");
    kes.store.put(KEY, &key_text());
    for (shell, says) in
        [("bash", "_keswarden"), ("zsh", "#compdef keswarden"), ("fish", "complete -c keswarden")]
    {
        assert!(Cli::of(&kes).prints(&["completion", shell]).contains(says), "{shell}");
    }
}

#[test]
fn a_server_that_cannot_start_says_why_and_ends_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server-config.yaml");
    let server = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_keswarden"))
            .arg("server")
            .args(arguments)
            .env_clear()
            .env("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(server(&[]), "Error: open : no such file or directory\n");
    let config = format!("--config={}", file.display());
    let yaml = "admin: { identity: a }\ntls: { key: /nonexistent.key, cert: /nonexistent.crt }\nlog: { error: off }\n";
    std::fs::write(&file, yaml).unwrap();
    let told = server(&[&config, "--auth=off", "--key=x", "--cert=y"]);
    assert!(
        told.contains("Warning: '--auth' is ignored")
            && told.contains("Error: kesconf: no keystore specified"),
        "{told}"
    );
    std::fs::write(&file, format!("{yaml}keystore: {{ fs: {{ path: /tmp }} }}\n")).unwrap();
    let told = server(&[&config, "--addr=127.0.0.1:0"]);
    assert!(told.contains("Error: ") && told.contains("/nonexistent.crt"), "{told}");
    assert!(server(&[&config, "positional"]).starts_with("Error: "));
    assert!(server(&[&config, "--dev"]).starts_with("Error: "));
    assert!(
        server(&[&config, "--addr=kes.example:7373"]).contains("'kes.example' is not a valid IP address")
    );
}
