//! `coracle ports`, and `-p` of `run`: what is refused, what is kept, and what a gateway is told. No VM runs here.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use expect_test::{expect, expect_file};
use gateway::handover;
use gateway::supervisor::Change;
use serde_json::Value;
use support::{Home, PATIENCE, Ran, Running};

fn refused(ran: &Ran, part: &str) {
    assert!(
        ran.code == Some(125) && ran.stderr.contains(part) && ran.stderr.lines().count() == 1,
        "{part}: {ran:?}"
    );
}

fn good(home: &Home, args: &[&str]) -> String {
    let ran = home.run(args);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
    ran.stdout().to_owned()
}

fn kept(folder: &Path) -> Value {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["ports"].clone()
}

/// A port of this machine that is in use as long as the value lives.
fn busy() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// One that was free a moment ago.
fn free() -> u16 {
    busy().1
}

#[test]
fn what_is_no_port_is_refused_before_anything_is_done() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let before = home.snapshot();
    let long: Vec<String> = (1..=65).map(|port| format!("--publish={port}")).collect();
    let specs = [
        ("", "\"\" is empty"),
        ("0", r#""0" has "0", which is not a port from 1 to 65535"#),
        ("65536", r#"has "65536""#),
        ("8080:0", r#"has "0""#),
        ("x\u{1b}[31m", r#""x\u{1b}[31m" has "x\u{1b}[31m", which is not a port"#),
        ("3000/udp", "has no way into a sandbox: only TCP can be published"),
        ("3000/sctp", r#"is for "sctp""#),
        ("3000-3010", "is a range"),
        ("127.0.0.1:3000", "write both, such as 127.0.0.1:3000:3000, or 127.0.0.1:0:3000 for any free one"),
        ("::1:80:80", "write it like [::1]:8080:3000"),
        ("[::1]:80", "write both"),
        ("[::1", "is not a published port"),
        ("example.com:80:80", "is not an IP address of this machine"),
    ];
    for (spec, part) in specs {
        for args in [
            &["run", "-p", spec, "shell"][..],
            &["ports", "box", "--publish", spec],
            &["ports", "box", "--unpublish", spec],
        ] {
            refused(&home.run(args), part);
        }
    }
    let cases: [(&[&str], &str); 8] = [
        (&["ports"], "ports needs NAME"),
        (&["ports", "bix"], r#"no sandbox "bix"; did you mean box?"#),
        (&["ports", "bix", "--publish", "1"], r#"no sandbox "bix""#),
        (
            &["ports", "box", "--unpublish", "3000"],
            "sandbox box does not publish 3000; coracle ports box lists",
        ),
        (&["ports", "box", "--unpublish", "1:3000"], "sandbox box does not publish 1:3000"),
        (
            &["run", "-p", "80:1", "-p", "127.0.0.1:80:2", "shell"],
            "localhost:80->1 and 127.0.0.1:80->2 need the same port of this machine",
        ),
        (&["run", "-p", "3000", "--network", "none", "shell"], "-p and --network none exclude each other"),
        (
            &["run", "--name", "box", "-p", "3000", "shell"],
            "sandbox box does not publish 3000; add it with coracle ports box --publish 3000",
        ),
    ];
    for (args, part) in cases {
        refused(&home.run(args), part);
    }
    let mut args = vec!["ports".to_owned(), "box".to_owned()];
    args.extend(long);
    refused(&home.run(&args), "65 ports are too many; 64 can be published");
    assert_eq!(home.snapshot(), before);
}

#[test]
fn a_busy_port_is_told_before_anything_is_made() {
    let home = Home::new();
    let (_listener, port) = busy();
    let spec = format!("{port}:80");
    let ran = home.run(["run", "-p", &spec, "shell"]);
    refused(
        &ran,
        &format!(
            "port {port} of 127.0.0.1 is in use; end what uses it, or publish another: -p 0:80 (0 is any that is free)"
        ),
    );
    assert_eq!(home.snapshot(), [""; 0]);
    let folder = home.sandbox("box", "0123456789ab");
    refused(&home.run(["ports", "box", "--publish", &spec]), "or publish another: --publish 0:80");
    assert_eq!(kept(&folder), Value::Null);
    refused(
        &home.run(["ports", "box", "--publish", "192.0.2.1:8080:80"]),
        "192.0.2.1 is not an address of this machine",
    );
}

#[test]
fn a_sandbox_that_has_a_busy_port_does_not_start_and_says_how_it_would() {
    let home = Home::new();
    let folder = home.sandbox("box", "0123456789ab");
    let port = free();
    good(&home, &["ports", "box", "--publish", &format!("127.0.0.1:{port}:80")]);
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let ran = home.run(["exec", "box", "true"]);
    refused(
        &ran,
        &format!(
            "port {port} of 127.0.0.1 is in use; end what uses it, or publish another: \
        coracle ports box --unpublish 80 --publish 0:80"
        ),
    );
    assert!(!folder.join("exec.sock").exists() && !folder.join("marks").exists(), "nothing was started");
    // Where another sandbox is why, it is named.
    let _other = home.running("other", drop);
    let other = home.sandboxes().join("other/config.json");
    fs::copy(folder.join("config.json"), &other).unwrap();
    assert!(home.run(["exec", "box", "true"]).stderr.contains("in use by sandbox other; end"));
}

#[test]
fn what_a_stopped_sandbox_publishes_is_kept() {
    let home = Home::new();
    let folder = home.sandbox("box", "0123456789ab");
    let (one, other) = (free(), free());
    good(
        &home,
        &[
            "ports",
            "box",
            "--publish",
            &format!("{one}:3000"),
            "--publish",
            &format!("[::1]:{other}:3001/tcp"),
        ],
    );
    let listed = good(&home, &["ports", "box"]);
    let shown = listed.replace(&one.to_string(), "11111").replace(&other.to_string(), "22222");
    expect![[r#"
        HOST              SANDBOX
        localhost:11111   3000
        [::1]:22222       3001
    "#]]
    .assert_eq(&shown);
    // Again is no other.
    assert_eq!(good(&home, &["ports", "box", "--publish", &format!("{one}:3000")]), listed);
    let json: Value = serde_json::from_str(&good(&home, &["ports", "box", "--json"])).unwrap();
    let wanted = serde_json::json!({
        "address": "localhost", "host_port": one, "port": 3000, "protocol": "tcp", "any": false
    });
    assert_eq!(json[0], wanted);
    let ls: Value = serde_json::from_str(&good(&home, &["ls", "--json"])).unwrap();
    assert_eq!(ls[0]["ports"], json);
    assert!(good(&home, &["ls"]).contains(&format!("localhost:{one}->3000 [::1]:{other}->3001")));

    let any = good(&home, &["ports", "box", "--publish", "127.0.0.1:0:9000"]);
    assert!(!any.contains(":0 "), "it has a number: {any}");
    assert_eq!(kept(&folder)[2]["any"], true);
    good(&home, &["ports", "box", "--unpublish", &format!("{one}:3000"), "--unpublish", "9000"]);
    assert_eq!(kept(&folder).as_array().unwrap().len(), 1);
    good(&home, &["ports", "box", "--unpublish", "3001"]);
    assert_eq!(good(&home, &["ports", "box"]), "HOST   SANDBOX\n");
    assert_eq!(kept(&folder), Value::Null);
}

/// A gateway that hears what it is told so many times, and answers.
fn gateway(folder: &Path, times: usize) -> JoinHandle<Vec<(Change, Vec<SocketAddr>)>> {
    let control = handover::listener(folder.join("gateway.ctl").to_str().unwrap()).unwrap();
    thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while heard.len() < times && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            let Ok(command) = rustix::net::accept(&control) else { continue };
            let Some((change, sockets)) = handover::receive(&command).unwrap() else { continue };
            let listener = |socket| TcpListener::from(socket).local_addr().unwrap();
            heard.push((change, sockets.into_iter().map(listener).collect()));
            handover::send(&command, &true, &[]).unwrap();
        }
        heard
    })
}

#[test]
fn the_gateway_of_a_running_sandbox_is_told_with_open_sockets() {
    let home = Home::new();
    let Running { folder, lock: _held } = home.running("box", drop);
    let heard = gateway(&folder, 1);
    let port = free();
    good(&home, &["ports", "box", "--publish", &format!("{port}:3000")]);
    let [(change, open)] = &heard.join().unwrap()[..] else { panic!("one change") };
    assert_eq!(change.remove, []);
    let at: Vec<SocketAddr> = change.add.iter().map(|it| it.at).collect();
    assert!(at == *open && at[0] == SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), "{at:?}");
    assert!(change.add.iter().all(|it| it.guest == 3000));

    // One goes before another takes its place, and a busy one is told before any goes.
    let (_listener, busy) = busy();
    let other = [format!("{busy}:1"), format!("{port}:3001")];
    let args = ["ports", "box", "--unpublish", "3000", "--publish"];
    refused(&home.run(args.into_iter().chain([&*other[0]])), "is in use");
    assert_eq!(kept(&folder)[0]["guest"], 3000);
    fs::remove_file(folder.join("gateway.ctl")).unwrap();
    let heard = gateway(&folder, 2);
    good(&home, &args.into_iter().chain([&*other[1]]).collect::<Vec<_>>());
    let [(first, _), (second, _)] = &heard.join().unwrap()[..] else { panic!("two changes") };
    assert!(first.remove == at[..] || first.remove.starts_with(&at), "{first:?}");
    assert_eq!((first.add.len(), second.remove.len(), second.add[0].guest), (0, 0, 3001));
    assert_eq!(kept(&folder)[0]["guest"], 3001);
}

#[test]
fn without_a_gateway_it_holds_from_the_next_start_on_and_is_told() {
    let home = Home::new();
    let Running { folder, lock: _held } = home.running("box", drop);
    let ran = home.run(["ports", "box", "--publish", &format!("{}:3000", free())]);
    refused(&ran, "this holds for sandbox box from its next start on, for which there is coracle stop box");
    assert_eq!(kept(&folder)[0]["guest"], 3000);
}

#[test]
fn help_teaches() {
    let home = Home::new();
    expect_file!["help/ports.txt"].assert_eq(home.run(["help", "ports"]).stdout());
}
