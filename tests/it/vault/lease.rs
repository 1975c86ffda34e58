//! A Vault identity that never lapses, over simulated time: the pure machine through months, and the real client, several pods of it,
//! through hours of outages, revocations, refused credentials, late standbys, suspended machines and clocks that are set.
//!
//! More of them: `KESWARDEN_LEASE_SCHEDULES=1000000 KESWARDEN_CLIENT_SCHEDULES=10000 cargo test --release --test it lease`; one of
//! them again: `KESWARDEN_SEED=…` with the seed that a failure prints.

mod model;

use keswarden::{
    clock::Clock,
    metrics::Registry,
    secret::Secret,
    vault::{
        Client, Config, Refusals,
        lease::{Action, Failed, Lease},
        login::{Login, Source},
        verdict::Asked,
    },
};
use model::{FAULTS, Fault, Model, Pod};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::Instant;

const DAY: u64 = 86_400;

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn chance(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}

/// The seeds of so many schedules, or the one that is asked for.
fn seeds(variable: &str, usual: u64) -> std::ops::Range<u64> {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("must be a number"));
    match number("KESWARDEN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number(variable).unwrap_or(usual),
    }
}

/// Says how to run a schedule again that has failed.
struct Again(u64, &'static str);

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: KESWARDEN_SEED={} cargo test --test it {}", self.0, self.1);
        }
    }
}

/// What Vault knows of a token, in seconds since the start.
#[derive(Clone, Copy)]
struct Token {
    expires: f64,
    /// No renewal goes beyond.
    end: f64,
}

/// Thirty days of the pure machine: whoever asks it, and does what it says, is never without a token but in an outage that lasts longer
/// than what was left, and never uses one that has ended.
fn thirty_days(seed: u64) {
    let mut random = Random(seed);
    let ttl = 60.0 + random.below(7200) as f64;
    let most = if random.below(2) == 0 { f64::INFINITY } else { ttl * (1.0 + random.below(40) as f64) };
    let renewable = random.below(5) != 0;
    // Outages of login and renewal, and of renewal alone (a deleted role).
    let mut outages: Vec<(f64, f64, bool)> = (0..random.below(6))
        .map(|_| {
            let begins = random.below(30 * DAY) as f64;
            (begins, begins + 1.0 + random.below(4 * 3600) as f64, random.below(3) == 0)
        })
        .collect();
    outages.sort_by(|one, other| one.0.total_cmp(&other.0));
    // The machine is suspended: nothing runs, and tokens end.
    let mut suspensions: Vec<(f64, f64)> = (0..random.below(4))
        .map(|_| (random.below(30 * DAY) as f64, random.below(8 * 3600) as f64))
        .collect();
    suspensions.sort_by(|one, other| other.0.total_cmp(&one.0));
    let fault = |at: f64| outages.iter().find(|(from, to, _)| (*from..*to).contains(&at)).copied();

    let origin = Instant::now();
    let at = |seconds: f64| origin + Duration::from_secs_f64(seconds);
    let (mut now, mut last_trouble) = (0.0, f64::NEG_INFINITY);
    let (mut token, mut lease, mut logins) = (None::<Token>, Lease::default(), Vec::new());
    let grant = |now: f64, end: f64| (end - now).min(ttl);
    let whole = |seconds: f64| (seconds >= 1.0).then(|| Duration::from_secs_f64(seconds.floor()));
    while now < (30 * DAY) as f64 {
        if suspensions.last().is_some_and(|(from, _)| *from <= now) {
            let (_, length) = suspensions.pop().expect("it was there");
            now += length;
            last_trouble = now;
        }
        if fault(now).is_some() {
            last_trouble = now;
        }
        // What an answer takes; the TTL counts from before.
        let latency = random.chance() * 3.0;
        let action = match token {
            None => Action::Login,
            Some(_) => lease.next(at(now)),
        };
        match action {
            Action::Wait(delay) => now += delay.as_secs_f64().max(0.001),
            Action::Renew => {
                let sent = now;
                now += latency;
                let known = token.filter(|token| sent + latency / 2.0 < token.expires);
                match (fault(sent), known) {
                    (None, Some(known)) if renewable => {
                        let granted = grant(sent + latency / 2.0, known.end);
                        token = Some(Token { expires: sent + latency / 2.0 + granted, ..known });
                        match whole(granted) {
                            Some(ttl) => lease.renewed(at(sent), Some(ttl), true, random.chance()),
                            None => lease.renewal_failed(at(now), Failed::Refused, random.chance()),
                        }
                    }
                    (Some((_, _, false)), _) => {
                        lease.renewal_failed(at(now), Failed::Away, random.chance());
                    }
                    _ => lease.renewal_failed(at(now), Failed::Refused, random.chance()),
                }
            }
            Action::Login => {
                let sent = now;
                now += latency;
                match fault(sent) {
                    Some((_, _, false)) => {
                        lease.login_failed(at(now), random.chance());
                        now += 0.5;
                    }
                    _ => {
                        let end = sent + most;
                        let granted = grant(sent, end);
                        token = Some(Token { expires: sent + latency / 2.0 + granted, end });
                        lease.granted(at(sent), whole(granted), renewable, random.chance());
                        logins.push((sent, last_trouble));
                    }
                }
            }
        }
        let Some(held) = token else { continue };
        if lease.has_expired(at(now)) {
            // Whoever wants a key now logs in first.
            token = None;
            assert!(
                last_trouble + ttl >= now - 4.0,
                "seed {seed}: the token lapsed at {now:.0} s, {ttl:.0} s TTL, without an outage"
            );
        } else {
            let late = now - held.expires;
            assert!(late <= 0.001, "seed {seed}: a token is used {late:.3} s after its end");
        }
    }
    // In health, one login for each life of a token, which ends early by what a login needs.
    let life = if renewable { most } else { ttl };
    let too_many = logins
        .windows(2)
        .filter(|pair| pair[1].0 - pair[0].0 < 0.65 * life && pair[1].1 + 2.0 * ttl < pair[0].0)
        .count();
    assert_eq!(too_many, 0, "seed {seed}: logins {logins:?} of tokens that live {life} s");
}

