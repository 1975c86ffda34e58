//! An audit device that stalls or fails. OpenBao answers no request without an audit record, so every request hangs or is refused.
//! The health page is not audited, and is green all the while.

use super::Site;
use crate::harness::{Bao, Process, SOON, eventually, finish, key_text, policy, put_key, succeeded};
use std::{fs, process::Command};

const CAUSE: &str = "vault_unhealthy_behind_green_health";

/// The agent goes on, and has named the cause so many times; a gate names the cause, too; the health page is green.
fn goes_on(site: &mut Site, times: usize) -> String {
    let log = site.goes_on_while(CAUSE);
    let said = format!("served, unverified: {CAUSE}: ");
    eventually(SOON, "the agent names it", || site.agent.process().log().matches(&said).count() >= times);
    let (status, page) = site.bao.api("GET", "sys/health", None, None);
    assert_eq!(status, 200, "the health page is green: {page}");
    log
}

#[test]
fn an_audit_device_that_stalls_behind_a_green_health_page() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("audit");
    succeeded("mkfifo", &finish(Command::new("mkfifo").arg(&device), "", SOON));
    // The reader has the pipe open for writing too: OpenBao opens and closes the device more than once on its way to active, and a
    // reader without any writer would end there, and OpenBao's next opening would hang.
    let mut cat = Command::new("sh");
    cat.args(["-c", "exec cat <>\"$0\""]).arg(&device);
    let mut reader = Process::spawn("the reader of the audit device", cat, dir.path().join("read"));
    let lines = format!(
        "audit \"file\" \"stalls\" {{\n  options {{\n    file_path = \"{}\"\n  }}\n}}\n",
        device.display()
    );
    let bao = Bao::unsealed_with(&lines);
    bao.setup_kv(2, "kv");
    put_key(&bao, &key_text());
    let login = bao.approle_pair(&policy(2));
    let mut site = Site::serving(bao, &login);

    // The pipe has no reader. The agent's own requests fill the pipe, and then every request hangs.
    reader.signal("STOP");
    let log = goes_on(&mut site, 1);
    assert!(log.contains("got no answer within 1s"), "{log}");
    reader.signal("CONT");
    site.recovers();
    site.gate_passes();

    // The device cannot be opened any more, as after a log rotation that went wrong: every request fails, without a reason.
    fs::remove_file(&device).unwrap();
    fs::create_dir(&device).unwrap();
    site.bao.process().signal("HUP");
    let log = goes_on(&mut site, 2);
    assert!(log.contains("500 internal error"), "{log}");
    fs::remove_dir(&device).unwrap();
    site.bao.process().signal("HUP");
    site.recovers();
    site.gate_passes();
}
