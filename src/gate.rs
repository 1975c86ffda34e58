//! The gate: MinIO starts only after the key store, the keys and KES have passed every check. The only way to
//! a keyring.
//!
//! The gate waits for ever, or to a deadline. Each attempt is bounded. The cause of the wait is logged at
//! once, at each change, and every 15 seconds.

mod checks;
mod creation;
mod judged;
mod proof;
mod remote;
mod sealed_copy;

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

/// The conditions of the gate, and how long the gate waits for them.
#[derive(Clone)]
pub struct Settings {
    /// The demanded keys: the default EK, or the keys that KES's own file names. May be empty.
    pub keys: Vec<Name>,
    /// Whether a demanded key that is missing may be created.
    pub create: Create,
    /// The tenant's own drives, as paths or patterns. Empty: no key is proven by data.
    pub drives: Vec<String>,
    /// No key store is configured: KES alone is asked, and no key is ever held.
    pub kes_alone: bool,
    /// A cause with the exit code [`exit::DATA`], such as a lost key, ends the wait, although the key might
    /// come back.
    pub exit_on_lost: bool,
    /// The maker that new keys name in their own record.
    pub maker: String,
    /// The bound of the whole wait. Absent: the gate waits for ever.
    pub deadline: Option<Duration>,
}

/// The dependencies of the gate: everything that the gate asks.
#[derive(Clone)]
pub struct Deps {
    /// The key store, behind its witnesses.
    pub store: Arc<dyn KeyStore>,
    /// The places that remember keys.
    pub memory: Memory,
    /// The sealed copy, for a start while Vault is away.
    pub copy: Option<Arc<SealedCopy>>,
    /// The place of canaries, for keys that only KES has.
    pub canaries: Canaries,
    /// The KES of MinIO's own settings, read again at each attempt.
    pub kes: KesSource,
    /// The registry of the metrics of gate and keyring.
    pub registry: Registry,
    /// The clock of waits, bounds and records.
    pub clock: Clock,
}

/// The places that remember keys.
#[derive(Clone, Default)]
pub struct Memory {
    /// Every witness, pins included.
    pub witnesses: Witnesses,
    /// The pins among the witnesses: the mode may demand a pin.
    pub pins: Pins,
    /// The commands that findings suggest to a person.
    pub commands: Commands,
    /// The keys that the drives name and the store lacks, noted by the gate.
    pub named: Arc<NamedByDrives>,
    /// The places, in words, that remember keys for longer than this machine or pod runs. May be empty.
    pub lasting: Vec<String>,
}

/// Whether a demanded key that is missing may be created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Create {
    /// Another process, or a person, creates the key.
    #[default]
    Never,
    /// The gate creates the key when every witness could be asked and none knows the name. A store that
    /// forgets deleted keys needs new drives besides.
    IfNew,
    /// As `IfNew`, on the request of a person or a job: a store that forgets is no obstacle.
    First,
    /// As `First`, where unreadable drives are no obstacle either. Drives that name the key are one.
    FirstWhateverDrives,
}

/// The gate did not pass before its deadline, or before `exit_on_lost` ended the wait.
#[derive(Debug, thiserror::Error)]
#[error("the gate did not pass within {}: {finding}", clock::human(*.waited))]
pub struct Refused {
    /// The first finding of the last attempt.
    pub finding: Finding,
    /// The time since the gate began.
    pub waited: Duration,
}

struct Metrics {
    state: States<2>,
    blocked: CounterVec,
    pinned: IntGaugeVec,
}

/// Pause between attempts: a change is seen within a second.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);
/// Least time between two lines of one cause with another cause's line in between.
const RETURNED_LINE_PAUSE: Duration = Duration::from_secs(5);
/// Least time between two successive lines of one cause with different words.
const CHANGED_LINE_PAUSE: Duration = Duration::from_secs(1);
/// Least time between two successive lines of the same words.
const SAME_LINE_PAUSE: Duration = Duration::from_secs(15);

