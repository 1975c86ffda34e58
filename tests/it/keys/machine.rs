//! The keyring against any sequence of a store's answers, over any time: it never serves other bytes than at its start, never forgets its
//! key by an error, and never seals with a key that is lost.
//!
//! More sequences: `PROPTEST_CASES=100000 cargo test --release --test it machine`. A suspension shows to the keyring as time since boot,
//! which `Sleep` lets pass; the keyring never reads the time of day.

use crate::harness::{KEY, key_text};
use async_trait::async_trait;
use keswarden::{
    cause::{Cause, Finding},
    clock::Clock,
    crypto::key_version::KeyVersion,
    keyring::{self, Keyring, Limits},
    metrics::Registry,
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore, SetAside},
};
use proptest::prelude::*;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

/// The store's answer about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Right,
    /// Other bytes: replaced, or a snapshot of another time.
    Other,
    Garbled,
    Missing,
    Fails(Cause),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Every answer from now on.
    Say(Answer),
    /// The next answer only, as of a stale standby.
    SayOnce(Answer),
    Verify,
    Sleep(u64),
    /// MinIO uses the key.
    Use,
    /// MinIO asks for a new key of the name.
    Create,
    Rescue,
}

struct Scripted {
    right: String,
    other: String,
    says: Mutex<(Answer, Option<Answer>)>,
    /// The texts that were written: none but the right key may ever be.
    written: Mutex<Vec<String>>,
}

impl Scripted {
    fn next(&self) -> Answer {
        let mut says = self.says.lock().unwrap();
        says.1.take().unwrap_or(says.0)
    }
}

#[async_trait]
impl KeyStore for Scripted {
    fn describe(&self) -> String {
        "a script".to_owned()
    }

    fn unanswered(&self) -> Cause {
        Cause::StoreUnavailable
    }

    async fn ready(&self) -> Result<(), Finding> {
        panic!("nobody asks whether it is ready")
    }

    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        assert_eq!(name.as_str(), KEY);
        match self.next() {
            Answer::Right => Ok(Secret::new(self.right.clone())),
            Answer::Other => Ok(Secret::new(self.other.clone())),
            Answer::Garbled => Ok(Secret::new("no key at all".to_owned())),
            Answer::Missing => Err(Error::Missing(Cause::KeyMissing.seen("as the script says"))),
            Answer::Fails(cause) => Err(Error::Failed(cause.seen("as the script says"))),
        }
    }

    async fn history(&self, _: &Name) -> Result<History, Finding> {
        panic!("nobody looks for a history")
    }

    async fn create(&self, _: &Name, text: &Secret) -> Result<(), Error> {
        let mut says = self.says.lock().unwrap();
        if says.0 != Answer::Missing {
            return Err(Error::Exists);
        }
        self.written.lock().unwrap().push(text.expose().to_owned());
        let is_right = keyed(text.expose()).same(&keyed(&self.right));
        says.0 = if is_right { Answer::Right } else { Answer::Other };
        Ok(())
    }

    async fn replace(&self, _: &Name, _: &Secret) -> Result<(), Error> {
        panic!("nobody replaces a key")
    }

    async fn delete(&self, _: &Name) -> Result<(), Error> {
        panic!("nobody deletes a key")
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        panic!("nobody lists keys")
    }

    async fn vouch(&self, _: &Name, _: &str) -> Result<(), Finding> {
        Ok(())
    }

    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.create(name, text).await
    }

    async fn overwritten(&self, _: &Name) -> Result<Option<Finding>, Finding> {
        Ok(None)
    }

    async fn how_to_set_aside(&self, _: &Name) -> SetAside {
        SetAside::default()
    }
}

fn keyed(text: &str) -> keswarden::crypto::Key {
    KeyVersion::parse(text.as_bytes()).unwrap().key
}

/// The state that must hold, without the keyring's own way to it.
#[derive(Default)]
struct Model {
    lost: bool,
    /// The number of looks in a row that found nothing, and the time of the first.
    absent: Option<(u32, Duration)>,
    verified: Duration,
}

impl Model {
    fn verified_by(&mut self, first: Answer, second: Answer, now: impl Fn() -> Duration) {
        let proves_loss =
            |answer| matches!(answer, Answer::Other | Answer::Garbled | Answer::Fails(Cause::KeyDestroyed));
        // One answer is no proof.
        let answer = if proves_loss(first) && !self.lost { second } else { first };
        match answer {
            Answer::Right => (self.lost, self.absent, self.verified) = (false, None, now()),
            Answer::Missing => {
                let (looks, since) = self.absent.unwrap_or((0, now()));
                self.absent = Some((looks + 1, since));
                self.lost |= looks + 1 >= 3 && now() - since >= Duration::from_secs(30);
            }
            answer => {
                self.absent = None;
                self.lost |= proves_loss(answer);
            }
        }
    }
}

const LIMITS: Limits = Limits { open: None, seal: Some(Duration::from_secs(72 * 3600)) };

