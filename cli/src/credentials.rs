//! What a sandbox gets of credentials when a command starts or enters it: placeholders for its programs, an authority to believe,
//! and for the gateway what the caller's environment lends.
//! It owns which agent may be lent what. What a secret is and where it goes is in the crate `gateway`.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use gateway::credentials::{Lent, Secrets, Store, find};
use gateway::{agent, intercept};

use crate::agents::{self, Agent};
use crate::config::SandboxConfig;
use crate::output::{explain, note};
use crate::places;
use crate::store::{Sandbox, file};

/// What there is, checked before anything is changed.
#[derive(Default)]
pub struct Credentials {
    store: Store,
    lent: Vec<Lent>,
}

/// What one sandbox gets of it.
#[derive(Default)]
pub struct Granted {
    /// KEY=VALUE for every command in it.
    pub env: Vec<OsString>,
    /// For the gateway, if this command starts the sandbox.
    pub lent: Vec<Lent>,
}

impl Credentials {
    /// What is stored, and what this command's environment has for the services that the agent uses.
    pub fn gather(agent: &Agent) -> Result<Self> {
        let store = Store::load(&places::settings()?)?;
        let services = agent.credentials.iter().map(String::as_str);
        Ok(Self { store, lent: Lent::from_environment(services, |name| std::env::var_os(name))? })
    }

    /// The same for an agent whose file may be gone by now.
    pub fn gather_for(agent: &str) -> Result<Self> {
        Self::gather(&agents::find(agent.as_ref()).unwrap_or_default())
    }

    /// What a sandbox gets that is about to be started, or entered when it runs. The first time there is any, it is given an
    /// authority.
    pub fn grant(&self, sandbox: &Sandbox, running: bool) -> Result<Granted> {
        let (store, mut lent) = (&self.store, self.lent.clone());
        if store.secrets.is_empty() && lent.is_empty() {
            return Ok(Granted::default());
        }
        if running {
            // The gateway has what was lent to it at the start.
            let known = lent_at_start(sandbox);
            lent.retain(|it| known.contains(&it.service));
        }
        let secrets = Secrets::new(store, &sandbox.name, &lent)?;
        if secrets.is_empty() {
            return Ok(Granted::default());
        }
        if running && intercept::certificate(&sandbox.path)?.is_none() {
            note(&format!(
                "coracle: sandbox {0} was started without secrets and has none before its next start: coracle stop {0}\n",
                sandbox.name
            ));
            return Ok(Granted::default());
        }
        intercept::ensure_authority(&sandbox.path)?;
        let env = secrets.guest().iter().map(|(name, placeholder)| format!("{name}={placeholder}").into());
        Ok(Granted { env: env.collect(), lent })
    }
}

/// Says so when a sandbox that may use keys is started where the SSH agent does not have them: it is asked where this command runs,
/// as long as the sandbox does.
pub fn look_for_agent(config: &SandboxConfig, running: bool) {
    if running || config.ssh_agent.is_empty() {
        return;
    }
    if let Err(error) = agent::find(places::ssh_agent().as_deref(), &config.ssh_agent) {
        note(&format!("coracle: the sandbox cannot use your SSH keys: {}\n", explain(&error, false)));
    }
}

/// Leaves the names of the services that a sandbox is lent secrets of, as long as it runs: never the secrets.
pub fn leave_names(sandbox: &Sandbox, lent: &[Lent]) -> Result<()> {
    if lent.is_empty() {
        return match std::fs::remove_file(sandbox.path.join(file::LENT)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("remove the list of what was lent")
            }
            _ => Ok(()),
        };
    }
    let names: String = lent.iter().map(|it| format!("{}\n", it.service)).collect();
    sandbox.create_file(file::LENT)?.write_all(names.as_bytes()).context("write the list of what is lent")
}

fn lent_at_start(sandbox: &Sandbox) -> Vec<String> {
    let text = sandbox.open_file(file::LENT).ok().and_then(|file| std::io::read_to_string(file).ok());
    let services = text.iter().flat_map(|text| text.lines());
    services.filter(|name| find(name).is_some()).map(str::to_owned).collect()
}
