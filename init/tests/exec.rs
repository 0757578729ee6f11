//! The exec server as its clients see it: real processes and terminals, over Unix sockets instead of vsock.
//! It owns the client's side of the protocol for tests. The server runs in a process of its own: it forks, which a
//! process with threads, as a test is, must not.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use init::docker::Docker;
use init::exec::server::Server;
use init::housekeeping::Housekeeping;
use init::network::Network;
use init::reap::Container;
use protocol::{Decoder, Exec, Hello, Message, Reply, Request, Role, Stdio, Token, VERSION, WinSize};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// Nothing here takes a fraction of it, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const SOCKET: &str = "INIT_TEST_SOCKET";
const CONTAINER: &str = "INIT_TEST_CONTAINER";

/// A server process, killed at the end of the test.
struct Guest {
    process: Child,
    socket: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Guest {
    fn start() -> Self {
        Self::start_with("")
    }

    fn start_with(container: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("socket");
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_server_itself", "--test-threads", "1", "--nocapture"])
            .env(SOCKET, &socket)
            .env(CONTAINER, container)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the server to listen", || UnixStream::connect(&socket).is_ok());
        Self { process, socket, _scratch: scratch }
    }

    fn run(&self, script: &str) -> Session {
        self.exec(&["sh", "-c", script], pipes())
    }

    fn exec(&self, argv: &[&str], stdio: Stdio) -> Session {
        Session::start(&self.socket, command(argv, stdio))
    }

    fn connect(&self) -> UnixStream {
        connect(&self.socket)
    }

    fn wait_for_end(&mut self) {
        wait_for("the server to end", || self.process.try_wait().unwrap().is_some());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: what the others start. Without their environment it does nothing.
#[test]
fn the_server_itself() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let container = (!std::env::var_os(CONTAINER).unwrap_or_default().is_empty()).then(|| {
        init::sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWPID).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        Container::start().unwrap()
    });
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    Server::new(listener.into(), container, None, Housekeeping::none(), Docker::none(), Network::none())
        .run();
}

/// The client's side of a session.
struct Session {
    control: UnixStream,
    decoder: Decoder,
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
    tty: Option<UnixStream>,
}

impl Session {
    fn start(socket: &Path, exec: Exec) -> Self {
        let token = new_token();
        let open = |wanted: bool, role| wanted.then(|| hello(connect(socket), token, role));
        let (stdin, stdout, stderr, tty) = match exec.stdio {
            Stdio::Tty(_) => (false, false, false, true),
            Stdio::Pipes { stdin, stdout, stderr } => (stdin, stdout, stderr, false),
        };
        let control = hello(connect(socket), token, Role::Control);
        let mut session = Self {
            control,
            decoder: Decoder::default(),
            stdin: open(stdin, Role::Stdin),
            stdout: open(stdout, Role::Stdout),
            stderr: open(stderr, Role::Stderr),
            tty: open(tty, Role::Tty),
        };
        session.send(&Request::Exec(exec));
        session
    }

    fn send(&mut self, request: &Request) {
        self.control.write_all(&request.encode().unwrap()).unwrap();
    }

    fn type_in(&mut self, text: &str) {
        self.tty.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.decoder.take().unwrap() {
                return reply;
            }
            let mut buffer = [0; 100];
            let count = self.control.read(&mut buffer).expect("a reply in time");
            assert_ne!(count, 0, "the server hung up");
            self.decoder.feed(&buffer[..count]);
        }
    }

    fn code(&mut self) -> u8 {
        assert_eq!(self.reply(), Reply::Started);
        match self.reply() {
            Reply::Exited { code } => code,
            other => panic!("not an exit: {other:?}"),
        }
    }

    /// All output, and the exit code.
    fn finish(mut self) -> (String, String, u8) {
        drop(self.stdin.take());
        let (out, err) = (read_all(self.stdout.take()), read_all(self.stderr.take()));
        (out, err, self.code())
    }

