//! `keswarden doctor`: every check of the gate once, and what no gate may wait for: rights beyond need, what ends soon, MinIO's probes.
//! It makes no key and no pin, and writes nothing but the login that it needs, where any other of our processes finds it.

use super::{Base, Deps, OpenStore, Stopped, canaries};
use crate::{
    cause::{Cause, Finding},
    config::Settings,
    gate::{self, Check},
    kes_client, known,
    names::Name,
    s3,
    tls::{self, trust::PeerEnds},
};
use std::{path::PathBuf, time::Duration};

/// One thing that was looked at.
pub struct Row {
    /// In words.
    pub what: String,
    pub outcome: Outcome,
    pub took: Duration,
}

pub enum Outcome {
    Well(String),
    /// It works, and should not stay so: no exit code tells of it.
    Warning(Finding),
    Failed(Finding),
    /// Not looked at; why.
    Skipped(&'static str),
}

/// The bound of one request to MinIO, and to KES.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn examine(settings: Settings, deps: Deps) -> Result<Vec<Row>, Stopped> {
    let base = Base::beside(deps.clock, &settings);
    let agent = Some(settings.run_dir.as_path());
    let opened = base.open_remembering(deps.store, &settings.store, &settings.memory, agent)?;
    let gate = gate::Settings { create: gate::Create::Never, keys: keys(&settings), ..settings.gate() };
    let asked =
        gate::Deps { canaries: canaries(&settings), kes: settings.kes_source(), ..opened.gate_deps(&base) };
    let mut rows = of_settings(&settings);
    let checked = gate::examine(&gate, &asked).await;
    let store_is_well =
        checked.iter().any(|row| row.check == Check::Store && matches!(row.result, Some(Ok(_))));
    rows.extend(checked.into_iter().flat_map(|row| of_gate(row, &gate.keys)));
    if !gate.kes_alone {
        remembered(&gate.keys, &opened.memory, &base, &mut rows).await;
    }
    let doctor = Doctor { settings: &settings, base: &base, opened: &opened, asked: &asked, gate: &gate };
    if !gate.kes_alone {
        doctor.login_and_rights(store_is_well, &mut rows).await;
    }
    doctor.certificates(&mut rows).await;
    doctor.minio(&mut rows).await;
    Ok(rows)
}

/// Every key that the settings name: the default EK, that of bucket defaults, those with stated pins.
fn keys(settings: &Settings) -> Vec<Name> {
    let sse = settings.minio.sse.as_ref().filter(|_| settings.minio.endpoint.is_some());
    let sse = sse.and_then(|sse| match &sse.wanted {
        s3::Sse::Kms(key) => Name::parse(key).ok(),
        s3::Sse::S3 => None,
    });
    let stated = settings.memory.stated.keys().filter_map(|name| Name::parse(name).ok());
    let mut keys = vec![settings.key.clone()];
    for name in sse.into_iter().chain(stated) {
        if !keys.contains(&name) {
            keys.push(name);
        }
    }
    keys
}

/// What the agent warns of at its start is a failure to who asks.
fn of_settings(settings: &Settings) -> Vec<Row> {
    let what = || "the settings".to_owned();
    let row = |outcome| Row { what: what(), outcome, took: Duration::ZERO };
    match settings.warnings.as_slice() {
        [] => vec![row(Outcome::Well("every name is known".to_owned()))],
        warnings => {
            let findings = warnings.iter().map(|warning| Cause::SettingDoubtful.seen(warning.clone()));
            findings.map(|finding| row(Outcome::Failed(finding))).collect()
        }
    }
}

fn of_gate(gate::Row { check, result, notes, took }: gate::Row, keys: &[Name]) -> Vec<Row> {
    let row = |outcome| Row { what: check.what(keys), outcome, took };
    // A key that opens nothing of what was tried is not well, whatever else is.
    let is_unproven = notes.iter().any(|note| note.cause == Cause::KeyUnproven);
    let mut rows = match result {
        None => vec![row(Outcome::Skipped("an earlier check failed"))],
        Some(Ok(_)) if is_unproven => Vec::new(),
        Some(Ok(seen)) => vec![row(Outcome::Well(seen))],
        Some(Err(findings)) => findings.into_iter().map(|finding| row(Outcome::Failed(finding))).collect(),
    };
    rows.extend(notes.into_iter().map(|note| row(Outcome::Warning(note))));
    rows
}

/// Who knows which key, and who could not be asked: a row for each key.
async fn remembered(keys: &[Name], memory: &gate::Memory, base: &Base, rows: &mut Vec<Row>) {
    for key in keys {
        let begun = base.clock.now();
        let statements = memory.witnesses.ask(key).await;
        let outcome = match statements.as_slice() {
            [] => Outcome::Warning(
                Cause::KeyUnpinned.seen("no key is remembered anywhere: KESWARDEN_MEMORY=off, and no pins"),
            ),
            statements => {
                let words: Vec<_> = statements.iter().map(known::Statement::words).collect();
                Outcome::Well(words.join("; "))
            }
        };
        let what = format!("what is remembered of '{key}'");
        rows.push(Row { what, outcome, took: base.clock.now() - begun });
    }
}

struct Doctor<'a> {
    settings: &'a Settings,
    base: &'a Base,
    opened: &'a OpenStore,
    gate: &'a gate::Settings,
    asked: &'a gate::Deps,
}

// === impl Outcome ===

impl Outcome {
    /// What is looked at ahead is a warning, unless it has come to pass.
    fn of(finding: Finding) -> Self {
        match finding.cause.is_advice() {
            true => Self::Warning(finding),
            false => Self::Failed(finding),
        }
    }
}

// === impl Doctor ===

