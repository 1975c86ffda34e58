//! The drain, and a start that fails: requests under way are answered, new connections are refused, and no client delays the end.

use crate::harness::{
    App, IN_PROCESS, KEY, eventually, free_port,
    http2::{DATA, HEADERS, ask, http2, raw, rest, until_frame},
    key_text,
};
use keswarden::{exit, keystore::memory::MemoryStore};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

#[test]
fn who_comes_after_the_drain_began_is_refused_at_once_and_who_asked_before_is_answered() {
    let kes = App::server_with_one_key();
    let mut stream = raw(&kes, b"http/1.1");
    stream
        .write_all(
            b"POST /v1/key/generate/my-key HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n",
        )
        .unwrap();
    stream.flush().unwrap();
    let mut wanted = [0; 25];
    stream.read_exact(&mut wanted).unwrap();
    assert_eq!(wanted, *b"HTTP/1.1 100 Continue\r\n\r\n", "it is under way once its body is wanted");
    let begun = Instant::now();
    kes.drain();
    eventually(IN_PROCESS, "who comes is refused", || {
        let refused = TcpStream::connect(kes.api).err()?;
        (refused.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    stream.write_all(b"{\"context\":\"\"}").unwrap();
    stream.flush().unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"ciphertext\""), "{answer}");
    kes.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn who_has_not_shaken_hands_does_not_hold_up_the_end() {
    let kes = App::server_with_one_key();
    let _silent = TcpStream::connect(kes.api).unwrap();
    let mut slow = TcpStream::connect(kes.api).unwrap();
    slow.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    // Connections are accepted in turn.
    kes.still_serves();
    let begun = Instant::now();
    kes.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn who_has_nothing_under_way_does_not_hold_up_the_end() {
    let kes = App::server_with_one_key();
    let mut slow = raw(&kes, b"http/1.1");
    slow.write_all(b"GET /version HTTP/1.1\r\nX-Slow: ").unwrap();
    slow.flush().unwrap();
    // One client takes no answer, the other answers no PING.
    let [mut deaf, mut mute] = [0, 65_535].map(|window| http2(kes.api, kes.dir.path(), window));
    ask(&mut deaf, 1, "/");
    until_frame(&mut deaf, HEADERS);
    ask(&mut mute, 1, "/");
    until_frame(&mut mute, DATA);
    let begun = Instant::now();
    kes.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// No process listens until its gate has passed, so two processes may have one address in their settings.
#[test]
fn an_address_that_another_one_took_while_the_gate_waited_is_named() {
    let address = format!("127.0.0.1:{}", free_port());
    let waiting = || App::start(Arc::new(MemoryStore::new()), &[("KESWARDEN_ADDR", &address)]);
    let (first, second) = (waiting(), waiting());
    first.store.put(KEY, &key_text());
    first.wait_ready();
    second.store.put(KEY, &key_text());
    let stopped = second.wait().unwrap_err();
    assert_eq!(stopped.exit_code(), exit::OS, "{stopped}");
    let says = stopped.to_string();
    assert!(says.contains("cannot_bind") && says.contains("KESWARDEN_ADDR"), "{says}");
}
