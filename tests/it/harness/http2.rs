//! TLS connections for bytes that no client library would send, and frames of HTTP/2.

use super::{App, admin_key, config_of};
use rustls::pki_types::ServerName;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

pub type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection of the admin's, for bytes that no client library would send.
pub fn raw(app: &App, alpn: &[u8]) -> Stream {
    raw_to(app.api, app.dir.path(), alpn)
}

fn raw_to(api: SocketAddr, dir: &Path, alpn: &[u8]) -> Stream {
    let mut config = config_of(&admin_key(), dir);
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
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
/// Their flags.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// A client of HTTP/2 with a window of this many bytes for each answer; the test does all its reading.
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

/// Reads until a frame of this kind; its payload.
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

/// Everything until the end of the connection, clean or not.
pub fn rest(stream: &mut impl Read) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
