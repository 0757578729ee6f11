//! Policy: what a sandbox may reach. It owns the decision, and its reason in plain words. Names come in before they are resolved
//! (`decide`), addresses after (`may_reach`); it resolves and connects nothing.
//!
//! Deny wins, wherever a rule stands; what no rule allows is denied. An address that is not of the open internet is reached only
//! when a rule names it, whatever name led there.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;

mod address;
mod files;
mod name;
mod preset;
mod rule;

pub use address::{Kind, Net, special};
pub use files::{Files, NAME, Rules, Watch, edit};
pub use name::{BadName, Destination, Host, Name};
pub use preset::Preset;
pub use rule::{HOST_NAMES, Rule, is_this_machine, parse_list};

/// All the rules that one sandbox is under.
#[derive(Debug, Default)]
pub struct Policy {
    deny: Vec<Sourced>,
    allow: Vec<Sourced>,
    /// Nothing is allowed, for this reason.
    broken: Option<String>,
}

#[derive(Debug)]
struct Sourced {
    rule: Rule,
    source: Source,
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Preset(Preset),
    Global,
    Sandbox,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// The rule that decided, as it is written.
    pub rule: Option<String>,
    pub reason: Reason,
}

/// Why, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Rule(Source),
    NoRule,
    /// It needs a rule of its own.
    Special(IpAddr, Kind),
    /// A name of this machine leads elsewhere, or an address is not the one that was asked for.
    Own(IpAddr),
    Elsewhere(IpAddr),
    /// The sandbox's own loopback is no way out of it.
    Localhost,
    /// The policy cannot be used.
    Broken(String),
    /// Not of a policy: what the gateway itself has found wrong.
    Other(&'static str),
}

impl Policy {
    /// Reads all of a sandbox's policy. On an error there is no policy, and nothing may be reached: `Policy::closed`.
    pub fn load(files: &Files) -> Result<Self> {
        let global = Rules::read(&files.global)?.unwrap_or_default();
        let own = files.sandbox.as_deref().map(Rules::read).transpose()?.flatten().unwrap_or_default();
        Ok(Self::new(&global, &own))
    }

    pub fn new(global: &Rules, own: &Rules) -> Self {
        let preset = own.preset.or(global.preset).unwrap_or_default();
        let sourced = |rules: &[Rule], source| -> Vec<Sourced> {
            rules.iter().map(|rule| Sourced { rule: rule.clone(), source }).collect()
        };
        let allow = [
            sourced(&own.allow, Source::Sandbox),
            sourced(&global.allow, Source::Global),
            sourced(&preset.rules(), Source::Preset(preset)),
        ];
        let deny = [sourced(&own.deny, Source::Sandbox), sourced(&global.deny, Source::Global)];
        Self {
            deny: deny.into_iter().flatten().collect(),
            allow: allow.into_iter().flatten().collect(),
            broken: None,
        }
    }

    /// The policy in place of one that cannot be used: it denies everything, and says why.
    pub fn closed(error: &anyhow::Error) -> Self {
        Self { broken: Some(format!("{error:#}")), ..Self::default() }
    }

    pub fn is_closed(&self) -> bool {
        self.broken.is_some()
    }

    /// Before a name is resolved, or for an address that was asked for as such.
    pub fn decide(&self, to: &Destination) -> Decision {
        if let Some(decision) = self.never(&to.host) {
            return decision;
        }
        if let Some(denied) = self.deny.iter().find(|it| it.rule.denies(&to.host, to.port)) {
            return denied.decision(false);
        }
        match &to.host {
            Host::Name(_) => match self.allow.iter().find(|it| it.rule.matches(to)) {
                Some(allowed) => allowed.decision(true),
                None => Decision::denied(Reason::NoRule),
            },
            Host::Addr(addr) => self.decide_addr(*addr, to),
        }
    }

