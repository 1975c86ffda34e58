//! Certificates that are wrong or have ended, on either side, and clocks. A message names the certificate's dates. Files that are put
//! right are read again without a restart. No wall clock decides when a token is renewed.

use super::{Site, with_key};
use crate::harness::{Bao, SOON, Var, Wire, eventually, faketime, finish, text};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair,
};
use std::{fs, path::Path, process::Command};
use time::{Duration, OffsetDateTime};

const FAILED: &str = "keswarden_key_verifications_total{outcome=\"failed\"}";
const HERE: &str = "127.0.0.1";
/// From a while ago to the day after tomorrow, in seconds from now.
const VALID: (i64, i64) = (-HOUR, 2 * DAY);
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A certificate authority, and its certificate as PEM.
struct Ca {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM files hold them, and when it begins and ends.
struct Leaf {
    certificate: String,
    key: String,
    begins: String,
    ends: String,
}

// === impl Ca ===

impl Ca {
    /// OpenBao's own CA, which every agent trusts.
    fn of(bao: &Bao) -> Self {
        let read = |name: &str| fs::read_to_string(bao.dir().join(name)).unwrap();
        let (certificate, key) = (read("ca.crt"), KeyPair::from_pem(&read("ca.key")).unwrap());
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).unwrap();
        Self { certificate, issuer }
    }

    fn another() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "another CA");
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this name, valid between these seconds from now.
    fn signs(&self, name: &str, usage: Usage, (from, to): (i64, i64)) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Duration::seconds(from), now + Duration::seconds(to));
        let told =
            |at: OffsetDateTime| jiff::Timestamp::from_second(at.unix_timestamp()).unwrap().to_string();
        Leaf {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
            begins: told(params.not_before),
            ends: told(params.not_after),
        }
    }
}

// === impl Leaf ===

impl Leaf {
    fn put(&self, dir: &Path, name: &str) {
        fs::write(dir.join(format!("{name}.key")), &self.key).unwrap();
        fs::write(dir.join(format!("{name}.crt")), &self.certificate).unwrap();
    }
}

/// OpenBao shows this certificate on new connections.
fn show(bao: &mut Bao, leaf: &Leaf) {
    leaf.put(bao.dir(), "server");
    bao.signal("HUP");
    let bare = |pem: &str| pem.split_whitespace().collect::<String>();
    let (address, wanted) = (bao.addr().replace("https://", ""), bare(&leaf.certificate));
    eventually(SOON, "OpenBao shows another certificate", || {
        let seen = finish(Command::new("openssl").args(["s_client", "-connect", address.as_str()]), "", SOON);
        bare(&text(&seen.stdout)).contains(&wanted)
    });
}

/// Ends the agent's connections: a connection that is open never sees another certificate.
fn cut(site: &Site) {
    let before = site.metric(FAILED);
    site.proxy.set(Wire::Ended);
    eventually(SOON, "the agent has lost its connections", || site.metric(FAILED) > before);
    site.proxy.set(Wire::Good);
}

#[test]
fn server_certificates_that_expire_are_wrong_or_are_replaced() {
    let (bao, mut settings) = with_key();
    let dir = tempfile::tempdir().unwrap();
    let trusted = dir.path().join("ca.crt");
    fs::copy(bao.ca_path(), &trusted).unwrap();
    settings.push(("KESWARDEN_VAULT_CACERT", trusted.to_string_lossy().into_owned()));
    let (ours, another) = (Ca::of(&bao), Ca::another());
    let server = |name: &str, valid: (i64, i64)| ours.signs(name, Usage::ServerAuth, valid);
    let stranger = another.signs(HERE, Usage::ServerAuth, VALID);
    let (good, ended, early) =
        (server(HERE, VALID), server(HERE, (-DAY, -HOUR)), server(HERE, (HOUR, 2 * DAY)));
    let mut site = Site::serving(bao, &settings);
    let logins = site.logins();
    for (leaf, cause, words) in [
        (&stranger, "vault_tls_unknown_ca", "KESWARDEN_VAULT_CACERT".to_owned()),
        (&server("vault.example.com", VALID), "vault_tls_name", "vault.example.com".to_owned()),
        (&ended, "vault_tls_expired", format!("certificate expired: it ended at {}", ended.ends)),
        (&early, "vault_tls_expired", format!("certificate not valid yet: it begins at {}", early.begins)),
    ] {
        show(&mut site.bao, leaf);
        cut(&site);
        let told = site.goes_on_while(cause);
        assert!(told.contains(&words), "{words:?} is not in\n{told}");
        site.agent.process().says(SOON, &format!("unverified: {cause}: "));
        show(&mut site.bao, &good);
        site.recovers();
    }

    // A CA is replaced, and the agent reads the new CA file: no restart.
    show(&mut site.bao, &stranger);
    cut(&site);
    site.goes_on_while("vault_tls_unknown_ca");
    fs::write(&trusted, &another.certificate).unwrap();
    site.recovers();
    site.gate_passes();
    assert_eq!(site.logins(), logins, "a certificate is no reason to log in again");
}

