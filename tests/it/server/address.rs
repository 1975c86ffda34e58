//! Addresses that the server listens on: one, or all of a machine.

use crate::harness::{App, IN_PROCESS, eventually, health, inputs};
use keswarden::{
    config::{self, kes_yaml},
    keystore::memory::MemoryStore,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    path::Path,
    process::Command,
    sync::Arc,
};

#[test]
fn all_interfaces_are_those_of_ipv4_and_those_of_ipv6() {
    let store = Arc::new(MemoryStore::new());
    let kes = App::start_server(store, "", &[("KESWARDEN_ADMIN_ADDR", "[::]:0")]);
    let port = kes.admin.port();
    let status = |host: IpAddr| health((host, port).into(), "/status").0;
    eventually(IN_PROCESS, "it answers by IPv4, and knows this machine", || {
        (status(Ipv4Addr::LOCALHOST.into()) == 200).then_some(())
    });
    let has_ipv6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    assert_eq!(kes.admin.is_ipv6(), has_ipv6, "where IPv6 is off, it is IPv4 alone");
    if has_ipv6 {
        assert_eq!(status(Ipv6Addr::LOCALHOST.into()), 200);
    }
    kes.wait_ready();
    let mut probe = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    let probe = probe.arg("health").env_clear().env("KESWARDEN_ADMIN_ADDR", format!("[::]:{port}"));
    assert!(probe.status().unwrap().success());
}

#[test]
fn without_a_host_an_address_is_that_of_all_interfaces() {
    for (text, address) in [
        ("", "[::]:7373"),
        (":7000", "[::]:7000"),
        ("0.0.0.0:7373", "0.0.0.0:7373"),
        ("[::1]:7373", "[::1]:7373"),
    ] {
        assert_eq!(kes_yaml::parse_address(text).map(|address| address.to_string()), Ok(address.to_owned()));
    }
    let given = || {
        let mut inputs = inputs(Path::new("/nonexistent"), &[]);
        inputs.environment.retain(|(name, _)| name != "KESWARDEN_ADMIN_ADDR");
        inputs
    };
    let agent = config::load(given()).unwrap_or_else(|problems| panic!("{problems}"));
    let server = config::server::own(given(), Path::new("/nonexistent")).unwrap();
    assert_eq!([agent.admin_address, server.admin_address].map(|at| at.to_string()), ["[::]:7374"; 2]);
}
