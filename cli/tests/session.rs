//! Sessions with a sandbox that the test plays: streams, exit codes, signals and failures.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Reply, Request, Role};
use rustix::process::{Pid, Signal, kill_process};
use support::{Home, Ran, Watchdog, eventually};

#[test]
fn the_command_gets_what_was_asked_for() {
    let home = Home::new();
    let (send, receive) = mpsc::channel();
    let _box = home.running("shell-proj", move |session| {
        send.send(session.exec.clone()).unwrap();
        session.finish(b"", 0);
    });
    let text = |bytes: &[Vec<u8>]| {
        bytes.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect::<Vec<_>>()
    };

    let ran = home.run(["run", "-e", "A=1", "shell", ".", "--", "-c", "echo hi"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let exec = receive.recv().unwrap();
    assert_eq!(text(&exec.argv), ["/bin/bash", "-l", "-c", "echo hi"]);
    assert_eq!(text(&exec.env), ["PATH=/usr/bin:/bin", "STORED=1", "A=1"]);
    assert_eq!(exec.cwd, home.path("proj").as_os_str().as_encoded_bytes());
    assert_eq!(exec.user, "agent");

    let ran =
        home.run(["exec", "-w", "/x", "-u", "root:0", "-e", "STORED=2", "0123", "ls", "-la", "--", "\u{1}"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let exec = receive.recv().unwrap();
    assert_eq!(text(&exec.argv), ["ls", "-la", "--", "\u{1}"]);
    assert_eq!(text(&exec.env), ["PATH=/usr/bin:/bin", "STORED=2"]);
    assert_eq!((exec.cwd.as_slice(), exec.user.as_str()), (b"/x".as_slice(), "root:0"));

    use std::os::unix::ffi::OsStringExt;
    let bytes = std::ffi::OsString::from_vec(b"\xff\xfe\n".to_vec());
    home.run([std::ffi::OsString::from("exec"), "shell-proj".into(), "echo".into(), bytes]);
    assert_eq!(receive.recv().unwrap().argv[1], b"\xff\xfe\n");
}

#[test]
fn streams_are_apart_and_binary_safe() {
    let home = Home::new();
    let _box = home.running("shell-proj", |mut session| {
        session.reply(&Reply::Started);
        let mut input = Vec::new();
        session.stream(Role::Stdin).read_to_end(&mut input).unwrap();
        session.stream(Role::Stderr).write_all(b"to the error stream").unwrap();
        session.stream(Role::Stdout).write_all(&input).unwrap();
        session.reply(&Reply::Exited { code: 7 });
    });
    let input: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()).collect();
    let mut child = home.command(["run", "shell"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = thread::spawn(move || stdin.write_all(&sent).unwrap());
    let ran = Ran::of(child);
    writer.join().unwrap();
    assert_eq!(ran.code, Some(7));
    assert_eq!(ran.stderr, "to the error stream");
    assert!(ran.stdout == input, "{} bytes of {}", ran.stdout.len(), input.len());
}

#[test]
fn a_slow_reader_gets_everything_before_the_end() {
    let home = Home::new();
    let output = vec![b'x'; 4 << 20];
    let expected = output.clone();
    let _box = home.running("shell-proj", move |session| session.finish(&output, 3));
    let mut child = home.command(["exec", "shell-proj", "x"]).spawn().unwrap();
    let _watchdog = Watchdog::new(&child);
    // Longer than a guest may take to close its streams.
    thread::sleep(Duration::from_millis(1500));
    let mut got = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    assert!(got == expected, "{} bytes", got.len());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_reader_that_goes_ends_the_writer() {
    let home = Home::new();
    let _box = home.running("shell-proj", |mut session| {
        session.reply(&Reply::Started);
        // As `yes`: until nobody takes it any more.
        while session.stream(Role::Stdout).write_all(&[b'y'; 4096]).is_ok() {}
        session.reply(&Reply::Exited { code: 141 });
    });
    let mut child = home.command(["exec", "shell-proj", "yes"]).spawn().unwrap();
    let _watchdog = Watchdog::new(&child);
    let mut first = [0; 10];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_command_that_reads_no_input_does_not_hang() {
    let home = Home::new();
    let _box = home.running("shell-proj", |mut session| {
        session.reply(&Reply::Started);
        session.close(Role::Stdin);
        thread::sleep(Duration::from_millis(50));
        session.reply(&Reply::Exited { code: 0 });
    });
    // Input that never ends, and input that is never there.
    let zero = fs::File::open("/dev/zero").unwrap();
    assert_eq!(Ran::of(home.command(["run", "shell"]).stdin(zero).spawn().unwrap()).code, Some(0));
    let mut child = home.command(["run", "shell"]).stdin(Stdio::piped()).spawn().unwrap();
    let _held = child.stdin.take();
    assert_eq!(Ran::of(child).code, Some(0));
}

#[test]
fn what_a_background_process_holds_open_is_not_waited_for() {
    let home = Home::new();
    let _box = home.running("shell-proj", |mut session| {
        session.reply(&Reply::Started);
        session.stream(Role::Stdout).write_all(b"out").unwrap();
        session.reply(&Reply::Exited { code: 0 });
        while session.request().is_some() {}
    });
    let begin = Instant::now();
    let ran = home.run(["exec", "shell-proj", "x"]);
    assert_eq!((ran.code, ran.stdout()), (Some(0), "out"));
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn failures_are_told_and_harmless() {
    let home = Home::new();
    let answers = AtomicUsize::new(0);
    let _box = home.running("shell-proj", move |mut session| match answers.fetch_add(1, Ordering::Relaxed) {
        0 => session.reply(&Reply::Failed { code: 127, message: "\x1b[2Jno such command".into() }),
        1 => session.reply(&Reply::Failed { code: 126, message: "not executable".into() }),
        2 => session.reply(&Reply::VersionMismatch { init: 9 }),
        3 => session.raw_reply(&[0xff; 64]),
        4 => session.raw_reply(&[0xff, 0xff, 0, 0, 0x20]),
        5 => session.raw_reply(&[0, 0, 0, 0, 0x77]),
        // A flood of replies, a late one, an exit code without a start.
        6 => {
            for _ in 0..10_000 {
                session.reply(&Reply::Started);
            }
            session.reply(&Reply::Exited { code: 5 });
            session.reply(&Reply::Exited { code: 6 });
        }
        _ => session.reply(&Reply::Exited { code: 4 }),
    });
    let expected = [
        (127, "coracle: \\u{1b}[2Jno such command\n"),
        (126, "coracle: not executable\n"),
        (
            125,
            "coracle: sandbox shell-proj speaks protocol version 9, this Coracle 1; run coracle stop shell-proj, then again\n",
        ),
        (
            125,
            "coracle: sandbox shell-proj answers nonsense (message is 4294967295 long, at most 4160); do not trust what it did\n",
        ),
        (
            125,
            "coracle: sandbox shell-proj answers nonsense (message is 65535 long, at most 4160); do not trust what it did\n",
        ),
        (
            125,
            "coracle: sandbox shell-proj answers nonsense (message of unexpected kind 0x77); do not trust what it did\n",
        ),
        (5, ""),
        (4, ""),
    ];
    for (code, message) in expected {
        let ran = home.run(["exec", "shell-proj", "x"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(code), message));
    }
}

#[test]
fn a_session_that_met_a_stopping_vm_is_tried_again_with_all_its_input() {
    let home = Home::new();
    let answers = AtomicUsize::new(0);
    let _box = home.running("shell-proj", move |mut session| {
        if answers.fetch_add(1, Ordering::Relaxed) < 3 {
            return;
        }
        session.reply(&Reply::Started);
        let mut input = Vec::new();
        session.stream(Role::Stdin).read_to_end(&mut input).unwrap();
        session.stream(Role::Stdout).write_all(&input).unwrap();
        session.reply(&Reply::Exited { code: 0 });
    });
    let mut child = home.command(["run", "shell"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"all of it").unwrap();
    let ran = Ran::of(child);
    assert_eq!((ran.code, ran.stdout()), (Some(0), "all of it"), "{}", ran.stderr);
}

#[test]
fn the_death_of_a_vm_is_explained() {
    let cases = [
        (r#"{"exit":"powered_off"}"#, "it was stopped"),
        (
            r#"{"exit":"panicked","console":"a\nKernel panic - not syncing: oops\nb"}"#,
            "the guest kernel panicked: Kernel panic - not syncing: oops",
        ),
        (r#"{"exit":"reset"}"#, "the guest rebooted, which ends a sandbox; start it again with coracle run"),
        ("", "its VMM was killed, perhaps for want of memory; run it again"),
        ("{\"exit\":", "its VMM was killed, perhaps for want of memory; run it again"),
    ];
    for (report, sentence) in cases {
        let home = Home::new();
        let (send, receive) = mpsc::channel::<(std::path::PathBuf, fs::File)>();
        let receive = std::sync::Mutex::new(receive);
        let running = home.running("shell-proj", move |mut session| {
            session.reply(&Reply::Started);
            let (folder, lock) = receive.lock().unwrap().recv().unwrap();
            fs::write(folder.join("exit.json"), report).unwrap();
            drop(session);
            // The process ends a little after its connections.
            thread::sleep(Duration::from_millis(30));
            drop(lock);
        });
        send.send((running.folder, running.lock)).unwrap();
        let ran = home.run(["exec", "shell-proj", "x"]);
        assert_eq!(ran.code, Some(125));
        assert_eq!(
            ran.stderr,
            format!("coracle: sandbox shell-proj ended while the command ran: {sentence}\n")
        );
    }
}

/// Starts a session and waits until its command runs.
fn started(home: &Home, args: &[&str], signals: &mpsc::Receiver<()>) -> std::process::Child {
    let child = home.command(args).spawn().unwrap();
    signals.recv_timeout(support::PATIENCE).unwrap();
    child
}

#[test]
fn signals_go_to_the_command() {
    let home = Home::new();
    let (send, running) = mpsc::channel();
    let _box = home.running("shell-proj", move |mut session| {
        session.reply(&Reply::Started);
        session.stream(Role::Stdout).write_all(b"x").unwrap();
        send.send(()).unwrap();
        let Some(Request::Signal(signal)) = session.request() else { return };
        session.reply(&Reply::Exited { code: 128 + signal });
    });
    for (signal, code) in [
        (Signal::TERM, 143),
        (Signal::INT, 130),
        (Signal::HUP, 129),
        (Signal::USR1, 138),
        (Signal::QUIT, 131),
    ] {
        let mut child = started(&home, &["exec", "shell-proj", "x"], &running);
        // The first output shows that the CLI has seen the start.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        thread::sleep(Duration::from_millis(20));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(Ran::of(child).code, Some(code));
    }
}

#[test]
fn a_start_can_be_given_up() {
    let home = Home::new();
    let (send, waiting) = mpsc::channel();
    let _box = home.running("shell-proj", move |mut session| {
        send.send(()).unwrap();
        assert_eq!(session.request(), None, "the CLI hangs up");
    });
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let child = started(&home, &["run", "shell"], &waiting);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(Ran::of(child).code, Some(code));
    }
}

#[test]
fn ignored_signals_stay_ignored() {
    let home = Home::new();
    let (send, running) = mpsc::channel();
    let _box = home.running("shell-proj", move |mut session| {
        session.reply(&Reply::Started);
        send.send(()).unwrap();
        let Some(Request::Signal(signal)) = session.request() else { return };
        session.reply(&Reply::Exited { code: 128 + signal });
    });
    let exe = env!("CARGO_BIN_EXE_coracle");
    let command = home.command([""]);
    let mut nohup = std::process::Command::new("nohup");
    nohup.arg(exe).args(["exec", "shell-proj", "x"]).current_dir(home.path("proj"));
    nohup.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    nohup.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = nohup.spawn().unwrap();
    running.recv().unwrap();
    thread::sleep(Duration::from_millis(50));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    thread::sleep(Duration::from_millis(50));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(Ran::of(child).code, Some(143), "not the hangup");
}

#[test]
fn closed_standard_streams_are_no_trouble() {
    let home = Home::new();
    let _box = home.running("shell-proj", |session| session.finish(b"", 9));
    let exe = env!("CARGO_BIN_EXE_coracle");
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mut shell = std::process::Command::new("sh");
        let script = format!("exec {exe} run shell . -- x {closed}");
        shell.arg("-c").arg(script).current_dir(home.path("proj")).env_clear();
        shell.envs(home.command([""]).get_envs().filter_map(|(key, value)| Some((key, value?))));
        let ran = Ran::of(shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!(ran.code, Some(9), "{closed}: {}", ran.stderr);
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let home = Home::new();
    let _box = home.running("shell-proj", |session| session.finish(b"x", 0));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = Ran::of(home.command(["exec", "shell-proj", "x"]).stdout(full).spawn().unwrap());
    assert_eq!(ran.code, Some(125));
    assert!(ran.stderr.starts_with("coracle: write the command's output: No space left"), "{}", ran.stderr);
}

#[test]
fn too_much_of_a_command_is_refused_before_anything_is_sent() {
    let home = Home::new();
    let before = home.snapshot();
    // Linux allows 128 KiB less one byte for an argument, so many of them together are what is too long.
    let args = ["run", "shell", ".", "--", "echo"].map(String::from).into_iter();
    let ran = home.run(args.chain((0..12).map(|_| "x".repeat(100_000))));
    assert_eq!(ran.code, Some(125));
    assert!(ran.stderr.contains("too much"), "{}", ran.stderr);
    assert_eq!(home.snapshot(), before);
}

#[test]
fn timings_are_printed_for_people_and_programs() {
    let home = Home::new();
    let _box = home.running("shell-proj", |session| session.finish(b"x", 0));
    let ran = home.run(["run", "--timings", "shell"]);
    let names: Vec<_> = ran.stderr.lines().skip(1).map(|line| line[..18].trim_end().to_owned()).collect();
    assert_eq!(names, ["cli start", "first byte", "exit code"], "{}", ran.stderr);
    let ran = home.run(["run", "--timings=json", "shell"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert!(json["timings_ms"]["exit_code"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_sandbox_that_takes_no_connections_is_given_up() {
    let home = Home::new();
    let folder = home.sandbox("shell-proj", "0123456789ab");
    let lock = fs::File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let child = home.command(["exec", "shell-proj", "x"]).spawn().unwrap();
    let pid = Pid::from_child(&child);
    thread::sleep(Duration::from_millis(200));
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(Ran::of(child).code, Some(130), "waiting can be given up");
    drop(lock);
    eventually("the lock is free", || home.run(["ls"]).stdout().contains("stopped"));
}
