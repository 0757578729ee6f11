//! Published ports as they are written and refused, and opened for real on loopback.

use std::net::TcpStream;
use std::time::Duration;

use super::*;

fn port(text: &str) -> Port {
    text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

#[test]
fn what_is_left_out_is_loopback_and_the_same_port() {
    let any = |address| Port { address, host: 0, guest: 3000, any: true };
    let at =
        |address: &str, host| Port { address: Some(address.parse().unwrap()), host, guest: 3000, any: false };
    let local = |host| Port { address: None, host, guest: 3000, any: false };
    for (text, is) in [
        ("3000", local(3000)),
        ("3000/tcp", local(3000)),
        ("8080:3000", local(8080)),
        ("localhost:8080:3000", local(8080)),
        ("0:3000", any(None)),
        ("localhost::3000", any(None)),
        ("127.0.0.1:0:3000", any(Some(Ipv4Addr::LOCALHOST.into()))),
        ("127.0.0.1::3000", any(Some(Ipv4Addr::LOCALHOST.into()))),
        ("127.0.0.1:8080:3000/tcp", at("127.0.0.1", 8080)),
        ("0.0.0.0:8080:3000", at("0.0.0.0", 8080)),
        ("[::1]:8080:3000", at("::1", 8080)),
        ("[::ffff:127.0.0.1]:8080:3000", at("127.0.0.1", 8080)),
    ] {
        assert_eq!(port(text), is, "{text}");
    }
    let shown = |text| port(text).to_string();
    assert_eq!(shown("8080:3000"), "localhost:8080");
    assert_eq!((shown("[::1]:8:9"), shown("127.0.0.1:8:9")), ("[::1]:8".into(), "127.0.0.1:8".into()));
}

#[test]
fn what_is_no_port_is_refused_with_its_reason() {
    let number = |text: &str| Fault::Number(text.into());
    let address = |text: &str| Fault::Address(text.into());
    for (text, fault) in [
        ("", Fault::Empty),
        ("/tcp", Fault::Empty),
        ("0", number("0")),
        ("65536", number("65536")),
        ("8080:0", number("0")),
        ("+80", number("+80")),
        ("80 ", number("80 ")),
        ("http", number("http")),
        ("8080:", number("")),
        (":8080", number("")),
        ("123456", number("123456")),
        ("3000-3005", Fault::Range),
        ("3000/udp", Fault::Udp),
        ("3000/", Fault::Protocol(String::new())),
        ("3000/tcp/udp", Fault::Protocol("tcp/udp".into())),
        ("127.0.0.1:3000", Fault::OnePort("127.0.0.1".into(), "3000".into())),
        ("[::1]:3000", Fault::OnePort("[::1]".into(), "3000".into())),
        ("::1:8080:3000", Fault::Brackets),
        ("[::1:8080:3000", Fault::Form),
        ("[::1]8080:3000", Fault::Form),
        ("[127.0.0.1]:8080:3000", address("[127.0.0.1]")),
        ("[::1]:1:2:3", number("2:3")),
        ("example.com:8080:3000", address("example.com")),
        ("127.1:8080:3000", address("127.1")),
        (":8080:3000", address("")),
    ] {
        assert_eq!(text.parse::<Port>(), Err(fault), "{text}");
    }
}

#[test]
fn ports_are_in_the_way_of_those_at_the_same_address() {
    let clash = |one, other| {
        let (one, other) = (port(one), port(other));
        assert_eq!(one.is_in_the_way_of(&other), other.is_in_the_way_of(&one));
        one.is_in_the_way_of(&other)
    };
    assert!(clash("80:1", "80:2") && clash("80:1", "[::1]:80:1") && clash("80:1", "0.0.0.0:80:1"));
    assert!(!clash("80:1", "81:1") && !clash("0:1", "0:2"));
    assert!(!clash("127.0.0.1:80:1", "[::1]:80:1") && !clash("127.0.0.1:80:1", "[::]:80:1"));
}

#[test]
fn a_port_is_opened_on_both_loopbacks_and_by_one_only() {
    let mut first = port("0:3000");
    let listeners = first.open().unwrap();
    assert_ne!(first.host, 0);
    for listener in &listeners {
        TcpStream::connect_timeout(&listener.opening.at, Duration::from_secs(5)).unwrap();
    }
    assert!(first.openings().starts_with(&listeners.iter().map(|it| it.opening).collect::<Vec<_>>()));
    let mut same = Port { any: false, ..first };
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), first.host);
    assert_eq!(same.open().unwrap_err(), Refusal::Busy(at));
    // Where any would do, another is found.
    let mut other = first;
    other.open().unwrap();
    assert_ne!(other.host, first.host);
    drop(listeners);
    same.open().unwrap();
    let mut foreign = port("192.0.2.1:8080:80");
    assert!(matches!(foreign.open(), Err(Refusal::NoAddress(_))));
}
