//! Bad clients: slow, idle, many, half gone, or no clients at all. The good one beside them is served all the same.

use crate::{
    harness::{Client, KEY, block_on, eventually, key_text},
    kes_server::{Kes, now},
};
use keswarden::tls::{self, Pair, trust::Trust};
use rustls::pki_types::ServerName;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// What 4096 connections with TLS may cost, and a process with nothing to do beside: see `http`.
const CEILING: u64 = 192 * 1024 * 1024;

/// The binary, as a process of its own, so that its memory is its own.
pub struct Server {
    process: Child,
    pub dir: TempDir,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Server {
    /// A server over a directory with one key.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let yaml = Kes::yaml(&dir, "") + "log: { error: off, audit: off }\n";
        std::fs::write(dir.path().join("server-config.yaml"), yaml).unwrap();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        std::fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
        Self::with(dir, Vec::new())
    }

    /// A server with the `server-config.yaml` of this directory; its certificate is made there.
    pub fn with(dir: TempDir, environment: Vec<(&str, String)>) -> Self {
        let server = Self::launch(dir, environment);
        server.wait_ready();
        server
    }

    pub fn wait_ready(&self) {
        eventually("the server answers", || {
            let asked = block_on(self.client(false).send("GET", "/v1/ready", None));
            asked.ok().filter(|reply| reply.status == 200)
        });
    }

    /// The same, which may have to wait.
    pub fn launch(dir: TempDir, environment: Vec<(&str, String)>) -> Self {
        tls::mint::RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        let address = || format!("127.0.0.1:{}", crate::peers::free_port()).parse::<SocketAddr>().unwrap();
        let (api, admin) = (address(), address());
        let process = Command::new(env!("CARGO_BIN_EXE_keswarden"))
            .args(["server", "--addr", &api.to_string(), "--config"])
            .arg(dir.path().join("server-config.yaml"))
            .env_clear()
            .env("KESWARDEN_ADMIN_ADDR", admin.to_string())
            .envs(environment)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, dir, api, admin }
    }

    /// The health server's status page, once it is there.
    pub fn status(&self) -> String {
        crate::harness::health(self.admin, "/status").1
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        crate::harness::metric(self.admin, line)
    }

    pub fn client(&self, http1: bool) -> Client {
        let (certificate, key) = Kes::admin().certificate(now());
        let trust = Trust::only(&self.dir.path().join("ca.crt")).unwrap();
        let pair = Pair { chain: vec![certificate], key };
        Client::new(tls::client_config(trust, Some(pair)).unwrap(), http1, self.api)
    }

    /// Resident memory, in bytes, at its highest.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connections that another process holds open, in these ways.
struct Attack(Child);

impl Attack {
    fn begin(server: &Server, count: usize, ways: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/attack.py");
        let files = identity(server.dir.path());
        let mut process = Command::new("python3")
            .arg(script)
            .args([server.api.port().to_string(), count.to_string(), ways.to_owned()])
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "holding\n", "{count} connections must be open at once");
        Self(process)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The admin's certificate and key as files, so that an attacker gets as far as anybody can.
fn identity(dir: &Path) -> [PathBuf; 2] {
    let (certificate, key) = Kes::admin().certificate(now());
    let files = [dir.join("attacker.crt"), dir.join("attacker.key")];
    let pem = |label: &str, der: &[u8]| {
        let lines: Vec<_> = crate::harness::base64(der)
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
            .collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    std::fs::write(&files[0], pem("CERTIFICATE", &certificate)).unwrap();
    std::fs::write(&files[1], pem("PRIVATE KEY", key.secret_der())).unwrap();
    files
}

/// A thousand decrypts over connections that are there, and some over new ones.
fn is_served_well(server: &Server) {
    let client = server.client(false);
    let (plaintext, ciphertext) = client.generate(KEY, "{}");
    for number in 0..1000 {
        let fresh = (number % 100 == 0).then(|| server.client(number % 200 == 0));
        let reply = fresh.as_ref().unwrap_or(&client).decrypt(KEY, &ciphertext, "{}");
        assert_eq!(
            (reply.status, reply.body),
            (200, format!("{{\"plaintext\":\"{plaintext}\"}}\n")),
            "{number}"
        );
    }
}

#[test]
fn a_good_client_is_served_beside_two_thousand_slow_connections() {
    let server = Server::start();
    let _attack = Attack::begin(&server, 2000, "idle,hello,headers,body");
    is_served_well(&server);
    assert!(server.peak() < CEILING, "{} MiB", server.peak() >> 20);
}

#[test]
fn a_good_client_is_served_beside_ten_thousand_idle_connections() {
    let server = Server::start();
    let _attack = Attack::begin(&server, 10_000, "flood,idle,hello");
    is_served_well(&server);
    assert!(server.peak() < CEILING, "{} MiB", server.peak() >> 20);
}

type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection of the admin's, for bytes that no client library would send.
fn raw(kes: &Kes, alpn: &[u8]) -> Stream {
    let (certificate, key) = Kes::admin().certificate(now());
    let trust = Trust::only(&kes.dir.path().join("ca.crt")).unwrap();
    let mut config = tls::client_config(trust, Some(Pair { chain: vec![certificate], key })).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(kes.api).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    rustls::StreamOwned::new(connection, socket)
}

/// Everything until the end of the connection, however it ends.
fn rest(stream: &mut impl Read) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn serving() -> Kes {
    let kes = Kes::serving("");
    kes.store.put(KEY, &key_text());
    kes
}

fn still_serves(kes: &Kes) {
    for http1 in [true, false] {
        let client = kes.client(Some(&Kes::admin()), http1);
        assert_eq!(client.call("GET", &format!("/v1/key/describe/{KEY}"), None).status, 200);
    }
}

#[test]
fn a_client_that_has_finished_speaking_is_answered() {
    let kes = serving();
    let mut stream = raw(&kes, b"http/1.1");
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"version\""), "{answer}");
}

