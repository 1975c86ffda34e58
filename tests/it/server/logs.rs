//! Log and audit lines that nobody reads: they cost lines, never an answer, and never the end.

use crate::{
    harness::{Client, KEY, block_on, eventually, key_text},
    kes_server::{Kes, now},
    peers::free_port,
};
use keswarden::tls::{self, Pair, mint::RunDir, trust::Trust};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// More than a pipe holds, and than may wait.
const FLOOD: usize = 6000;

/// `keswarden server` with both its outputs in pipes that nobody reads yet.
struct Server {
    process: Child,
    dir: TempDir,
    api: SocketAddr,
}

// === impl Server ===

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        fs::write(dir.path().join("server-config.yaml"), Kes::yaml(&dir, "")).unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
        let address = || format!("127.0.0.1:{}", free_port()).parse::<SocketAddr>().unwrap();
        let (api, admin) = (address(), address());
        let process = Command::new(env!("CARGO_BIN_EXE_keswarden"))
            .args(["server", "--addr", &api.to_string(), "--config"])
            .arg(dir.path().join("server-config.yaml"))
            .env_clear()
            .env("KESWARDEN_ADMIN_ADDR", admin.to_string())
            .env("KESWARDEN_LOG", "info")
            .env("XDG_STATE_HOME", dir.path().join("state"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let server = Self { process, dir, api };
        eventually("the server answers", || {
            let asked = block_on(server.client().send("GET", "/v1/ready", None));
            asked.ok().filter(|reply| reply.status == 200)
        });
        server
    }

    fn client(&self) -> Client {
        let (certificate, key) = Kes::admin().certificate(now());
        let trust = Trust::only(&self.dir.path().join("ca.crt")).unwrap();
        let pair = Pair { chain: vec![certificate], key };
        Client::new(tls::client_config(trust, Some(pair)).unwrap(), false, self.api)
    }

    /// Handshakes that fail, one after the other, each with a line in the log.
    fn is_flooded(&self) {
        for at in 0..FLOOD {
            let mut stream = TcpStream::connect(self.api).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&[0]).unwrap();
            match stream.read(&mut [0]) {
                Ok(0) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => panic!("handshake {at} was not refused: {other:?}"),
            }
        }
    }

    fn ends(&mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = eventually("it ends", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_api_nor_the_end() {
    let mut server = Server::start();
    server.is_flooded();
    let client = server.client();
    client.generate(KEY, "{}");
    // Audit lines, on the other pipe.
    for _ in 0..FLOOD / 10 {
        let long = format!("/v1/key/create/{}", "x".repeat(300));
        assert_eq!(client.call("PUT", &long, None).status, 400);
    }
    client.generate(KEY, "{}");
    server.ends();
}

#[test]
fn a_reader_that_comes_back_hears_how_many_lines_it_has_missed_and_then_the_last_ones() {
    let mut server = Server::start();
    server.is_flooded();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (mut stderr, told) = (server.process.stderr.take().unwrap(), heard.clone());
    let reader = thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stderr.read(&mut chunk) {
            told.lock().unwrap().extend_from_slice(&chunk[..length]);
        }
    });
    let text = || String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
    eventually("it is told", || text().contains("log lines were not written").then_some(()));
    server.ends();
    reader.join().unwrap();
    let text = text();
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words:?} is not in the log"));
    assert!(at("TLS handshake error") < at("log lines were not written"));
    assert!(at("log lines were not written") < at("SIGTERM: draining"));
    assert!(at("SIGTERM: draining") < at("drained"));
    assert!(text.ends_with('\n'), "the last line is whole");
}

#[test]
fn a_client_fills_no_audit_line() {
    let kes = Kes::serving("");
    let admin = kes.client(Some(&Kes::admin()), true);
    let mut audit = block_on(admin.get("/v1/log/audit")).unwrap();
    let long = format!("/v1/key/create/{}", "x".repeat(30_000));
    assert_eq!(admin.call("PUT", &long, None).status, 400);
    let line = block_on(async { tokio::time::timeout(Duration::from_secs(10), audit.chunk()).await });
    let line = line.expect("a line must come").unwrap().expect("the stream must go on");
    assert!(line.len() < 1000, "{} bytes", line.len());
    assert!(String::from_utf8(line.to_vec()).unwrap().contains("/v1/key/create/xxx"));
}
