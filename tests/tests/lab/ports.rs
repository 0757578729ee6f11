//! Published ports: where a service is reached from the host, what stays of that, who is told what, and who cannot be harmed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tests::host::{Process, count};
use tests::random::Random;
use tests::{Home, Running, Test, Vm};

const SERVICE: &str = include_str!("service.py");
const SMALL: [&str; 4] = ["--cpus", "1", "-m", "512m"];
/// For what crosses a guest that runs at a hundredth of its speed.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG_S: u64 = 900;

fn boot(publish: &[&str]) -> Result<Vm> {
    Vm::boot_with(SMALL.into_iter().chain(publish.iter().flat_map(|spec| ["-p", spec])))
}

/// Starts a service, until the value is dropped.
fn service(vm: &Vm, kind: &str, address: &str, port: u16) -> Result<Running> {
    let mut service =
        vm.command(["python3", "-c", SERVICE, kind, address, &port.to_string()]).deadline(LONG_S).spawn()?;
    service.until("ready")?;
    Ok(service)
}

/// The port of this machine that leads to one of the sandbox.
fn host_port(vm: &Vm, guest: u16) -> Result<u16> {
    let ports: Value = serde_json::from_str(&vm.home.coracle(["ports", "vm", "--json"]).ok()?)?;
    let port = ports.as_array().context("a list")?.iter().find(|port| port["port"] == guest);
    let port = port.and_then(|port| port["host_port"].as_u64()).context("it is published")?;
    Ok(u16::try_from(port)?)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn dial(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, PATIENCE).with_context(|| format!("connect to {at}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// All that is said there to who says nothing.
fn hear(at: SocketAddr) -> Result<String> {
    let mut heard = String::new();
    dial(at)?.read_to_string(&mut heard).with_context(|| format!("hear {at}"))?;
    Ok(heard)
}

fn gateways(vm: &Vm) -> Vec<Process> {
    let is_gateway = |it: &Process| it.command.split(' ').nth(1) == Some("gateway");
    vm.home.processes().into_iter().filter(is_gateway).collect()
}

#[test]
fn a_service_is_reached_wherever_it_listens() -> Test {
    let vm = boot(&["0:3001", "0:3002", "127.0.0.1:0:3003"])?;
    vm.home.write("proj/page", "a page\n")?;
    let mut servers = Vec::new();
    for (port, address) in [(3001, "127.0.0.1"), (3002, "::1"), (3003, "0.0.0.0")] {
        let args = ["python3", "-u", "-m", "http.server", &port.to_string(), "--bind", address];
        let mut server = vm.command(args).deadline(LONG_S).spawn()?;
        server.until("Serving HTTP")?;
        servers.push(server);
        let host = host_port(&vm, port)?;
        for at in [local(host), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), host)] {
            if at.is_ipv6() && port == 3003 {
                assert!(TcpStream::connect_timeout(&at, PATIENCE).is_err(), "it was published by IPv4 alone");
                continue;
            }
            let mut stream = dial(at)?;
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).with_context(|| format!("{address} by {at}"))?;
            assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\na page\n"), "{answer}");
        }
    }
    // Nobody serves it any more.
    drop(servers);
    let error = hear(local(host_port(&vm, 3001)?)).unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    Ok(())
}

#[test]
fn much_goes_both_ways_and_each_end_is_told() -> Test {
    let vm = boot(&["0:3000"])?;
    let _service = service(&vm, "whole", "127.0.0.1", 3000)?;
    let sent = Random::seeded_by_time().bytes(8 << 20);
    vm.home.write("proj/sent", &sent)?;
    let sum = vm.exec("sha256sum <sent")?;
    let mut stream = dial(local(host_port(&vm, 3000)?))?;
    let mut writer = stream.try_clone()?;
    let copy = sent.clone();
    let writer =
        std::thread::spawn(move || writer.write_all(&copy).and_then(|()| writer.shutdown(Shutdown::Write)));
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    writer.join().expect("it does not panic")?;
    let (theirs, back) = heard.split_at(64);
    assert_eq!(String::from_utf8_lossy(theirs), sum[..64], "all of it has arrived");
    assert!(back == sent, "{} bytes came back, and not those", back.len());
    Ok(())
}

