//! Bad clients: slow, idle, many, half gone, or no clients at all. The good one beside them is served all the same.

use crate::{
    harness::{Client, KEY, block_on, eventually, key_text},
    kes_server::{Kes, now},
    peers::Holder,
};
use keswarden::tls::{self, Pair, trust::Trust};
use rustls::pki_types::ServerName;
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// What 4096 connections with TLS may cost, and a process with nothing to do beside: see `http`.
const CEILING: u64 = 192 * 1024 * 1024;

/// Enough for 48 connections to the API and 128 to the health server, beside what a process needs: see `http`.
const DESCRIPTORS: usize = 240;

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
        Self::with(with_one_key(), Vec::new())
    }

    /// The same, with no more than [`DESCRIPTORS`].
    fn with_few_descriptors() -> Self {
        let mut command = Command::new("/bin/sh");
        let limit = "ulimit -n \"$0\" && exec \"$@\"";
        command.args(["-c", limit, &DESCRIPTORS.to_string(), env!("CARGO_BIN_EXE_keswarden")]);
        let server = Self::launch_by(command, with_one_key(), Vec::new());
        server.wait_ready();
        server
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
        Self::launch_by(Command::new(env!("CARGO_BIN_EXE_keswarden")), dir, environment)
    }

    fn launch_by(mut command: Command, dir: TempDir, environment: Vec<(&str, String)>) -> Self {
        tls::mint::RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        let address = || format!("127.0.0.1:{}", crate::peers::free_port()).parse::<SocketAddr>().unwrap();
        let (api, admin) = (address(), address());
        let process = command
            .args(["server", "--addr", &api.to_string(), "--config"])
            .arg(dir.path().join("server-config.yaml"))
            .env_clear()
            .env("KESWARDEN_ADMIN_ADDR", admin.to_string())
            .env("XDG_STATE_HOME", dir.path().join("state"))
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

/// A directory with the file of a server, and one key.
fn with_one_key() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let yaml = Kes::yaml(&dir, "") + "log: { error: off, audit: off }\n";
    std::fs::write(dir.path().join("server-config.yaml"), yaml).unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    std::fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
    dir
}

/// Connections to the API that another process holds open, in these ways.
fn attack(server: &Server, count: usize, ways: &str) -> Holder {
    attack_on(server.api.port(), server, count, ways)
}

fn attack_on(port: u16, server: &Server, count: usize, ways: &str) -> Holder {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/attack.py");
    let mut arguments = vec![script.into_os_string()];
    arguments.extend([port.to_string(), count.to_string(), ways.to_owned()].map(Into::into));
    arguments.extend(identity(server.dir.path()).map(Into::into));
    Holder::python(&format!("{count} connections"), arguments)
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
    let _attack = attack(&server, 2000, "idle,hello,headers,body");
    is_served_well(&server);
    assert!(server.peak() < CEILING, "{} MiB", server.peak() >> 20);
}

#[test]
fn the_api_and_the_health_server_share_what_descriptors_there_are() {
    let server = Server::with_few_descriptors();
    std::fs::write(server.dir.path().join("keys/other"), key_text()).unwrap();
    let ports = [server.api.port(), server.admin.port()];
    let _attacks = ports.map(|port| attack_on(port, &server, 200, "flood,idle"));
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count();
    assert!(open + 16 < DESCRIPTORS, "some must be left for files and for Vault: {open} are open");
    // It may be its turn to make room, now and then.
    eventually("a key is read that takes a descriptor", || {
        let asked = block_on(server.client(false).send("GET", "/v1/key/describe/other", None));
        asked.ok().filter(|reply| reply.status == 200)
    });
}

#[test]
fn a_good_client_is_served_beside_ten_thousand_idle_connections() {
    let server = Server::start();
    let _attack = attack(&server, 10_000, "flood,idle,hello");
    is_served_well(&server);
    assert!(server.peak() < CEILING, "{} MiB", server.peak() >> 20);
}

pub type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection of the admin's, for bytes that no client library would send.
pub fn raw(kes: &Kes, alpn: &[u8]) -> Stream {
    raw_to(kes.api, kes.dir.path(), alpn)
}

fn raw_to(api: SocketAddr, dir: &Path, alpn: &[u8]) -> Stream {
    let (certificate, key) = Kes::admin().certificate(now());
    let trust = Trust::only(&dir.join("ca.crt")).unwrap();
    let mut config = tls::client_config(trust, Some(Pair { chain: vec![certificate], key })).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(api).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    rustls::StreamOwned::new(connection, socket)
}

/// Kinds of HTTP/2 frames (RFC 9113 §6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Their flags.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// A client of HTTP/2 that has room for so many bytes of each answer, and reads what the test reads, no more.
pub fn http2(api: SocketAddr, dir: &Path, window: u32) -> Stream {
    let mut stream = raw_to(api, dir, b"h2");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE
    let window = [&[0_u8, 4][..], &window.to_be_bytes()].concat();
    stream.write_all(&frame(SETTINGS, 0, 0, &window)).unwrap();
    stream.flush().unwrap();
    stream
}

