//! Pins: a key other than the pinned key never passes the gate, and no key is made under a pinned name.

use crate::harness::{App, Client, IN_PROCESS, KEY, eventually, fingerprint, key_text};
use keswarden::{app::Stopped, cause::Cause, keystore::memory::MemoryStore};
use std::{path::Path, sync::Arc};

fn store_with(text: &str) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    store.put(KEY, text);
    store
}

/// The cause that the gate waits for.
fn waits_for(app: &App, cause: Cause) {
    eventually(IN_PROCESS, cause.id(), || app.health("/status").1.contains(cause.id()).then_some(()));
    assert_eq!(app.health("/readyz").0, 503);
}

#[test]
fn another_key_than_the_pinned_one_waits_and_the_right_one_passes_by_itself() {
    let (right, wrong) = (key_text(), key_text());
    let store = store_with(&wrong);
    let app = App::start(store.clone(), &[("KESWARDEN_PINS", &format!("{KEY}={}", fingerprint(&right)))]);
    waits_for(&app, Cause::KeyReplaced);
    let status = app.health("/status").1;
    for shown in [&right, &wrong] {
        assert!(status.contains(&fingerprint(shown)), "both fingerprints are told: {status}");
    }
    store.put(KEY, &right);
    app.wait_ready();
    assert_eq!(app.metric("keswarden_key_pinned{key=\"my-key\"}"), Some(1.0));
}

#[test]
fn a_lost_key_ends_the_gate_with_65_where_that_is_wanted() {
    let app = App::start(
        store_with(&key_text()),
        &[("KESWARDEN_PINS", "my-key=0123"), ("KESWARDEN_GATE_ON_LOST", "exit")],
    );
    let ended = app.wait().unwrap_err();
    assert!(
        matches!(&ended, Stopped::Gate(refused) if refused.finding.cause == Cause::KeyReplaced),
        "{ended}"
    );
    assert_eq!(ended.exit_code(), 65);
}

#[test]
fn a_first_key_is_pinned_as_it_is_made_and_no_other_is_made_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().join("pins").display().to_string();
    let settings = [("KESWARDEN_PIN_DIR", pins.as_str()), ("KESWARDEN_KEY_CREATE", "if-new")];
    let store = Arc::new(MemoryStore::new());
    let app = App::start(store.clone(), &settings);
    app.wait_ready();
    let text = store.text(KEY).unwrap();
    let pin: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(Path::new(&pins).join(KEY)).unwrap()).unwrap();
    assert_eq!((&pin["pin"], &pin["fingerprint"]), (&1.into(), &fingerprint(&text).into()));
    app.stop().unwrap();

    // The key is gone without a trace, and the next start would make a new key.
    store.remove(KEY);
    let app = App::start(store.clone(), &settings);
    waits_for(&app, Cause::KeyMissing);
    assert_eq!(store.text(KEY), None, "no key is made under a name that is pinned");
    drop(app);
    let app = App::start(store.clone(), &[("KESWARDEN_PIN_DIR", pins.as_str())]);
    waits_for(&app, Cause::KeyMissing);
    assert!(app.health("/status").1.contains(&fingerprint(&text)), "what it was is told");
    store.put(KEY, &text);
    app.wait_ready();
}

#[test]
fn a_key_without_a_pin_does_not_pass_where_one_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().display().to_string();
    let text = key_text();
    let settings = [("KESWARDEN_PIN_DIR", pins.as_str()), ("KESWARDEN_PIN", "require")];
    let app = App::start(store_with(&text), &settings);
    waits_for(&app, Cause::KeyUnpinned);
    std::fs::write(
        dir.path().join(KEY),
        format!(
            "{{\"pin\":1,\"fingerprint\":\"{}\",\"pinned_at\":\"\",\"of\":\"a later version\"}}",
            fingerprint(&text)
        ),
    )
    .unwrap();
    app.wait_ready();
}

#[test]
fn pins_that_disagree_stop_the_gate_and_one_that_cannot_be_read_is_told_of() {
    let text = key_text();
    let pin = format!("{{\"pin\":1,\"fingerprint\":\"{}\",\"pinned_at\":\"\"}}", fingerprint(&text));
    let later = "{\"pin\":2,\"fingerprint\":\"x\",\"pinned_at\":\"\"}";
    for (pin, stated, cause) in [
        (pin.as_str(), "my-key=other", Some(Cause::KeyReplaced)),
        (later, "another=x", None),
        ("no pin", "another=x", None),
        // A pin that cannot be read leaves the other pins in force.
        ("no pin", "my-key=other", Some(Cause::KeyReplaced)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY), pin).unwrap();
        let pins = dir.path().display().to_string();
        let settings = [("KESWARDEN_PIN_DIR", pins.as_str()), ("KESWARDEN_PINS", stated)];
        let app = App::start(store_with(&text), &settings);
        match cause {
            Some(cause) => waits_for(&app, cause),
            None => {
                app.wait_ready();
                assert!(app.health("/status").1.contains("not every witness could be asked"));
                assert_eq!(
                    std::fs::read_to_string(dir.path().join(KEY)).unwrap(),
                    pin,
                    "it is not written over"
                );
            }
        }
    }
}

