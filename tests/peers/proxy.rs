//! A TCP proxy in front of a peer, which swallows, slows down, cuts off or resets the traffic, as a test says.

use super::free_port;
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// The treatment of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Good,
    /// Connections are taken, and nothing ever passes.
    BlackHole,
    /// The peer's answers come a byte in each such time.
    Drip(Duration),
    /// Of each connection's answers so many bytes pass, and then it ends.
    CutAfter(usize),
    /// Connections end as soon as something is sent.
    Ended,
}

pub struct Proxy {
    pub port: u16,
    wire: Arc<Mutex<Wire>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of a port of this machine. The proxy lives as long as the process.
    pub fn before(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).expect("a free port must be free");
        let (wire, connections) = (Arc::new(Mutex::new(Wire::Good)), Arc::new(AtomicUsize::new(0)));
        let (mode, count) = (wire.clone(), connections.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                let (there, back) = (mode.clone(), mode.clone());
                thread::spawn(move || pass(from, to, &there, false));
                thread::spawn(move || pass(server, client, &back, true));
            }
        });
        Self { port: own, wire, connections }
    }

    pub fn set(&self, wire: Wire) {
        *self.wire.lock().expect("nobody panics with it") = wire;
    }

    /// How many connections were ever taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, wire: &Mutex<Wire>, answers: bool) {
    let (mut buffer, mut passed) = ([0; 4096], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let now = *wire.lock().expect("nobody panics with it");
        let done = match now {
            Wire::Good => to.write_all(&buffer[..count]),
            // The bytes are gone, for good.
            Wire::BlackHole => loop {
                thread::sleep(Duration::from_millis(50));
                if *wire.lock().expect("nobody panics with it") != Wire::BlackHole {
                    break Err(std::io::ErrorKind::ConnectionReset.into());
                }
            },
            Wire::Drip(pause) if answers => buffer[..count].iter().try_for_each(|byte| {
                thread::sleep(pause);
                to.write_all(&[*byte])
            }),
            Wire::CutAfter(most) if answers => {
                let left = most.saturating_sub(passed).min(count);
                to.write_all(&buffer[..left]).and(if left < count {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(())
                })
            }
            Wire::Ended => Err(std::io::ErrorKind::ConnectionReset.into()),
            Wire::Drip(_) | Wire::CutAfter(_) => to.write_all(&buffer[..count]),
        };
        passed += count;
        if done.is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
