//! Reading one setting at a time, and remembering everything that was wrong.

use super::{
    Problem,
    minio_env::MinioEnv,
    vars::{self, Kind, VARS},
};
use crate::{
    go,
    names::{Name, vault_path},
    secret::Secret,
    vault::login::Source,
};
use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

const PREFIX: &str = "KESWARDEN_";

fn default_of(name: &str) -> &'static str {
    vars::var_named(name).default
}

/// The environment, and what was found wrong in it.
pub(super) struct Reader {
    /// Ours, by full name.
    ours: BTreeMap<String, String>,
    /// Every variable that is Unicode.
    all: BTreeMap<String, String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(environment: Vec<(OsString, OsString)>) -> Self {
        let mut problems = Vec::new();
        let mut all = BTreeMap::new();
        for (name, value) in environment {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => drop(all.insert(name, value)),
                (Ok(name), Err(_)) if name.starts_with(PREFIX) => {
                    problems.push(Problem { name, value: None, reason: "is not Unicode text".to_owned() });
                }
                _ => {}
            }
        }
        // envy maps names; it is given only ours, since it gives up on what it does not expect.
        let given = all.iter().filter(|(name, _)| name.starts_with(PREFIX));
        let mapped: BTreeMap<String, String> = envy::prefixed(PREFIX)
            .from_iter(given.map(|(name, value)| (name.clone(), value.clone())))
            .unwrap_or_default();
        let ours = mapped
            .into_iter()
            .map(|(name, value)| (PREFIX.to_owned() + &name.to_ascii_uppercase(), value))
            .collect();
        let mut reader = Self { ours, all, problems, warnings: Vec::new() };
        reader.look_for_unknown();
        reader
    }

    /// Every variable of the environment, for what refers to it by name.
    pub(super) fn environment(&self) -> &BTreeMap<String, String> {
        &self.all
    }

    pub(super) fn finish(self) -> (Vec<String>, Vec<Problem>) {
        (self.warnings, self.problems)
    }

    pub(super) fn problem(&mut self, name: &str, value: Option<&str>, reason: &str) {
        self.problems.push(Problem {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            reason: reason.to_owned(),
        });
    }

    pub(super) fn refuse<T>(&mut self, name: &str, reason: &str) -> Option<T> {
        self.problem(name, None, reason);
        None
    }

    /// The value of a setting; set but empty is a problem that says so.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        let also = VARS.iter().find(|var| var.name == name).and_then(|var| var.also);
        let (name, value) = match (
            self.ours.get(name),
            also.and_then(|also| self.all.get(also).map(|value| (also, value))),
        ) {
            (Some(value), _) => (name, value.clone()),
            (None, Some((also, value))) => (also, value.clone()),
            (None, None) => return None,
        };
        if value.trim().is_empty() {
            self.problem(name, None, "is set but empty: give it a value, or unset it");
            return None;
        }
        Some(value)
    }

    /// Text without control characters, as goes into a header or a path.
    pub(super) fn plain(&mut self, name: &'static str) -> Option<String> {
        let value = self.text(name)?;
        if value.chars().any(char::is_control) {
            self.problem(name, Some(&value), "holds control characters");
            return None;
        }
        Some(value)
    }

    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &'static str) -> Option<T> {
        let value = self.text(name)?;
        match value.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(name, Some(&value), &error.to_string());
                None
            }
        }
    }

    pub(super) fn path(&mut self, name: &'static str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    pub(super) fn pair(&mut self, one: &'static str, other: &'static str) -> Option<(PathBuf, PathBuf)> {
        match (self.path(one), self.path(other)) {
            (Some(one), Some(other)) => Some((one, other)),
            (None, None) => None,
            (None, Some(_)) => self.refuse(one, &format!("is not set, but {other} is")),
            (Some(_), None) => self.refuse(other, &format!("is not set, but {one} is")),
        }
    }

    pub(super) fn list(&mut self, name: &'static str) -> Vec<String> {
        let value = self.text(name).unwrap_or_default();
        value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// Whether a switch is on, by the table's default when it is not set.
    pub(super) fn switch(&mut self, name: &'static str) -> bool {
        let default = default_of(name) == "on";
        let Some(value) = self.text(name) else { return default };
        match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => true,
            "off" | "false" | "no" | "0" => false,
            _ => {
                self.problem(name, Some(&value), "is neither on nor off");
                default
            }
        }
    }

    /// One of the table's words, the first of them when none is given.
    pub(super) fn word(&mut self, name: &'static str) -> &'static str {
        let Kind::Word(words) = vars::var_named(name).kind else { panic!("{name} must be a word") };
        let Some(text) = self.text(name) else { return words[0] };
        match words.iter().find(|word| **word == text) {
            Some(word) => word,
            None => {
                self.problem(name, Some(&text), &format!("is none of {}", words.join(", ")));
                words[0]
            }
        }
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let value = self.text(name)?;
        match go::duration::parse_setting(&value) {
            Some(duration) => Some(duration),
            None => {
                self.problem(
                    name,
                    Some(&value),
                    "is no duration: a number with a unit, such as 500ms, 15s, 5m, 72h",
                );
                None
            }
        }
    }

    /// As `duration`, with the table's default.
    pub(super) fn duration_or_default(&mut self, name: &'static str) -> Duration {
        let default = || go::duration::parse_setting(default_of(name)).expect("a default must be a duration");
        self.duration(name).unwrap_or_else(default)
    }

    /// A duration that something is repeated by, or bounded by: never zero.
    pub(super) fn interval(&mut self, name: &'static str) -> Duration {
        let given = self.duration_or_default(name);
        if given.is_zero() {
            self.problem(name, Some("0"), "must be longer than nothing");
        }
        given
    }

    /// As `parsed`, with the table's default.
    pub(super) fn parsed_or_default<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &'static str) -> T {
        let default = || default_of(name).parse().ok().expect("a default must be readable");
        self.parsed(name).unwrap_or_else(default)
    }

    /// As `path`, with the table's default.
    pub(super) fn path_or_default(&mut self, name: &'static str) -> PathBuf {
        self.path(name).unwrap_or_else(|| default_of(name).into())
    }

    /// As `vault_path`, with the table's default.
    pub(super) fn vault_path_or_default(&mut self, name: &'static str) -> String {
        self.vault_path(name).unwrap_or_else(|| default_of(name).to_owned())
    }

    /// `http://host:port` or `https://host:port`, without anything behind it.
    pub(super) fn base_url(&mut self, name: &'static str, value: String) -> Option<String> {
        let value = value.trim().trim_end_matches('/');
        let reason = match url::Url::parse(value) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") => "is not an http:// or https:// address",
            Ok(url) if url.host().is_none() => "names no host",
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                self.problem(name, None, "holds a user name or password, which belong elsewhere");
                return None;
            }
            Ok(url) if url.path() != "/" || url.query().is_some() || url.fragment().is_some() => {
                "has something behind the host and port"
            }
            Ok(_) => return Some(value.to_owned()),
            Err(_) => "is no address such as https://vault:8200",
        };
        self.problem(name, Some(value), reason);
        None
    }

    /// Segments of a Vault path, with the slashes around them dropped.
    pub(super) fn vault_path(&mut self, name: &'static str) -> Option<String> {
        let value = self.text(name)?;
        match vault_path(&value) {
            Some(path) => Some(path),
            None => {
                self.problem(
                    name,
                    Some(&value),
                    "is no path: letters, digits and -_. between single slashes",
                );
                None
            }
        }
    }

    /// A secret that is read when it is used.
    pub(super) fn secret(&mut self, name: &'static str) -> Option<Source> {
        // A file of ours wins over a name of MinIO's or Vault's that happens to be set.
        let file = self.file_of(name);
        let text = if file.is_some() && !self.ours.contains_key(name) { None } else { self.text(name) };
        match (text, file) {
            (Some(_), Some(_)) => self.refuse(name, "is set, and so is its _FILE: which one counts?"),
            (Some(value), None) if value.trim().chars().any(char::is_control) => {
                self.refuse(name, "holds control characters")
            }
            (Some(value), None) => Some(Source::Value(Arc::new(Secret::new(value.trim().to_owned())))),
            (None, Some(path)) => Some(Source::File(path)),
            (None, None) => None,
        }
    }

    /// A secret that is read now.
    pub(super) fn secret_value(&mut self, name: &'static str) -> Option<Arc<Secret>> {
        match self.secret(name)? {
            Source::Value(secret) => Some(secret),
            Source::File(path) => match Secret::read(&path) {
                Ok(secret) => Some(Arc::new(secret)),
                Err(error) => {
                    self.problem(&format!("{name}_FILE"), None, &format!("cannot be used: {error}"));
                    None
                }
            },
        }
    }

    fn file_of(&mut self, name: &'static str) -> Option<PathBuf> {
        let file = format!("{name}_FILE");
        let value = self.ours.get(&file)?.clone();
        if value.trim().is_empty() {
            return self.refuse(&file, "is set but empty: give it a value, or unset it");
        }
        Some(PathBuf::from(value))
    }

    /// The name of the default EK: the flag, our setting, MinIO's environment file, MinIO's environment.
    pub(super) fn key_name(
        &mut self,
        flag: Option<String>,
        minio: &MinioEnv,
        demanded: bool,
    ) -> Option<Name> {
        let theirs = minio.get("MINIO_KMS_KES_KEY_NAME");
        let ours = self.ours.contains_key("KESWARDEN_KEY_NAME");
        let (name, value) = match (flag, ours) {
            (Some(flag), _) => ("--key", Some(flag)),
            (None, true) => ("KESWARDEN_KEY_NAME", self.text("KESWARDEN_KEY_NAME")),
            (None, false) => ("MINIO_KMS_KES_KEY_NAME", theirs.clone()),
        };
        if let (Some(value), Some(theirs)) = (&value, &theirs)
            && value != theirs
        {
            self.warnings.push(format!(
                "{name} is {value:?}, but MinIO's own MINIO_KMS_KES_KEY_NAME is {theirs:?}: MinIO will use its own, and that one is not waited for"
            ));
        }
        match value.as_deref().map(Name::parse) {
            Some(Ok(key)) => Some(key),
            Some(Err(error)) => self.refuse(name, &error.to_string()),
            None if !demanded => None,
            None => self.refuse(
                "KESWARDEN_KEY_NAME",
                "is not set, nor is MINIO_KMS_KES_KEY_NAME, nor --key given: which key is MinIO's default?",
            ),
        }
    }

    /// MinIO's own settings, with ours in place of those that we have names for.
    pub(super) fn minio_env(&mut self) -> MinioEnv {
        let mut ours = BTreeMap::new();
        for name in ["ENDPOINT", "API_KEY", "CERT_FILE", "KEY_FILE", "CAPATH"] {
            if let Some(value) = self.ours.get(&format!("KESWARDEN_KES_{name}")) {
                ours.insert(format!("MINIO_KMS_KES_{name}"), value.clone());
            }
        }
        if let Some(path) = self.file_of("KESWARDEN_KES_API_KEY") {
            match Secret::read(&path) {
                Ok(secret) => {
                    drop(ours.insert("MINIO_KMS_KES_API_KEY".to_owned(), secret.expose().to_owned()))
                }
                Err(error) => {
                    self.problem("KESWARDEN_KES_API_KEY_FILE", None, &format!("cannot be used: {error}"))
                }
            }
        }
        let file = self.path("KESWARDEN_MINIO_ENV_FILE");
        MinioEnv::new(self.all.clone(), file).with(ours)
    }

    /// Names that are none of ours are mistakes, or settings of a newer version: said, and not fatal.
    fn look_for_unknown(&mut self) {
        for name in self.ours.keys() {
            let known = VARS
                .iter()
                .any(|var| var.name == name || (var.secret && name.strip_suffix("_FILE") == Some(var.name)));
            if known || vars::is_kubernetes_service(name) {
                continue;
            }
            let meant =
                vars::nearest(name).map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
            self.warnings.push(format!("{name} is no setting of this version, and is ignored{meant}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units_and_refuse_nonsense() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("1.5h", 5_400_000),
            ("5m0s", 300_000),
            ("0", 0),
            (" 2s ", 2000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(
                go::duration::parse_setting(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "5", "s", "-1s", "1x", "1s2", "1e9h", "99999999999999999999h", ".", "1..2s"] {
            assert_eq!(go::duration::parse_setting(text), None, "{text}");
        }
    }

    #[test]
    fn vault_paths_lose_their_outer_slashes_and_have_no_odd_segments() {
        assert_eq!(vault_path("/team/kv/").as_deref(), Some("team/kv"));
        for text in ["a//b", "a/../b", "", "/", "a b", "a?b", "a%2fb"] {
            assert_eq!(vault_path(text), None, "{text}");
        }
    }
}
