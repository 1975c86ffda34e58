//! Reloads of `keswarden server` beside its work: with files that hang or are half written, with a key store that does not pass yet, and
//! while the server drains.

use crate::harness::{
    App, Holder, IN_PROCESS, KEY, SOON, Server, api_key, block_on, eventually, finish, health, key_text, now,
    server_yaml,
};
use keswarden::{identity::ApiKey, tls::mint::RunDir};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const FAILED: &str = "keswarden_config_reload_failed";

/// A pipe under this name: a reader waits for a writer.
fn pipe(path: PathBuf) -> PathBuf {
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// The pipe's writing end, once there is a reader.
fn once_read(pipe: &Path) -> File {
    const O_NONBLOCK: i32 = 0o4000;
    let mut writing = File::options();
    writing.write(true).custom_flags(O_NONBLOCK);
    eventually(IN_PROCESS, "somebody reads the pipe", || writing.open(pipe).ok())
}

fn policy(who: &ApiKey, more: &str) -> String {
    format!("policy:\n  app:\n    allow: [/v1/key/describe/*]\n    identities: [{}]\n{more}", who.identity())
}

/// The server's file, with this file as `tls.ca`.
fn with_ca(dir: &Path, ca: &Path) -> String {
    server_yaml(dir, "").replace("keystore:", &format!("  ca: {}\nkeystore:", ca.display()))
}

#[test]
fn a_request_that_waits_for_a_key_gets_it_though_the_drain_has_begun() {
    let kes = App::server_over_a_folder(&key_text());
    let slow = pipe(kes.dir.path().join("keys/slow"));
    let (client, admin) = (kes.admin_client(false), kes.admin);
    let asking = thread::spawn(move || client.call("GET", "/v1/key/describe/slow", None));
    let mut writing = once_read(&slow);
    let stopping = thread::spawn(move || kes.stop().is_ok());
    eventually(IN_PROCESS, "it drains", || health(admin, "/readyz").1.contains("draining").then_some(()));
    writing.write_all(key_text().as_bytes()).unwrap();
    drop(writing);
    let answer = asking.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(stopping.join().unwrap());
}

#[test]
fn a_key_that_comes_into_use_while_another_store_is_tried_must_be_there_as_well() {
    let right = key_text();
    let kes = App::server_over_a_folder(&right);
    let client = kes.admin_client(false);
    let (_, sealed) = client.generate(KEY, "{}");
    let (keys, other) = (kes.dir.path().join("keys"), kes.dir.path().join("other"));
    fs::create_dir(&other).unwrap();
    let slow = pipe(other.join(KEY));
    let app = api_key(1);
    fs::write(kes.file(), server_yaml(&kes.dir, &policy(&app, "")).replace("/keys\n", "/other\n")).unwrap();
    let mut writing = once_read(&slow);
    let described = kes.client(Some(&app), false).call("GET", &format!("/v1/key/describe/{KEY}"), None);
    assert_eq!(described.status, 200, "the policies do not wait for it");
    // The next read finds a file in place of the pipe.
    let whole = kes.dir.path().join("whole");
    fs::write(&whole, &right).unwrap();
    fs::rename(&whole, &slow).unwrap();

    assert_eq!(client.call("PUT", "/v1/key/create/late", None).status, 200);
    let (_, late) = client.generate("late", "{}");
    writing.write_all(right.as_bytes()).unwrap();
    drop(writing);
    let failed = || kes.metric(FAILED);
    eventually(IN_PROCESS, "the new store is not taken without it", || (failed()? == 1.0).then_some(()));
    assert_eq!(client.decrypt("late", &late, "{}").status, 200);

    fs::copy(keys.join("late"), other.join("late")).unwrap();
    eventually(IN_PROCESS, "it is taken with it", || (failed()? == 0.0).then_some(()));
    fs::remove_dir_all(keys).unwrap();
    for (name, ciphertext) in [(KEY, &sealed), ("late", &late)] {
        assert_eq!(client.decrypt(name, ciphertext, "{}").status, 200, "{name}");
    }
}

#[test]
fn a_key_store_that_does_not_pass_holds_up_neither_a_revocation_nor_a_certificate() {
    let (key, app) = (key_text(), api_key(1));
    let kes = App::server_over_a_folder(&key);
    let (client, admin) = (kes.client(Some(&app), false), kes.admin_client(false));
    let status = || client.call("GET", &format!("/v1/key/describe/{KEY}"), None).status;
    kes.rewrite(&policy(&app, ""));
    eventually(IN_PROCESS, "the policy is in force", || (status() == 200).then_some(()));
    let (_, sealed) = admin.generate(KEY, "{}");

    // Without the policy, with a missing key store, a key that cannot be made there, and another certificate.
    let other = tempfile::tempdir().unwrap();
    RunDir::new(other.path().to_owned(), &["kes.example".to_owned()]).ensure(now()).unwrap();
    for file in ["server.key", "server.crt", "ca.crt"] {
        fs::copy(other.path().join(file), kes.dir.path().join(file)).unwrap();
    }
    let moved =
        server_yaml(&kes.dir, &format!("keys: [{{ name: {KEY} }}]\n")).replace("/keys\n", "/missing\n");
    fs::write(kes.file(), moved).unwrap();
    let failed = || kes.metric(FAILED);
    eventually(IN_PROCESS, "who was struck from the file may do nothing more", || {
        (status() == 403).then_some(())
    });
    eventually(IN_PROCESS, "the key store does not pass", || (failed()? == 1.0).then_some(()));
    let fresh = kes.admin_client(false);
    assert!(block_on(fresh.send("GET", "/version", None)).is_ok(), "the new certificate is served");
    assert_eq!(admin.decrypt(KEY, &sealed, "{}").status, 200, "the former key store serves on");

    // The folder gets its name with the key inside, lest the server makes a key there.
    let filled = kes.dir.path().join("filled");
    fs::create_dir(&filled).unwrap();
    fs::write(filled.join(KEY), key).unwrap();
    fs::rename(filled, kes.dir.path().join("missing")).unwrap();
    eventually(IN_PROCESS, "the new key store is in use", || (failed()? == 0.0).then_some(()));
    fs::remove_dir_all(kes.dir.path().join("keys")).unwrap();
    assert_eq!((status(), admin.decrypt(KEY, &sealed, "{}").status), (403, 200));
}

#[test]
fn a_pipe_in_place_of_a_file_stops_nothing() {
    let mut server = Server::over_one_key("");
    let ca = pipe(server.dir().join("ca.pipe"));
    server.rewrite(&with_ca(server.dir(), &ca));
    server.process.says(SOON, "ca.pipe is no regular file");
    assert_eq!(health(server.admin, "/livez").0, 200);
    let admin = server.admin_client(false);
    let described = admin.call("GET", &format!("/v1/key/describe/{KEY}"), None);
    assert_eq!(described.status, 200, "a key is used for the first time");

    fs::remove_file(server.file()).unwrap();
    pipe(server.file());
    server.process.says(SOON, "server-config.yaml is no regular file");
    fs::remove_file(server.file()).unwrap();
    server.rewrite(&server_yaml(server.dir(), ""));
    eventually(IN_PROCESS, "the file is in force again", || (server.metric(FAILED)? == 0.0).then_some(()));
    pipe(server.dir().join("another.pipe"));
    server.rewrite(&with_ca(server.dir(), &server.dir().join("another.pipe")));
    server.process.says(SOON, "another.pipe is no regular file");
    server.process.signal("TERM");
    assert_eq!(server.process.wait(SOON), 0);

    // A start with a pipe in place of a file ends, and says why.
    let output = finish(&mut server.command(), "", SOON);
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{says}");
    assert!(says.contains("another.pipe is no regular file"), "{says}");
}

/// Another process with a lease on a file: an open of the file waits, as on a file system that hangs, until the kernel breaks the lease
/// after 45 s.
fn lease_on(path: &Path) -> Holder {
    const SCRIPT: &str = "
import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'r+')
while True:
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        break
    except BlockingIOError:
        time.sleep(0.01)
print('holding', flush=True)
sys.stdin.read()
";
    let path = path.to_str().expect("a path of ours is text");
    Holder::python("a lease on the file", ["-c", SCRIPT, path])
}

