//! The gate: nothing starts before the keys are there, work, and KES says so too. The only way to a keyring.
//!
//! It waits for ever, or to a deadline; each attempt is bounded; why it waits is said at once, at each change, and every
//! 15 seconds.

mod checks;
mod creation;
mod judged;
mod proof;
mod remote;
mod standby;

use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock, Instant},
    exit,
    health::{Guard, Health, Severity},
    keyring::{self, Keyring, KeyringWriter},
    known::{Commands, Kind, NamedByDrives, Witnesses},
    metrics::{Registry, States},
    names::Name,
    offline::SealedCopy,
    pins::{self, Pins},
    store::KeyStore,
};
pub use checks::{Check, KesSource, Row};
use checks::{Checks, Failed};
use prometheus::{CounterVec, IntGaugeVec};
pub use remote::Canaries;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// The conditions of the gate, and how long it waits for them.
#[derive(Clone)]
pub struct Settings {
    /// The keys that must be there: the default EK, or those that KES's own file names.
    pub keys: Vec<Name>,
    pub create: Create,
    /// The tenant's own drives, paths or patterns; none: nothing is proven by data.
    pub drives: Vec<String>,
    /// There is no key store: KES alone is asked, and the keys are never at hand.
    pub kes_alone: bool,
    /// End when a key is lost, rather than wait for the key to come back.
    pub exit_on_lost: bool,
    /// The maker that new keys name in their own record.
    pub maker: String,
    /// For ever when absent.
    pub deadline: Option<Duration>,
}

/// Everything that the gate asks.
#[derive(Clone)]
pub struct Deps {
    /// The key store, behind its witnesses.
    pub store: Arc<dyn KeyStore>,
    pub memory: Memory,
    /// The sealed copy that may stand in for a Vault that is away.
    pub copy: Option<Arc<SealedCopy>>,
    /// The place of canaries for keys that only KES has.
    pub canaries: Canaries,
    /// The KES that MinIO was told to use, asked again at each attempt.
    pub kes: KesSource,
    pub registry: Registry,
    pub clock: Clock,
}

/// Everything that remembers keys here.
#[derive(Clone, Default)]
pub struct Memory {
    pub witnesses: Witnesses,
    /// Those of the witnesses that are pins: one may be demanded.
    pub pins: Pins,
    /// How a person is told to mend it.
    pub commands: Commands,
    /// The keys that the drives name and the store does not have, as the gate finds them.
    pub named: Arc<NamedByDrives>,
    /// Where keys are remembered for longer than this machine, or pod, runs; nothing when nowhere.
    pub lasting: Vec<String>,
}

/// Whether the default EK may be made here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Create {
    /// Somebody else makes it.
    #[default]
    Never,
    /// Made when no witness knows the name, and each could be asked; in a store that forgets what is deleted, only with drives that are
    /// new.
    IfNew,
    /// The same, asked for by a person or a job: a store that forgets is no obstacle.
    First,
    /// The same where drives that could not be read are no obstacle either; drives that name the key are.
    FirstWhateverDrives,
}

/// The deadline passed, or nothing is to be waited for.
#[derive(Debug, thiserror::Error)]
#[error("the gate did not pass within {}: {finding}", clock::human(*.waited))]
pub struct Refused {
    pub finding: Finding,
    pub waited: Duration,
}

struct Metrics {
    state: States<2>,
    blocked: CounterVec,
    pinned: IntGaugeVec,
}

/// Between attempts: a change is seen within a second.
const POLL: Duration = Duration::from_millis(500);
/// Before a cause is said again that another one has taken the place of.
const BACK: Duration = Duration::from_secs(5);
/// Between lines of one cause whose words change.
const CHANGE: Duration = Duration::from_secs(1);
/// Between lines that say the same.
const REMIND: Duration = Duration::from_secs(15);

