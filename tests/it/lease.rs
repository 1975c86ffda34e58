//! A Vault identity that never lapses, over simulated time: the pure machine through months, and the real client through hours of outages,
//! revocations and refused credentials, against a model of Vault.
//!
//! More of them: `KESWARDEN_LEASE_SCHEDULES=1000000 KESWARDEN_CLIENT_SCHEDULES=10000 cargo test --release --test it lease`; one of
//! them again: `KESWARDEN_SEED=…` with the seed that a failure prints.

use async_trait::async_trait;
use keswarden::{
    clock::Clock,
    metrics::Registry,
    secret::Secret,
    tls::Trouble,
    vault::{
        Client, Config,
        lease::{Action, Lease},
        login::{Login, Source},
        transport::{Failure, FailureKind, Transport},
        verdict::Asked,
    },
};
use serde_json::json;
use std::{
    path::Path,
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
    let fault = |at: f64| outages.iter().find(|(from, to, _)| (*from..*to).contains(&at)).copied();
    let last_fault_before = |at: f64| {
        outages
            .iter()
            .filter(|(from, ..)| *from <= at)
            .map(|(_, to, _)| *to)
            .fold(f64::NEG_INFINITY, f64::max)
    };

    let origin = Instant::now();
    let at = |seconds: f64| origin + Duration::from_secs_f64(seconds);
    let mut now = 0.0;
    let (mut token, mut lease, mut logins, mut lapses) = (None::<Token>, Lease::default(), Vec::new(), 0);
    let grant = |now: f64, end: f64| (end - now).min(ttl);
    while now < (30 * DAY) as f64 {
        // What an answer takes; the TTL counts from before.
        let latency = random.chance() * 3.0;
        let action = match token {
            None => Action::Login,
            Some(_) => lease.next(at(now)),
        };
        match action {
            Action::Wait(delay) => {
                let step = delay.as_secs_f64().max(0.001);
                now += step;
            }
            Action::Renew => {
                let sent = now;
                now += latency;
                let known = token.filter(|token| sent + latency / 2.0 < token.expires);
                match (fault(sent), known) {
                    (None, Some(known)) if renewable => {
                        let granted = grant(sent + latency / 2.0, known.end);
                        token = Some(Token { expires: sent + latency / 2.0 + granted, ..known });
                        let granted = Duration::from_secs_f64(granted.floor().max(0.0));
                        let ttl = (granted > Duration::ZERO).then_some(granted);
                        match ttl {
                            Some(_) => lease.renewed(at(sent), ttl, true, random.chance()),
                            None => lease.renewal_failed(at(now)),
                        }
                    }
                    _ => lease.renewal_failed(at(now)),
                }
            }
            Action::Login => {
                let sent = now;
                now += latency;
                match fault(sent) {
                    Some((_, _, false)) => {
                        lease.failed(at(now), random.chance());
                        now += 0.5;
                    }
                    _ => {
                        let end = sent + most;
                        let granted = grant(sent, end);
                        token = Some(Token { expires: sent + latency / 2.0 + granted, end });
                        let ttl = Some(Duration::from_secs_f64(granted.floor()));
                        lease = Lease::granted(at(sent), ttl, renewable, random.chance());
                        logins.push(sent);
                    }
                }
            }
        }
        if let Some(held) = token {
            if lease.has_expired(at(now)) {
                // Whoever wants a key now logs in first.
                token = None;
                lapses += 1;
                let outage = last_fault_before(now);
                assert!(
                    outage + ttl >= now,
                    "seed {seed}: the token lapsed at {now:.0} s, {ttl:.0} s TTL, without an outage"
                );
            } else {
                assert!(
                    now <= held.expires + 0.001,
                    "seed {seed}: a token is used {:.3} s after its end",
                    now - held.expires
                );
            }
        }
    }
    // In health, one login for each life of a token, which ends early by as much as renewals are early.
    let life = if !renewable { ttl } else { most };
    let healthy = logins
        .windows(2)
        .filter(|pair| last_fault_before(pair[1]) + 2.0 * ttl < pair[0])
        .filter(|pair| pair[1] - pair[0] < 0.45 * life);
    assert_eq!(
        healthy.count(),
        0,
        "seed {seed}: logins {logins:?} of tokens that live {life} s, {lapses} lapses"
    );
}

#[test]
fn thirty_days_of_the_machine_ten_thousand_times() {
    for seed in seeds("KESWARDEN_LEASE_SCHEDULES", 10_000) {
        thirty_days(seed);
    }
}

/// What is wrong with Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Sealed,
    Refused,
    /// Nobody answers.
    Silent,
    Internal,
    RateLimited,
    Tls,
}

