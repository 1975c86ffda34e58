//! MinIO's own environment: the process's, and MinIO's environment file, which wins and may be written after us.
//!
//! A line of the file is `[export ]NAME=VALUE`; `#` starts a comment line; one pair of quotes around the value is dropped;
//! nothing else is expanded. As MinIO reads it.

use crate::{
    cause::{Cause, Finding},
    kes_client::{ClientIdentity, Config},
    secret::Secret,
    tls::trust::Trust,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// MinIO's environment.
#[derive(Clone)]
pub struct MinioEnv {
    variables: BTreeMap<String, String>,
    file: Option<PathBuf>,
    /// Ours, under MinIO's names: they win over both.
    ours: BTreeMap<String, String>,
}

const ENDPOINT: &str = "MINIO_KMS_KES_ENDPOINT";
const API_KEY: &str = "MINIO_KMS_KES_API_KEY";
const CERT_FILE: &str = "MINIO_KMS_KES_CERT_FILE";
const KEY_FILE: &str = "MINIO_KMS_KES_KEY_FILE";
const CAPATH: &str = "MINIO_KMS_KES_CAPATH";

// === impl MinioEnv ===

impl MinioEnv {
    pub fn new(variables: BTreeMap<String, String>, file: Option<PathBuf>) -> Self {
        let variables = variables.into_iter().filter(|(name, _)| name.starts_with("MINIO_")).collect();
        Self { variables, file, ours: BTreeMap::new() }
    }

    /// The same with our own settings in place of MinIO's; one way to show who MinIO is takes the place of the other.
    pub fn with(self, ours: BTreeMap<String, String>) -> Self {
        Self { ours, ..self }
    }

    /// Whether a KES is named, or a file that may name one.
    pub fn may_name_a_kes(&self) -> bool {
        self.file.is_some() || self.get(ENDPOINT).is_some()
    }

    /// A variable, from the file as it is now, or from the environment.
    pub fn get(&self, name: &str) -> Option<String> {
        let now = self.read().unwrap_or_else(|_| {
            let mut variables = self.variables.clone();
            self.override_with_ours(&mut variables);
            variables
        });
        now.get(name).cloned().filter(|value| !value.is_empty())
    }

    /// The KES that MinIO was told to use; nothing when there is none, or it is our own. `ours` is our CA file.
    pub fn kes(&self, ours: &Path, timeout: Duration) -> Result<Option<Config>, Finding> {
        let variables = self.read()?;
        let Some(endpoint) = variables.get(ENDPOINT) else { return Ok(None) };
        let get = |name: &str| variables.get(name).map(|value| value.trim().to_owned());
        conflicts(&variables)?;
        let endpoints = endpoints(endpoint)?;
        let ca = get(CAPATH).map(PathBuf::from);
        if let Some(ca) = &ca
            && let (Ok(theirs), Ok(ours)) = (Trust::only(ca), Trust::only(ours))
            && theirs.is_within(&ours)
        {
            // MinIO trusts nothing there but what chains to our CA: it is us, whether we run yet or not.
            return Ok(None);
        }
        let identity = match (get(API_KEY), get(CERT_FILE), get(KEY_FILE)) {
            (Some(key), None, None) => ClientIdentity::ApiKey(Arc::new(Secret::new(key))),
            (None, Some(certificate), Some(key)) => {
                ClientIdentity::Certificate { certificate: certificate.into(), key: key.into() }
            }
            _ => {
                let seen =
                    format!("{ENDPOINT} is set, but neither {API_KEY}, nor {CERT_FILE} with {KEY_FILE}");
                return Err(Cause::MinioEnvIncomplete.seen(seen));
            }
        };
        Ok(Some(Config { endpoints, ca, identity, ours: ours.to_owned(), timeout }))
    }

    fn override_with_ours(&self, variables: &mut BTreeMap<String, String>) {
        if self.ours.contains_key(API_KEY) {
            variables.remove(CERT_FILE);
            variables.remove(KEY_FILE);
        } else if self.ours.contains_key(CERT_FILE) || self.ours.contains_key(KEY_FILE) {
            variables.remove(API_KEY);
        }
        variables.extend(self.ours.clone());
    }

    fn read(&self) -> Result<BTreeMap<String, String>, Finding> {
        let mut variables = self.variables.clone();
        if let Some(path) = &self.file {
            let unreadable = |reason: String| {
                Cause::MinioEnvUnreadable
                    .seen(format!("MinIO's environment file {}: {reason}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
            variables.extend(parse(&text).map_err(unreadable)?);
        }
        self.override_with_ours(&mut variables);
        Ok(variables)
    }
}

/// What MinIO would not start with.
fn conflicts(variables: &BTreeMap<String, String>) -> Result<(), Finding> {
    let set = |name: &str| variables.contains_key(name);
    for name in [ENDPOINT, API_KEY, CERT_FILE, KEY_FILE, CAPATH, "MINIO_KMS_KES_KEY_NAME"] {
        if variables.get(name).is_some_and(|value| value.trim().is_empty()) {
            return Err(Cause::MinioEnvConflict
                .seen(format!("{name} is set but empty"))
                .fix("unset it, or give it a value"));
        }
    }
    for name in [CERT_FILE, KEY_FILE, "MINIO_KMS_KES_KEY_PASSWORD"] {
        if set(API_KEY) && set(name) {
            return Err(Cause::MinioEnvConflict.seen(format!("{API_KEY} and {name} are both set")));
        }
    }
    for name in ["MINIO_KMS_SECRET_KEY", "MINIO_KMS_SERVER"] {
        if variables.get(name).is_some_and(|value| !value.is_empty()) {
            return Err(Cause::MinioEnvConflict.seen(format!("{ENDPOINT} and {name} are both set")));
        }
    }
    Ok(())
}

/// A comma list; an element may hold one range `{a...b}` of decimal numbers.
fn endpoints(text: &str) -> Result<Vec<String>, Finding> {
    let mut endpoints = Vec::new();
    for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        let Some((before, rest)) = element.split_once('{') else {
            endpoints.push(element.to_owned());
            continue;
        };
        let range = rest.split_once('}').and_then(|(range, after)| {
            let (first, last) = range.split_once("...")?;
            Some((first, first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, after))
        });
        match range {
            Some((digits, first, last, after)) if first <= last && last - first < 1000 => {
                let width = digits.len();
                endpoints.extend((first..=last).map(|number| format!("{before}{number:0width$}{after}")));
            }
            _ => {
                return Err(
                    Cause::MinioEnvConflict.seen(format!("{ENDPOINT} has a range that cannot be read"))
                );
            }
        }
    }
    match endpoints.iter().find(|endpoint| !endpoint.starts_with("https://")) {
        None if endpoints.is_empty() => {
            Err(Cause::MinioEnvIncomplete.seen(format!("{ENDPOINT} names no endpoint")))
        }
        None => Ok(endpoints),
        Some(endpoint) => Err(Cause::KesTlsPlainHttp
            .seen(format!("{ENDPOINT} names {endpoint:?}, which is not https://"))
            .fix("write https:// in front: KES speaks TLS only")),
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut variables = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        // The line itself is not shown: it may hold a password.
        let (name, value) = line.split_once('=').ok_or_else(|| format!("line {} has no `=`", number + 1))?;
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        variables.insert(name.to_owned(), quoted.unwrap_or(value).to_owned());
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(lines: &[(&str, &str)]) -> MinioEnv {
        MinioEnv::new(
            lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            None,
        )
    }

    fn cause(env: &MinioEnv) -> Cause {
        env.kes(Path::new("/nonexistent"), Duration::from_secs(1)).err().expect("must be refused").cause
    }

    #[test]
    fn the_file_is_read_as_minio_reads_it() {
        let text = "# comment\n\nexport A=\"1=2\"\r\nB='x y'\n  C=plain \nexport  D=\"open\n";
        let parsed = parse(text).expect("must parse");
        assert_eq!(parsed["A"], "1=2");
        assert_eq!(parsed["B"], "x y");
        assert_eq!(parsed["C"], "plain");
        assert_eq!(parsed["D"], "\"open");
        assert_eq!(parse("A=1\nno secret here\n"), Err("line 2 has no `=`".to_owned()));
    }

    #[test]
    fn what_minio_would_not_start_with_is_named() {
        assert_eq!(cause(&env(&[(ENDPOINT, "https://kes:7373")])), Cause::MinioEnvIncomplete);
        assert_eq!(cause(&env(&[(ENDPOINT, "https://kes:7373"), (API_KEY, "")])), Cause::MinioEnvConflict);
        assert_eq!(
            cause(&env(&[(ENDPOINT, "https://kes:7373"), (API_KEY, "k"), (CERT_FILE, "c")])),
            Cause::MinioEnvConflict
        );
        assert_eq!(cause(&env(&[(ENDPOINT, "http://kes:7373"), (API_KEY, "k")])), Cause::KesTlsPlainHttp);
        assert!(env(&[]).kes(Path::new("/x"), Duration::ZERO).is_ok_and(|kes| kes.is_none()));
    }

    #[test]
    fn our_settings_win_over_the_file_and_one_identity_over_the_other() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file must open");
        let text = format!("{ENDPOINT}=https://file:7373\n{CERT_FILE}=/c\n{KEY_FILE}=/k\n{CAPATH}=/theirs\n");
        std::fs::write(file.path(), text).expect("a temporary file must be written");
        let ours =
            [(API_KEY, "kes:v1:x"), (CAPATH, "/ours")].map(|(name, value)| (name.into(), value.into()));
        let env = MinioEnv::new(BTreeMap::new(), Some(file.path().to_owned())).with(ours.into());
        let kes = env.kes(Path::new("/nonexistent"), Duration::from_secs(1)).expect("must be usable");
        let kes = kes.expect("a KES must be found");
        assert_eq!((kes.endpoints, kes.ca), (vec!["https://file:7373".to_owned()], Some("/ours".into())));
        assert!(matches!(kes.identity, ClientIdentity::ApiKey(_)));
    }

    #[test]
    fn ranges_of_endpoints_are_spelt_out() {
        let spelt = endpoints("https://kes-{01...03}:7373, https://b").expect("must parse");
        assert_eq!(spelt, ["https://kes-01:7373", "https://kes-02:7373", "https://kes-03:7373", "https://b"]);
        assert!(endpoints("https://kes-{a...}").is_err());
    }
}