#[test]
fn client_certificates_that_expire_and_are_replaced() {
    let (bao, _) = with_key();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let ca = Ca::another();
    fs::write(file("ca.crt"), &ca.certificate).unwrap();
    bao.ok(&["auth", "enable", "cert"], "");
    let trusted = format!("certificate=@{}", file("ca.crt"));
    bao.ok(&["write", "auth/cert/certs/minio", &trusted, "token_policies=minio-sidecar", "token_ttl=4s"], "");
    let client = |valid: (i64, i64)| ca.signs("minio", Usage::ClientAuth, valid).put(dir.path(), "client");
    let settings: [Var; 4] = [
        ("KESWARDEN_VAULT_CERT_LOGIN", "on".to_owned()),
        ("KESWARDEN_VAULT_CERT_ROLE", "minio".to_owned()),
        ("KESWARDEN_VAULT_CLIENT_CERT", file("client.crt")),
        ("KESWARDEN_VAULT_CLIENT_KEY", file("client.key")),
    ];
    // The certificate lasts long enough for a start on a busy machine.
    client((-HOUR, 15));
    let site = Site::serving(bao, &settings);
    let told = site.goes_on_while("login_refused");
    assert!(told.contains("certificate has expired"), "{told}");
    client(VALID);
    site.recovers();
    site.gate_passes();
}

#[test]
fn a_clock_that_is_wrong() {
    let (mut bao, mut settings) = with_key();
    bao.ok(&["write", "auth/approle/role/minio-sidecar", "token_period=8s"], "");
    let ca = Ca::of(&bao);
    // No certificate ends, so that nothing but the clock is wrong.
    show(&mut bao, &ca.signs(HERE, Usage::ServerAuth, (-100 * DAY, 100 * DAY)));
    let dir = tempfile::tempdir().unwrap();
    let (clock, next) = (dir.path().join("clock"), dir.path().join("next"));
    let set = |by: &str| fs::write(&next, by).and_then(|()| fs::rename(&next, &clock)).unwrap();
    set("+0");
    settings.extend([
        ("LD_PRELOAD", faketime().to_string_lossy().into_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_string_lossy().into_owned()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        // The wall clock alone: no program can set the other clocks.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]);
    let mut site = Site::serving(bao, &settings);
    let days = |site: &Site| site.metric("keswarden_vault_clock_skew_seconds") / DAY as f64;
    let renewed = |site: &Site| site.metric("keswarden_vault_token_last_renewal_timestamp_seconds");

    // The clock is set while the agent runs. Tokens of eight seconds are renewed all the same.
    for (by, off) in [("+40d", 40.0), ("-40d", -40.0)] {
        set(by);
        eventually(SOON, &format!("the clock is set by {by}"), || (days(&site) - off).abs() < 0.1);
        for _ in 0..2 {
            let before = renewed(&site);
            eventually(SOON, &format!("the token is renewed at {by}"), || renewed(&site) != before);
        }
        site.recovers();
    }
    assert_eq!((site.logins(), site.metric(FAILED)), (1.0, 0.0), "no wall clock ends a token");
    assert!(site.agent.logs().contains(" clock_skew: "), "{}", site.agent.logs());

    // A minute and a half is a warning, and no reason to wait.
    set("+90");
    let mut pod = site.pod();
    let mut init = pod.init();
    assert_eq!(init.wait(SOON), 0, "{}", init.log());
    let told = "clock_skew: this machine's clock and Vault's differ by 9";
    assert!(init.log().contains(told), "{}", init.log());
    eventually(SOON, "the agent has measured it", || {
        let skew = site.metric("keswarden_vault_clock_skew_seconds");
        if (89.0..93.0).contains(&skew) { Ok(()) } else { Err(format!("{skew} s")) }
    });

    // A certificate that has not begun or has ended by this clock is told with both times, so that a person sees which of them is wrong.
    set("+40d");
    eventually(SOON, "the clock is set once more", || days(&site) > 39.0);
    let leaf = ca.signs(HERE, Usage::ServerAuth, VALID);
    show(&mut site.bao, &leaf);
    cut(&site);
    for (by, dates) in [
        ("+40d", format!("certificate expired: it ended at {}, and this machine's clock says ", leaf.ends)),
        (
            "-40d",
            format!(
                "certificate not valid yet: it begins at {}, and this machine's clock says ",
                leaf.begins
            ),
        ),
    ] {
        set(by);
        let told = site.goes_on_while("vault_tls_expired");
        for words in [&*dates, "h UTC", "check this machine's clock"] {
            assert!(told.contains(words), "{words:?} is not in\n{told}");
        }
    }
    set("+0");
    site.recovers();
    site.gate_passes();
}