/// Waits until everything is there; `guard` is done then.
pub async fn pass(
    settings: &Settings,
    deps: &Deps,
    guard: Guard,
    health: &Health,
) -> Result<(Keyring, KeyringWriter), Refused> {
    let Deps { store, registry, clock, .. } = deps;
    let metrics = Metrics::new(registry);
    let waits = settings.deadline.is_none_or(|deadline| deadline > judged::DRIVES_MAY_COME * 2);
    let checks = Checks::new(settings, deps).waiting(waits);
    let mut waiting = Waiting::new(clock);
    let (keyring, writer) = loop {
        // What an attempt that failed has read is never served.
        let (keyring, writer) = keyring::new(store.clone(), registry, clock.clone());
        let before = clock.now();
        let left = settings.deadline.map(|deadline| deadline.saturating_sub(before - waiting.since));
        let failed = match checks.all(&writer, left).await {
            Ok(notes) => {
                say_notes(&notes, health);
                break (keyring, writer);
            }
            Err(failed) => failed,
        };
        let waited = waiting.say(&failed, settings, clock, health);
        let finding = failed.finding;
        let left = settings.deadline.map(|deadline| deadline.saturating_sub(waited));
        let lost = settings.exit_on_lost && finding.cause.exit_code() == exit::DATA;
        if left == Some(Duration::ZERO) || lost {
            return Err(Refused { finding, waited });
        }
        tokio::time::sleep(left.map_or(POLL, |left| left.min(POLL))).await;
        let blocked = (clock.now() - before).as_secs_f64();
        metrics.blocked.with_label_values(&[finding.cause.id()]).inc_by(blocked);
    };
    metrics.state.set("passed");
    let waited = clock::human(clock.now() - waiting.since);
    let fingerprint = |key: &Name| keyring.held(key.as_str()).map(|held| held.fingerprint.clone());
    let keys: serde_json::Map<_, _> =
        settings.keys.iter().map(|key| (key.to_string(), fingerprint(key).into())).collect();
    let what = match settings.keys[..] {
        [] => Check::Store.what(&[]),
        _ => Check::Key.what(&settings.keys),
    };
    tracing::info!(keys = %serde_json::Value::from(keys.clone()), "gate passed after {waited}: {what} is there and works");
    health.note("gate", serde_json::json!({ "state": "passed", "keys": keys }));
    health.happened(
        Severity::Normal,
        "gate_passed",
        format!("the gate passed after {waited}: {what} is there and works"),
    );
    say_where_keys_are_remembered(settings, deps, &keyring, &metrics, health).await;
    guard.done();
    Ok((keyring, writer))
}

/// What stops nobody.
fn say_notes(notes: &[Finding], health: &Health) {
    for note in notes {
        tracing::warn!(cause = note.cause.id(), "{note}");
        health.happened(Severity::Warning, note.cause.id(), format!("{}; fix: {}", note.seen, note.fix));
    }
}

/// Nothing would notice if a key that nobody remembers were another one at the next start: that is said at every start.
async fn say_where_keys_are_remembered(
    settings: &Settings,
    deps: &Deps,
    keyring: &Keyring,
    metrics: &Metrics,
    health: &Health,
) {
    let memory = &deps.memory;
    for name in &settings.keys {
        let Some(held) = keyring.held(name.as_str()) else { continue };
        let statements = memory.witnesses.ask(name).await;
        let is_pinned = pins::is_pinned(&statements, &held.fingerprint);
        metrics.pinned.with_label_values(&[name.as_str()]).set(i64::from(is_pinned));
        let knows = |kind| statements.iter().any(|one| one.kind == kind && one.knows(&held.fingerprint));
        let lasts = is_pinned || knows(Kind::Copy) || (knows(Kind::Ledger) && !memory.lasting.is_empty());
        if lasts || memory.mode() == pins::Mode::Off {
            continue;
        }
        let seen = format!(
            "the key '{name}', fingerprint {}, is remembered in nothing that outlives this machine's next start, or this pod: nobody \
             would notice then if it were another one",
            held.fingerprint
        );
        let finding = Cause::KeyUnpinned.seen(seen).fix(format!(
            "set KESWARDEN_STATE_DIR to a directory that lasts, or KESWARDEN_PIN_KV, or KESWARDEN_PINS={name}={}",
            held.fingerprint
        ));
        say_notes(&[finding], health);
    }
}