impl Doctor<'_> {
    async fn login_and_rights(&self, store_is_well: bool, rows: &mut Vec<Row>) {
        let (login, rights) = ("the login", "rights and history");
        if !store_is_well {
            for what in [login, rights] {
                let outcome = Outcome::Skipped("the key store does not answer");
                rows.push(Row { what: what.to_owned(), outcome, took: Duration::ZERO });
            }
            return;
        }
        let begun = self.base.clock.now();
        let standing = match &self.opened.advice {
            Some(advice) => advice.on_login().await,
            None => Vec::new(),
        };
        let took = self.base.clock.now() - begun;
        rows.extend(warnings(login, standing, "nothing of it ends soon", took));
        let begun = self.base.clock.now();
        let notes = self.on_writing_and_rights().await;
        let took = self.base.clock.now() - begun;
        match notes {
            Ok(notes) => rows.extend(warnings(
                rights,
                notes,
                "no right beyond need, a history that is long enough",
                took,
            )),
            Err(finding) => {
                rows.push(Row { what: rights.to_owned(), outcome: Outcome::Failed(finding), took });
            }
        }
    }

    /// A warning about the mount comes with each key, and is given once.
    async fn on_writing_and_rights(&self) -> Result<Vec<Finding>, Finding> {
        let Some(advice) = &self.opened.advice else { return Ok(Vec::new()) };
        let mut notes = advice.on_writing().await?;
        for key in &self.gate.keys {
            let more = advice.on_rights(key).await?;
            notes.extend(more.into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>());
        }
        Ok(notes)
    }

    /// Those in files, and those that peers show.
    async fn certificates(&self, rows: &mut Vec<Row>) {
        let begun = self.base.clock.now();
        let now = self.base.clock.unix_seconds();
        let mut looked = Vec::new();
        for (what, path) in self.files() {
            if !path.exists() {
                continue;
            }
            let what = format!("{what}, {},", path.display());
            looked.push(match tls::read_certificates(&path) {
                Ok(chain) => match tls::Validity::of(&chain[0]) {
                    Some(validity) => validity.look_ahead(&what, now),
                    None => Err(Cause::TlsFileUnusable.seen(format!("{what} is no certificate"))),
                },
                Err(error) => Err(Cause::TlsFileUnusable.seen(format!("{what} cannot be used: {error}"))),
            });
        }
        if let Some(validity) = self.shown_by_kes().await {
            looked.push(validity.look_ahead("the certificate of KES", now));
        }
        let took = self.base.clock.now() - begun;
        let what = "certificates";
        if looked.is_empty() {
            let outcome = Outcome::Skipped("there is none yet, in the run directory or elsewhere");
            rows.push(Row { what: what.to_owned(), outcome, took });
        }
        let (well, soon): (Vec<_>, Vec<_>) = looked.into_iter().partition(Result::is_ok);
        rows.extend(soon.into_iter().filter_map(Result::err).map(|finding| Row {
            what: what.to_owned(),
            outcome: Outcome::of(finding),
            took,
        }));
        let well: Vec<_> = well.into_iter().flatten().collect();
        if !well.is_empty() {
            rows.push(Row { what: what.to_owned(), outcome: Outcome::Well(well.join("; ")), took });
        }
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let mut files = Vec::new();
        for (what, name) in [
            ("our CA", "ca.crt"),
            ("our server's certificate", "server.crt"),
            ("MinIO's certificate for us", "client.crt"),
        ] {
            files.push((what, self.settings.run_dir.join(name)));
        }
        let of_minio = self.settings.minio.env.get("MINIO_KMS_KES_CERT_FILE").map(PathBuf::from);
        let of_minio = of_minio.filter(|path| !path.starts_with(&self.settings.run_dir));
        files.extend(of_minio.map(|path| ("MinIO's certificate for KES", path)));
        files
    }

    async fn shown_by_kes(&self) -> Option<tls::Validity> {
        let config = (self.asked.kes)().ok()??;
        let ends = PeerEnds::default();
        let client = kes_client::Client::noting(config, &self.base.clock, &ends).ok()?;
        client.greet().await;
        ends.last()
    }

    /// Its two probes: that it runs, and that it gets data keys.
    async fn minio(&self, rows: &mut Vec<Row>) {
        let whats = ["MinIO's liveness probe", "MinIO's readiness probe"];
        let Some(endpoint) = &self.settings.minio.endpoint else {
            for what in whats {
                let outcome = Outcome::Skipped("KESWARDEN_MINIO_ENDPOINT is not set");
                rows.push(Row { what: what.to_owned(), outcome, took: Duration::ZERO });
            }
            return;
        };
        for (what, path) in whats.into_iter().zip(["/minio/health/live", "/minio/health/ready"]) {
            let begun = self.base.clock.now();
            let outcome = match s3::probe(endpoint, self.settings.minio.ca.as_deref(), path, PATIENCE).await {
                Ok(seen) => Outcome::Well(seen),
                Err(error @ s3::Error::Refused { .. }) => {
                    Outcome::Failed(Cause::MinioNotReady.seen(error.to_string()))
                }
                Err(error) => Outcome::Failed(Cause::MinioUnreachable.seen(error.to_string())),
            };
            rows.push(Row { what: what.to_owned(), outcome, took: self.base.clock.now() - begun });
        }
    }
}

/// A row for each of them, or one that says that all is well.
fn warnings(what: &str, findings: Vec<Finding>, well: &str, took: Duration) -> Vec<Row> {
    let row = |outcome| Row { what: what.to_owned(), outcome, took };
    match findings.is_empty() {
        true => vec![row(Outcome::Well(well.to_owned()))],
        false => findings.into_iter().map(|finding| row(Outcome::of(finding))).collect(),
    }
}
