//! Log and audit lines without a reader: lines are lost, and neither an answer nor the end is delayed.

use crate::harness::{App, IN_PROCESS, KEY, Launch, Server, block_on, eventually, folder_with_one_key};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// More lines than a pipe and the queue before the pipe hold.
const FLOOD: usize = 6000;

/// A server with both its outputs in pipes that nobody reads yet.
fn unread() -> Server {
    let level = [("KESWARDEN_LOG", "info".to_owned())];
    Launch::in_folder(folder_with_one_key("")).set(&level).unread().ready()
}

/// Handshakes that fail, one after the other, each with a line in the log.
fn flood(server: &Server) {
    for at in 0..FLOOD {
        let mut stream = TcpStream::connect(server.api).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&[0]).unwrap();
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("handshake {at} was not refused: {other:?}"),
        }
    }
}

fn ends(server: &mut Server) {
    server.process.signal("TERM");
    assert_eq!(server.process.wait(IN_PROCESS), 0);
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_api_nor_the_end() {
    let mut server = unread();
    flood(&server);
    let client = server.admin_client(false);
    client.generate(KEY, "{}");
    // Audit lines, on the other pipe.
    for _ in 0..FLOOD / 10 {
        let long = format!("/v1/key/create/{}", "x".repeat(300));
        assert_eq!(client.call("PUT", &long, None).status, 400);
    }
    client.generate(KEY, "{}");
    ends(&mut server);
}

#[test]
fn a_reader_that_comes_back_hears_how_many_lines_it_has_missed_and_then_the_last_ones() {
    let mut server = unread();
    flood(&server);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (mut stderr, told) = (server.process.stderr(), heard.clone());
    let reader = thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stderr.read(&mut chunk) {
            told.lock().unwrap().extend_from_slice(&chunk[..length]);
        }
    });
    let text = || String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
    eventually(IN_PROCESS, "it is told", || text().contains("log lines were not written").then_some(()));
    ends(&mut server);
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
    let kes = App::server("");
    let admin = kes.admin_client(true);
    let mut audit = block_on(admin.get("/v1/log/audit")).unwrap();
    let long = format!("/v1/key/create/{}", "x".repeat(30_000));
    assert_eq!(admin.call("PUT", &long, None).status, 400);
    let line = block_on(async { tokio::time::timeout(Duration::from_secs(10), audit.chunk()).await });
    let line = line.expect("a line must come").unwrap().expect("the stream must go on");
    assert!(line.len() < 1000, "{} bytes", line.len());
    assert!(String::from_utf8(line.to_vec()).unwrap().contains("/v1/key/create/xxx"));
}
