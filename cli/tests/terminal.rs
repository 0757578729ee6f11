//! Sessions on a terminal: raw while the command runs, and as it was found after every kind of end.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;

use protocol::{Reply, Request, Role, Stdio as Wanted, WinSize};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use support::{Home, Session, Watchdog, eventually, share, terminal};

struct Screen {
    user: File,
    program: OwnedFd,
}

impl Screen {
    fn new(rows: u16, columns: u16) -> Self {
        let (user, program) = terminal();
        let screen = Self { user, program };
        screen.resize(rows, columns);
        screen
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.user, size).unwrap();
    }

    fn start(&self, home: &Home, args: &[&str]) -> (Child, Watchdog) {
        let mut command = home.command(args);
        command.stdin(share(&self.program)).stdout(share(&self.program)).stderr(share(&self.program));
        let child = command.env("TERM", "xterm").spawn().unwrap();
        let watchdog = Watchdog::new(&child);
        (child, watchdog)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.program.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn wait_raw(&self) {
        eventually("raw mode", || self.is_raw());
    }
}

/// A sandbox whose command says so and waits for what is told to it: requests, and at last its end.
fn told(
    home: &Home,
    end: impl Fn(&mut Session) + Send + 'static,
) -> (support::Running, mpsc::Receiver<Request>) {
    let (send, requests) = mpsc::channel();
    let running = home.running("shell-proj", move |mut session| {
        let Wanted::Tty(size) = session.exec.stdio else { panic!("no terminal") };
        send.send(Request::Resize(size)).unwrap();
        session.reply(&Reply::Started);
        end(&mut session);
        while let Some(request) = session.request() {
            send.send(request).unwrap();
        }
    });
    (running, requests)
}

fn size(rows: u16, columns: u16) -> Request {
    Request::Resize(WinSize { rows, columns })
}

#[test]
fn a_session_has_a_terminal_of_our_size_and_gives_ours_back() {
    let home = Home::new();
    let (send, exec) = mpsc::channel();
    let _box = home.running("shell-proj", move |mut session| {
        send.send(session.exec.clone()).unwrap();
        session.reply(&Reply::Started);
        let mut typed = [0; 5];
        session.stream(Role::Tty).read_exact(&mut typed).unwrap();
        session.stream(Role::Tty).write_all(&typed).unwrap();
        session.reply(&Reply::Exited { code: 42 });
    });
    let mut screen = Screen::new(33, 101);
    let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
    screen.wait_raw();
    // What a cooked terminal would have kept to itself.
    screen.user.write_all(b"a\x03\x1a\x04\x7f").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    assert!(!screen.is_raw());
    let mut shown = [0; 5];
    screen.user.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"a\x03\x1a\x04\x7f");
    let exec = exec.recv().unwrap();
    assert_eq!(exec.stdio, Wanted::Tty(WinSize { rows: 33, columns: 101 }));
    assert!(exec.env.contains(&b"TERM=xterm".to_vec()), "{:?}", exec.env);
}

#[test]
fn the_terminal_is_restored_after_every_kind_of_end() {
    type End = (&'static str, fn(&mut Session), i32);
    let ends: [End; 3] = [
        ("nonsense", |session| session.raw_reply(&[0xff; 9]), 125),
        ("failure", |session| session.reply(&Reply::Failed { code: 127, message: "x".into() }), 127),
        ("exit", |session| session.reply(&Reply::Exited { code: 1 }), 1),
    ];
    for (name, end, code) in ends {
        let home = Home::new();
        let _box = told(&home, move |session| {
            // As late as any raw mode.
            thread::sleep(std::time::Duration::from_millis(50));
            end(session);
        });
        let screen = Screen::new(24, 80);
        let (mut child, _watchdog) = screen.start(&home, &["exec", "-it", "shell-proj", "bash"]);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
        assert!(!screen.is_raw(), "{name}");
    }
}

#[test]
fn the_terminal_is_restored_before_a_signal_ends_us() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let home = Home::new();
        let _box = told(&home, |_| ());
        let screen = Screen::new(24, 80);
        let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
        screen.wait_raw();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!screen.is_raw());
    }
}

#[test]
fn stopping_gives_the_terminal_back_and_continuing_takes_it() {
    let home = Home::new();
    let (_box, requests) = told(&home, |_| ());
    let screen = Screen::new(24, 80);
    let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
    let pid = Pid::from_child(&child);
    assert_eq!(requests.recv().unwrap(), size(24, 80));
    for _ in 0..3 {
        screen.wait_raw();
        kill_process(pid, Signal::TSTP).unwrap();
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap().1;
        assert!(stopped.stopped());
        assert!(!screen.is_raw());
        kill_process(pid, Signal::CONT).unwrap();
    }
    screen.wait_raw();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!screen.is_raw());
}

#[test]
fn a_new_size_reaches_the_command() {
    let home = Home::new();
    let (_box, requests) = told(&home, |_| ());
    let screen = Screen::new(0, 0);
    let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
    assert_eq!(requests.recv().unwrap(), size(24, 80), "a terminal that does not know its size");
    screen.wait_raw();
    screen.resize(50, 132);
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    assert!(requests.iter().any(|request| request == size(50, 132)));
    // A storm of them neither blocks nor grows anything.
    for columns in 0..2000 {
        screen.resize(10, 100 + columns);
        kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    }
    assert!(requests.iter().any(|request| request == size(10, 2099)));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_terminal_that_goes_away_ends_the_session() {
    let home = Home::new();
    let _box = told(&home, |_| ());
    let screen = Screen::new(24, 80);
    let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
    screen.wait_raw();
    let Screen { user, program } = screen;
    drop(user);
    assert_eq!(child.wait().unwrap().code(), Some(129));
    drop(program);
}

#[test]
fn a_terminal_is_only_asked_for_where_there_is_one() {
    let home = Home::new();
    let _box = home.running("shell-proj", |session| {
        assert!(matches!(session.exec.stdio, Wanted::Pipes { .. }));
        session.finish(b"", 0);
    });
    for args in [["exec", "-it", "shell-proj", "x"].as_slice(), &["run", "--tty", "shell"]] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(125));
        assert_eq!(
            ran.stderr,
            "coracle: -t needs a terminal for input and output, and there is none; leave it out\n"
        );
    }
    // Output to a file, input from a terminal: streams, and the terminal is left alone.
    let screen = Screen::new(24, 80);
    let mut command = home.command(["run", "shell"]);
    let mut child = command.stdin(share(&screen.program)).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!screen.is_raw());
}

#[test]
fn a_frozen_screen_does_not_keep_us_from_ending() {
    let home = Home::new();
    let _box = told(&home, |session| {
        // More than the terminal takes, and nobody reads it.
        let _ = session.stream(Role::Tty).write_all(&[b'x'; 300_000]);
    });
    let screen = Screen::new(24, 80);
    let (mut child, _watchdog) = screen.start(&home, &["run", "shell"]);
    screen.wait_raw();
    thread::sleep(std::time::Duration::from_millis(100));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!screen.is_raw());
}
