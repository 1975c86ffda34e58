//! The binary's commands, as a person runs them.

use crate::harness::{Agent, Client, IN_PROCESS, SOON, closed_port, eventually, key_text};
use keswarden::crypto::key_version::KeyVersion;
use std::{
    io::Read,
    process::{Child, Command, Output, Stdio},
};

fn keswarden(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keswarden")).args(arguments).env_clear().output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_new_key_is_whole_and_every_time_another() {
    let (one, other) = (keswarden(&["key", "new"]), keswarden(&["key", "new", "my-key"]));
    assert_ne!(one.stdout, other.stdout);
    assert!(!stdout(&one).ends_with('\n'), "what is piped into `bao kv put` has no line end");
    for output in [&one, &other] {
        assert!(KeyVersion::parse(&output.stdout).unwrap().key.has_hmac());
    }
    let hint = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(hint.contains("keswarden key create --first my-key") && !hint.contains("bao kv put"), "{hint}");
    assert_eq!(keswarden(&["key", "new", "my.key"]).status.code(), Some(64));
}

#[test]
fn an_api_key_and_its_identity_belong_together() {
    let made = keswarden(&["identity"]);
    let key = stdout(&made);
    assert!(
        key.starts_with("kes:v1:") && !key.ends_with('\n'),
        "what a script reads is the key and nothing else"
    );
    let of = stdout(&keswarden(&["identity", "of", &key]));
    assert_eq!(of.len(), 64);
    let told = stdout(&keswarden(&["identity", "new"]));
    assert!(told.contains("kes:v1:"), "{told}");
    assert_eq!(keswarden(&["identity", "of", "kes:v1:nonsense"]).status.code(), Some(1));
}

#[test]
fn help_names_every_exit_code_and_wrong_arguments_are_refused() {
    let help = keswarden(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for code in ["64", "65", "69", "70", "71", "77"] {
        assert!(stdout(&help).contains(&format!("  {code}  ")), "{code}");
    }
    assert_eq!(keswarden(&["frobnicate"]).status.code(), Some(64));
    assert!(stdout(&keswarden(&["version"])).starts_with("keswarden 0."));
}

struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dev(dir: &str, api: u16, admin: u16) -> Dev {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    command.args(["dev", "--dir", dir]).env_clear();
    command
        .env("KESWARDEN_ADDR", format!("127.0.0.1:{api}"))
        .env("KESWARDEN_ADMIN_ADDR", format!("127.0.0.1:{admin}"));
    Dev(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn health(admin: u16) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    command
        .arg("health")
        .env_clear()
        .env("KESWARDEN_ADMIN_ADDR", format!("0.0.0.0:{admin}"))
        .output()
        .unwrap()
}

fn drain(mut dev: Dev) -> (Option<i32>, String, String) {
    let pid = dev.0.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let code = eventually(IN_PROCESS, "it ends", || dev.0.try_wait().unwrap()).code();
    let (mut out, mut err) = (String::new(), String::new());
    dev.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    dev.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (code, out, err)
}

#[test]
fn dev_serves_prints_what_minio_needs_and_a_second_start_has_the_same_keys() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("dev");
    let place = place.to_str().unwrap();
    let (api, admin) = (closed_port(), closed_port());
    assert_eq!(health(admin).status.code(), Some(1), "nobody answers yet");
    let first = dev(place, api, admin);
    eventually(IN_PROCESS, "dev is ready", || (health(admin).status.code() == Some(0)).then_some(()));
    let taken = dev(place, api, closed_port());
    let (code, _, err) = {
        let mut taken = taken;
        let code = eventually(IN_PROCESS, "the second one ends", || taken.0.try_wait().unwrap()).code();
        let mut err = String::new();
        taken.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (code, (), err)
    };
    assert_eq!(code, Some(71), "{err}");
    assert!(err.contains("cannot_bind") && err.contains("KESWARDEN_ADDR"), "{err}");

    let (code, out, err) = drain(first);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        err.contains("this is for trying out") && err.contains("SIGINT: draining") && err.contains("drained"),
        "{err}"
    );
    for name in ["ENDPOINT", "API_KEY", "CAPATH", "KEY_NAME"] {
        assert!(out.contains(&format!("export MINIO_KMS_KES_{name}=\"")), "{out}");
    }
    let exports = |text: &str| {
        text.lines().filter(|line| line.starts_with("export")).map(str::to_owned).collect::<Vec<_>>()
    };
    let written = std::fs::read_to_string(format!("{place}/minio.env")).unwrap();
    assert_eq!(exports(&out), exports(&written));

    let second = dev(place, api, admin);
    eventually(IN_PROCESS, "dev is ready again", || (health(admin).status.code() == Some(0)).then_some(()));
    let (_, out_again, err) = drain(second);
    assert_eq!(exports(&out), exports(&out_again), "the same API key and CA");
    assert!(!err.contains("was made"), "{err}");

    std::fs::remove_file(format!("{place}/keys/minio-default-key")).unwrap();
    let third = dev(place, api, admin);
    let text = eventually(IN_PROCESS, "it waits", || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
        let asked = command
            .args(["health", "--json"])
            .env_clear()
            .env("KESWARDEN_ADMIN_ADDR", format!("127.0.0.1:{admin}"));
        let text = stdout(&asked.output().unwrap());
        text.contains("key_missing").then_some(text)
    });
    assert!(
        text.contains("keswarden key restore") && !text.contains("key create"),
        "a default key that is gone is never made again, and nobody is told to: {text}"
    );
    drain(third);
}

#[test]
fn memory_is_neither_dumped_nor_attached_to() {
    let dir = tempfile::tempdir().unwrap();
    let (api, admin) = (closed_port(), closed_port());
    let agent = dev(dir.path().to_str().unwrap(), api, admin);
    eventually(IN_PROCESS, "it is ready", || (health(admin).status.code() == Some(0)).then_some(()));
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", agent.0.id())).unwrap();
    let limits = proc("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // All memory is locked where that is allowed; the keys in any case.
    let status = proc("status");
    let in_memory = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
    assert!(!in_memory.trim_end().ends_with(" 0 kB"), "{in_memory}");
}

/// `init` and `run` start together, as a Pod's containers and a host's units may.
#[test]
fn init_and_run_may_start_at_once_in_one_run_directory() {
    let keys = tempfile::tempdir().unwrap();
    std::fs::write(keys.path().join("my-key"), key_text()).unwrap();
    for _ in 0..10 {
        let settings = [
            ("KESWARDEN_FS_DIR", keys.path().to_string_lossy().into_owned()),
            ("KESWARDEN_KEY_NAME", "my-key".to_owned()),
        ];
        let mut agent = Agent::new("at once", &settings);
        let mut inits = [agent.init(), agent.init()];
        agent.run();
        agent.ready();
        for init in &mut inits {
            assert_eq!(init.wait(SOON), 0, "{}", init.log());
        }
        Client::of(&agent).generate("my-key", "{}");
    }
}
