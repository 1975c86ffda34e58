//! What an operator on this machine may ask of the running agent, over a socket that only its own user can reach.
//!
//! One line in, one line out: `rescue NAME` puts the copy of a key that is in memory back into the key store, for a key that is
//! lost there; `keys` tells what is at hand.

use crate::{
    keyring::Keyring,
    names::Name,
    shutdown::{Drain, Ended},
};
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
};

/// Where the socket is, below the run directory.
const SOCKET: &str = "agent/control.sock";
/// A request is a short line, and is there at once.
const MAX_LINE: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(60);

/// The socket of an agent with this run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Answers until the drain.
pub async fn serve(run_dir: PathBuf, keyring: Keyring, mut drain: Drain) -> Ended {
    let listener = match listen(&socket(&run_dir)) {
        Ok(listener) => listener,
        Err(error) => {
            // Nothing but a rescue needs it.
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
        // One at a time: it is a person who asks.
        let answered = tokio::time::timeout(PATIENCE, answer(stream, &keyring));
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
    // What a killed agent has left.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(mut stream: UnixStream, keyring: &Keyring) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_LINE)).read_line(&mut line).await?;
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

/// `NAME FINGERPRINT ok|lost`, by spaces and semicolons.
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