#[test]
fn thirty_days_of_the_machine_ten_thousand_times() {
    for seed in seeds("KESWARDEN_LEASE_SCHEDULES", 10_000) {
        let _again = Again(seed, "thirty_days");
        thirty_days(seed);
    }
}

fn client(pod: Pod, secret_id: &Path, clock: &Clock, seed: u64) -> Client {
    let address = "https://vault:8200".to_owned();
    let config = Config {
        addresses: vec![address.clone()],
        address,
        ca: None,
        client_certificate: None,
        namespace: None,
        auth_namespace: None,
        timeout: Duration::from_secs(5),
        login: Login::AppRole {
            mount: "approle".to_owned(),
            role_id: Source::Value(Arc::new(Secret::new("role".to_owned()))),
            secret_id: Source::File(secret_id.to_owned()),
        },
        state_dir: None,
    };
    let random = Mutex::new(Random(seed));
    let chance = Box::new(move || random.lock().unwrap().chance());
    Client::over(Arc::new(pod), config, &Registry::new(), clock.clone(), Refusals::default(), chance)
}

/// How often the data path reads.
const READ: Duration = Duration::from_secs(30);
/// A read that begins so long after a fault works, which is well within one poll: the last request of the fault may end five seconds
/// after it, the look at the health page one second later, and what failed rests for five more.
const RECOVERY: Duration = Duration::from_secs(12);
const LENGTH: Duration = Duration::from_secs(6 * 3600);

/// What is to happen, each at its time.
struct Schedule {
    faults: Vec<(Duration, Duration, Fault)>,
    /// The secret_id is replaced, and its file so much later.
    rotation: Option<(Duration, Duration)>,
    revocations: Vec<Duration>,
    suspensions: Vec<(Duration, Duration)>,
    /// The wall clock is set by so many seconds.
    settings: Vec<(Duration, i64)>,
    file: PathBuf,
}

impl Schedule {
    fn random(random: &mut Random, file: PathBuf) -> Self {
        let times = |random: &mut Random, most: u64| {
            let mut times: Vec<_> = (0..random.below(most))
                .map(|_| Duration::from_secs(random.below(LENGTH.as_secs())))
                .collect();
            times.sort_unstable_by(|one, other| other.cmp(one));
            times
        };
        let faults = times(random, 6).into_iter().map(|begins| {
            let ends = begins + Duration::from_secs(1 + random.below(1800));
            (begins, ends, FAULTS[random.below(6) as usize])
        });
        let faults = faults.collect();
        let rotation = (random.below(2) == 0).then(|| {
            let begins = Duration::from_secs(600 + random.below(3 * 3600));
            (begins, begins + Duration::from_secs(random.below(3600)))
        });
        let revocations = times(random, 4);
        let suspensions = times(random, 3).into_iter();
        let suspensions = suspensions.map(|at| (at, Duration::from_secs(random.below(3600)))).collect();
        let settings = times(random, 3).into_iter();
        let settings = settings.map(|at| (at, random.below(80_000) as i64 - 40_000)).collect();
        Self { faults, rotation, revocations, suspensions, settings, file }
    }

