//! The published ports of a sandbox: as they were typed, as they are shown, and opened for its gateway.
//! It owns what users are told when that is not possible. How a port is written and opened is the gateway's to know.

use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gateway::handover;
use gateway::ports::{Listener, PORTS_MAX, Port, Refusal};
use gateway::supervisor::Change;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::launch::short_path;
use crate::store::{Sandbox, Store, file};
use crate::text::{Raw, quoted};

/// A gateway ends after its VM, which it may have served.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(10);
/// For a gateway to answer; it may be just starting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What was typed, each once.
pub fn parse(typed: &[Raw], flag: &str) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    for typed in typed {
        let port = parse_one(typed, flag)?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

pub fn parse_one(typed: &Raw, flag: &str) -> Result<Port> {
    // What is not UTF-8 is no port, and shown as it was typed.
    let text = typed.0.to_string_lossy();
    text.parse().map_err(|fault| anyhow!("{flag} {} {fault}", quoted(&typed.0)))
}

/// Refuses ports that cannot all be open.
pub fn check(ports: &[Port]) -> Result<()> {
    ensure!(ports.len() <= PORTS_MAX, "{} ports are too many; {PORTS_MAX} can be published", ports.len());
    for (index, port) in ports.iter().enumerate() {
        if let Some(other) = ports[..index].iter().find(|other| other.is_in_the_way_of(port)) {
            bail!(
                "{} and {} need the same port of this machine; give one of them another",
                show(other),
                show(port)
            );
        }
    }
    Ok(())
}

/// As in `coracle ls`: where it is open, and what it leads to.
pub fn show(port: &Port) -> String {
    format!("{port}->{}", port.guest)
}

/// As it would be typed.
pub fn spec(port: &Port) -> String {
    match port.address {
        None if port.host == port.guest => port.guest.to_string(),
        None => format!("{}:{}", port.host, port.guest),
        Some(_) => format!("{port}:{}", port.guest),
    }
}

pub fn json(port: &Port) -> Value {
    let address = port.address.map_or_else(|| "localhost".into(), |address| address.to_string());
    json!({ "address": address, "host_port": port.host, "port": port.guest, "protocol": "tcp", "any": port.any })
}

/// Who wants ports opened.
#[derive(Clone, Copy)]
pub enum Wish<'a> {
    /// A flag.
    Flag(&'a str),
    /// A sandbox that has them, for its start.
    Start(&'a Sandbox),
}

/// Opens ports, and notes the numbers that were chosen.
pub fn open(ports: &mut [Port], wish: Wish<'_>) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for port in ports {
        let opened = port.open().map_err(|refusal| explain(port, &refusal, wish))?;
        listeners.extend(opened);
    }
    Ok(listeners)
}

fn explain(port: &Port, refusal: &Refusal, wish: Wish<'_>) -> anyhow::Error {
    let guest = port.guest;
    let other = match refusal {
        Refusal::Privileged(_) => format!("8080:{guest}"),
        _ => format!("0:{guest}"),
    };
    let (instead, own) = match wish {
        Wish::Flag(flag) => (format!("{flag} {other}"), None),
        Wish::Start(Sandbox { name, .. }) => {
            (format!("coracle ports {name} --unpublish {guest} --publish {other}"), Some(name))
        }
    };
    match refusal {
        Refusal::Busy(_) => {
            let user = user(port, own).map(|name| format!(" by sandbox {name}")).unwrap_or_default();
            anyhow!(
                "{refusal}{user}; end what uses it, or publish another: {instead} (0 is any that is free)"
            )
        }
        _ => anyhow!("{refusal}; publish another: {instead}"),
    }
}

/// Another sandbox that has it open.
fn user(port: &Port, own: Option<&String>) -> Option<String> {
    let sandboxes = Store::open().ok()??.sandboxes().ok()?;
    let has_it = |other: &Sandbox| {
        let ports = other.config().map(|config| config.ports).unwrap_or_default();
        ports.iter().any(|it| it.is_in_the_way_of(port)) && other.is_running()
    };
    Some(sandboxes.into_iter().find(|it| Some(&it.name) != own && has_it(it))?.name)
}

/// Opens the ports of a sandbox for a gateway that is about to start.
pub fn open_for(sandbox: &Sandbox, ports: &[Port]) -> Result<Vec<Listener>> {
    let mut chosen = ports.to_vec();
    let listeners = open(&mut chosen, Wish::Start(sandbox))?;
    if chosen != ports {
        let _alone = sandbox.alone()?;
        let mut config = sandbox.config()?;
        for (before, now) in ports.iter().zip(&chosen) {
            config.ports.iter_mut().filter(|it| *it == before).for_each(|it| *it = *now);
        }
        sandbox.replace_config(&config)?;
    }
    Ok(listeners)
}

/// Waits until the gateway of the sandbox's last VM has ended. When it does not, the ports are in use.
pub fn await_last_gateway(sandbox: &Sandbox) {
    let Ok(lock) = sandbox.open_file(file::GATEWAY_LOCK) else { return };
    let deadline = Instant::now() + GATEWAY_TIMEOUT;
    while flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        if Instant::now() > deadline {
            break;
        }
        sleep(POLL_INTERVAL);
    }
}

/// Has the gateway of a sandbox that runs change what it has open.
pub fn tell(sandbox: &Sandbox, change: &Change, listeners: &[Listener]) -> Result<()> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let path = short_path(sandbox, file::GATEWAY_CONTROL);
    let gateway = loop {
        match handover::connection(&path) {
            Ok(gateway) => break gateway,
            Err(error) if Instant::now() > deadline => return Err(error).context("reach its gateway"),
            Err(_) => sleep(POLL_INTERVAL),
        }
    };
    let sockets: Vec<_> = listeners.iter().map(|it| it.socket.as_fd()).collect();
    handover::send(&gateway, change, &sockets).context("tell its gateway")?;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut polled = [PollFd::new(&gateway, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::try_from(left)?)).context("wait for its gateway")?;
    match handover::receive::<bool>(&gateway).context("hear its gateway")? {
        Some((true, _)) => Ok(()),
        _ => bail!("its gateway did not understand"),
    }
}
