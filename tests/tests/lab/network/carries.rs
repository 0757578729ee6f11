//! What is allowed is carried as any network would: at once after a change, thousands at a time, idle, in halves, and beside those
//! that nobody goes on with.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;
use tests::{Call, Running, Test};

use super::world::World;

const CARRY: &str = include_str!("carry.py");
const ALLOWED: [&str; 3] = ["--allow", "allowed.test,localhost:8099", "--no-docker"];
/// What a worker may have for itself, whatever its guest does with some thousand connections: most of it is what is buffered.
const WORKER_MIB_MAX: u64 = 64;
/// The same when nothing goes on.
const IDLE_MIB_MAX: u64 = 10;

fn carry(world: &World, args: &[&str]) -> Call {
    world.python("agent", CARRY, args)
}

fn start(world: &World, args: &[&str], until: &str) -> Result<Running> {
    let mut running = carry(world, args).spawn()?;
    running.until(until)?;
    Ok(running)
}

/// What is resident of a process and is its own.
fn memory_mib(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

fn worker_mib(world: &World) -> Result<u64> {
    memory_mib(world.gateway(true).context("a worker")?)
}

#[test]
fn a_change_of_policy_acts_at_once_and_on_what_is_open() -> Test {
    let world = World::with(&ALLOWED)?;
    let policy =
        |args: &[&str]| world.vm.home.coracle(["policy", args[0], "--sandbox", "vm"]).args(&args[1..]).ok();
    let get = |host: &str| -> Result<String> {
        world.vm.exec(&format!("curl -s --max-time 60 http://{host}/ || echo $?"))
    };
    let held = start(&world, &["hold"], "open")?;
    assert_eq!(get("other.test")?, "6\n", "there is no such name");
    policy(&["allow", "other.test"])?;
    assert_eq!(get("other.test")?, "GET / HTTP/1.1");
    policy(&["deny", "allowed.test"])?;
    assert_eq!(held.ok()?, "open\ncut\n");
    assert_eq!(get("allowed.test")?, "6\n");
    policy(&["rm", "allowed.test"])?;
    policy(&["allow", "allowed.test"])?;
    assert_eq!(get("allowed.test")?, "GET / HTTP/1.1");
    // For all sandboxes, and the log says what became of each, right after it.
    world.vm.home.coracle(["policy", "deny", "other.test:80"]).ok()?;
    // The name is there for other ports; curl hears of the reset now, or when it writes or reads.
    assert!(["7\n", "55\n", "56\n"].contains(&&*get("other.test")?));
    let log = world.vm.home.coracle(["policy", "log", "vm"]).ok()?;
    for (host, verdict) in [
        ("allowed.test:7 ", "denied"),
        ("allowed.test:80 ", "allowed"),
        ("other.test:80 ", "denied"),
        ("other.test ", "denied"),
    ] {
        let found = log.lines().any(|line| line.contains(host) && line.contains(verdict));
        assert!(found, "{host} {verdict}: {log}");
    }
    Ok(())
}

#[test]
fn deny_wins_at_the_start_and_names_keep_their_addresses() -> Test {
    let world = World::with(&["--allow", "**", "--deny", "evil.test,other.test:80", "--no-docker"])?;
    let lookup = "getent ahostsv4 allowed.test | head -1; getent hosts evil.test; echo $?; getent ahostsv6 allowed.test; echo $?";
    let first = world.vm.exec(lookup)?;
    assert!(first.starts_with("198.18.1.") && first.contains("\n2\n"), "{first}");
    assert_eq!(
        world.vm.exec("curl -s http://allowed.test/ && ! curl -s http://other.test/")?,
        "GET / HTTP/1.1"
    );
    world.vm.exec("getent hosts other.test")?;
    world.vm.home.coracle(["stop", "vm"]).ok()?;
    // What an agent has made of its resolver is as it should be after a restart.
    assert_eq!(world.vm.exec(lookup)?, first);
    world.vm.exec("echo nameserver 8.8.8.8 | sudo tee /etc/resolv.conf && getent hosts other.test && sudo rm /etc/resolv.conf")?;
    world.vm.home.coracle(["stop", "vm"]).ok()?;
    assert_eq!(world.vm.exec(lookup)?, first);
    assert_eq!(world.vm.exec("cat /etc/resolv.conf")?, "nameserver 192.0.2.1\n");
    Ok(())
}

#[test]
fn a_name_that_leads_elsewhere_later_does_not_lead_inside() -> Test {
    let world = World::with(&["--allow", "rebind.test", "--no-docker"])?;
    let get = "curl -s --max-time 60 http://rebind.test/ || echo $?";
    assert_eq!(world.vm.exec(get)?, "GET / HTTP/1.1");
    for _ in 0..3 {
        // With the worker goes what it remembers of names.
        world.kill_gateway(true)?;
        assert!(["7\n", "55\n", "56\n"].contains(&&*world.vm.exec(get)?));
    }
    let heard = world.heard()?;
    let tcp: Vec<_> = heard.iter().filter(|it| it.starts_with("tcp")).collect();
    assert_eq!(tcp, ["tcp 93.184.216.36:80"], "{heard:?}");
    assert_eq!(heard.iter().filter(|it| *it == "dns rebind.test 1").count(), 4, "{heard:?}");
    Ok(())
}

#[test]
fn no_network_is_none_at_all() -> Test {
    let world = World::with(&["--network", "none", "--no-docker"])?;
    let tries = "curl -s --max-time 60 http://allowed.test/; echo $?; curl -s --max-time 60 http://8.8.8.8/; echo $?; ip route; \
        python3 -c 'import socket; print(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect_ex((2, 1025)))'";
    assert_eq!(world.vm.exec(tries)?, "6\n7\n104\n");
    let listen = "python3 -m http.server 8000 >/dev/null 2>&1 & sleep 5; curl -s http://127.0.0.1:8000/ | grep -c Directory; kill %1";
    assert_eq!(world.vm.command(["bash", "-c", listen]).ok()?, "2\n");
    assert_eq!((world.gateway(true), world.gateway(false)), (None, None));
    assert_eq!(world.heard()?, [""; 0]);
    Ok(())
}

#[test]
fn thousands_at_once_idle_ones_and_halves() -> Test {
    let world = World::with(&ALLOWED)?;
    let idle = carry(&world, &["idle", "100"]).spawn()?;
    assert_eq!(carry(&world, &["half"]).ok()?, "1048576\n");
    let before = worker_mib(&world)?;
    assert!(before <= IDLE_MIB_MAX, "{before} MiB");
    let many = start(&world, &["many"], "all 2000")?;
    let memory = worker_mib(&world)?;
    assert!(memory <= WORKER_MIB_MAX, "{memory} MiB");
    assert_eq!(carry(&world, &["quick"]).ok()?, "quick\n");
    world.vm.home.write("proj/done", "")?;
    many.ok()?;
    eprintln!("a worker with 2,000 connections has {memory} MiB, without {before} MiB");
    assert_eq!(idle.ok()?, "fine\n");
    Ok(())
}

#[test]
fn connections_that_nobody_goes_on_with_are_in_nobodys_way() -> Test {
    let world = World::with(&ALLOWED)?;
    let bad = start(&world, &["bad"], "stuck 380")?;
    for _ in 0..3 {
        assert_eq!(carry(&world, &["quick"]).ok()?, "quick\n");
        world.is_connected()?;
    }
    let memory = worker_mib(&world)?;
    assert!(memory <= WORKER_MIB_MAX, "{memory} MiB");
    eprintln!("a worker with 380 that are stuck has {memory} MiB");
    world.vm.home.write("proj/done", "")?;
    bad.ok()?;
    Ok(())
}
