//! Bad clients: slow, idle, many, half gone, or sending garbage. A good client beside them is served all the same.

use crate::harness::{
    App, Holder, IN_PROCESS, KEY, Launch, QUIET, Server, admin_key, base64, block_on, eventually,
    folder_with_one_key,
    http2::{
        ACK, DATA, END_HEADERS, GOAWAY, HEADERS, PING, RESET, SETTINGS, ask, frame, http2, raw, rest,
        until_frame,
    },
    key_text, now,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The memory that 4096 connections with TLS and an idle process may take: see `http`.
const CEILING: u64 = 192 * 1024 * 1024;

/// Descriptors for 48 connections to the API, 128 to the health server, and the process itself: see `http`.
const DESCRIPTORS: usize = 240;

/// Connections to the API that another process holds open, in these ways.
fn attack(server: &Server, count: usize, ways: &str) -> Holder {
    attack_on(server.api.port(), server, count, ways)
}

fn attack_on(port: u16, server: &Server, count: usize, ways: &str) -> Holder {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/attack.py");
    let mut arguments = vec![script.into_os_string()];
    arguments.extend([port.to_string(), count.to_string(), ways.to_owned()].map(Into::into));
    arguments.extend(identity(server.dir()).map(Into::into));
    Holder::python(&format!("{count} connections"), arguments)
}

/// The admin's certificate and key as files, so that an attacker gets as far as anybody can.
fn identity(dir: &Path) -> [PathBuf; 2] {
    let (certificate, key) = admin_key().certificate(now());
    let files = [dir.join("attacker.crt"), dir.join("attacker.key")];
    let pem = |label: &str, der: &[u8]| {
        let lines: Vec<_> =
            base64(der).as_bytes().chunks(64).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    std::fs::write(&files[0], pem("CERTIFICATE", &certificate)).unwrap();
    std::fs::write(&files[1], pem("PRIVATE KEY", key.secret_der())).unwrap();
    files
}

/// A thousand decrypts over connections that are there, and some over new ones.
fn is_served_well(server: &Server) {
    let client = server.admin_client(false);
    let (plaintext, ciphertext) = client.generate(KEY, "{}");
    for number in 0..1000 {
        let fresh = (number % 100 == 0).then(|| server.admin_client(number % 200 == 0));
        let reply = fresh.as_ref().unwrap_or(&client).decrypt(KEY, &ciphertext, "{}");
        assert_eq!(
            (reply.status, reply.body),
            (200, format!("{{\"plaintext\":\"{plaintext}\"}}\n")),
            "{number}"
        );
    }
}

/// A server over a folder with one key.
fn serving_alone() -> Server {
    Server::over_one_key(QUIET)
}

/// The same, with no more than [`DESCRIPTORS`].
fn with_few_descriptors() -> Server {
    let mut command = Command::new("/bin/sh");
    let limit = "ulimit -n \"$0\" && exec \"$@\"";
    command.args(["-c", limit, &DESCRIPTORS.to_string(), env!("CARGO_BIN_EXE_keswarden")]);
    Launch::in_folder(folder_with_one_key(QUIET)).by(command).ready()
}

/// Resident memory, in bytes, at its highest.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_good_client_is_served_beside_two_thousand_slow_connections() {
    let server = serving_alone();
    let _attack = attack(&server, 2000, "idle,hello,headers,body");
    is_served_well(&server);
    assert!(peak(&server) < CEILING, "{} MiB", peak(&server) >> 20);
}

#[test]
fn the_api_and_the_health_server_share_what_descriptors_there_are() {
    let server = with_few_descriptors();
    std::fs::write(server.dir().join("keys/other"), key_text()).unwrap();
    let ports = [server.api.port(), server.admin.port()];
    let _attacks = ports.map(|port| attack_on(port, &server, 200, "flood,idle"));
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count();
    assert!(open + 16 < DESCRIPTORS, "some must be left for files and for Vault: {open} are open");
    // This connection may be the one that is closed to make room.
    eventually(IN_PROCESS, "a key is read that takes a descriptor", || {
        let asked = block_on(server.admin_client(false).send("GET", "/v1/key/describe/other", None));
        asked.ok().filter(|reply| reply.status == 200)
    });
}

#[test]
fn a_good_client_is_served_beside_ten_thousand_idle_connections() {
    let server = serving_alone();
    let _attack = attack(&server, 10_000, "flood,idle,hello");
    is_served_well(&server);
    assert!(peak(&server) < CEILING, "{} MiB", peak(&server) >> 20);
}

#[test]
fn a_client_that_has_finished_speaking_is_answered() {
    let kes = App::server_with_one_key();
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
    let kes = App::server_with_one_key();
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
    let kes = App::server_with_one_key();
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
    kes.still_serves();
}

#[test]
fn floods_of_headers_are_refused() {
    let kes = App::server_with_one_key();
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
    kes.still_serves();
}

/// CVE-2023-44487: streams that are opened and reset before anybody looks.
#[test]
fn rapid_resets_end_their_own_connection_only() {
    let kes = App::server_with_one_key();
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
    // A server without a limit would keep the connection, and the read would run into its deadline.
    let mut chunk = [0; 4096];
    let last = loop {
        match stream.read(&mut chunk) {
            Ok(1..) => {}
            other => break other,
        }
    };
    let waited = last.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(refused || !waited, "twenty thousand resets must not be put up with");
    kes.still_serves();
}

/// TLS 1.2 lets a client ask for another handshake at any time, which costs a server much more than the client.
#[test]
fn renegotiation_is_refused() {
    let server = serving_alone();
    let [certificate, key] = identity(server.dir());
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
    let kes = App::server("api:\n  /v1/key/decrypt/:\n    timeout: 1s\n");
    kes.store.put(KEY, &key_text());
    let mut stream = raw(&kes, b"http/1.1");
    let begun = std::time::Instant::now();
    stream
        .write_all(b"POST /v1/key/decrypt/my-key HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    assert_eq!(rest(&mut stream), "", "nothing is sent, as by KES");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    kes.still_serves();
}

/// An HTTP/2 client that gives an answer no window, and could answer every PING meanwhile.
#[test]
fn an_answer_that_nobody_takes_ends_its_connection() {
    let kes = App::server_with_one_key();
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
    kes.still_serves();
}

#[test]
fn clients_that_take_no_answer_leave_room_for_others() {
    let server = with_few_descriptors();
    let _deaf: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = http2(server.api, server.dir(), 0);
            ask(&mut stream, 1, "/");
            stream
        })
        .collect();
    is_served_well(&server);
}

#[test]
fn answers_that_nobody_takes_hold_little_memory() {
    let server = serving_alone();
    // A redirect has the whole path twice, once with five bytes for each `&`.
    let path = format!("//{}", "&".repeat(15_000));
    let mut deaf: Vec<_> = (0..20).map(|_| http2(server.api, server.dir(), 0)).collect();
    for stream in &mut deaf {
        for number in 0..250 {
            ask(stream, number * 2 + 1, &path);
            until_frame(stream, HEADERS);
        }
    }
    assert!(peak(&server) < CEILING, "{} MiB", peak(&server) >> 20);
}

#[test]
fn a_long_request_gets_no_long_answer() {
    let kes = App::server_with_one_key();
    let client = kes.admin_client(false);
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

/// An idle HTTP/2 connection is closed by GOAWAY: requests under way are answered, and the client repeats later ones elsewhere.
#[test]
fn who_has_to_make_room_is_told_so() {
    let server = with_few_descriptors();
    let mut idle = http2(server.api, server.dir(), 65_535);
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
