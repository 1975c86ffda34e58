//! A key that is lost or unknown at a start: MinIO never boots on another key, drives and a copy that come late still decide.

use super::{
    Place, Store, WAYS, Way,
    tenant::{Remembered, WRITTEN, on_own_runtime},
};
use crate::harness::{Bao, KEY, Minio, SOON, key_text, succeeded};
use keswarden::app;
use std::{fs, process::Command};

/// With default settings MinIO never boots on a wrong key, whatever way the right key was lost.
#[test]
fn minio_never_boots_on_a_wrong_key() {
    for (store, ways) in [(Store::KvVersion1, &WAYS[..1]), (Store::KvVersion2, &WAYS[..])] {
        let bao = Bao::unsealed();
        bao.setup_kv(
            if store == Store::KvVersion1 { 1 } else { 2 },
            if store == Store::KvVersion1 { "kv1" } else { "kv2" },
        );
        let ways = ways.iter().chain(if store == Store::KvVersion1 { &WAYS[3..] } else { &[] });
        for (number, way) in ways.enumerate() {
            println!("{store:?}, {way:?}");
            let tenant = Remembered::new(&bao, store, Place::StateDirectory, format!("minio-{number}"));
            let mut agent = tenant.agent("by default");
            agent.set("KESWARDEN_KEY_CREATE", "if-new");
            agent.run();
            agent.ready();
            let mut minio = Minio::new("by default");
            let run_dir = |file: &str| tenant.path("run").join(file).display().to_string();
            minio.set(vec![
                ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", agent.kes_port())),
                ("MINIO_KMS_KES_CERT_FILE", run_dir("client.crt")),
                ("MINIO_KMS_KES_KEY_FILE", run_dir("client.key")),
                ("MINIO_KMS_KES_CAPATH", run_dir("ca.crt")),
                ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
            ]);
            minio.start();
            minio.wait_live();
            let mc = minio.mc("by-default");
            mc.make_bucket("bucket");
            mc.set_default_key("bucket", KEY);
            mc.put("bucket/object", "written before");
            minio.stop();
            agent.kill();

            let other = key_text();
            let at = tenant.loses(*way, &other);
            if !at.is_empty() {
                agent.set("KESWARDEN_VAULT_KV_PREFIX", &format!("{}{at}", tenant.prefix));
            }
            agent.run();
            agent.process().says(
                SOON,
                match way {
                    Way::Replaced | Way::MovedToAnothers => "key_replaced",
                    Way::SoftDeleted => "key_deleted",
                    Way::Destroyed => "key_destroyed",
                    Way::Deleted | Way::MovedToNothing => "so it is not made anew",
                },
            );
            minio.start();
            assert_ne!(minio.process().wait(SOON), 0, "{way:?}: {}", minio.process().tail());
            agent.kill();
        }
    }
}

/// Commands that a person runs as root: the files that they write belong to the owner of the folder, the agent's own user.
#[test]
fn what_root_writes_belongs_to_the_owner_of_its_folder() {
    use std::os::unix::fs::{MetadataExt, chown};
    const AGENT: u32 = 54_321;
    let bao = Bao::unsealed();
    let tenant = Remembered::new(&bao, Store::Directory, Place::Nowhere, String::new());
    let run = tenant.path("run-of-another");
    for dir in [run.clone(), run.join("agent"), tenant.path("pins"), tenant.path("keys")] {
        fs::create_dir_all(&dir).unwrap();
        chown(&dir, Some(AGENT), Some(AGENT)).unwrap();
    }
    fs::remove_file(tenant.path("keys").join(KEY)).unwrap();
    let (run_dir, pins) = (run.display().to_string(), tenant.path("pins").display().to_string());
    let more = [
        ("KESWARDEN_MEMORY", "on"),
        ("KESWARDEN_RUN_DIR", run_dir.as_str()),
        ("KESWARDEN_PIN_DIR", pins.as_str()),
    ];
    on_own_runtime(app::create_first(tenant.settings("", &more)))
        .unwrap_or_else(|stopped| panic!("{stopped}"));
    let mut files =
        vec![run.join("agent/known-keys"), tenant.path("pins").join(KEY), tenant.path("keys").join(KEY)];
    files.extend(fs::read_dir(run.join("agent/known-keys")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let about = fs::metadata(&file).unwrap();
        assert_eq!((about.uid(), about.gid()), (AGENT, AGENT), "{}", file.display());
    }
}

/// Volumes that are mounted a moment after the gate starts: a key without a witness waits for the volumes, and is not remembered before.
#[test]
fn drives_that_come_late_still_decide() {
    let bao = Bao::unsealed();
    let tenant = Remembered::new(&bao, Store::Directory, Place::StateDirectory, String::new());
    fs::remove_dir_all(tenant.path("run")).unwrap();
    fs::write(tenant.path("keys").join(KEY), key_text()).unwrap();
    let mut agent = tenant.agent("late");
    agent.set("KESWARDEN_DRIVES", &tenant.path("export*").display().to_string());
    agent.run();
    agent.process().says(SOON, "and the drives may: they are waited for");
    let copied =
        Command::new("cp").arg("-a").arg(&WRITTEN.drive).arg(tenant.path("export1")).output().unwrap();
    succeeded("cp", &copied);
    agent.process().says(SOON, "key_replaced");
    assert!(!tenant.path("run/agent/known-keys").exists(), "a key that does not pass is not remembered");
    fs::write(tenant.path("keys").join(KEY), &WRITTEN.key).unwrap();
    agent.ready();
}

/// Pins are demanded, and are in the Vault that is sealed: the copy of the agent's own store is enough.
#[test]
fn a_demanded_pin_in_a_sealed_vault_is_no_obstacle_to_the_copy() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let tenant = Remembered::new(&bao, Store::KvVersion2, Place::SealedCopy, "require".to_owned());
    let more = [("KESWARDEN_PIN_KV", "pins/require"), ("KESWARDEN_PIN", "warn")];
    tenant.gate("", &more).unwrap();
    bao.seal();
    let more = [more[0], ("KESWARDEN_PIN", "require")];
    tenant.gate("", &more).unwrap_or_else(|finding| panic!("{finding}"));
}
