//! `coracle ports`: the published ports of a sandbox, shown and changed. A change is kept, and acts at once on a sandbox that runs.
//! It owns the order of the steps: what may fail comes before what is changed.

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use gateway::ports::{Listener, Port};
use gateway::supervisor::Change;
use serde_json::Value;

use crate::cmd::{Typed, run};
use crate::config::{Network, SandboxConfig};
use crate::output::{print, table};
use crate::ports::{Wish, check, json, open, parse, parse_one, spec, tell};
use crate::store::{Locked, Sandbox, Store};
use crate::text::Raw;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ports",
    help_triggers("-h", "--help"),
    usage = "[--publish SPEC]... [--unpublish SPEC]... [--json] NAME",
    example = "coracle ports shell-proj                             list them
coracle ports shell-proj --publish 3000              localhost:3000 leads to port 3000 of the sandbox
coracle ports shell-proj --publish 8080:3000         localhost:8080 does
coracle ports shell-proj --publish 0:3000            any free port does; the list shows which
coracle ports shell-proj --publish 0.0.0.0:8080:80   for other machines as well
coracle ports shell-proj --unpublish 3000            whatever leads to port 3000 of the sandbox no longer does",
    note = "SPEC is [[IP:]HOST:]PORT, with IPv6 addresses in brackets; only TCP can be published. Without IP it is this machine's loopback, by
IPv4 and IPv6; without HOST, the same port. A service in the sandbox, or in a container of its Docker, is reached whether it listens
on loopback or on all addresses.",
    note = "Ports are open as long as the sandbox runs, and again after its next start. A connection keeps the sandbox from being unused;
without one it stops as always, see --idle-timeout in coracle help run. Open connections end with --unpublish."
)]
/// Show, publish and unpublish ports of a sandbox.
pub struct Args {
    /// open a port of this machine that leads to one of the sandbox. Can be repeated
    #[argh(option, arg_name = "SPEC")]
    pub publish: Vec<Raw>,
    /// close it: PORT is all that leads there, HOST:PORT and IP:HOST:PORT are one. Can be repeated
    #[argh(option, arg_name = "SPEC")]
    pub unpublish: Vec<Raw>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// the sandbox
    #[argh(positional, arg_name = "NAME")]
    pub name: Raw,
}

const PUBLISH: Wish<'_> = Wish::Flag("--publish");

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let publish = parse(&self.publish, "--publish")?;
        let unpublish = self.unpublish.iter().map(Gone::parse).collect::<Result<Vec<_>>>()?;
        let store = Store::existing(&self.name.0)?;
        let sandbox = store.find(&self.name.0)?;
        let config = sandbox.config().with_context(|| run::broken(&sandbox.name))?;
        if publish.is_empty() && unpublish.is_empty() {
            return list(&config.ports, self.json);
        }
        // What is wrong is said before anything is touched, even the lock.
        Plan::new(&sandbox.name, &config, &publish, &unpublish)?;
        // A lock that is free keeps the sandbox from being started halfway.
        let lock = match store.lock(&sandbox)? {
            Locked::Gone => bail!("sandbox {} is being removed", sandbox.name),
            Locked::Ours(lock) => Some(lock),
            Locked::Busy => None,
        };
        let _alone = sandbox.alone()?;
        let mut config = sandbox.config()?;
        let plan = Plan::new(&sandbox.name, &config, &publish, &unpublish)?;
        plan.carry_out(&sandbox, &mut config, lock.is_none())?;
        list(&config.ports, self.json)
    }
}

fn list(ports: &[Port], as_json: bool) -> Result<u8> {
    print(&match as_json {
        true => format!("{:#}\n", Value::from(ports.iter().map(json).collect::<Vec<_>>())),
        false => {
            let head = vec!["HOST".into(), "SANDBOX".into()];
            let rows = ports.iter().map(|port| vec![port.to_string(), port.guest.to_string()]);
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        }
    })?;
    Ok(0)
}

/// What is to be unpublished.
struct Gone {
    port: Port,
    /// Whatever leads to that port of the sandbox.
    all: bool,
}

impl Gone {
    fn parse(typed: &Raw) -> Result<Self> {
        let port = parse_one(typed, "--unpublish")?;
        Ok(Self { port, all: !typed.0.as_encoded_bytes().contains(&b':') })
    }

    fn means(&self, port: &Port) -> bool {
        let Self { port: gone, all } = self;
        let same_place = gone.host == port.host && (gone.address.is_none() || gone.address == port.address);
        gone.guest == port.guest && (*all || same_place)
    }
}

/// What becomes of the ports of a sandbox.
struct Plan {
    gone: Vec<Port>,
    stay: Vec<Port>,
    new: Vec<Port>,
}

impl Plan {
    fn new(name: &str, config: &SandboxConfig, publish: &[Port], unpublish: &[Gone]) -> Result<Self> {
        ensure!(
            publish.is_empty() || config.network == Network::Gateway,
            "sandbox {name} has --network none, and so no way in; publish ports of one that has a network"
        );
        for gone in unpublish {
            ensure!(
                config.ports.iter().any(|port| gone.means(port)),
                "sandbox {name} does not publish {}; coracle ports {name} lists what it does",
                if gone.all { gone.port.guest.to_string() } else { spec(&gone.port) }
            );
        }
        let is_gone = |port: &Port| unpublish.iter().any(|gone| gone.means(port));
        let (gone, stay): (Vec<Port>, Vec<Port>) = config.ports.iter().partition(|port| is_gone(port));
        let is_new = |port: &&Port| !stay.iter().any(|it| port.is_met_by(it));
        let new: Vec<Port> = publish.iter().filter(is_new).copied().collect();
        check(&[&stay[..], &new].concat())?;
        Ok(Self { gone, stay, new })
    }

    fn carry_out(self, sandbox: &Sandbox, config: &mut SandboxConfig, runs: bool) -> Result<()> {
        let Self { gone, stay, new } = self;
        let is_held = |port: &Port| gone.iter().any(|it| it.is_in_the_way_of(port));
        let (mut held, mut free): (Vec<Port>, Vec<Port>) = new.iter().partition(|port| runs && is_held(port));
        // That one is busy is said before anything is changed; those whose place is held by what goes have to wait for it.
        let mut listeners = open(&mut free, PUBLISH)?;
        if !gone.is_empty() {
            config.ports = stay;
            let remove = gone.iter().flat_map(Port::openings).map(|it| it.at).collect();
            apply(sandbox, config, runs, &Change { remove, ..Change::default() }, &[])?;
        }
        listeners.extend(open(&mut held, PUBLISH)?);
        config.ports.extend(free.into_iter().chain(held));
        let add = listeners.iter().map(|it| it.opening).collect();
        apply(sandbox, config, runs, &Change { add, ..Change::default() }, &listeners)
    }
}

/// Keeps what there is now, and has the gateway of a sandbox that runs do it.
fn apply(
    sandbox: &Sandbox,
    config: &SandboxConfig,
    runs: bool,
    change: &Change,
    listeners: &[Listener],
) -> Result<()> {
    sandbox.replace_config(config)?;
    if !runs || *change == Change::default() {
        return Ok(());
    }
    tell(sandbox, change, listeners).with_context(|| {
        let name = &sandbox.name;
        format!(
            "this holds for sandbox {name} from its next start on, for which there is coracle stop {name}"
        )
    })
}