/// Asks for a path with GET, as the stream of this number.
pub fn ask(stream: &mut Stream, id: u32, path: &str) {
    // RFC 7541 appendix A and §6.2.2: GET, https, and a path that is put into no table, its length first.
    let mut block = vec![0x82, 0x87, 0x04];
    match path.len().checked_sub(127) {
        None => block.push(u8::try_from(path.len()).unwrap()),
        Some(mut more) => {
            block.push(127);
            while more >= 128 {
                block.push(u8::try_from(more % 128).unwrap() | 128);
                more /= 128;
            }
            block.push(u8::try_from(more).unwrap());
        }
    }
    block.extend_from_slice(path.as_bytes());
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &block)).unwrap();
    stream.flush().unwrap();
}

/// Reads until a frame of this kind came, and what it says.
pub fn until_frame(stream: &mut Stream, kind: u8) -> Vec<u8> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        if head[3] == kind {
            return payload;
        }
    }
}

/// Everything until the end of the connection, however it ends.
pub fn rest(stream: &mut impl Read) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

pub fn serving() -> Kes {
    let kes = Kes::serving("");
    kes.store.put(KEY, &key_text());
    kes
}

pub fn still_serves(kes: &Kes) {
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
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).unwrap();
    let mut refused = false;
    for number in 0..20_000_u32 {
        let id = number * 2 + 1;
        // RFC 7541 appendix A: GET, https, and `:path: /`, all of the static table.
        let opened = frame(HEADERS, END_HEADERS, id, &[0x82, 0x87, 0x84]);
        let pair = [opened, frame(RESET, 0, id, &8_u32.to_be_bytes())].concat();
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

/// An HTTP/2 client says how much it takes of each answer, down to nothing, and can answer every PING meanwhile.
#[test]
fn an_answer_that_nobody_takes_ends_its_connection() {
    let kes = serving();
    let mut deaf = [0, 1].map(|window| http2(kes.api, kes.dir.path(), window));
    for stream in &mut deaf {
        stream.sock.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        ask(stream, 1, "/");
    }
    let begun = std::time::Instant::now();
    for stream in &mut deaf {
        rest(stream);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    still_serves(&kes);
}

#[test]
fn clients_that_take_no_answer_leave_room_for_others() {
    let server = Server::with_few_descriptors();
    let _deaf: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = http2(server.api, server.dir.path(), 0);
            ask(&mut stream, 1, "/");
            stream
        })
        .collect();
    is_served_well(&server);
}

#[test]
fn answers_that_nobody_takes_hold_little_memory() {
    let server = Server::start();
    // Whoever is redirected is told the whole path twice, once with five bytes for each of these.
    let path = format!("//{}", "&".repeat(15_000));
    let mut deaf: Vec<_> = (0..20).map(|_| http2(server.api, server.dir.path(), 0)).collect();
    for stream in &mut deaf {
        for number in 0..250 {
            ask(stream, number * 2 + 1, &path);
            until_frame(stream, HEADERS);
        }
    }
    assert!(server.peak() < CEILING, "{} MiB", server.peak() >> 20);
}

#[test]
fn a_long_request_gets_no_long_answer() {
    let kes = serving();
    let client = kes.client(Some(&Kes::admin()), false);
    let long = "a".repeat(5000);
    assert_eq!(client.call("GET", "/v1//status?a=b", None).status, 301);
    for path in [format!("/v1//{long}"), format!("/v1//status?{long}")] {
        let reply = client.call("GET", &path, None);
        assert_eq!((reply.status, reply.body.as_str()), (404, "404 page not found\n"));
    }
    let import = format!("{{\"cipher\":\"{long}\"}}");
    for (method, path, body, status) in [
        ("GET", format!("/v1/key/describe/{long}"), None, 400),
        ("GET", format!("/v1/key/list/{long}"), None, 400),
        (long.as_str(), "/v1/status".to_owned(), None, 405),
        ("PUT", "/v1/key/import/x".to_owned(), Some(import.as_str()), 406),
    ] {
        let reply = client.call(method, &path, body);
        assert_eq!(reply.status, status, "{}", reply.body);
        assert!(reply.body.contains(&long[..1024]) && reply.body.len() < 1200, "{}", reply.body);
    }
}

/// With nothing under way; what it asks meanwhile is answered, and what it asks later it knows to ask elsewhere.
#[test]
fn who_has_to_make_room_is_told_so() {
    let server = Server::with_few_descriptors();
    let mut idle = http2(server.api, server.dir.path(), 65_535);
    ask(&mut idle, 1, "/");
    until_frame(&mut idle, DATA);
    let _others: Vec<_> = (0..200).map(|_| TcpStream::connect(server.api).unwrap()).collect();
    let (any, no_error) = (0x7fff_ffff_u32, 0_u32);
    assert_eq!(until_frame(&mut idle, GOAWAY), [any, no_error].map(u32::to_be_bytes).concat());
    let ping = until_frame(&mut idle, PING);
    idle.write_all(&frame(PING, ACK, 0, &ping)).unwrap();
    idle.flush().unwrap();
    assert_eq!(until_frame(&mut idle, GOAWAY), [1, no_error].map(u32::to_be_bytes).concat());
}