    /// A read at this time may fail.
    fn disturbs(&self, now: Duration) -> bool {
        let is_within = |from: Duration, to: Duration| from <= now && now < to + RECOVERY;
        // What was under way when the machine was suspended in a fault ends after it, as if the fault had.
        let was_caught = |at: &Duration| self.faults.iter().any(|(from, to, _)| (*from..*to).contains(at));
        self.faults.iter().any(|(from, to, _)| is_within(*from, *to))
            || self.suspensions.iter().any(|(at, length)| was_caught(at) && is_within(*at, *at + *length))
            || self.rotation.is_some_and(|(from, to)| is_within(from, to))
    }

    /// Everything, each when its time has come.
    async fn happen(&self, model: &Mutex<Model>, clock: &Clock) {
        let (mut revocations, mut suspensions, mut settings) =
            (self.revocations.clone(), self.suspensions.clone(), self.settings.clone());
        let (mut destroyed, mut replaced) = (false, false);
        loop {
            let now = model.lock().unwrap().now();
            let rotation = self.rotation.and_then(|(from, to)| match (destroyed, replaced) {
                (false, _) => Some(from),
                (true, false) => Some(to),
                (true, true) => None,
            });
            let next = [
                rotation,
                revocations.last().copied(),
                suspensions.last().map(|(at, _)| *at),
                settings.last().map(|(at, _)| *at),
            ];
            let next = next.into_iter().flatten().min().unwrap_or(LENGTH * 2);
            tokio::time::sleep(next.saturating_sub(now)).await;
            let mut model = model.lock().unwrap();
            let now = model.now();
            if let Some((from, to)) = self.rotation {
                if now >= from && !std::mem::replace(&mut destroyed, now >= from) {
                    model.secret_id = "second".to_owned();
                }
                if now >= to && !std::mem::replace(&mut replaced, now >= to) {
                    std::fs::write(&self.file, "second").unwrap();
                }
            }
            if revocations.pop_if(|at| *at <= now).is_some() {
                model.revoke();
            }
            if let Some((_, length)) = suspensions.pop_if(|(at, _)| *at <= now) {
                model.suspended += length;
                clock.suspend(length);
            }
            if let Some((_, by)) = settings.pop_if(|(at, _)| *at <= now) {
                clock.set_forward(by);
            }
        }
    }
}

/// Six hours of the real client, as two to four pods of one role.
async fn six_hours(seed: u64, folder: &Path) {
    let mut random = Random(seed ^ 0x6b65_7377);
    let pods = 2 + random.below(3) as usize;
    let ttl = Duration::from_secs(300 + random.below(1500));
    let most = if random.below(2) == 0 { LENGTH * 10 } else { ttl * (2 + random.below(6) as u32) };
    let file = folder.join(format!("secret-id-{seed}"));
    std::fs::write(&file, "first").unwrap();
    let schedule = Schedule::random(&mut random, file);
    let mut model = Model::new(pods, ttl, most);
    model.faults.clone_from(&schedule.faults);
    if random.below(2) == 0 {
        model.lag = Duration::from_millis(random.below(103));
    }
    let model = Arc::new(Mutex::new(model));
    // All pods are on one machine as far as time is concerned.
    let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let run = (0..pods).map(|number| {
        let (client, phase) = (
            client(Pod { number, model: model.clone() }, &schedule.file, &clock, random.next()),
            Duration::from_millis(random.below(30_000)),
        );
        let (model, schedule) = (&model, &schedule);
        async move {
            let reads = async {
                tokio::time::sleep(phase).await;
                let now = || model.lock().unwrap().now();
                let asked = Asked { what: "reading the key", path: "kv/data/minio/my-key" };
                while now() < LENGTH {
                    let begun = now();
                    let deaths = || model.lock().unwrap().seen[number].with_revoked;
                    let before = deaths();
                    let read = client.get(&asked, None).await;
                    // A token that was revoked is replaced once in a read; the next read replaces the next one.
                    let is_unlucky = deaths() - before > 1;
                    let disturbed = schedule.disturbs(begun) || schedule.disturbs(now()) || is_unlucky;
                    match read {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => {
                            assert!(disturbed, "seed {seed}: a read at {begun:?}: {}", answer.status)
                        }
                        Err(finding) => assert!(disturbed, "seed {seed}: a read at {begun:?}: {finding}"),
                    }
                    tokio::time::sleep(READ).await;
                }
            };
            tokio::select! {
                () = client.keep() => panic!("it must not end"),
                () = reads => {}
            }
        }
    });
    tokio::select! {
        () = schedule.happen(&model, &clock) => unreachable!("there is always something to come"),
        _ = futures_util::future::join_all(run) => {}
    }
    judge(seed, &model.lock().unwrap(), &schedule);
}