#[test]
fn a_file_system_that_hangs_stops_nothing() {
    let mut server = Server::over_one_key("");
    let ca = server.dir().join("ca.crt");
    server.rewrite(&with_ca(server.dir(), &ca));
    let reloaded = "keswarden_config_reloads_total{outcome=\"ok\"}";
    eventually(IN_PROCESS, "the file is in force", || (server.metric(reloaded)? == 1.0).then_some(()));
    let admin = server.admin_client(false);
    let lease = lease_on(&ca);
    server.process.says(SOON, "does their file system hang?");
    assert_eq!(health(server.admin, "/livez").0, 200);
    let described = admin.call("GET", &format!("/v1/key/describe/{KEY}"), None);
    assert_eq!(described.status, 200, "a key is used for the first time");
    server.process.signal("TERM");
    assert_eq!(server.process.wait(Duration::from_secs(20)), 0, "it ends before the lease does");
    drop(lease);
}

#[test]
fn a_half_written_file_is_not_taken_because_somebody_asks_for_a_reload() {
    let app = api_key(1);
    let half = policy(&app, "");
    let whole = policy(&app, &format!("    deny: [/v1/key/describe/{KEY}]\n"));
    let mut server = Server::over_one_key(&whole);
    let client = server.client(&app, false);
    let status = || client.call("GET", &format!("/v1/key/describe/{KEY}"), None).status;
    assert_eq!(status(), 403);
    let [half, whole] = [half, whole].map(|policies| server_yaml(server.dir(), &policies));
    // The server looks once a second, so a content that is there for less is not seen twice. On a machine that is too slow for
    // that, a round proves nothing, and another round follows.
    let proven = (0..10).any(|_| {
        let begun = Instant::now();
        server.rewrite(&half);
        server.process.signal("HUP");
        let mut opened = false;
        while begun.elapsed() < Duration::from_millis(500) {
            opened |= status() != 403;
        }
        server.rewrite(&whole);
        let in_time = begun.elapsed() < Duration::from_millis(900);
        assert!(!(in_time && opened), "the deny rule was dropped");
        in_time
    });
    assert!(proven, "the machine is too slow for this test");
    let reloads = "keswarden_config_reloads_total{outcome=\"ok\"}";
    eventually(IN_PROCESS, "the file is read again, as it was asked for", || {
        (server.metric(reloads)? >= 1.0).then_some(())
    });
    eventually(IN_PROCESS, "the whole file is in force", || (status() == 403).then_some(()));
}

#[test]
fn what_takes_a_restart_is_said() {
    let mut server = Server::over_one_key("log: { audit: off }\n");
    server.rewrite(&server_yaml(server.dir(), "").replace("127.0.0.1:7373", "127.0.0.1:7374"));
    server.process.says(SOON, "address has changed: that takes a restart");
    server.process.says(SOON, "log.audit has changed: that takes a restart");
}
