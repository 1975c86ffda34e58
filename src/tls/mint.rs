//! The run directory: a CA of our own, our server certificate, and MinIO's client certificate.
//!
//! Minted once and reused, since MinIO reads its CA only when it starts. Certificates are renewed with their keys kept,
//! so that MinIO's identity, which is its public key, never changes. What is no key, or does not belong together, as after a
//! power cut or half a restore, counts as missing: nobody has to mend it by hand. Only `ca.crt`, `client.crt` and `client.key` are for
//! MinIO; `client.key` is readable for the group, so that MinIO may run as another user of it.

use super::{Error, Pair};
use crate::{
    files,
    identity::{ApiKey, Certificate, Identity},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// The certificates of a run directory.
pub struct RunDir {
    dir: PathBuf,
    /// Names and addresses of the server certificate.
    names: Vec<String>,
}

/// How long the CA lives; MinIO must restart to read another.
const CA_DAYS: i64 = 3650;
/// How long the other certificates live, and how much must be left before they are made anew.
const LEAF_DAYS: i64 = 90;
const RENEW_BEFORE_DAYS: i64 = 30;
/// Leeway for clocks that differ.
const BACKDATED: Duration = Duration::hours(1);

// === impl RunDir ===

impl RunDir {
    /// Names that a client on this machine may use, and `more`.
    pub fn new(dir: PathBuf, more: &[String]) -> Self {
        let mut names: Vec<String> = ["127.0.0.1", "::1", "localhost"].map(str::to_owned).into();
        names.extend_from_slice(more);
        Self { dir, names }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Makes what is missing, and what is about to expire, at `now` (seconds since 1970). True when the server
    /// certificate is a new one.
    pub fn ensure(&self, now: i64) -> Result<bool, Error> {
        make_dir(&self.dir).map_err(|error| unwritable(&self.dir, error))?;
        let _alone = Alone::in_dir(&self.dir);
        for dir in [self.dir.clone(), self.path("agent")] {
            files::sweep(&dir);
        }
        let now = OffsetDateTime::from_unix_timestamp(now).expect("the wall clock must show a date");
        let was_there = self.path("ca.crt").exists();
        let ca_key = self.key("ca.key", 0o600, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let ca = Mint { file: "ca.crt", days: CA_DAYS, params: ca_params() };
        let ca_is_new = self.certificate(&ca, &ca_key, None, now)?;
        if ca_is_new && was_there {
            tracing::warn!("{} was made anew: MinIO reads it when it starts", self.path(ca.file).display());
        }
        let issuer = Issuer::from_params(&ca.params, &ca_key);
        let issuer = Some((&issuer, &ca_key));

        let server_key = self.key("server.key", 0o600, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        let server = Mint { file: "server.crt", days: LEAF_DAYS, params: self.server_params()? };
        let stale = ca_is_new || !self.has_our_names();
        if stale {
            let _ = fs::remove_file(self.path(server.file));
        }
        let renewed = self.certificate(&server, &server_key, issuer, now)?;

        let client_key = self.key("client.key", 0o640, &rcgen::PKCS_ED25519)?;
        let client = Mint { file: "client.crt", days: LEAF_DAYS, params: client_params() };
        if ca_is_new {
            let _ = fs::remove_file(self.path(client.file));
        }
        self.certificate(&client, &client_key, issuer, now)?;
        Ok(renewed)
    }

    /// Our server certificate, and the CA behind it.
    pub fn server(&self) -> Result<Pair, Error> {
        Pair::read(&self.path("server.crt"), &self.path("server.key"))
    }

    /// The identity of the client certificate that MinIO is given.
    pub fn client_identity(&self) -> Result<Identity, Error> {
        let path = self.path("client.crt");
        let chain = super::read_certificates(&path)?;
        Certificate::parse(&chain[0])
            .map(|certificate| certificate.identity)
            .map_err(|error| Error::Read { path: path.display().to_string(), reason: error.to_string() })
    }

    /// When the server certificate ends, in seconds since 1970.
    pub fn server_not_after(&self) -> Option<i64> {
        self.not_after("server.crt")
    }

    fn not_after(&self, file: &str) -> Option<i64> {
        let chain = super::read_certificates(&self.path(file)).ok()?;
        let (_, parsed) = X509Certificate::from_der(&chain[0]).ok()?;
        Some(parsed.validity().not_after.timestamp())
    }

    /// The names of the certificate at hand are the names that are wanted.
    fn has_our_names(&self) -> bool {
        fs::read_to_string(self.path("server.names")).is_ok_and(|names| names == self.names.join("\n"))
    }

    fn key(&self, file: &str, mode: u32, kind: &'static rcgen::SignatureAlgorithm) -> Result<KeyPair, Error> {
        let path = self.path(file);
        let read = match fs::read_to_string(&path) {
            // Zeros, or nothing, are what a power cut may leave of a file that was not waited for.
            Ok(pem) => KeyPair::from_pem(&pem).ok(),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => None,
            Err(error) => {
                return Err(Error::Read { path: path.display().to_string(), reason: error.to_string() });
            }
        };
        if let Some(key) = read {
            return Ok(key);
        }
        let key = match kind == &rcgen::PKCS_ED25519 {
            true => ApiKey::generate().key_pair(),
            false => KeyPair::generate_for(kind).expect("a key pair must be made"),
        };
        // A certificate of a key that is gone is of no use.
        let _ = fs::remove_file(path.with_extension("crt"));
        keep(&path, mode, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// Signs the certificate unless a good one is there; true when it was signed now.
    fn certificate(
        &self,
        mint: &Mint,
        key: &KeyPair,
        issuer: Option<(&Issuer<'_, &KeyPair>, &KeyPair)>,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let limit = now + Duration::days(RENEW_BEFORE_DAYS);
        let lasts = self.not_after(mint.file).is_some_and(|not_after| not_after > limit.unix_timestamp());
        if lasts && self.belongs(mint.file, key, issuer.map(|(_, ca_key)| ca_key)) {
            return Ok(false);
        }
        let mut params = mint.params.clone();
        (params.not_before, params.not_after) = (now - BACKDATED, now + Duration::days(mint.days));
        let certificate = match issuer {
            None => params.self_signed(key),
            Some((issuer, _)) => params.signed_by(key, issuer),
        };
        let certificate = certificate.expect("our own keys must sign");
        keep(&self.path(mint.file), 0o644, certificate.pem().as_bytes())?;
        if mint.file == "server.crt" {
            keep(&self.path("server.names"), 0o644, self.names.join("\n").as_bytes())?;
        }
        Ok(true)
    }

    /// The certificate is this key's, and signed with the CA's key where there is one.
    fn belongs(&self, file: &str, key: &KeyPair, ca_key: Option<&KeyPair>) -> bool {
        let Ok(chain) = super::read_certificates(&self.path(file)) else { return false };
        let Ok((_, parsed)) = X509Certificate::from_der(&chain[0]) else { return false };
        let is_signed_by = |ca_key: &KeyPair| {
            let signed: &[u8] = parsed.tbs_certificate.as_ref();
            let signature = &parsed.signature_value.data;
            let known = super::provider().signature_verification_algorithms.all;
            known.iter().any(|way| way.verify_signature(ca_key.public_key_raw(), signed, signature).is_ok())
        };
        *parsed.public_key().subject_public_key.data == *key.public_key_raw()
            && ca_key.is_none_or(is_signed_by)
    }

    fn server_params(&self) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::new(self.names.clone())
            .map_err(|error| Error::Unusable(rustls::Error::General(format!("{:?}: {error}", self.names))))?;
        params.distinguished_name = common_name("keswarden");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }
}

/// A certificate to be made.
struct Mint {
    file: &'static str,
    days: i64,
    params: CertificateParams,
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("keswarden CA of this pod or host");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("minio");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// A DNS name or an IP address that a certificate can hold.
pub fn is_name(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || rustls::pki_types::DnsName::try_from(text).is_ok()
}

/// Made here it is one that MinIO may enter, whatever the umask is.
fn make_dir(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    Ok(())
}

/// Holds others off who make certificates in the same directory, as `init` and `run` that start at once. It is not waited for long: a
/// process that was stopped in the middle must not stop every other one.
struct Alone {
    _dir: Option<fs::File>,
}

impl Alone {
    const TRIES: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

    fn in_dir(dir: &Path) -> Self {
        let Ok(file) = fs::File::open(dir) else { return Self { _dir: None } };
        for _ in 0..Self::TRIES {
            match file.try_lock() {
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Self::PAUSE),
                // Some network file systems know no locks.
                Ok(()) | Err(fs::TryLockError::Error(_)) => break,
            }
        }
        Self { _dir: Some(file) }
    }
}

/// Writes what is made anew when it is not whole.
fn keep(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    files::write_lightly(path, mode, bytes).map_err(|error| unwritable(path, error))
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    Error::Write { path: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{provider, trust::Trust};
    use rustls::pki_types::{ServerName, UnixTime};

    const NOW: i64 = 1_800_000_000;

    /// Our server's certificate is one that a client with our CA takes.
    fn serves(run_dir: &RunDir) -> bool {
        let pair = run_dir.server().expect("the server's files must be there");
        let trust = Trust::only(&run_dir.path("ca.crt")).expect("the CA must be there");
        let verifier = trust.verifier(provider()).expect("the CA must be usable");
        let name = ServerName::try_from("127.0.0.1").expect("an address must be a name");
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW as u64));
        let leaf = pair.chain[0].clone();
        verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
            && crate::tls::server_config(pair, true).is_ok()
    }

    #[test]
    fn what_is_lost_is_made_anew_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().expect("a directory must be made");
        let run_dir = RunDir::new(dir.path().to_owned(), &[]);
        run_dir.ensure(NOW).expect("a first set must be made");
        assert!(serves(&run_dir));
        let (ca, minio) = (fs::read(run_dir.path("ca.crt")).ok(), run_dir.client_identity().ok());
        assert!(!run_dir.ensure(NOW).expect("nothing must be done"), "a second start makes nothing");
        for file in ["server.crt", "server.key", "server.names", "client.crt"] {
            fs::remove_file(run_dir.path(file)).expect("the file must be there");
            run_dir.ensure(NOW).expect("it must be made anew");
            assert!(serves(&run_dir), "{file}");
            assert_eq!(fs::read(run_dir.path("ca.crt")).ok(), ca, "MinIO reads its CA once: {file}");
            assert_eq!(run_dir.client_identity().ok(), minio, "{file}");
        }
    }

    /// MinIO's certificate is of its key, and of our CA.
    fn minio_can_use(run_dir: &RunDir) -> bool {
        let key = |file: &str| run_dir.key(file, 0o600, &rcgen::PKCS_ED25519).expect("a key must be there");
        let (ca, client) = (key("ca.key"), key("client.key"));
        run_dir.belongs("client.crt", &client, Some(&ca)) && run_dir.belongs("ca.crt", &ca, None)
    }

    const PEM_FILES: [&str; 6] = ["ca.key", "ca.crt", "server.key", "server.crt", "client.key", "client.crt"];

    #[test]
    fn what_cannot_be_read_and_what_does_not_belong_together_is_made_anew() {
        let [dir, other] = [(); 2].map(|()| tempfile::tempdir().expect("a directory must be made"));
        let run_dir = RunDir::new(dir.path().to_owned(), &[]);
        let other = RunDir::new(other.path().to_owned(), &[]);
        for of in [&run_dir, &other] {
            of.ensure(NOW).expect("a first set must be made");
        }
        let anothers = PEM_FILES.map(|file| fs::read(other.path(file)).expect("a file must be there"));
        for (file, anothers) in PEM_FILES.iter().zip(&anothers) {
            for broken in [&b""[..], &[0; 300][..], &b"\xff\xfe"[..], &b"no PEM"[..], &anothers[..]] {
                fs::write(run_dir.path(file), broken).expect("the file must be written");
                run_dir.ensure(NOW).expect("it must be made anew");
                assert!(serves(&run_dir) && minio_can_use(&run_dir), "{file}: {broken:?}");
                assert!(!run_dir.ensure(NOW).expect("nothing must be done"), "{file}: {broken:?}");
            }
        }
    }

    #[test]
    fn what_a_killed_process_left_behind_is_removed_once_it_is_old() {
        let dir = tempfile::tempdir().expect("a directory must be made");
        let run_dir = RunDir::new(dir.path().to_owned(), &[]);
        let [old, fresh, anothers] = ["ca.0a1b2c3d.new", "ca.ffffffff.new", "ca.new"].map(|file| {
            fs::write(run_dir.path(file), "a key").expect("a file must be written");
            run_dir.path(file)
        });
        for file in [&old, &anothers] {
            let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            let file = fs::File::options().write(true).open(file).expect("a file must open");
            file.set_modified(long_ago).expect("a file's time must be set");
        }
        run_dir.ensure(NOW).expect("a first set must be made");
        assert!(!old.exists() && fresh.exists() && anothers.exists());
    }

    #[test]
    fn certificates_are_renewed_before_they_end_and_identities_stay() {
        let dir = tempfile::tempdir().expect("a directory must be made");
        let run_dir = RunDir::new(dir.path().to_owned(), &[]);
        run_dir.ensure(NOW - 61 * 86_400).expect("a first set must be made");
        let minio = run_dir.client_identity().ok();
        assert!(run_dir.ensure(NOW).expect("it must be renewed"), "29 days are left of 90");
        assert!(serves(&run_dir));
        assert_eq!(run_dir.client_identity().ok(), minio);
        assert!(run_dir.server_not_after().is_some_and(|end| end > NOW + 80 * 86_400));
        let more = RunDir::new(dir.path().to_owned(), &["kes.example".to_owned()]);
        assert!(more.ensure(NOW).expect("it must be made anew"), "other names want another certificate");
    }
}
