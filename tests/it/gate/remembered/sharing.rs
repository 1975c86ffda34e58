//! Memory that several pods, agents or stores share: none takes another's key for its own.

use super::{
    Place, Store, Way,
    tenant::{Remembered, WRITTEN, on_own_runtime},
};
use crate::harness::{Bao, KEY, SOON, fingerprint, key_text};
use keswarden::{app, cause::Cause};
use std::fs;

/// Four pods of one tenant, each with a memory of its own, and with pins in Vault that all share, as in the chart. A new pod knows the key
/// by the pins; without the pins a new pod could not.
#[test]
fn four_pods_of_which_one_is_new() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let tenant = Remembered::new(&bao, Store::KvVersion2, Place::StateDirectory, "four".to_owned());
    let pods: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let gate = |pod: usize, pins: bool| {
        let run_dir = pods[pod].path().display().to_string();
        let mut more = vec![("KESWARDEN_RUN_DIR", run_dir.as_str())];
        if pins {
            more.push(("KESWARDEN_PIN_KV", "pins/four"));
        }
        tenant.gate("", &more)
    };
    for pod in 0..3 {
        gate(pod, true).unwrap();
    }
    tenant.delete();
    tenant.put("", &key_text());
    for pod in 0..4 {
        let finding = gate(pod, true).unwrap_err();
        assert_eq!(finding.cause, Cause::KeyReplaced, "{finding}");
        assert_eq!(finding.seen.contains("the state directory"), pod < 3, "{finding}");
        assert!(finding.seen.contains("the pins in Vault"), "{finding}");
    }
    gate(3, false).unwrap();
}

/// An agent's sealed copy is no other agent's, although both share the directory and the wrapping key.
#[test]
fn two_agents_share_a_directory_of_copies() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    let first = Remembered::new(&bao, Store::KvVersion2, Place::SealedCopy, "first".to_owned());
    let copy = first.path("copy/keys.sealed");
    let sealed = fs::read(&copy).unwrap();
    let mut second = Remembered::new(&bao, Store::KvVersion2, Place::Nowhere, "second".to_owned());
    let other = key_text();
    second.delete();
    second.put("", &other);
    second.place = Place::SealedCopy;
    let shared = [
        ("KESWARDEN_OFFLINE_DIR", first.path("copy").display().to_string()),
        ("KESWARDEN_OFFLINE_KEY_FILE", first.path("wrapping.key").display().to_string()),
        ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
    ];
    let mut agent = second.agent("second");
    shared.iter().for_each(|(name, value)| agent.set(name, value));
    agent.run();
    agent.ready();
    agent.process().says(SOON, "it is of Vault");
    assert_eq!(fs::read(&copy).unwrap(), sealed, "the first one's copy is not written over");
    agent.drain();

    // A rescue by a person does not take the first agent's copy either.
    second.delete();
    let more: Vec<_> = shared.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let rescued = on_own_runtime(app::rescue_from_copy(second.settings("", &more), None)).unwrap_err();
    assert!(rescued.to_string().contains("sealed_copy_unusable"), "{rescued}");
    assert_eq!(second.stored(""), None);
    second.put("", &other);

    bao.seal();
    first.init("").unwrap();
    let shared: Vec<_> = shared.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let finding = second.gate("", &shared).unwrap_err();
    assert!(finding.cause == Cause::VaultSealed || finding.cause == Cause::CopyUnusable, "{finding}");
    // The copy has the first agent's key, and no witness knows the second agent's key.
    let named = second
        .gate("", &[&shared[..], &[("KESWARDEN_PINS", &format!("{KEY}={}", fingerprint(&other)))]].concat());
    assert_eq!(named.unwrap_err().cause, Cause::KeyReplaced);
    // After a move of the same keys, a stated pin lets the copy pass.
    let pin = format!("{KEY}={}", fingerprint(&WRITTEN.key));
    first.gate("elsewhere", &[("KESWARDEN_PINS", &pin)]).unwrap();
}

/// Two stores in one state directory: the second store is not taken for the first, and forgetting a key of one keeps that of the other.
#[test]
fn two_stores_share_a_state_directory() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    let tenant = Remembered::new(&bao, Store::KvVersion2, Place::StateDirectory, "shared".to_owned());
    let other = key_text();
    tenant.put("elsewhere", &other);
    let finding = tenant.init("elsewhere").unwrap_err();
    assert_eq!(finding.cause, Cause::KeyReplaced);
    assert!(finding.seen.contains("KESWARDEN_TENANT"), "{finding}");
    // A tenant name of its own is enough.
    tenant.gate("elsewhere", &[("KESWARDEN_TENANT", "second")]).unwrap();
    // What a store had counts for the store, whatever the tenant is called.
    tenant.init("elsewhere").unwrap();
    tenant.put("third", &other);
    assert_eq!(tenant.init("third").unwrap_err().cause, Cause::KeyReplaced);
    let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
    let forgotten = on_own_runtime(app::forget(tenant.settings("third", &[]), &was, Some(&is))).unwrap();
    forgotten.into_iter().for_each(|(at, result)| result.unwrap_or_else(|finding| panic!("{at}: {finding}")));
    tenant.init("third").unwrap();
    tenant.init("").unwrap();
    tenant.loses(Way::Replaced, &other);
    assert_eq!(tenant.init("").unwrap_err().cause, Cause::KeyReplaced, "the first one's memory is whole");
}
