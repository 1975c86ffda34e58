//! The real client, as two to four pods of one role, through six hours of faults of Vault, of the credentials and of the machine.

use super::{
    Again, Random,
    model::{FAULTS, Fault, Model, Pod},
    seeds,
};
use keswarden::{
    clock::Clock,
    metrics::Registry,
    secret::Secret,
    vault::{
        Client, Config, Refusals,
        login::{Login, Source},
        verdict::Asked,
    },
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

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
/// A read that begins this long after a fault succeeds. The last request in a fault may end five seconds after the fault, the look at the
/// health page takes one second more, and a failed login rests for five.
const RECOVERY: Duration = Duration::from_secs(12);
const LENGTH: Duration = Duration::from_secs(6 * 3600);

/// The faults of six hours, each with its time.
struct Schedule {
    faults: Vec<(Duration, Duration, Fault)>,
    /// When the secret_id is replaced, and when its file is.
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
        // A request that was under way when the machine was suspended in a fault fails after the suspension, as if the fault had lasted.
        let was_caught = |at: &Duration| self.faults.iter().any(|(from, to, _)| (*from..*to).contains(at));
        self.faults.iter().any(|(from, to, _)| is_within(*from, *to))
            || self.suspensions.iter().any(|(at, length)| was_caught(at) && is_within(*at, *at + *length))
            || self.rotation.is_some_and(|(from, to)| is_within(from, to))
    }

    /// Runs the schedule.
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
                    // One read replaces a revoked token once; the next read replaces the next revoked token.
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
        // A node that does not know a fresh token is asked again, and no login follows.
        assert!(seen.too_soon <= seen.logins.len(), "{who}: {} reads too soon", seen.too_soon);
        for (at, credential) in &seen.refused {
            let again = seen.refused.iter().find(|(later, same)| {
                same == credential && later > at && *later - *at < Duration::from_secs(15 * 60)
            });
            assert!(again.is_none(), "{who}: refused credentials were sent at {at:?} and at {again:?}");
        }
        // At no time a storm of logins.
        let minute = Duration::from_secs(60);
        for (number, at) in seen.login_tries.iter().enumerate() {
            let within = seen.login_tries[number..].iter().take_while(|later| **later - *at < minute).count();
            assert!(within <= 12, "{who}: {within} logins were tried in the minute after {at:?}");
        }
        // A token that outlives an outage is still used.
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
        // Without faults, one login for each life of a token.
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