#[test]
fn what_is_published_later_acts_at_once_and_is_kept_over_restarts() -> Test {
    let vm = boot(&[])?;
    let first = service(&vm, "slow", "127.0.0.1", 3000)?;
    let listed = vm.home.coracle(["ports", "vm", "--publish", "0:3000"]).ok()?;
    let port = host_port(&vm, 3000)?;
    assert!(listed.contains(&format!("localhost:{port}   3000\n")), "{listed}");
    assert!(vm.home.coracle(["ls"]).ok()?.contains(&format!("localhost:{port}->3000")));
    let echo = |stream: &mut TcpStream| -> Result<()> {
        let mut byte = [0];
        stream.write_all(b"x")?;
        stream.read_exact(&mut byte)?;
        ensure!(byte == *b"x");
        Ok(())
    };
    let mut stream = dial(local(port))?;
    echo(&mut stream)?;
    vm.home.coracle(["ports", "vm", "--unpublish", "3000"]).ok()?;
    assert!(stream.read(&mut [0]).map_or(true, |count| count == 0), "what was open is cut");
    assert!(TcpStream::connect_timeout(&local(port), PATIENCE).is_err());

    // What another number leads to now, the same leads to after a restart.
    vm.home.coracle(["ports", "vm", "--publish", &format!("{port}:3000"), "--publish", "0:3001"]).ok()?;
    let any = host_port(&vm, 3001)?;
    echo(&mut dial(local(port))?)?;
    drop(first);
    for _ in 0..3 {
        vm.home.coracle(["stop", "vm"]).ok()?;
        assert!(TcpStream::connect_timeout(&local(port), PATIENCE).is_err(), "it is closed with the sandbox");
        let _again = service(&vm, "name", "127.0.0.1", 3000)?;
        assert_eq!((host_port(&vm, 3000)?, host_port(&vm, 3001)?), (port, any));
        assert_eq!(hear(local(port))?, "127.0.0.1");
    }
    // Where any port would do and its own is taken, there is another.
    vm.home.coracle(["stop", "vm"]).ok()?;
    let _taken = TcpListener::bind(local(any))?;
    let _service = service(&vm, "name", "::1", 3001)?;
    assert_ne!(host_port(&vm, 3001)?, any);
    assert_eq!(hear(local(host_port(&vm, 3001)?))?, "::1");
    Ok(())
}

#[test]
fn a_port_that_is_busy_or_reserved_is_told_and_nothing_is_made() -> Test {
    let home = Home::new()?;
    let listener = TcpListener::bind(local(0))?;
    let port = listener.local_addr()?.port();
    let run = |spec: &str| home.coracle(["run", "-d", "--name", "other", "-p", spec, "shell", "."]).run();
    for (spec, part) in [
        (format!("{port}:80"), format!("port {port} of 127.0.0.1 is in use; end what uses it")),
        ("80".into(), "port 80 is reserved: on this machine only root may use ports below 1024".into()),
    ] {
        let done = run(&spec)?;
        assert!(
            done.code == 125 && done.err().contains(&part) && done.err().lines().count() == 1,
            "{}",
            done.err()
        );
        assert_eq!(home.left(), [""; 0]);
    }
    drop(listener);
    let vm = Vm { home, name: "vm".into() };
    vm.start(SMALL.into_iter().chain(["-p", &format!("{port}:80")]))?;
    let done =
        vm.home.coracle(["run", "-d", "--name", "other", "-p", &format!("{port}:80"), "shell", "."]).run()?;
    assert!(
        done.code == 125 && done.err().contains("in use by sandbox vm; end what uses it"),
        "{}",
        done.err()
    );
    assert!(!vm.home.coracle(["ls", "-q"]).ok()?.contains("other"));
    Ok(())
}

