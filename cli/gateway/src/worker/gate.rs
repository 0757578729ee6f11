//! What the gateway knows and decides by: policy, secrets, names, the log. It owns that all of it is up to date, and that what
//! cannot be read allows nothing.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, interval, sleep};

use super::Place;
use crate::agent::Agent;
use crate::credentials::{self, Injection, SERVICES, Secrets};
use crate::intercept::Authority;
use crate::log::Log;
use crate::machine;
use crate::names::{Names, is_synthetic};
use crate::policy::{self, Decision, Destination, Files, Host, Name, Policy, Reason, Watch, is_this_machine};
use crate::resolve::Resolver;

/// Files are looked at that often even when nothing is reported: network file systems do not. What connections have carried is
/// written as often.
const LOOK: Duration = Duration::from_secs(2);
/// Writing the log takes no more than one part in so many of the time.
const LOG_SHARE: u32 = 20;

const LOST: &str = "the sandbox's own rules are gone; coracle policy allow or deny --sandbox makes new ones";
const NO_NAME: Reason = Reason::Other("its address stands for no name of this sandbox");
pub const NO_ADDRESS: Reason = Reason::Other("this machine knows no address of it");
const NO_SECRETS: Reason = Reason::Other("the secrets cannot be read, and it may have one");

pub struct Gate {
    place: Place,
    policy: watch::Sender<Rc<Policy>>,
    /// The sandbox has had rules of its own: without their file they are not known.
    had_rules: Cell<bool>,
    /// `None` when they cannot be read.
    secrets: RefCell<Option<Secrets>>,
    /// Who had a secret when they could be read.
    had_secrets: RefCell<Vec<(String, u16)>>,
    /// `None` when the guest trusts none of ours.
    pub authority: Option<Authority>,
    pub names: RefCell<Names>,
    pub log: RefCell<Log>,
    recorded: Notify,
    resolver: Resolver,
    /// Of this machine.
    own: RefCell<Vec<Ipv4Addr>>,
    watches: RefCell<Watches>,
}

struct Watches {
    policy: Watch,
    secrets: Watch,
}

impl Gate {
    pub fn open(place: Place) -> Result<Self> {
        let secrets = Files { global: place.settings.join(credentials::FILE), sandbox: None };
        // What changes while we read is read again.
        let watches = Watches { policy: files(&place).watch()?, secrets: secrets.watch()? };
        let found = secrets_of(&place);
        Ok(Self {
            policy: watch::Sender::new(load(&place)),
            had_rules: Cell::new(has_rules(&place)),
            had_secrets: RefCell::new(found.as_ref().map(hosts_of).unwrap_or_default()),
            secrets: RefCell::new(found),
            authority: Authority::load(&place.folder)?,
            names: RefCell::new(Names::open(&place.folder)?),
            log: RefCell::new(Log::open(&place.folder)),
            recorded: Notify::new(),
            resolver: Resolver::new(place.path.clone()),
            own: RefCell::new(machine::addresses()),
            watches: RefCell::new(watches),
            place,
        })
    }

    /// Keeps all of it up to date.
    pub async fn watch(&self) -> Result<()> {
        let (policy, secrets) = {
            let watches = self.watches.borrow();
            (readable(&watches.policy)?, readable(&watches.secrets)?)
        };
        let mut tick = interval(LOOK);
        loop {
            tokio::select! {
                ready = policy.readable() => ready.context("watch the policy")?.clear_ready(),
                ready = secrets.readable() => ready.context("watch the secrets")?.clear_ready(),
                _ = tick.tick() => {
                    self.flush();
                    self.own.replace(machine::addresses());
                }
            }
            self.look();
        }
    }

    fn look(&self) {
        let mut watches = self.watches.borrow_mut();
        // What could not be read, for want of descriptors perhaps, is tried again.
        if watches.secrets.changed() || self.secrets.borrow().is_none() {
            let found = secrets_of(&self.place);
            if let Some(secrets) = &found {
                self.had_secrets.replace(hosts_of(secrets));
            }
            // The old ones, dropped, end what goes on with them.
            self.secrets.replace(found);
        }
        if watches.policy.changed() || self.policy().is_closed() {
            let has_rules = has_rules(&self.place);
            let lost = self.had_rules.replace(has_rules || self.had_rules.get()) && !has_rules;
            let policy = if lost { Rc::new(Policy::closed(&anyhow!(LOST))) } else { load(&self.place) };
            self.policy.send_replace(policy);
        }
    }

    /// Has the log say what was decided about a connection.
    pub fn record(&self, to: &Destination, decision: &Decision) {
        self.log.borrow_mut().record(to, decision);
        self.recorded.notify_one();
    }

    /// The same for a name that was asked for.
    pub fn record_name(&self, name: &Name, decision: &Decision) {
        self.log.borrow_mut().record_name(name, decision);
        self.recorded.notify_one();
    }