/// One attempt: what a new key store must pass before it takes the place of the one in use.
///
/// # Errors
/// The first finding of the first check that failed.
pub async fn attempt(settings: &Settings, deps: &Deps) -> Result<(Keyring, KeyringWriter), Finding> {
    let (keyring, writer) = keyring::new(deps.store.clone(), &deps.registry, deps.clock.clone());
    let checks = Checks::new(settings, deps);
    let notes = checks.all(&writer, None).await.map_err(|failed| failed.finding)?;
    for note in notes {
        tracing::warn!(cause = note.cause.id(), "{note}");
    }
    Ok((keyring, writer))
}

/// Every check once, for `doctor`.
pub async fn examine(settings: &Settings, deps: &Deps) -> Vec<Row> {
    let (_, writer) = keyring::new(deps.store.clone(), &deps.registry, deps.clock.clone());
    let checks = Checks::new(settings, deps).only_looking();
    checks.each(&writer, None).await
}

/// What was said last, and when.
struct Waiting {
    since: Instant,
    /// What was said last.
    last: Option<Cause>,
    /// What was said of each, and when.
    said: HashMap<Cause, (String, Instant)>,
}

// === impl Waiting ===

impl Waiting {
    fn new(clock: &Clock) -> Self {
        Self { since: clock.now(), last: None, said: HashMap::new() }
    }

    /// Says it at once, at each change, and every 15 seconds. How long it has waited.
    fn say(
        &mut self,
        Failed { check, finding, others }: &Failed,
        settings: &Settings,
        clock: &Clock,
        health: &Health,
    ) -> Duration {
        let now = clock.now();
        let waited = now - self.since;
        let is_new = self.last != Some(finding.cause);
        // The same cause in other words, such as one more key share, is worth a line, but not one for each attempt; nor is each turn
        // of two causes that take turns.
        let fresh = self.said.get(&finding.cause).is_none_or(|(seen, at)| {
            let pause = match (is_new, *seen == finding.seen) {
                (true, _) => BACK,
                (false, false) => CHANGE,
                (false, true) => REMIND,
            };
            now - *at >= pause
        });
        if fresh {
            let what = check.what(&settings.keys);
            let also = others.iter().map(|other| format!("; also {}: {}", other.cause, other.seen));
            let also: String = also.collect();
            tracing::warn!(
                cause = finding.cause.id(),
                "waiting {} for {what}: {finding}{also}",
                clock::human(waited)
            );
            if is_new {
                let says = format!("waiting for {what}: {}; fix: {}", finding.seen, finding.fix);
                health.happened(Severity::Warning, finding.cause.id(), says);
            }
            health.note(
                "gate",
                serde_json::json!({
                    "state": "waiting", "for": what, "cause": finding.cause.id(), "seen": finding.seen, "fix": finding.fix,
                    "also": others.iter().map(|other| other.cause.id()).collect::<Vec<_>>(),
                }),
            );
            self.last = Some(finding.cause);
            self.said.insert(finding.cause, (finding.seen.clone(), now));
        }
        waited
    }
}

// === impl Memory ===

impl Memory {
    pub fn mode(&self) -> pins::Mode {
        self.pins.mode
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let metrics = Self {
            state: registry.states(
                "keswarden_gate_state",
                "What the gate is doing, 1 for that state",
                ["waiting", "passed"],
            ),
            blocked: registry.seconds(
                "keswarden_gate_blocked_seconds_total",
                "How long the gate waited, by cause",
                &["cause"],
            ),
            pinned: registry.int_gauges(
                "keswarden_key_pinned",
                "1 when the key's fingerprint is pinned somewhere",
                &["key"],
            ),
        };
        metrics.state.set("waiting");
        for cause in Cause::ALL {
            metrics.blocked.with_label_values(&[cause.id()]);
        }
        metrics
    }
}
