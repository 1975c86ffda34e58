//! The control socket: requests of an operator on this machine to the running agent. Only the agent's own
//! user can connect.
//!
//! A request is one line, and so is the reply. `rescue NAME` puts a held key back into the key store that has
//! lost it. `keys` lists the held keys.

use crate::{
    cause::{Cause, Finding},
    keyring::Keyring,
    known::{Kind, Known, Says, Witness, is_same, shell_word},
    names::Name,
    shutdown::{Drain, Ended},
};
use async_trait::async_trait;
use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// The socket's path below the run directory.
const SOCKET: &str = "agent/control.sock";
/// Bound of a request, in bytes.
const REQUEST_MAX: u64 = 256;
/// Bound of the time of one request, on either side.
const EXCHANGE_MAX: Duration = Duration::from_secs(60);
/// Bound of the time for which the agent is asked as a witness.
const WITNESS_MAX: Duration = Duration::from_secs(5);
/// Bound of a reply, in bytes. A longer list of keys is cut.
const REPLY_MAX: u64 = 1 << 20;

/// The path of the socket of the agent with this run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Sends one request to the agent of a run directory, and returns the reply without its line end.
///
/// # Errors
/// When no agent listens, the socket does not let this user in, or the reply does not come within a minute.
pub async fn ask(run_dir: &Path, question: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket(run_dir)).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut reply = String::new();
        stream.take(REPLY_MAX).read_to_string(&mut reply).await?;
        Ok(reply.trim_end().to_owned())
    };
    tokio::time::timeout(EXCHANGE_MAX, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The running agent of a run directory as a witness.
pub struct AgentWitness(pub PathBuf);

#[async_trait]
impl Witness for AgentWitness {
    fn kind(&self) -> Kind {
        Kind::Agent
    }

    fn place(&self) -> String {
        format!("the running agent of {}", self.0.display())
    }

    fn gives_back(&self, name: &Name) -> Option<String> {
        let dir = shell_word(&self.0.display().to_string());
        Some(format!(
            "put it back from the agent, which holds it: `keswarden key rescue {name} --run-dir {dir} --yes`"
        ))
    }

    /// Fails while the agent holds the key: a process holds its keys until its end.
    async fn forget(&self, name: &Name, was: &str, _: Option<&str>) -> Result<(), Finding> {
        let known = self.says(name).await;
        let holds = |known: &Known| matches!(known, Known::Fingerprint(held, _) if is_same(was, held));
        match known {
            Some(Says::Known(keys)) if keys.iter().any(holds) => Err(Cause::KeyReplaced
                .seen(format!("{} still holds the key {was}, and opens with it", self.place()))
                .fix("restart it: it takes the key that is stored then")),
            _ => Ok(()),
        }
    }

    async fn says(&self, name: &Name) -> Option<Says> {
        let keys = match tokio::time::timeout(WITNESS_MAX, ask(&self.0, "keys")).await {
            Ok(Ok(keys)) => keys,
            // A socket that a killed agent has left is no agent.
            Ok(Err(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return None;
            }
            Ok(Err(error)) => return Some(self.silent(&error)),
            Err(_) => return Some(self.silent(&io::ErrorKind::TimedOut.into())),
        };
        let held = keys.split("; ").find_map(|key| key.strip_prefix(name.as_str())?.strip_prefix(' '));
        let fingerprint = held.and_then(|held| held.split(' ').next());
        Some(fingerprint.map_or(Says::New, |fingerprint| {
            Says::Known(vec![Known::Fingerprint(fingerprint.to_owned(), "in use there".to_owned())])
        }))
    }
}

// === impl AgentWitness ===

impl AgentWitness {
    fn silent(&self, error: &io::Error) -> Says {
        let seen = format!("{}, by its control socket: {error}", self.place());
        Says::CannotTell(
            Cause::MemoryUnusable
                .seen(seen)
                .fix("run this as the agent's user, on its host or in its container"),
        )
    }
}

/// Answers requests on the control socket until the drain. A socket that cannot be bound is logged.
pub async fn serve(run_dir: PathBuf, keyring: watch::Receiver<Keyring>, mut drain: Drain) -> Ended {
    let listener = match listen(&socket(&run_dir)) {
        Ok(listener) => listener,
        Err(error) => {
            // Serving keys does not need the socket.
            tracing::warn!("no control socket below {}: {error}", run_dir.display());
            drain.started().await;
            return Ended::Drained;
        }
    };
    loop {
        let Some(accepted) = drain.or(listener.accept()).await else { break };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // One request at a time, since a person sends them.
        let keyring = keyring.borrow().clone();
        let answered = tokio::time::timeout(EXCHANGE_MAX, answer(stream, &keyring));
        if let Some(Ok(Err(error))) = drain.or(answered).await {
            tracing::debug!("a request on the control socket failed: {error}");
        }
    }
    let _ = fs::remove_file(socket(&run_dir));
    Ended::Drained
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    // A killed agent may have left its socket.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(mut stream: UnixStream, keyring: &Keyring) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_MAX)).read_line(&mut line).await?;
    let words: Vec<_> = line.split_whitespace().collect();
    let reply = match words[..] {
        ["keys"] => keys(keyring),
        ["rescue", name] => rescue(keyring, name).await,
        _ => "error: neither `keys` nor `rescue NAME`".to_owned(),
    };
    writer.write_all(reply.as_bytes()).await?;
    writer.write_all(b"\n").await?;
    writer.shutdown().await
}

/// The held keys as `NAME FINGERPRINT ok|lost`, joined by `; `.
fn keys(keyring: &Keyring) -> String {
    let mut keys: Vec<_> = keyring
        .all()
        .iter()
        .map(|(name, held)| format!("{name} {} {}", held.fingerprint, if held.lost { "lost" } else { "ok" }))
        .collect();
    keys.sort_unstable();
    keys.join("; ")
}

async fn rescue(keyring: &Keyring, name: &str) -> String {
    let Ok(name) = Name::parse(name) else { return "error: that is no name of a key".to_owned() };
    match keyring.rescue(&name).await {
        Ok(said) => {
            tracing::warn!(audit = true, key = %name, "rescue: {said}");
            format!("ok: {said}")
        }
        Err(finding) => format!("error: {finding}"),
    }
}