    /// Writes the log as soon as there is something new: who looks into it looks for what has just been.
    pub async fn write_log(&self) {
        loop {
            self.recorded.notified().await;
            let start = Instant::now();
            self.flush();
            sleep(start.elapsed() * LOG_SHARE).await;
        }
    }

    pub fn flush(&self) {
        // A log that cannot be written, on a full disk for example, is tried again.
        let _ = self.log.borrow_mut().flush();
    }

    pub fn agent(&self) -> &Agent {
        &self.place.agent
    }

    pub fn policy(&self) -> Rc<Policy> {
        Rc::clone(&self.policy.borrow())
    }

    /// Tells of each change of the policy.
    pub fn changes(&self) -> watch::Receiver<Rc<Policy>> {
        self.policy.subscribe()
    }

    /// What an address stands for.
    pub fn destination(&self, address: Ipv4Addr, port: u16) -> Result<Destination, (Destination, Decision)> {
        let name = self.names.borrow().name(address);
        match name {
            Some(name) => Ok(Destination::new(Host::Name(name), port)),
            None if is_synthetic(address) => {
                Err((Destination::new(address.into(), port), Decision::denied(NO_NAME)))
            }
            None => Ok(Destination::new(address.into(), port)),
        }
    }

    /// The addresses that may be connected to, and why; or why there is none.
    pub async fn addresses(&self, to: &Destination) -> Result<(Vec<IpAddr>, Decision), Decision> {
        let before = self.policy().decide(to);
        if !before.allowed {
            return Err(before);
        }
        if self.lacks_secrets(to) {
            return Err(Decision::denied(NO_SECRETS));
        }
        let mut addresses = match &to.host {
            Host::Addr(address) => vec![*address],
            Host::Name(name) if is_this_machine(name) => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Host::Name(name) => self.resolver.addresses(name).await,
        };
        // The policy may be another by now.
        let policy = self.policy();
        let mut denied = None;
        addresses.retain(|address| {
            let decision = self.may_reach(&policy, to, *address);
            let allowed = decision.allowed;
            denied = denied.take().or_else(|| (!allowed).then_some(decision));
            allowed
        });
        match (addresses.is_empty(), denied) {
            (false, _) => Ok((addresses, policy.decide(to))),
            (true, Some(denied)) => Err(denied),
            (true, None) => Err(Decision::denied(NO_ADDRESS)),
        }
    }

    /// What a policy says of an address, which may be this machine's.
    pub fn may_reach(&self, policy: &Policy, to: &Destination, address: IpAddr) -> Decision {
        let own = matches!(address, IpAddr::V4(address) if self.own.borrow().contains(&address));
        if own { policy.may_reach_own(to, address) } else { policy.may_reach(to, address) }
    }

    /// The secret for a destination, where the guest can be shown an authority of ours.
    pub fn injection(&self, to: &Destination) -> Option<Arc<Injection>> {
        let Host::Name(name) = &to.host else { return None };
        self.authority.as_ref()?;
        self.secrets.borrow().as_ref()?.for_host(name.as_str(), to.port).cloned()
    }

    fn lacks_secrets(&self, to: &Destination) -> bool {
        let Host::Name(name) = &to.host else { return false };
        let services = SERVICES.iter().flat_map(|service| service.hosts).map(|host| (host.name, 443));
        let had = self.had_secrets.borrow();
        let mut hosts = services.chain(had.iter().map(|(host, port)| (host.as_str(), *port)));
        self.secrets.borrow().is_none() && hosts.any(|host| host == (name.as_str(), to.port))
    }
}

fn files(place: &Place) -> Files {
    Files { global: place.settings.join(policy::NAME), sandbox: Some(place.folder.join(policy::NAME)) }
}

fn load(place: &Place) -> Rc<Policy> {
    Rc::new(Policy::load(&files(place)).unwrap_or_else(|error| Policy::closed(&error)))
}

fn has_rules(place: &Place) -> bool {
    place.folder.join(policy::NAME).symlink_metadata().is_ok()
}

fn hosts_of(secrets: &Secrets) -> Vec<(String, u16)> {
    secrets.hosts().map(|(host, port)| (host.to_owned(), port)).collect()
}

fn secrets_of(place: &Place) -> Option<Secrets> {
    Secrets::load(&place.settings, &place.sandbox, &place.lent).ok()
}

#[expect(unsafe_code, reason = "tokio asks for a promise about a descriptor")]
fn readable(watch: &Watch) -> Result<AsyncFd<std::os::fd::OwnedFd>> {
    let descriptor = watch.as_fd().try_clone_to_owned().context("watch files")?;
    // SAFETY: the descriptor is owned by what is made here, which keeps it open and gives no other away.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, tokio::io::Interest::READABLE) };
    registered.context("watch files")
}
