//! Keys that are held in memory while the store is away, or has other keys.

use crate::harness::{App, IN_PROCESS, KEY, block_on, eventually, key_text};
use keswarden::cause::Cause;
use std::sync::Arc;
use std::thread;

#[test]
fn an_outage_of_the_store_is_no_outage_of_the_keys_at_hand() {
    let app = App::serving(&[("KESWARDEN_VERIFY_INTERVAL", "50ms")]);
    let minio = app.minio(false);
    let (_, ciphertext) = minio.generate(KEY, "{}");
    app.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
    eventually(IN_PROCESS, "a verification has failed", || {
        (app.metric("keswarden_key_verifications_total{outcome=\"failed\"}")? > 0.0).then_some(())
    });
    assert_eq!(minio.decrypt(KEY, &ciphertext, "{}").status, 200);
    minio.generate(KEY, "{}");
    assert_eq!(app.health("/readyz").0, 200, "an outage of Vault must not take MinIO out of service");
    let unknown = minio.call("POST", "/v1/key/generate/unknown", Some("{}"));
    assert_eq!((unknown.status, unknown.body.as_str()), (502, "{\"message\":\"failed to read key\"\n}"));
    let status: serde_json::Value =
        serde_json::from_str(&minio.call("GET", "/v1/status", None).body).unwrap();
    assert_eq!(
        (&status["keystore_unreachable"], &status["keystore_unavailable"]),
        (&true.into(), &true.into())
    );
    app.store.fail(None);
    eventually(IN_PROCESS, "it is verified again", || {
        (app.health("/status").1.contains("\"my-key\": \"ok\"")).then_some(())
    });
}

#[test]
fn another_key_under_the_name_stops_sealing_and_never_opening() {
    let app = App::serving(&[("KESWARDEN_VERIFY_INTERVAL", "50ms")]);
    let minio = app.minio(false);
    let (_, ciphertext) = minio.generate(KEY, "{}");
    let before = keswarden_text(&app);
    app.store.put(KEY, &key_text());
    eventually(IN_PROCESS, "the change is seen", || {
        (app.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}")? == 1.0).then_some(())
    });
    let refused = minio.call("POST", "/v1/key/generate/my-key", Some("{}"));
    assert_eq!((refused.status, refused.body.as_str()), (502, "{\"message\":\"failed to read key\"\n}"));
    assert_eq!(minio.decrypt(KEY, &ciphertext, "{}").status, 200);
    app.store.put(KEY, &before);
    eventually(IN_PROCESS, "the right key is back", || {
        (app.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}")? == 0.0).then_some(())
    });
    let (_, later) = minio.generate(KEY, "{}");
    assert_eq!(minio.decrypt(KEY, &later, "{}").status, 200);
}

fn keswarden_text(app: &App) -> String {
    use keswarden::{names::Name, store::KeyStore};
    let name = Name::parse(KEY).unwrap();
    block_on(app.store.get(&name)).ok().unwrap().expose().to_owned()
}

#[test]
fn a_key_that_another_pod_made_is_used_at_its_first_mention_and_asked_for_once() {
    let app = App::serving(&[]);
    app.store.put("made-elsewhere", &key_text());
    let before = app.store.reads();
    let minio = Arc::new(app.minio(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let minio = minio.clone();
            thread::spawn(move || minio.generate("made-elsewhere", "{}"))
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(app.store.reads() - before <= 2, "{} reads for eight callers", app.store.reads() - before);
}

#[test]
fn a_key_that_is_lost_from_the_store_goes_on_being_served() {
    let app = App::serving(&[("KESWARDEN_VERIFY_INTERVAL", "50ms")]);
    let minio = app.minio(false);
    let (_, ciphertext) = minio.generate(KEY, "{}");
    app.store.remove(KEY);
    eventually(IN_PROCESS, "a verification has failed", || {
        (app.metric("keswarden_key_verifications_total{outcome=\"failed\"}")? > 1.0).then_some(())
    });
    assert_eq!(minio.decrypt(KEY, &ciphertext, "{}").status, 200, "a 404 never drops a key");
}