    /// Whether a name may be asked for: some port of it may be reached.
    pub fn decide_name(&self, name: &Name) -> Decision {
        let host = Host::Name(name.clone());
        if let Some(decision) = self.never(&host) {
            return decision;
        }
        let all_ports = self.deny.iter().find(|it| it.rule.port().is_none() && it.rule.denies(&host, 0));
        if let Some(denied) = all_ports {
            return denied.decision(false);
        }
        let mut decision = Decision::denied(Reason::NoRule);
        for allow in self.allow.iter().filter(|it| it.rule.matches_host(&host)) {
            // A rule for all ports leaves some, however many are denied one by one.
            let Some(port) = allow.rule.port() else { return allow.decision(true) };
            decision = self.decide(&Destination { host: host.clone(), port });
            if decision.allowed {
                break;
            }
        }
        decision
    }

    /// After the name is resolved: whether this address may be connected to for it.
    pub fn may_reach(&self, to: &Destination, addr: IpAddr) -> Decision {
        let decision = self.decide(to);
        let addr = addr.to_canonical();
        if !decision.allowed {
            return decision;
        }
        let name = match &to.host {
            Host::Addr(asked) if *asked == addr => return decision,
            Host::Addr(_) => return Decision::denied(Reason::Elsewhere(addr)),
            Host::Name(name) => name,
        };
        if let Some(denied) = self.deny.iter().find(|it| it.rule.denies(&Host::Addr(addr), to.port)) {
            return denied.decision(false);
        }
        if is_this_machine(name) {
            let loopback = addr.is_loopback();
            return if loopback { decision } else { Decision::denied(Reason::Elsewhere(addr)) };
        }
        match special(addr) {
            Some(special) if !self.allow.iter().any(|it| it.rule.names(addr, to.port)) => {
                Decision::denied(Reason::Special(addr, special.kind))
            }
            _ => decision,
        }
    }

    /// The same, where the address is this machine's own. One of the open internet needs a rule for it alone then: behind it is what
    /// other machines may be kept from.
    pub fn may_reach_own(&self, to: &Destination, addr: IpAddr) -> Decision {
        let decision = self.may_reach(to, addr);
        let named = special(addr).is_some() || self.allow.iter().any(|it| it.rule.is_for(addr, to.port));
        if decision.allowed && !named { Decision::denied(Reason::Own(addr)) } else { decision }
    }

    fn decide_addr(&self, addr: IpAddr, to: &Destination) -> Decision {
        let special = special(addr);
        let allowed = self.allow.iter().find(|it| match special {
            Some(_) => it.rule.names(addr, to.port),
            None => it.rule.matches(to),
        });
        match (allowed, special) {
            (Some(allowed), _) => allowed.decision(true),
            (None, Some(special)) => Decision::denied(Reason::Special(addr, special.kind)),
            (None, None) => Decision::denied(Reason::NoRule),
        }
    }

    fn never(&self, host: &Host) -> Option<Decision> {
        if let Some(error) = &self.broken {
            return Some(Decision::denied(Reason::Broken(error.clone())));
        }
        let own = matches!(host, Host::Name(name) if rule::is_localhost(name));
        own.then(|| Decision::denied(Reason::Localhost))
    }
}

impl Sourced {
    fn decision(&self, allowed: bool) -> Decision {
        Decision { allowed, rule: Some(self.rule.to_string()), reason: Reason::Rule(self.source) }
    }
}

impl Decision {
    pub fn denied(reason: Reason) -> Self {
        Self { allowed: false, rule: None, reason }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset(preset) => write!(f, "preset {}", preset.name()),
            Self::Global => f.write_str("rule for all sandboxes"),
            Self::Sandbox => f.write_str("rule of this sandbox"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(source) => source.fmt(f),
            Self::NoRule => f.write_str("no rule allows it"),
            Self::Special(addr, kind) if *kind == Kind::NoHost => write!(f, "{addr} is {kind}"),
            Self::Special(addr, kind) => write!(f, "{addr} is {kind}, and no rule names it"),
            Self::Own(addr) => write!(f, "{addr} is this machine's own, and no rule names it alone"),
            Self::Elsewhere(addr) => write!(f, "it leads to {addr}, which is another host"),
            Self::Localhost => {
                f.write_str("localhost is the sandbox itself; this machine is host.coracle.internal")
            }
            Self::Broken(error) => write!(f, "the policy denies everything until it is repaired: {error}"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

#[cfg(test)]
mod tests;