    fn wait_for_output(&mut self, wanted: &str) -> String {
        let stream = self.tty.as_mut().or(self.stdout.as_mut()).unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let mut buffer = [0; 1000];
            let count = stream.read(&mut buffer).expect("output in time");
            assert_ne!(count, 0, "no {wanted:?} in {:?}", String::from_utf8_lossy(&seen));
            seen.extend(&buffer[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }
}

fn pipes() -> Stdio {
    Stdio::Pipes { stdin: true, stdout: true, stderr: true }
}

fn tty() -> Stdio {
    Stdio::Tty(WinSize { rows: 24, columns: 80 })
}

fn command(argv: &[&str], stdio: Stdio) -> Exec {
    Exec {
        argv: argv.iter().map(|it| it.as_bytes().to_vec()).collect(),
        env: vec![format!("PATH={}", std::env::var("PATH").unwrap()).into_bytes()],
        cwd: b"/".to_vec(),
        user: rustix::process::getuid().as_raw().to_string(),
        stdio,
    }
}

fn new_token() -> Token {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    [NEXT.fetch_add(1, Ordering::Relaxed); 16]
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn hello(mut stream: UnixStream, token: Token, role: Role) -> UnixStream {
    stream.write_all(&Hello { token, role }.encode().unwrap()).unwrap();
    stream
}

fn read_all(stream: Option<UnixStream>) -> String {
    let mut text = Vec::new();
    stream.unwrap().read_to_end(&mut text).expect("the end in time");
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The connection has been closed by the server.
#[track_caller]
fn expect_hung_up(mut stream: UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert_eq!(rest, b""),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn streams_come_apart_and_the_code_is_the_commands() {
    let guest = Guest::start();
    let expected = ("out\n".into(), "err\n".into(), 7);
    assert_eq!(guest.run("echo out; echo err >&2; exit 7").finish(), expected);
    assert_eq!(guest.run("exit 255").finish().2, 255);
    assert_eq!(guest.exec(&["true"], pipes()).finish().2, 0);
}

#[test]
fn a_command_without_streams_has_dev_null() {
    let guest = Guest::start();
    let stdio = Stdio::Pipes { stdin: false, stdout: true, stderr: false };
    let mut session = guest.exec(&["sh", "-c", "readlink /proc/self/fd/0 /proc/$$/fd/2"], stdio);
    assert_eq!(read_all(session.stdout.take()), "/dev/null\n/dev/null\n");
    assert_eq!(session.code(), 0);
    let none = Stdio::Pipes { stdin: false, stdout: false, stderr: false };
    assert_eq!(guest.exec(&["sh", "-c", "exit 3"], none).code(), 3);
}

#[test]
fn input_is_binary_safe_and_its_end_is_passed_on() {
    let guest = Guest::start();
    let mut session = guest.exec(&["cat"], pipes());
    let sent: Vec<u8> = (0..3 << 20).map(|it: u32| it.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut stdin = session.stdin.take().unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut received = Vec::new();
            stdout.read_to_end(&mut received).unwrap();
            received
        });
        stdin.write_all(&sent).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    assert_eq!(session.code(), 0);
}

#[test]
fn a_client_that_reads_slowly_gets_everything_before_the_exit_code() {
    let guest = Guest::start();
    let mut session = guest.run("head -c 3000000 /dev/zero");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(read_all(session.stdout.take()).len(), 3_000_000);
    assert_eq!(session.code(), 0);
}

#[test]
fn a_background_process_does_not_hold_up_the_exit() {
    let guest = Guest::start();
    let (out, _, code) = guest.run("sleep 60 & echo $!; exit 4").finish();
    assert!(is_alive(&out), "what was started in the background stays");
    assert_eq!(code, 4);
    guest.run(&format!("kill {out}")).finish();
}

#[test]
fn a_background_writer_does_not_hold_up_the_exit_either() {
    let guest = Guest::start();
    let mut session = guest.run("yes & sleep 0.1; exit 5");
    assert!(!read_all(session.stdout.take()).is_empty());
    assert_eq!(session.code(), 5);
}

#[test]
fn output_that_nobody_reads_breaks_the_pipe() {
    let guest = Guest::start();
    let mut session = guest.exec(&["yes"], pipes());
    session.wait_for_output("y\n");
    drop(session.stdout.take());
    assert_eq!(session.code(), 128 + 13);
}

#[test]
fn signals_reach_the_command_and_its_end_by_one_shows() {
    let guest = Guest::start();
    let mut session = guest.exec(&["sleep", "60"], pipes());
    assert_eq!(session.reply(), Reply::Started);
    session.send(&Request::Signal(15));
    assert_eq!(session.reply(), Reply::Exited { code: 143 });

    let mut session = guest.run("trap 'echo got; exit 9' INT; echo set; while :; do sleep 0.01; done");
    session.wait_for_output("set");
    session.send(&Request::Signal(2));
    assert_eq!(session.finish(), ("got\n".into(), String::new(), 9));
    assert_eq!(guest.run("kill -9 $$").finish().2, 137);
}

#[test]
fn a_command_that_cannot_be_started_says_why() {
    let guest = Guest::start();
    let failure = |exec: Exec| match Session::start(&guest.socket, exec).reply() {
        Reply::Failed { code, message } => (code, message),
        other => panic!("started: {other:?}"),
    };
    let (code, message) = failure(command(&["no-such-program"], pipes()));
    assert_eq!((code, &message[..]), (127, "exec: \"no-such-program\": not found in PATH"));
    assert_eq!(failure(command(&["/no/such/program"], pipes())).0, 127);
    assert_eq!(failure(command(&["/"], pipes())).0, 126);
    assert_eq!(failure(command(&["/etc/passwd"], tty())).0, 126);
    let (code, message) = failure(Exec { cwd: b"/no/such/folder".to_vec(), ..command(&["true"], pipes()) });
    assert!(code == 126 && message.contains("working directory \"/no/such/folder\""), "{code} {message}");
    let (code, message) = failure(Exec { user: "nobody-knows".into(), ..command(&["true"], pipes()) });
    assert!(code == 125 && message.contains("nobody-knows"), "{code} {message}");
}

#[test]
fn a_login_environment_is_filled_in() {
    let guest = Guest::start();
    let (out, _, _) = guest.run("echo $HOME $USER $LOGNAME").finish();
    assert_eq!(out.split_whitespace().count(), 3, "{out}");
}

#[test]
fn standard_streams_can_be_opened_anew() {
    let guest = Guest::start();
    let script = "echo a >/dev/stdout; echo b >/dev/stderr; cat </dev/stdin";
    let mut session = guest.run(script);
    session.stdin.as_mut().unwrap().write_all(b"c\n").unwrap();
    assert_eq!(session.finish(), ("a\nc\n".into(), "b\n".into(), 0));
}

#[test]
fn nothing_of_the_servers_leaks_into_a_command() {
    let guest = Guest::start();
    let other = guest.exec(&["sleep", "60"], pipes());
    let script = "ls /proc/self/fd | wc -l";
    // Whoever started the tests may have left them some, which the server passes on as well.
    let usual = Command::new("sh").args(["-c", script]).output().unwrap();
    assert_eq!(guest.run(script).finish().0, String::from_utf8(usual.stdout).unwrap());
    let (ignored, _, _) = guest.run("sed -n 's/^SigIgn:\t//p' /proc/self/status").finish();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & 1 << (libc::SIGPIPE - 1), 0);
    drop(other);
}

#[test]
fn a_terminal_is_one() {
    let guest = Guest::start();
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && ps -o tty= -p $$ && exit 6";
    let mut session = guest.exec(&["sh", "-c", script], tty());
    let out = read_all(session.tty.take());
    assert!(out.starts_with("24 80\r\npts/"), "{out:?}");
    assert_eq!(session.code(), 6);
}

#[test]
fn a_terminal_resizes_and_says_so() {
    let guest = Guest::start();
    let script = "trap 'stty size; exit' WINCH; echo set; while :; do sleep 0.01; done";
    let mut session = guest.exec(&["sh", "-c", script], tty());
    session.wait_for_output("set");
    session.send(&Request::Resize(WinSize { rows: 50, columns: 132 }));
    session.wait_for_output("50 132");
    for size in [WinSize { rows: 0, columns: 0 }, WinSize { rows: u16::MAX, columns: u16::MAX }] {
        session.send(&Request::Resize(size));
    }
    assert_eq!(session.code(), 0);
}

#[test]
fn control_c_typed_and_sent_both_reach_the_foreground() {
    let guest = Guest::start();
    let mut session = guest.exec(&["bash", "--norc", "-i"], tty());
    session.type_in("trap : INT; sleep 61; echo one=$?\n");
    wait_for("sleep 61", || runs("sleep\x0061"));
    session.type_in("\x03");
    session.wait_for_output("one=130");
    session.type_in("sleep 62; echo two=$?\n");
    wait_for("sleep 62", || runs("sleep\x0062"));
    session.send(&Request::Signal(2));
    session.wait_for_output("two=130");
    session.type_in("exit 8\n");
    assert_eq!(session.code(), 8);
}

fn runs(cmdline: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|it| std::fs::read(it.path().join("cmdline")).unwrap_or_default())
        .any(|it| it.strip_suffix(&[0]).is_some_and(|it| it == cmdline.as_bytes()))
}

#[test]
fn a_terminals_last_words_come_before_the_code() {
    let guest = Guest::start();
    for _ in 0..20 {
        // Somebody still has the terminal open when the command ends.
        let mut session =
            guest.exec(&["sh", "-c", "(trap '' HUP; exec sleep 0.5) & seq 2000; exit 3"], tty());
        let out = read_all(session.tty.take());
        assert!(out.ends_with("1999\r\n2000\r\n"), "{} bytes", out.len());
        assert_eq!(session.code(), 3);
    }
}

#[test]
fn a_client_that_vanishes_hangs_up_its_command() {
    let guest = Guest::start();
    for stdio in [pipes(), tty()] {
        let mut session = guest.exec(&["sh", "-c", "echo pid=$$; sleep 60; sleep 60"], stdio);
        let out = session.wait_for_output("\n");
        let pid = out.trim().strip_prefix("pid=").unwrap().to_owned();
        assert!(is_alive(&pid));
        drop(session);
        wait_for("the command to end", || !is_alive(&pid));
    }
}

#[test]
fn requests_sent_along_with_the_first_are_not_lost() {
    let guest = Guest::start();
    let mut session = guest.exec(&["sh", "-c", "sleep 60"], tty());
    session.send(&Request::Resize(WinSize { rows: 1, columns: 2 }));
    session.send(&Request::Signal(9));
    // The signal may come before the execve.
    assert_eq!(session.code(), 137);
}

#[test]
fn a_session_waits_for_all_of_its_connections_in_any_order() {
    let guest = Guest::start();
    let token = new_token();
    let stdout = hello(guest.connect(), token, Role::Stdout);
    let mut control = hello(guest.connect(), token, Role::Control);
    let exec = command(&["echo", "hi"], Stdio::Pipes { stdin: true, stdout: true, stderr: false });
    control.write_all(&Request::Exec(exec).encode().unwrap()).unwrap();
    control.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    control.read(&mut [0]).unwrap_err();
    let stdin = hello(guest.connect(), token, Role::Stdin);
    assert_eq!(read_all(Some(stdout)), "hi\n");
    drop(stdin);
}

#[test]
fn many_sessions_at_once_do_not_mix() {
    let guest = Guest::start();
    let sessions: Vec<_> =
        (0..40).map(|it| (it, guest.run(&format!("read x; echo {it}; exit {it}")))).collect();
    for (number, mut session) in sessions {
        session.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        assert_eq!(session.finish(), (format!("{number}\n"), String::new(), number));
    }
}

#[test]
fn another_version_is_answered_and_hung_up() {
    let guest = Guest::start();
    let mut frame = Hello { token: new_token(), role: Role::Control }.encode().unwrap();
    frame[5] = 99;
    let mut control = guest.connect();
    control.write_all(&frame).unwrap();
    let mut reply = Vec::new();
    control.read_to_end(&mut reply).unwrap();
    assert_eq!(protocol::decode(&reply), Ok(Reply::VersionMismatch { init: VERSION }));
}

#[test]
fn whoever_breaks_the_rules_is_hung_up_on() {
    let guest = Guest::start();
    let hostile: [&[u8]; 3] = [b"GET / HTTP/1.1\r\n\r\n______", &[0xff; 24], &[0; 5]];
    for bytes in hostile {
        let mut stream = guest.connect();
        stream.write_all(bytes).unwrap();
        expect_hung_up(stream);
    }
    for request in [Request::Signal(9), Request::Resize(WinSize { rows: 1, columns: 1 })] {
        let mut control = hello(guest.connect(), new_token(), Role::Control);
        control.write_all(&request.encode().unwrap()).unwrap();
        expect_hung_up(control);
    }
    let mut session = guest.exec(&["sleep", "60"], pipes());
    assert_eq!(session.reply(), Reply::Started);
    session.send(&Request::Exec(command(&["true"], pipes())));
    expect_hung_up(session.control);
}

#[test]
fn a_connection_that_never_says_what_it_is_is_given_up() {
    let guest = Guest::start();
    let silent = guest.connect();
    let mut half = guest.connect();
    half.write_all(&[19, 0, 0, 0, 1, 1]).unwrap();
    let lonely = hello(guest.connect(), new_token(), Role::Stdin);
    for stream in [silent, half, lonely] {
        expect_hung_up(stream);
    }
}

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let guest = Guest::start();
    let silent: Vec<_> = (0..400).map(|_| guest.connect()).collect();
    // Beyond the limit they are closed at once, until the server has seen some go.
    drop(silent);
    wait_for("a place", || {
        let mut stream = guest.connect();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.read(&mut [0]).is_err_and(|it| it.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(guest.exec(&["true"], pipes()).finish().2, 0);
}

#[test]
fn a_shutdown_ends_the_server() {
    let mut guest = Guest::start();
    let mut control = hello(guest.connect(), new_token(), Role::Control);
    control.write_all(&Request::Shutdown.encode().unwrap()).unwrap();
    guest.wait_for_end();
}

/// Only root may make a PID namespace, or nobody may (in some containers).
fn can_make_container() -> bool {
    let possible = rustix::process::geteuid().is_root()
        && Command::new("unshare").args(["-pf", "true"]).status().is_ok_and(|it| it.success());
    if !possible {
        eprintln!("skipped: only root can start a container");
    }
    possible
}

#[test]
fn a_container_reaps_orphans_and_cannot_be_killed_from_inside() {
    if !can_make_container() {
        return;
    }
    let guest = Guest::start_with("yes");
    let script = "(sleep 0.05 &) ; kill -TERM 1; kill -KILL 1; kill -INT 1; sleep 0.2; \
        cat /proc/[0-9]*/stat | grep -c ' Z '; cat /proc/1/comm";
    let (out, err, _) = guest.run(script).finish();
    assert!(out.starts_with("0\n"), "{out} {err}");
    assert_eq!(guest.run("sleep 60 & kill -KILL -1").finish().2, 0);
    assert_eq!(guest.run("exit 2").finish().2, 2);
}

#[test]
fn a_container_ends_at_once_when_all_obey() {
    if !can_make_container() {
        return;
    }
    let mut guest = Guest::start_with("yes");
    let mut session =
        guest.run("setsid sleep 60 & trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done");
    session.wait_for_output("up");
    let mut shell = guest.exec(&["bash", "--norc", "-i"], tty());
    shell.type_in("echo $((40 + 2))\n");
    shell.wait_for_output("42");
    let start = Instant::now();
    let mut control = hello(guest.connect(), new_token(), Role::Control);
    control.write_all(&Request::Shutdown.encode().unwrap()).unwrap();
    guest.wait_for_end();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_container_ends_even_when_nobody_obeys() {
    if !can_make_container() {
        return;
    }
    let mut guest = Guest::start_with("yes");
    let mut session = guest.run("trap '' TERM HUP; setsid sleep 60 & echo up; while :; do sleep 0.1; done");
    session.wait_for_output("up");
    let mut control = hello(guest.connect(), new_token(), Role::Control);
    control.write_all(&Request::Shutdown.encode().unwrap()).unwrap();
    guest.wait_for_end();
}
