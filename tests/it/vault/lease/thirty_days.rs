//! The pure machine through thirty days of outages, suspensions and tokens that cannot be renewed.

use super::{Again, Random, seeds};
use keswarden::vault::lease::{Action, Failed, Lease};
use std::time::Duration;
use tokio::time::Instant;

const DAY: u64 = 86_400;

/// What Vault knows of a token, in seconds since the start.
#[derive(Clone, Copy)]
struct Token {
    expires: f64,
    /// No renewal goes beyond.
    end: f64,
}

/// Thirty days of the pure machine. A caller that does what the machine says is without a token only in an outage that lasts longer than
/// the token's remaining life, and never uses a token that has ended.
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
        // The delay of the answer; the TTL counts from before.
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
            // The next read logs in first.
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
    // Without faults, one login for each life of a token; a life ends early by the time that a login takes.
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
