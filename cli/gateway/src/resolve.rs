//! Names to addresses, by the host's own resolver: `getent`, as a static glibc must not call it itself.
//! It owns what is asked at once and what is remembered. Whether an address may be reached is not its business.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use crate::policy::Name;

/// Children at once; more wait.
const AT_ONCE: usize = 16;
/// Two servers that do not answer, each asked twice for 5 s, as resolv.conf(5) has it by default.
const TIMEOUT: Duration = Duration::from_secs(21);
const ANSWER_MAX: u64 = 64 << 10;
const ADDRESSES_MAX: usize = 8;
const REMEMBERED_MAX: usize = 1024;
const REMEMBERED: Duration = Duration::from_secs(30);
/// That a name has no address may be over sooner.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Resolver {
    known: RefCell<HashMap<Name, Rc<Known>>>,
    room: Semaphore,
    /// Where getent is looked for; `None` is as for any command.
    path: Option<OsString>,
}

#[derive(Debug)]
struct Known {
    asked: Instant,
    /// Who asks for the same meanwhile waits for the same answer.
    addresses: OnceCell<Vec<IpAddr>>,
}

impl Resolver {
    pub fn new(path: Option<OsString>) -> Self {
        Self { known: RefCell::default(), room: Semaphore::new(AT_ONCE), path }
    }

    /// The addresses of a name, the best one first; none when it has none, or nobody knows.
    pub async fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        let known = self.known(name);
        known.addresses.get_or_init(|| self.ask(name)).await.clone()
    }

    fn known(&self, name: &Name) -> Rc<Known> {
        let mut all = self.known.borrow_mut();
        if let Some(known) = all.get(name).filter(|known| known.is_fresh()) {
            return Rc::clone(known);
        }
        if all.len() >= REMEMBERED_MAX {
            all.retain(|_, known| known.is_fresh());
        }
        let known = Rc::new(Known { asked: Instant::now(), addresses: OnceCell::new() });
        if all.len() < REMEMBERED_MAX {
            all.insert(name.clone(), Rc::clone(&known));
        }
        known
    }

    async fn ask(&self, name: &Name) -> Vec<IpAddr> {
        let Ok(_permit) = self.room.acquire().await else { return Vec::new() };
        let mut command = Command::new("getent");
        // A name begins with no hyphen.
        command.args(["ahostsv4", name.as_str()]).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // No domain of this machine's may make another name of it, which no rule allows: resolv.conf(5), "search".
        command.env("LOCALDOMAIN", ".");
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let Ok(mut child) = command.spawn() else { return Vec::new() };
        let Some(output) = child.stdout.take() else { return Vec::new() };
        let mut answer = Vec::new();
        match timeout(TIMEOUT, output.take(ANSWER_MAX).read_to_end(&mut answer)).await {
            Ok(Ok(_)) => parse(&String::from_utf8_lossy(&answer)),
            _ => Vec::new(),
        }
    }
}

impl Known {
    fn is_fresh(&self) -> bool {
        let lasts = match self.addresses.get() {
            Some(addresses) if addresses.is_empty() => FAILURE_REMEMBERED,
            Some(_) => REMEMBERED,
            None => TIMEOUT,
        };
        self.asked.elapsed() < lasts
    }
}

/// Lines of `ADDRESS TYPE NAME`, where each address comes once for each type of socket.
pub fn parse(answer: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for line in answer.lines() {
        let Some(Ok(address)) = line.split_whitespace().next().map(str::parse) else { continue };
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    addresses
}
