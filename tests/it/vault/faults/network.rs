//! Answers that do not come, come late, or are cut off. Each request has a deadline of its own, a connection is not used again after a
//! deadline, and half an answer is no answer.

use super::{Site, with_key};
use crate::harness::{SOON, TOLD, Wire, eventually};
use std::{
    fs,
    time::{Duration, Instant},
};

const FAILED: &str = "keswarden_key_verifications_total{outcome=\"failed\"}";
/// Requests for the key without an answer: how many there were, and how many were given up within five seconds.
const UNANSWERED: &str = "keswarden_vault_request_duration_seconds_count{code=\"none\",op=\"kv\"}";
const GIVEN_UP: &str = "keswarden_vault_request_duration_seconds_bucket{code=\"none\",op=\"kv\",le=\"5\"}";

/// The open files and the threads of the agent.
fn burden(site: &mut Site) -> (usize, usize) {
    let process = site.agent.process().id();
    let count = |what: &str| fs::read_dir(format!("/proc/{process}/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

/// The fault is over, and the next look or two must show so.
fn is_over(site: &Site) {
    site.proxy.set(Wire::Good);
    let begun = Instant::now();
    site.recovers();
    assert!(begun.elapsed() < TOLD, "verified again after {:?}", begun.elapsed());
}

#[test]
fn a_vault_that_hangs() {
    let (bao, pair) = with_key();
    let mut site = Site::serving(bao, &pair);
    let logins = site.logins();
    let (files, threads) = burden(&mut site);
    let connections = site.proxy.connections();
    // The kernel accepts connections, and then no answer comes.
    site.bao.signal("STOP");
    site.goes_on_while("vault_unreachable_timeout");
    let many = site.metric(FAILED) + 5.0;
    eventually(SOON, "several verifications have failed", || site.metric(FAILED) >= many);
    let told = site.agent.logs();
    assert!(told.contains("unverified: vault_unreachable_timeout: "), "{told}");
    assert!(!told.contains("behind_green_health"), "its health page hangs too\n{told}");
    assert!(site.proxy.connections() >= connections + 5, "no connection is trusted after a timeout");
    let (files_now, threads_now) = burden(&mut site);
    assert!(files_now <= files + 8, "{files} files were open, and {files_now} are");
    assert!(threads_now <= threads + 4, "there were {threads} threads, and there are {threads_now}");
    site.serves("all the while");
    site.bao.signal("CONT");
    is_over(&site);
    site.gate_passes();
    assert_eq!(site.logins(), logins, "the token outlives it");
}

#[test]
fn a_network_that_swallows() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    // Twice: state that the first fault has left must not harm the second recovery.
    for _ in 0..2 {
        site.proxy.set(Wire::BlackHole);
        let told = site.goes_on_while("vault_unreachable_timeout");
        assert!(told.contains("got no answer within 1s"), "{told}");
        is_over(&site);
    }
    site.gate_passes();
    assert_eq!(site.logins(), logins);
}

#[test]
fn a_network_that_is_slow() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    // A byte now and then, which would keep a connection alive for minutes; and a first byte that comes too late.
    for pause in [Duration::from_millis(200), Duration::from_secs(3)] {
        site.proxy.set(Wire::Drip(pause));
        site.goes_on_while("vault_unreachable_timeout");
        is_over(&site);
    }
    assert!(site.metric(UNANSWERED) > 0.0);
    assert_eq!(site.metric(GIVEN_UP), site.metric(UNANSWERED), "each was given up after its one second");
    site.gate_passes();
    assert_eq!(site.logins(), logins);
}

#[test]
fn half_answers() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    // In the midst of the handshake, early and late; in the midst of the first answer, which is the key when the agent asks; and no byte.
    for wire in
        [Wire::CutAfter(40), Wire::CutAfter(1200), Wire::CutAfter(2000), Wire::CutAfter(2500), Wire::Ended]
    {
        site.proxy.set(wire);
        site.goes_on_while("vault_unreachable");
        is_over(&site);
    }
    for line in [
        "keswarden_key_fingerprint_mismatch{key=\"my-key\"}",
        "keswarden_key_verifications_total{outcome=\"changed\"}",
    ] {
        assert_eq!(site.metric(line), 0.0, "{line}: half an answer is none");
    }
    site.gate_passes();
    assert_eq!(site.logins(), logins);
}