/// A model of Vault, in simulated time.
struct Model {
    started: Instant,
    ttl: Duration,
    most: Duration,
    faults: Vec<(Duration, Duration, Fault)>,
    /// The secret_id that is good now.
    secret_id: String,
    tokens: Vec<(String, Instant, Instant)>,
    revoked: Vec<String>,
    // What was seen.
    logins: Vec<Duration>,
    refused: Vec<(Duration, String)>,
    forbidden_reads: usize,
    revocations: usize,
    during_pause: usize,
    pause_until: Option<Instant>,
    used_after_end: usize,
}

struct Vault(Mutex<Model>);

impl Model {
    fn since(&self) -> Duration {
        self.started.elapsed()
    }

    fn fault(&self) -> Option<Fault> {
        let now = self.since();
        self.faults.iter().find(|(from, to, _)| (*from..*to).contains(&now)).map(|(.., fault)| *fault)
    }

    fn lives(&self, token: &str) -> bool {
        let known = self.tokens.iter().find(|(known, ..)| known == token);
        known.is_some_and(|(_, expires, _)| Instant::now() < *expires)
            && !self.revoked.iter().any(|dead| dead == token)
    }

    fn answer(&mut self, request: &http::Request<Vec<u8>>) -> (u16, serde_json::Value) {
        let token =
            request.headers().get("x-vault-token").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let path = request.uri().path().trim_start_matches("/v1/");
        let now = Instant::now();
        if path == "auth/approle/login" {
            let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
            let given = body["secret_id"].as_str().unwrap_or_default();
            if given != self.secret_id {
                self.refused.push((self.since(), given.to_owned()));
                return (400, json!({ "errors": ["invalid role or secret ID"] }));
            }
            let token = format!("s.{}", self.tokens.len());
            self.tokens.push((token.clone(), now + self.ttl, now + self.most));
            self.logins.push(self.since());
            let auth =
                json!({ "client_token": token, "lease_duration": self.ttl.as_secs(), "renewable": true });
            return (200, json!({ "auth": auth }));
        }
        if !self.lives(token) {
            if path.starts_with("kv/") {
                self.forbidden_reads += 1;
                self.used_after_end += usize::from(!self.revoked.iter().any(|dead| dead == token));
            }
            return (403, json!({ "errors": ["permission denied"] }));
        }
        let ttl = self.ttl;
        let held = self.tokens.iter_mut().find(|(known, ..)| known == token).expect("it lives");
        match path {
            "auth/token/lookup-self" => {
                (200, json!({ "data": { "ttl": (held.1 - now).as_secs(), "renewable": true } }))
            }
            "auth/token/renew-self" => {
                held.1 = (now + ttl).min(held.2);
                let granted = (held.1 - now).as_secs();
                let auth = json!({ "client_token": token, "lease_duration": granted, "renewable": true });
                (200, json!({ "auth": auth }))
            }
            "kv/data/minio/my-key" => (200, json!({ "data": { "data": { "my-key": "text" } } })),
            other => panic!("nobody asks for {other}"),
        }
    }
}

#[async_trait]
impl Transport for Vault {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Failure> {
        let fault = {
            let mut model = self.0.lock().unwrap();
            let paused = model.pause_until.is_some_and(|until| Instant::now() < until);
            model.during_pause += usize::from(paused);
            model.fault()
        };
        let failure = |kind| Err(Failure { kind, words: "as the model says".to_owned() });
        let errors = |text: &str| json!({ "errors": [text] });
        let (status, body) = match fault {
            Some(Fault::Refused) => return failure(FailureKind::Refused),
            Some(Fault::Tls) => return failure(FailureKind::Tls(Trouble::Expired)),
            Some(Fault::Silent) => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                return failure(FailureKind::Timeout);
            }
            Some(Fault::Sealed) => (503, errors("Vault is sealed")),
            Some(Fault::Internal) => (500, errors("internal error")),
            Some(Fault::RateLimited) => {
                let mut model = self.0.lock().unwrap();
                model.pause_until = Some(Instant::now() + Duration::from_secs(3));
                let mut response =
                    http::Response::new(errors("request path rate limited").to_string().into_bytes());
                *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
                response.headers_mut().insert("retry-after", "3".parse().unwrap());
                return Ok(response);
            }
            None => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.0.lock().unwrap().answer(&request)
            }
        };
        let mut response = http::Response::new(body.to_string().into_bytes());
        *response.status_mut() = status.try_into().unwrap();
        Ok(response)
    }
}

fn client(transport: Arc<Vault>, secret_id: &Path) -> Client {
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
    let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    Client::over(transport, config, &Registry::new(), clock)
}

/// How often the data path reads.
const READ: Duration = Duration::from_secs(30);
/// A read so long after a fault works: a login that failed rests for as long.
const RECOVERY: Duration = Duration::from_secs(61);