/// The keyring's fault now, if there is one.
fn judge(
    keyring: &Keyring,
    model: &Model,
    now: Duration,
    fingerprint: &str,
    sealed: &[u8],
) -> Result<(), String> {
    let held = keyring.held(KEY).ok_or("the key was forgotten")?;
    if held.fingerprint != fingerprint || held.version.key.open(sealed, b"context").is_err() {
        return Err("other bytes are served".to_owned());
    }
    if held.lost != model.lost {
        return Err(format!("lost is {}, and should be {}", held.lost, model.lost));
    }
    if held.verified != model.verified {
        return Err(format!("verified at {:?}, and should be {:?}", held.verified, model.verified));
    }
    let fresh = now - model.verified <= LIMITS.seal.unwrap();
    let seals = !held.lost && held.may_seal(&LIMITS, now);
    if seals != (fresh && !model.lost) || !held.may_open(&LIMITS, now) {
        return Err(format!("it seals: {seals}, {fresh}; opening is without limit"));
    }
    Ok(())
}

async fn run(steps: &[Step]) -> Result<(), String> {
    let store = Arc::new(Scripted {
        right: key_text(),
        other: key_text(),
        says: Mutex::new((Answer::Right, None)),
        written: Mutex::default(),
    });
    let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let (keyring, writer) = keyring::new(store.clone(), &Registry::new(), clock.clone());
    let name = Name::parse(KEY).unwrap();
    let held = writer.load(&name).await.ok().unwrap();
    let (fingerprint, sealed) = (held.fingerprint.clone(), held.version.key.seal(b"data", b"context"));
    let mut model = Model { verified: held.verified, ..Model::default() };
    let walk = async {
        for step in steps {
            match *step {
                Step::Say(answer) => store.says.lock().unwrap().0 = answer,
                Step::SayOnce(answer) => store.says.lock().unwrap().1 = Some(answer),
                Step::Sleep(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                Step::Use => drop(keyring.get(&name).await.map_err(|error| error.to_string())?),
                Step::Verify => {
                    let (then, once) = *store.says.lock().unwrap();
                    keyring.verify().await;
                    model.verified_by(once.unwrap_or(then), then, || clock.boot());
                }
                Step::Create => {
                    let created = keyring.create(&name, "MinIO", jiff::Timestamp::UNIX_EPOCH).await;
                    if created.is_ok() {
                        return Err("another key was made under the name of one in use".to_owned());
                    }
                }
                Step::Rescue => {
                    let (then, once) = *store.says.lock().unwrap();
                    let is_back = matches!(
                        (once, then),
                        (Some(Answer::Right), _)
                            | (None, Answer::Right | Answer::Missing)
                            | (Some(Answer::Missing), Answer::Missing)
                    );
                    if keyring.rescue(&name).await.is_ok() != is_back {
                        return Err(format!("a rescue from {once:?}, {then:?} ended otherwise"));
                    }
                    if is_back {
                        model = Model { lost: false, absent: None, verified: clock.boot() };
                    }
                }
            }
            judge(&keyring, &model, clock.boot(), &fingerprint, &sealed)
                .map_err(|error| format!("after {step:?}: {error}"))?;
        }
        let right = keyed(&store.right);
        if store.written.lock().unwrap().iter().any(|text| !keyed(text).same(&right)) {
            return Err("another key was written".to_owned());
        }
        Ok(())
    };
    tokio::select! {
        () = writer.run() => Err("the writer ended".to_owned()),
        result = walk => result,
    }
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => Just(Answer::Right),
        1 => Just(Answer::Other),
        1 => Just(Answer::Garbled),
        3 => Just(Answer::Missing),
        3 => prop::sample::select(vec![
            Cause::PolicyMissing,
            Cause::VaultUnhealthy,
            Cause::VaultSealed,
            Cause::VaultUnreachableTimeout,
            Cause::TokenDead,
            Cause::KeyDeleted,
            Cause::KeyDestroyed,
        ])
        .prop_map(Answer::Fails),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => answers().prop_map(Step::Say),
        2 => answers().prop_map(Step::SayOnce),
        6 => Just(Step::Verify),
        3 => prop_oneof![1_u64..40, 1_u64..40, 100_u64..300_000].prop_map(Step::Sleep),
        1 => Just(Step::Use),
        1 => Just(Step::Create),
        1 => Just(Step::Rescue),
    ];
    prop::collection::vec(step, 1..40)
}

#[test]
fn whatever_the_store_answers() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps())| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let result = runtime.block_on(run(&steps));
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    });
}

/// The judges themselves can fail.
#[tokio::test(start_paused = true)]
async fn a_model_that_is_wrong_is_noticed() {
    let store = Arc::new(keswarden::keystore::memory::MemoryStore::new());
    store.put(KEY, &key_text());
    let clock = Clock::simulated(UNIX_EPOCH);
    let (keyring, writer) = keyring::new(store, &Registry::new(), clock.clone());
    let held = writer.load(&Name::parse(KEY).unwrap()).await.ok().unwrap();
    let sealed = held.version.key.seal(b"data", b"context");
    let model = |lost| Model { lost, absent: None, verified: held.verified };
    let judged = |model: &Model, fingerprint: &str, sealed: &[u8]| {
        judge(&keyring, model, clock.boot(), fingerprint, sealed)
    };
    assert_eq!(judged(&model(false), &held.fingerprint, &sealed), Ok(()));
    assert!(judged(&model(true), &held.fingerprint, &sealed).is_err());
    assert!(judged(&model(false), "another", &sealed).is_err());
    assert!(judged(&model(false), &held.fingerprint, b"another").is_err());
}