#[test]
fn a_worker_that_is_killed_is_followed_by_another() -> Test {
    let vm = boot(&["0:3000"])?;
    let _service = service(&vm, "name", "127.0.0.1", 3000)?;
    let at = local(host_port(&vm, 3000)?);
    assert_eq!(gateways(&vm).len(), 1, "until somebody comes there is no worker");
    for _ in 0..3 {
        assert_eq!(hear(at)?, "127.0.0.1");
        let worker = gateways(&vm).into_iter().find(|it| it.command.contains("--worker"));
        kill_process(worker.context("a worker")?.pid, Signal::KILL)?;
    }
    assert_eq!(hear(at)?, "127.0.0.1");
    Ok(())
}

/// Memory of its own of a process, in KiB.
fn memory(process: &Process) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn services_that_take_nobody_or_never_read_harm_nobody_else() -> Test {
    const CLIENTS: usize = 300;
    /// Of those that are gone, as much was under way that nobody hears of it yet.
    const STUCK: usize = 10;
    let vm = boot(&["0:3001", "0:3002", "0:3003"])?;
    let services = [("deaf", 3001), ("full", 3002), ("name", 3003)];
    let _services = services.map(|(kind, port)| service(&vm, kind, "127.0.0.1", port));
    let [deaf, full, fine] = [3001, 3002, 3003].map(|port| host_port(&vm, port).map(local));
    let (deaf, full, fine) = (deaf?, full?, fine?);
    assert_eq!(hear(fine)?, "127.0.0.1");
    let vmm = vm.home.vmm()?;
    let descriptors = || count(format!("/proc/{}/fd", vmm.pid.as_raw_pid()));
    let before = descriptors()?;

    let waiting = (0..CLIENTS).map(|_| dial(deaf)).collect::<Result<Vec<_>>>()?;
    assert_eq!(hear(fine)?, "127.0.0.1");
    assert_eq!(vm.exec("echo well")?, "well\n");

    // What each takes before it stops its client is bounded, and so is what is kept for all of them.
    let mut writers = Vec::new();
    for _ in 0..STUCK / 2 {
        let mut stream = dial(full)?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut taken = 0;
        loop {
            match stream.write(&[7; 65536]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            ensure!(taken < 32 << 20, "somebody keeps it all");
        }
        writers.push(stream);
    }
    for gateway in gateways(&vm) {
        assert!(memory(&gateway)? < 40 << 10, "{} has {} KiB", gateway.command, memory(&gateway)?);
    }
    assert_eq!((hear(fine)?, vm.exec("echo well")?), ("127.0.0.1".into(), "well\n".into()));
    drop((waiting, writers));
    let start = Instant::now();
    vm.home
        .wait_for("the VMM closes what is gone", || descriptors().is_ok_and(|now| now <= before + STUCK))?;
    assert_eq!(hear(fine)?, "127.0.0.1", "after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_containers_published_port_is_one_of_the_sandbox() -> Test {
    const SCRIPT: &str = "python3 image.py | docker load && docker run -d -p 8080:80 -v /usr:/usr:ro -v $PWD:$PWD -w $PWD tiny:1 \
        /usr/bin/python3 -m http.server 80";
    let vm = Vm::boot_with(["--cpus", "1", "-m", "1g", "-p", "0:8080"])?;
    vm.home.write("proj/image.py", include_str!("docker/image.py"))?;
    vm.home.write("proj/page", "a page\n")?;
    vm.command(["sh", "-c", SCRIPT]).deadline(240).ok()?;
    let at = local(host_port(&vm, 8080)?);
    let mut answer = String::new();
    vm.home.wait_for("the container serves", || {
        answer.clear();
        let read = dial(at).and_then(|mut stream| {
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
            Ok(stream.read_to_string(&mut answer)?)
        });
        read.is_ok() && !answer.is_empty()
    })?;
    assert!(answer.ends_with("\r\n\r\na page\n"), "{answer}");
    Ok(())
}