#[test]
fn slow_headers_end_the_connection_and_idle_ones_stay() {
    let kes = serving();
    let (mut slow, mut idle) = (raw(&kes, b"http/1.1"), raw(&kes, b"http/1.1"));
    let version = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    idle.write_all(version).unwrap();
    let mut answer = [0; 1024];
    assert!(idle.read(&mut answer).unwrap() > 0);
    let begun = std::time::Instant::now();
    slow.write_all(b"GET /version HTTP/1.1\r\nX-Slow: ").unwrap();
    assert_eq!(rest(&mut slow), "", "no answer, and an end");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    idle.write_all(version).unwrap();
    assert!(idle.read(&mut answer).unwrap() > 0, "who was idle for less than 90 s may go on");
}

#[test]
fn garbage_at_any_place_harms_nobody_else() {
    let kes = serving();
    for garbage in [&b"\0\0\0\0"[..], b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01\xff\xff", &[0xff; 5000]] {
        let mut stream = TcpStream::connect(kes.api).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = rest(&mut stream);
    }
    let mut plain = TcpStream::connect(kes.api).unwrap();
    plain.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let answer = rest(&mut plain);
    assert!(
        answer.starts_with("HTTP/1.0 400 Bad Request")
            && answer.ends_with("Client sent an HTTP request to an HTTPS server.\n"),
        "{answer}"
    );
    for alpn in [&b"http/1.1"[..], b"h2"] {
        for garbage in [
            &b"\0\x01\x02garbage\r\n\r\n"[..],
            &[0xff; 20_000],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
        ] {
            let mut stream = raw(&kes, alpn);
            let _ = stream.write_all(garbage);
            let _ = stream.flush();
            let _ = stream.sock.shutdown(Shutdown::Write);
            let _ = rest(&mut stream);
        }
    }
    still_serves(&kes);
}

#[test]
fn floods_of_headers_are_refused() {
    let kes = serving();
    let mut stream = raw(&kes, b"http/1.1");
    let _ = stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n");
    for number in 0..2000 {
        let header = format!("X-{number}: {}\r\n", "a".repeat(1000));
        if stream.write_all(header.as_bytes()).is_err() {
            break;
        }
    }
    let answer = rest(&mut stream);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    still_serves(&kes);
}

/// CVE-2023-44487: streams that are opened and reset before anybody looks.
#[test]
fn rapid_resets_end_their_own_connection_only() {
    let kes = serving();
    let mut stream = raw(&kes, b"h2");
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
    };
    // RFC 9113 §6, RFC 7541 appendix A: GET, https, and `:path: /`, all of the static table.
    let (headers, reset, settings) = (1, 3, 4);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(settings, 0, 0, b"")).unwrap();
    let mut refused = false;
    for number in 0..20_000_u32 {
        let id = number * 2 + 1;
        let pair =
            [frame(headers, 4, id, &[0x82, 0x87, 0x84]), frame(reset, 0, id, &8_u32.to_be_bytes())].concat();
        if stream.write_all(&pair).and_then(|()| stream.flush()).is_err() {
            refused = true;
            break;
        }
    }
    // Whoever put up with all of it would keep the connection, and let the read run into its deadline.
    let mut chunk = [0; 4096];
    let last = loop {
        match stream.read(&mut chunk) {
            Ok(1..) => {}
            other => break other,
        }
    };
    let waited = last.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(refused || !waited, "twenty thousand resets must not be put up with");
    still_serves(&kes);
}

/// TLS 1.2 lets a client ask for another handshake at any time, which costs a server much more than the client.
#[test]
fn renegotiation_is_refused() {
    let server = Server::start();
    let [certificate, key] = identity(server.dir.path());
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &server.api.to_string(), "-cert"])
        .arg(certificate)
        .arg("-key")
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // `R` at the beginning of a line makes this client ask for it, a hundred times here.
    let asked = client.stdin.take().unwrap().write_all("R\n".repeat(100).as_bytes());
    let output = client.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(told.contains("TLSv1.2"), "the first handshake must succeed: {told}");
    assert!(told.contains("no renegotiation"), "and no other: {told} {asked:?}");
    is_served_well(&server);
}

#[test]
fn a_body_that_does_not_come_ends_the_connection_at_the_deadline() {
    let kes = Kes::serving("api:\n  /v1/key/decrypt/:\n    timeout: 1s\n");
    kes.store.put(KEY, &key_text());
    let mut stream = raw(&kes, b"http/1.1");
    let begun = std::time::Instant::now();
    stream
        .write_all(b"POST /v1/key/decrypt/my-key HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    assert_eq!(rest(&mut stream), "", "nothing is sent, as by KES");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    still_serves(&kes);
}