#[test]
fn a_name_in_use_never_gets_another_key() {
    let app = App::serving(&[("KESWARDEN_VERIFY_INTERVAL", "50ms")]);
    let minio = app.minio(false);
    let (_, ciphertext) = minio.generate(KEY, "{}");
    // Gone without a trace, as after a metadata delete: the store itself would take a new key now.
    app.store.remove(KEY);
    let create = |client: &Client| client.call("POST", &format!("/v1/key/create/{KEY}"), None);
    assert_eq!(create(&minio).body, "{\"message\":\"key already exists\"\n}");
    assert_eq!(app.store.text(KEY), None);
    app.store.put(KEY, "garbled");
    eventually(IN_PROCESS, "the loss is seen", || {
        (app.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}")? == 1.0).then_some(())
    });
    let refused = create(&minio);
    assert_eq!((refused.status, refused.body.as_str()), (502, "{\"message\":\"failed to create key\"\n}"));
    assert_eq!(minio.decrypt(KEY, &ciphertext, "{}").status, 200);
}

#[test]
fn what_is_lost_seals_on_where_the_operator_says_so() {
    let app = App::serving(&[("KESWARDEN_VERIFY_INTERVAL", "50ms"), ("KESWARDEN_ON_KEY_LOST", "serve")]);
    let minio = app.minio(false);
    minio.generate(KEY, "{}");
    app.store.put(KEY, &key_text());
    eventually(IN_PROCESS, "the change is seen", || {
        (app.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}")? == 1.0).then_some(())
    });
    let (_, ciphertext) = minio.generate(KEY, "{}");
    assert_eq!(minio.decrypt(KEY, &ciphertext, "{}").status, 200);
}

#[test]
fn an_outage_is_served_through_for_as_long_as_the_limits_say() {
    let seal = |minio: &Client| minio.call("POST", &format!("/v1/key/generate/{KEY}"), Some("{}")).status;
    let open = |minio: &Client, ciphertext: &str| minio.decrypt(KEY, ciphertext, "{}").status;
    for (settings, opens) in [
        (&[("KESWARDEN_STALE_SEAL_MAX", "1s")][..], 200),
        (&[("KESWARDEN_STALE_SEAL_MAX", "1s"), ("KESWARDEN_STALE_OPEN_MAX", "1s")][..], 502),
        (&[("KESWARDEN_OUTAGE", "closed")][..], 502),
    ] {
        let settings = [settings, &[("KESWARDEN_VERIFY_INTERVAL", "300ms")]].concat();
        let app = App::serving(&settings);
        let minio = app.minio(false);
        let (_, ciphertext) = minio.generate(KEY, "{}");
        app.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
        assert_eq!((seal(&minio), open(&minio, &ciphertext)), (200, 200), "an outage begins gently");
        eventually(IN_PROCESS, "sealing ends", || (seal(&minio) == 502).then_some(()));
        eventually(IN_PROCESS, "opening goes on, or ends as well", || {
            (open(&minio, &ciphertext) == opens).then_some(())
        });
        app.store.fail(None);
        eventually(IN_PROCESS, "all is well again", || (seal(&minio) == 200).then_some(()));
        assert_eq!(open(&minio, &ciphertext), 200);
    }
    // Without a setting there is no limit.
    let app =
        App::serving(&[("KESWARDEN_STALE_SEAL_MAX", "unlimited"), ("KESWARDEN_VERIFY_INTERVAL", "50ms")]);
    let minio = app.minio(false);
    minio.generate(KEY, "{}");
    app.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
    eventually(IN_PROCESS, "verifications fail", || {
        (app.metric("keswarden_key_verifications_total{outcome=\"failed\"}")? > 2.0).then_some(())
    });
    assert_eq!(seal(&minio), 200);
}

/// The same for a key that the start does not demand: the key is held against its pin when first used.
#[test]
fn another_key_of_a_pinned_name_is_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().display().to_string();
    let settings = [("KESWARDEN_PIN_DIR", pins.as_str())];
    let store = store_with(&key_text());
    let app = App::start(store.clone(), &settings);
    app.wait_ready();
    assert_eq!(app.minio(false).call("POST", "/v1/key/create/bucket-key", None).status, 200);
    let sealed = app.minio(false).generate("bucket-key", "{}").1;
    let right = store.text("bucket-key").unwrap();
    app.stop().unwrap();

    store.put("bucket-key", &key_text());
    let app = App::start(store.clone(), &settings);
    app.wait_ready();
    let minio = app.minio(false);
    for (path, body) in
        [("generate", "{}".to_owned()), ("decrypt", format!("{{\"ciphertext\":\"{sealed}\"}}"))]
    {
        let answer = minio.call("POST", &format!("/v1/key/{path}/bucket-key"), Some(&body));
        assert_eq!(answer.status, 502, "{path}: {}", answer.body);
    }
    store.put("bucket-key", &right);
    assert_eq!(minio.decrypt("bucket-key", &sealed, "{}").status, 200);
}

/// An HMAC key may be added to a key without one; a key's HMAC key must stay.
#[test]
fn a_pin_from_before_the_hmac_key_still_holds() {
    let text = key_text();
    let whole = fingerprint(&text);
    let bytes = whole.split('-').next().unwrap();
    let app = App::start(store_with(&text), &[("KESWARDEN_PINS", &format!("{KEY}={bytes}"))]);
    app.wait_ready();
    let app =
        App::start(store_with(&text), &[("KESWARDEN_PINS", &format!("{KEY}={bytes}-{}", "0".repeat(32)))]);
    waits_for(&app, Cause::KeyReplaced);
}