fn judge(seed: u64, model: &Model, schedule: &Schedule) {
    let Model { ttl, most, .. } = *model;
    assert!(!model.was_locked, "seed {seed}: the role was locked out");
    for (pod, seen) in model.seen.iter().enumerate() {
        let who = format!("seed {seed}, pod {pod}");
        assert!(
            seen.with_revoked <= seen.revocations,
            "{who}: {} reads with a revoked token, {} revocations",
            seen.with_revoked,
            seen.revocations
        );
        assert_eq!(seen.after_the_end, 0, "{who}: a token was used after its end");
        assert_eq!(seen.during_pause, 0, "{who}: Vault was asked while it had asked for a pause");
        // A node that has not heard of a fresh token is asked again, and nobody logs in for that.
        assert!(seen.too_soon <= seen.logins.len(), "{who}: {} reads too soon", seen.too_soon);
        for (at, credential) in &seen.refused {
            let again = seen.refused.iter().find(|(later, same)| {
                same == credential && later > at && *later - *at < Duration::from_secs(15 * 60)
            });
            assert!(again.is_none(), "{who}: refused credentials were sent at {at:?} and at {again:?}");
        }
        // Never a storm, whatever is wrong.
        let minute = Duration::from_secs(60);
        for (number, at) in seen.login_tries.iter().enumerate() {
            let within = seen.login_tries[number..].iter().take_while(|later| **later - *at < minute).count();
            assert!(within <= 12, "{who}: {within} logins were tried in the minute after {at:?}");
        }
        // A token that outlives an outage is used on.
        for (from, to, fault) in schedule.faults.iter().filter(|(from, to, _)| *to - *from < ttl / 10) {
            let touches = |at: &Duration| *from < *at + ttl && *at < *to + ttl;
            let has_other_reasons = most < LENGTH
                || schedule
                    .revocations
                    .iter()
                    .chain(schedule.suspensions.iter().map(|(at, _)| at))
                    .any(touches)
                || schedule.rotation.is_some_and(|(begins, _)| touches(&begins))
                || schedule
                    .faults
                    .iter()
                    .any(|(other, ends, _)| other != from && (touches(other) || touches(ends)));
            let within = |at: &&Duration| *from + RECOVERY < **at && **at < *to + ttl / 2;
            let after = seen.logins.iter().find(within).filter(|_| !has_other_reasons);
            assert_eq!(after, None, "{who}: a login for an outage ({fault:?}) that the token outlived");
        }
        // In health, a login for each life of a token.
        let disturbed = |from: Duration, to: Duration| {
            let touches = |begins: Duration, ends: Duration| begins <= to && from <= ends + ttl;
            schedule.faults.iter().any(|(begins, ends, _)| touches(*begins, *ends))
                || schedule.rotation.is_some_and(|(begins, ends)| touches(begins, ends))
                || schedule.suspensions.iter().any(|(at, length)| touches(*at, *at + *length))
        };
        let pairs = seen.logins.windows(2);
        let storms = pairs
            .filter(|pair| pair[1] - pair[0] < most.mul_f64(0.65) && !disturbed(pair[0], pair[1]))
            .count();
        assert!(storms <= seen.revocations, "{who}: logins at {:?}, {most:?} at most", seen.logins);
    }
}

#[test]
fn six_hours_of_the_client_two_hundred_times() {
    let folder = tempfile::tempdir().unwrap();
    for seed in seeds("KESWARDEN_CLIENT_SCHEDULES", 200) {
        let _again = Again(seed, "six_hours");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(six_hours(seed, folder.path()));
    }
}
