//! `keswarden dev`: a key store in a local directory, certificates and an API key made on the spot, for
//! trying out.

use super::{block_on, load, run};
use crate::{config::Inputs, exit, files, gate::Create, identity::ApiKey, names::Name, secret::Secret};
use clap::Args;
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Args)]
pub(super) struct Options {
    /// Where keys, certificates and the API key are kept
    #[arg(long, value_name = "DIR", default_value = "keswarden-dev")]
    dir: PathBuf,
    /// Name of the default key
    #[arg(long, value_name = "NAME", default_value = "minio-default-key")]
    key: String,
}

/// The file that marks a directory whose default key was created: the key is never created again.
const CREATED_MARK: &str = "default-key-was-made";

pub(super) fn main(options: Options) -> u8 {
    let prepared = match prepare(&options) {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("keswarden: cannot set up {}: {error}", options.dir.display());
            return exit::OS;
        }
    };
    let Prepared { dir, api_key, is_new } = prepared;
    let mut settings = match load(inputs(&options, &dir, &api_key)) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    // A directory forgets deleted keys, so the mark decides whether the key is new.
    settings.create = if is_new { Create::First } else { Create::Never };
    eprintln!(
        "keswarden: this is for trying out: the keys are plain files in {}",
        dir.join("keys").display()
    );
    eprintln!(
        "keswarden: a reader of these files can read every object; `keswarden run` keeps the keys in Vault"
    );
    let mark = || {
        // From here on the key must exist: a later start uses the first key, or says why it cannot.
        if holds_keys(&dir) {
            let _ = fs::write(dir.join(CREATED_MARK), "");
        }
    };
    mark();
    let code = block_on(run(settings, |bound| {
        let lines = environment(bound.api.port(), &dir, &api_key, &options.key);
        let exports: String = lines.iter().map(|line| format!("export {line}\n")).collect();
        let file = dir.join("minio.env");
        if let Err(error) = files::write_lightly(&file, 0o600, exports.as_bytes()) {
            eprintln!("keswarden: {error}");
        }
        println!(
            "# MinIO's settings, also in {} (use: . {}; minio server /data)",
            file.display(),
            file.display()
        );
        print!("{exports}");
    }));
    mark();
    code
}

fn holds_keys(dir: &Path) -> bool {
    fs::read_dir(dir.join("keys")).is_ok_and(|mut keys| keys.next().is_some())
}

struct Prepared {
    dir: PathBuf,
    api_key: Secret,
    is_new: bool,
}

fn prepare(options: &Options) -> io::Result<Prepared> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(options.dir.join("keys"))?;
    let dir = fs::canonicalize(&options.dir)?;
    let key_file = dir.join("api.key");
    let api_key = match Secret::read(&key_file) {
        Ok(key) => key,
        Err(_) if !key_file.exists() => {
            let key = ApiKey::generate().to_text();
            files::write(&key_file, 0o600, key.expose().as_bytes()).map_err(io::Error::other)?;
            key
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    let is_new = !dir.join(CREATED_MARK).exists() && !holds_keys(&dir);
    Ok(Prepared { dir, api_key, is_new })
}

/// The process's environment, with the settings that this mode decides.
fn inputs(options: &Options, dir: &Path, api_key: &Secret) -> Inputs {
    let mut inputs = Inputs::of_process(None, Some(options.key.clone()));
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("KESWARDEN_VAULT_") || name.starts_with("VAULT_") || name.starts_with("MINIO_KMS_")
    };
    inputs.environment.retain(|(name, _)| !ours(name));
    let decided = [
        ("KESWARDEN_FS_DIR", dir.join("keys").into_os_string()),
        ("KESWARDEN_RUN_DIR", dir.join("run").into_os_string()),
        ("KESWARDEN_KEY_CREATE", "never".into()),
        ("KESWARDEN_API_KEY", api_key.expose().into()),
    ];
    for (name, value) in decided {
        inputs.environment.retain(|(other, _)| other != name);
        inputs.environment.push((name.into(), value));
    }
    if !inputs.environment.iter().any(|(name, _)| name == "KESWARDEN_ADMIN_ADDR") {
        inputs.environment.push(("KESWARDEN_ADMIN_ADDR".into(), "127.0.0.1:7374".into()));
    }
    inputs
}

fn environment(port: u16, dir: &Path, api_key: &Secret, key: &str) -> [String; 4] {
    let key = Name::parse(key).map(|name| name.to_string()).unwrap_or_default();
    [
        format!("MINIO_KMS_KES_ENDPOINT=\"https://127.0.0.1:{port}\""),
        format!("MINIO_KMS_KES_API_KEY=\"{}\"", api_key.expose()),
        format!("MINIO_KMS_KES_CAPATH=\"{}\"", dir.join("run/ca.crt").display()),
        format!("MINIO_KMS_KES_KEY_NAME=\"{key}\""),
    ]
}
