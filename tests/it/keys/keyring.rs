//! The keyring over a simulated clock: which answers a verification believes, and when.

use crate::harness::{KEY, key_text};
use keswarden::{
    cause::Cause, clock::Clock, keyring, keystore::memory::MemoryStore, metrics::Registry, names::Name,
};
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// Runs a test beside the writer's side of a keyring that holds one key.
async fn with_keyring(test: impl AsyncFnOnce(Arc<MemoryStore>, keyring::Keyring)) {
    let store = Arc::new(MemoryStore::new());
    store.put(KEY, &key_text());
    let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let (keyring, writer) = keyring::new(store.clone(), &Registry::new(), clock);
    writer.load(&Name::parse(KEY).unwrap()).await.ok().unwrap();
    tokio::select! {
        () = writer.run() => panic!("the writer must not end"),
        () = test(store, keyring) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_stays_away_is_lost_and_one_that_was_not_seen_for_a_moment_is_not() {
    with_keyring(async |store, keyring| {
        let lost = || keyring.held(KEY).unwrap().lost;
        let text = store.text(KEY).unwrap();
        store.remove(KEY);
        // Any number of answers within a moment is no proof: a standby may be stale, a restore may be under way.
        for _ in 0..20 {
            assert_eq!(keyring.verify().await[0].result.as_ref().unwrap_err().cause, Cause::KeyMissing);
        }
        assert!(!lost());
        // An outage in between proves nothing, and starts the count anew.
        tokio::time::sleep(Duration::from_secs(40)).await;
        store.fail(Some(Cause::VaultSealed.seen("sealed")));
        keyring.verify().await;
        store.fail(None);
        keyring.verify().await;
        assert!(!lost());
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(16)).await;
            keyring.verify().await;
        }
        assert!(lost(), "32 seconds and three looks");
        // The keyring keeps the key, and the right bytes end the fault.
        tokio::time::sleep(Duration::from_secs(365 * 86_400)).await;
        assert!(keyring.verify().await[0].result.as_ref().unwrap_err().fix.contains("keswarden key rescue"));
        store.put(KEY, &text);
        assert!(keyring.verify().await[0].result.is_ok());
        assert!(!lost());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_is_looked_at_twice_before_that_is_believed() {
    with_keyring(async |store, keyring| {
        let text = store.text(KEY).unwrap();
        store.put(KEY, &key_text());
        let back = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            store.put(KEY, &text);
        };
        let (verified, ()) = tokio::join!(keyring.verify(), back);
        assert!(verified[0].result.is_ok(), "one answer is no proof");
        assert!(!keyring.held(KEY).unwrap().lost);
        store.put(KEY, &key_text());
        keyring.verify().await;
        assert!(keyring.held(KEY).unwrap().lost);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn limits_count_from_the_last_good_verification() {
    with_keyring(async |store, keyring| {
        let clock = Clock::simulated(UNIX_EPOCH);
        let start = keyring.held(KEY).unwrap().verified;
        let limits =
            keyring::Limits { open: Some(Duration::from_secs(7200)), seal: Some(Duration::from_secs(3600)) };
        let held = |at: u64| {
            let held = keyring.held(KEY).unwrap();
            let now = start + Duration::from_secs(at);
            (held.may_seal(&limits, now), held.may_open(&limits, now))
        };
        store.fail(Some(Cause::VaultSealed.seen("sealed")));
        keyring.verify().await;
        assert_eq!(held(3600), (true, true));
        assert_eq!(held(3601), (false, true));
        assert_eq!(held(7201), (false, false));
        tokio::time::sleep(Duration::from_secs(10_000)).await;
        store.fail(None);
        keyring.verify().await;
        assert_eq!(held(10_000 + 3600), (true, true));
        assert_eq!(held(10_000 + 3602), (false, true));
        assert!(clock.boot() >= Duration::from_secs(10_000));
    })
    .await;
}