/// Six hours of the real client.
async fn six_hours(seed: u64, folder: &Path) {
    let mut random = Random(seed ^ 0x6b65_7377);
    let length = Duration::from_secs(6 * 3600);
    let ttl = Duration::from_secs(300 + random.below(1500));
    let most = if random.below(2) == 0 { length * 10 } else { ttl * (2 + random.below(6) as u32) };
    let kinds =
        [Fault::Sealed, Fault::Refused, Fault::Silent, Fault::Internal, Fault::RateLimited, Fault::Tls];
    let faults: Vec<_> = (0..1 + random.below(5))
        .map(|_| {
            let begins = Duration::from_secs(random.below(length.as_secs()));
            (begins, begins + Duration::from_secs(1 + random.below(1800)), kinds[random.below(6) as usize])
        })
        .collect();
    // At most one time in which the secret_id is replaced before its file is.
    let rotation = (random.below(2) == 0).then(|| {
        let begins = Duration::from_secs(600 + random.below(3 * 3600));
        (begins, begins + Duration::from_secs(random.below(3600)))
    });
    let mut revocations: Vec<_> =
        (0..random.below(4)).map(|_| Duration::from_secs(random.below(length.as_secs()))).collect();
    revocations.sort_unstable();

    let file = folder.join(format!("secret-id-{seed}"));
    std::fs::write(&file, "first").unwrap();
    let model = Model {
        started: Instant::now(),
        ttl,
        most,
        faults: faults.clone(),
        secret_id: "first".to_owned(),
        tokens: Vec::new(),
        revoked: Vec::new(),
        logins: Vec::new(),
        refused: Vec::new(),
        forbidden_reads: 0,
        revocations: 0,
        during_pause: 0,
        pause_until: None,
        used_after_end: 0,
    };
    let vault = Arc::new(Vault(Mutex::new(model)));
    let client = client(vault.clone(), &file);
    let asked = Asked { what: "reading the key", path: "kv/data/minio/my-key" };
    let reads = async {
        let (mut destroyed, mut replaced) = (false, false);
        while vault.0.lock().unwrap().since() < length {
            let now = vault.0.lock().unwrap().since();
            if let Some((from, to)) = rotation {
                if now >= from && !std::mem::replace(&mut destroyed, now >= from) {
                    vault.0.lock().unwrap().secret_id = "second".to_owned();
                }
                if now >= to && !std::mem::replace(&mut replaced, now >= to) {
                    std::fs::write(&file, "second").unwrap();
                }
            }
            while revocations.first().is_some_and(|at| *at <= now) {
                revocations.remove(0);
                let mut model = vault.0.lock().unwrap();
                let all: Vec<_> = model.tokens.iter().map(|(token, ..)| token.clone()).collect();
                model.revocations += usize::from(all.iter().any(|token| model.lives(token)));
                model.revoked.extend(all);
            }
            let read = client.get(&asked, None).await;
            let within = |(from, to, _): &(Duration, Duration, Fault)| *from <= now && now < *to + RECOVERY;
            let disturbed = faults.iter().any(within)
                || rotation.is_some_and(|(from, to)| from <= now && now < to + RECOVERY);
            match read {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => {
                    assert!(disturbed, "seed {seed}: a read at {now:?} was answered {}", answer.status)
                }
                Err(finding) => assert!(disturbed, "seed {seed}: a read at {now:?} failed: {finding}"),
            }
            tokio::time::sleep(READ).await;
        }
    };
    tokio::select! {
        () = client.keep() => panic!("it must not end"),
        () = reads => {}
    }
    let model = vault.0.lock().unwrap();
    assert!(
        model.forbidden_reads <= model.revocations,
        "seed {seed}: {} reads with a dead token, {} revocations",
        model.forbidden_reads,
        model.revocations
    );
    assert_eq!(model.used_after_end, 0, "seed {seed}: a token was used after its end");
    assert_eq!(model.during_pause, 0, "seed {seed}: Vault was asked while it had asked for a pause");
    for (at, credential) in &model.refused {
        let again = model.refused.iter().find(|(later, same)| {
            same == credential && later > at && *later - *at < Duration::from_secs(15 * 60)
        });
        assert!(again.is_none(), "seed {seed}: refused credentials were sent at {at:?} and at {again:?}");
    }
    // In health, a login for each life of a token.
    let disturbed = |at: Duration| {
        faults.iter().any(|(from, to, _)| *from <= at && at <= *to + ttl)
            || rotation.is_some_and(|(from, to)| from <= at && at <= to + ttl)
    };
    let storms = model
        .logins
        .windows(2)
        .filter(|pair| pair[1] - pair[0] < most.mul_f64(0.45) && !disturbed(pair[0]) && !disturbed(pair[1]))
        .count();
    assert!(storms <= model.revocations, "seed {seed}: logins at {:?}, {most:?} at most", model.logins);
}

#[test]
fn six_hours_of_the_client_two_hundred_times() {
    let folder = tempfile::tempdir().unwrap();
    for seed in seeds("KESWARDEN_CLIENT_SCHEDULES", 200) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(six_hours(seed, folder.path()));
    }
}
