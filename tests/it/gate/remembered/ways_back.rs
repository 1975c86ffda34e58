//! Ways back: the printed commands bring a lost key back, and a key that was replaced on purpose passes once the former key is forgotten.

use super::{
    Place, Store, Way,
    tenant::{Remembered, WRITTEN, between, on_own_runtime, paste},
};
use crate::harness::{Agent, Bao, Client, KEY, SOON, eventually, fingerprint, key_text, succeeded};
use keswarden::{app, cause::Cause, exit};
use std::fs;

/// The last bytes of a key may be in the sealed copy: no verification removes them, and the printed commands bring the key back.
#[test]
fn the_last_of_a_key_in_a_sealed_copy_comes_back_by_what_is_printed() {
    let bao = Bao::unsealed();
    for store in [Store::Directory, Store::KvVersion1, Store::KvVersion2] {
        if store != Store::Directory {
            let (version, mount) = if store == Store::KvVersion1 { (1, "kv1") } else { (2, "kv2") };
            bao.setup_kv(version, mount);
        }
        let tenant = Remembered::new(&bao, store, Place::SealedCopy, "last".to_owned());
        let sealed = fs::read(tenant.path("copy/keys.sealed")).unwrap();
        tenant.loses(Way::Replaced, &key_text());
        let mut agent = tenant.agent("on its copy");
        agent.run();
        agent.process().says(SOON, "key_replaced");
        assert_eq!(fs::read(tenant.path("copy/keys.sealed")).unwrap(), sealed, "it is as it was");
        let line = agent.process().log();
        paste(&agent, &bao, between(&line, "set aside what is stored now, `", "`, then"), tenant.dir.path());
        paste(&agent, &bao, between(&line, "sealed copy, which has it: `", "`"), tenant.dir.path());
        agent.ready();
        assert_eq!(tenant.stored("").map(|text| fingerprint(&text)), Some(fingerprint(&WRITTEN.key)));
        agent.drain();
    }
}

/// OpenBao is replaced by an empty OpenBao while the agent holds the key: every command names the rescue, and none makes another key.
#[test]
fn a_vault_that_is_empty_while_an_agent_holds_the_key() {
    for version in [1, 2] {
        let bao = Bao::with_kv(version);
        let mut settings = bao.vars();
        settings.extend([
            ("KESWARDEN_VAULT_TOKEN", bao.root_token().to_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ]);
        let mut agent = Agent::new("holds", &settings);
        succeeded("key create", &agent.output(&["key", "create", "--first"]));
        agent.run();
        agent.ready();
        bao.ok(&["secrets", "disable", "kv"], "");
        bao.setup_kv(version, "kv");
        let rescue = format!("keswarden key rescue {KEY} --run-dir {} --yes", agent.run_dir().display());
        let told = agent.output(&["doctor"]);
        let table = String::from_utf8_lossy(&told.stdout).into_owned();
        assert_eq!(told.status.code(), Some(i32::from(exit::UNAVAILABLE)), "{table}");
        assert!(table.contains(&rescue) && !table.contains("key create"), "{table}");
        for command in [&["key", "create", "--first"][..], &["init"]] {
            agent.set("KESWARDEN_GATE_TIMEOUT", "0");
            let told = agent.output(command);
            let text = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(told.status.code(), Some(i32::from(exit::UNAVAILABLE)), "{text}");
            assert!(text.contains(&rescue) && !text.contains("key create"), "{text}");
        }
        assert!(!bao.cli(&["kv", "get", "-mount=kv", "minio/my-key"]).status.success(), "nothing was made");
        let dir = tempfile::tempdir().unwrap();
        paste(&agent, &bao, &rescue, dir.path());
        succeeded("doctor", &agent.output(&["doctor"]));
    }
}

/// A key that is replaced on purpose: one command, with both fingerprints, and with no other.
#[test]
fn a_key_that_is_replaced_on_purpose_passes_once_the_former_one_is_forgotten() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    for place in [Place::StateDirectory, Place::SealedCopy, Place::PinDirectory, Place::PinPath] {
        let tenant = Remembered::new(&bao, Store::KvVersion2, place, format!("forget-{place:?}"));
        let other = key_text();
        tenant.loses(Way::Replaced, &other);
        let finding = tenant.init("").unwrap_err();
        let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
        let command = format!("keswarden key forget {KEY} --was {was} --is {is} --yes");
        assert!(finding.fix.contains(&command), "{finding}");
        let forget =
            |was: &str, is: Option<&str>| on_own_runtime(app::forget(tenant.settings("", &[]), was, is));
        for (was, is) in
            [(is.as_str(), Some(is.as_str())), (was.as_str(), Some(was.as_str())), (was.as_str(), None)]
        {
            assert!(forget(was, is).is_err(), "{place:?}: nobody knows {was}, or {is:?} is not stored");
        }
        assert_eq!(
            tenant.init("").unwrap_err().cause,
            Cause::KeyReplaced,
            "{place:?}: nothing was forgotten"
        );
        for (at, result) in forget(&was, Some(&is)).unwrap() {
            result.unwrap_or_else(|finding| panic!("{place:?}, {at}: {finding}"));
        }
        tenant.init("").unwrap_or_else(|finding| panic!("{place:?}: {finding}"));
        // From now on the new key is remembered.
        if place != Place::SealedCopy {
            tenant.loses(Way::Replaced, &WRITTEN.key);
            assert_eq!(tenant.init("").unwrap_err().cause, Cause::KeyReplaced, "{place:?}");
        }
    }
}

/// An agent that still holds the former key says so, and its next copy does not bring it back.
#[test]
fn what_is_forgotten_beside_a_running_agent_stays_forgotten() {
    let bao = Bao::unsealed();
    let tenant = Remembered::new(&bao, Store::Directory, Place::SealedCopy, String::new());
    fs::write(tenant.path("keys/bucket-key"), key_text()).unwrap();
    let mut agent = tenant.agent("holds on");
    agent.set("KESWARDEN_VERIFY_INTERVAL", "200ms");
    agent.run();
    agent.ready();
    let client = |agent: &Agent| Client::of_run_dir(&tenant.path("run"), agent.kes_port());
    client(&agent).generate("bucket-key", "{}");
    let other = key_text();
    fs::write(tenant.path("keys").join(KEY), &other).unwrap();
    agent.process().says(SOON, "sealing with the key has stopped");
    let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
    let told = on_own_runtime(app::forget(tenant.settings("", &[]), &was, Some(&is))).unwrap();
    let (held, others): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|(at, _)| at.starts_with("the running agent"));
    assert!(held.iter().any(|(_, result)| result.is_err()), "it holds the key still");
    others.into_iter().for_each(|(at, result)| result.unwrap_or_else(|finding| panic!("{at}: {finding}")));
    let copy = tenant.path("copy/keys.sealed");
    for _ in 0..2 {
        let before = fs::read(&copy).unwrap();
        eventually(SOON, "the copy is sealed anew", || fs::read(&copy).unwrap() != before);
    }
    agent.kill();
    agent.run();
    agent.ready();
    client(&agent).generate(KEY, "{}");
}