/// Waits until every check passes, and marks `guard` as done.
///
/// # Errors
/// When the deadline passes, or when `exit_on_lost` is set and the cause has the exit code [`exit::DATA`].
pub async fn pass(
    settings: &Settings,
    deps: &Deps,
    guard: Guard,
    health: &Health,
) -> Result<(Keyring, KeyringWriter), Refused> {
    let Deps { store, registry, clock, .. } = deps;
    let metrics = Metrics::new(registry);
    let waits = settings.deadline.is_none_or(|deadline| deadline > judged::DRIVES_WAIT_MAX * 2);
    let checks = Checks::new(settings, deps).waiting(waits);
    let mut waiting = Waiting::new(clock);
    let (keyring, writer) = loop {
        // A fresh keyring for each attempt: keys read by a failed attempt are never served.
        let (keyring, writer) = keyring::new(store.clone(), registry, clock.clone());
        let before = clock.now();
        let left = settings.deadline.map(|deadline| deadline.saturating_sub(before - waiting.since));
        let failed = match checks.all(&writer, left).await {
            Ok(notes) => {
                log_notes(&notes, health);
                break (keyring, writer);
            }
            Err(failed) => failed,
        };
        let waited = waiting.log(&failed, settings, clock, health);
        let finding = failed.finding;
        let left = settings.deadline.map(|deadline| deadline.saturating_sub(waited));
        let lost = settings.exit_on_lost && finding.cause.exit_code() == exit::DATA;
        if left == Some(Duration::ZERO) || lost {
            return Err(Refused { finding, waited });
        }
        tokio::time::sleep(left.map_or(ATTEMPT_PAUSE, |left| left.min(ATTEMPT_PAUSE))).await;
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
    warn_of_unremembered_keys(settings, deps, &keyring, &metrics, health).await;
    guard.done();
    Ok((keyring, writer))
}

/// Logs warnings, which stop no start.
fn log_notes(notes: &[Finding], health: &Health) {
    for note in notes {
        tracing::warn!(cause = note.cause.id(), "{note}");
        health.happened(Severity::Warning, note.cause.id(), format!("{}; fix: {}", note.seen, note.fix));
    }
}

/// Warns at every start of keys that no lasting place remembers: another key at the next start would go
/// unnoticed.
async fn warn_of_unremembered_keys(
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
            "the key '{name}', fingerprint {}, is remembered in nothing that outlives this machine's next start, or this pod: another key \
             under the name would go unnoticed then",
            held.fingerprint
        );
        let finding = Cause::KeyUnpinned.seen(seen).fix(format!(
            "set KESWARDEN_STATE_DIR to a directory that lasts, or KESWARDEN_PIN_KV, or KESWARDEN_PINS={name}={}",
            held.fingerprint
        ));
        log_notes(&[finding], health);
    }
}

/// Runs one attempt, for a reload: a new key store must pass before the agent uses the store.
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

/// Runs every check once, for `doctor`: creates nothing and remembers nothing.
pub async fn examine(settings: &Settings, deps: &Deps) -> Vec<Row> {
    let (_, writer) = keyring::new(deps.store.clone(), &deps.registry, deps.clock.clone());
    let checks = Checks::new(settings, deps).read_only();
    checks.each(&writer, None).await
}

/// The wait so far, and the lines logged about the wait.
struct Waiting {
    since: Instant,
    /// The cause of the last line.
    last: Option<Cause>,
    /// The words and the time of each cause's last line.
    logged: HashMap<Cause, (String, Instant)>,
}

// === impl Waiting ===

impl Waiting {
    fn new(clock: &Clock) -> Self {
        Self { since: clock.now(), last: None, logged: HashMap::new() }
    }

    /// Logs the failure at once, at each change, and every 15 seconds. Returns the time waited so far.
    fn log(
        &mut self,
        Failed { check, finding, others }: &Failed,
        settings: &Settings,
        clock: &Clock,
        health: &Health,
    ) -> Duration {
        let now = clock.now();
        let waited = now - self.since;
        let is_new = self.last != Some(finding.cause);
        // Other words of the same cause, such as one more key share, get a line, but not at each attempt. Two
        // causes that alternate get no line at each alternation.
        let is_due = self.logged.get(&finding.cause).is_none_or(|(seen, at)| {
            let pause = match (is_new, *seen == finding.seen) {
                (true, _) => RETURNED_LINE_PAUSE,
                (false, false) => CHANGED_LINE_PAUSE,
                (false, true) => SAME_LINE_PAUSE,
            };
            now - *at >= pause
        });
        if is_due {
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
            self.logged.insert(finding.cause, (finding.seen.clone(), now));
        }
        waited
    }
}

// === impl Memory ===

impl Memory {
    /// Whether a key without a pin may pass.
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
