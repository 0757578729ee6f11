//! From what was typed to what a sandbox is: the only place with defaults and limits.
//! All checks are made here, before anything is created or started. What comes out is plain data: `Request` for one
//! command line, `SandboxConfig` for the sandbox on disk. It writes nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, anyhow, bail, ensure};
use gateway::agent;
use gateway::policy::Rules;
use gateway::ports::Port;
use protocol::AGENT_SOCKET;
use serde::{Deserialize, Serialize};
use vmm::config::{CPUS_MAX, DEVICES_MAX, MEMORY_MIB_MAX, MEMORY_MIB_MIN};
use vmm::layout;
use vmm::virtio::fs::Patterns;

use crate::agents::{self, Agent};
use crate::cmd::policy::rules;
use crate::cmd::run;
use crate::parts::DISK_MIB_MIN;
use crate::templates::images::{self, Pull};
use crate::templates::{self, Image, Template};
use crate::text::{Raw, decode, encode, plain, quoted};
use crate::units;
use crate::workspace::{self, Workspace};
use crate::{env, git, places, ports};

/// Of config.json; raised when an older Coracle could not read it.
pub const FORMAT: u32 = 2;
pub const NAME_RULE: &str = "letters a-z, digits and hyphens, at most 63, and no hyphen first";
const NAME_MAX: usize = 63;

/// One device is the sandbox's disk.
const WORKSPACES_MAX: usize = DEVICES_MAX - 1;
const DISK_MIB_DEFAULT: u64 = 20 << 10;
/// As far as the fresh image's file system is grown in tests.
const DISK_MIB_MAX: u64 = 1 << 20;
const MEMORY_MIB_DEFAULT_MIN: u64 = 512;
const MEMORY_MIB_DEFAULT_MAX: u64 = 32 << 10;
/// Memory beyond what is there at boot is added in blocks of this size.
const MEMORY_BLOCK_MIB: u64 = 128;
const BOOT_MEMORY_MIB: u64 = 512;
const IDLE_DEFAULT_S: u64 = 30;
const IDLE_MAX_S: u64 = 30 * 24 * 3600;

/// A sandbox, as it is stored: complete, nothing in it means "default". Its name is its folder's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    pub format: u32,
    /// 12 hexadecimal digits.
    pub id: String,
    pub agent: String,
    /// The template it was made from; what that was then is its own now.
    pub template: String,
    pub image: Image,
    /// Seconds since the epoch.
    pub created_s: u64,
    pub cpus: u8,
    pub memory_mib: u32,
    pub disk_mib: u64,
    /// 0 is never.
    pub idle_timeout_s: u64,
    /// The first is where commands start.
    pub workspaces: Vec<Workspace>,
    /// Patterns in the text form: what is hidden in the folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<String>,
    #[serde(default)]
    pub no_docker: bool,
    #[serde(default)]
    pub network: Network,
    /// Fingerprints of the keys that it may use of the user's SSH agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_agent: Vec<String>,
    /// Published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// KEY=VALUE in the text form, for every command.
    pub env: Vec<String>,
}

/// What there is of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// What policy allows, by the gateway.
    #[default]
    Gateway,
    None,
}

impl Network {
    fn parse(text: &OsStr) -> Result<Self> {
        Ok(match text.to_str() {
            Some("gateway") => Self::Gateway,
            Some("none") => Self::None,
            _ => bail!("--network {} is not one of gateway, none", quoted(text)),
        })
    }

    fn name(self) -> String {
        if self == Self::None { "none".into() } else { "gateway".into() }
    }
}

impl SandboxConfig {
    /// Whether a machine of its memory can use its image.
    pub fn check_memory(&self) -> Result<()> {
        let max = |memory_mib: u32| layout::layers_max(u64::from(memory_mib) << 20);
        let size = self.image.size();
        if size <= max(self.memory_mib) {
            return Ok(());
        }
        let remedy = match size <= max(MEMORY_MIB_MAX) {
            true => "give it more --memory",
            false => "make the image smaller",
        };
        bail!(
            "template {} has {}, and a sandbox with {} of memory can use {} at most; {remedy}",
            plain(&self.template),
            units::show_mib(size.div_ceil(1 << 20)),
            units::show_mib(self.memory_mib.into()),
            units::show_mib(max(self.memory_mib) >> 20)
        )
    }

    /// What was read from disk, if it is something that this Coracle can use.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json).context("config.json is damaged")?;
        ensure!(
            format == FORMAT,
            "it is of format {format}, this Coracle knows {FORMAT}; use the one that made it"
        );
        let config: Self = serde_json::from_slice(json).context("config.json is damaged")?;
        let id = config.id.len() == 12 && config.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let paths = config.workspaces.iter().all(|workspace| workspace.path.is_absolute());
        let repositories = config
            .workspaces
            .iter()
            .all(|it| it.worktrees.is_empty() || it.read_only && it.worktrees.len() <= git::WORKTREES_MAX);
        let whole = id
            && config.image.check().is_ok()
            && repositories
            && paths
            && Patterns::new(&config.hide()).is_ok()
            && ports::check(&config.ports).is_ok()
            && config.ports.iter().all(|port| port.guest != 0)
            && (1..=WORKSPACES_MAX).contains(&config.workspaces.len())
            && (1..=CPUS_MAX).contains(&config.cpus)
            && (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&config.memory_mib)
            && (DISK_MIB_MIN..=DISK_MIB_MAX).contains(&config.disk_mib);
        ensure!(whole, "config.json holds values that no sandbox has");
        Ok(config)
    }

    /// What is hidden, as bytes.
    pub fn hide(&self) -> Vec<Vec<u8>> {
        self.hide.iter().map(|pattern| decode(pattern).into_encoded_bytes()).collect()
    }

    /// The variables for every command, as bytes.
    pub fn env(&self) -> Vec<OsString> {
        self.env.iter().map(|variable| decode(variable)).collect()
    }
}

/// The sizes that a command line asks for, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub cpus: Option<u8>,
    pub memory_mib: Option<u32>,
    pub disk_mib: Option<u64>,
}

impl Sizes {
    pub fn new(cpus: Option<&Raw>, memory: Option<&Raw>, disk: Option<&Raw>) -> Result<Self> {
        let cpus = flag(cpus, "--cpus", |text| {
            units::count(text, "a number of CPUs", 1, CPUS_MAX.into()).map_err(|error| anyhow!(error))
        })?;
        Ok(Self {
            cpus: cpus.map(|cpus| u8::try_from(cpus).expect("at most CPUS_MAX")),
            memory_mib: flag(memory, "--memory", check_memory)?,
            disk_mib: flag(disk, "--disk", check_disk)?,
        })
    }
}

/// What one `run` asks for, checked. `None` is: whatever the sandbox has, or the default for a new one.
#[derive(Debug)]
pub struct Request {
    pub agent: Agent,
    /// Of the template; `None` is the agent's.
    pub template: Option<String>,
    pub pull: Pull,
    pub name: Option<String>,
    pub cpus: Option<u8>,
    pub memory_mib: Option<u32>,
    pub disk_mib: Option<u64>,
    pub idle_timeout_s: Option<u64>,
    /// Empty when a name says which sandbox, and no folder was typed.
    pub workspaces: Vec<Workspace>,
    /// In the order of their bytes, none twice. Empty is `None`.
    pub hide: Vec<OsString>,
    /// Rules that it is to have of its own.
    pub policy: Rules,
    pub no_docker: bool,
    pub network: Option<Network>,
    pub ssh_agent: Vec<String>,
    pub ports: Vec<Port>,
    pub env: Vec<OsString>,
    pub workdir: Option<OsString>,
    pub ephemeral: bool,
}

impl Request {
    pub fn new(args: &run::Args) -> Result<Self> {
        let agent = agents::find(&args.agent.0)?;
        let template = args.template.as_ref().map(check_template).transpose()?;
        let pull = args.pull.as_ref().map(|when| Pull::parse(&when.0)).transpose()?.unwrap_or_default();
        ensure!(
            args.pull.is_none() || template.is_some(),
            "--pull is about the image of --template; give one, or leave it out"
        );
        let name = args.name.as_ref().map(|name| check_name(&name.0).context("--name")).transpose()?;
        let Sizes { cpus, memory_mib, disk_mib } =
            Sizes::new(args.cpus.as_ref(), args.memory.as_ref(), args.disk.as_ref())?;
        let idle_timeout_s = flag(args.idle_timeout.as_ref(), "--idle-timeout", |text| {
            units::seconds(text, IDLE_MAX_S).map_err(|error| anyhow!(error))
        })?;
        let env = env::gather(raws(&args.env_file), raws(&args.env))?;
        let workdir = args.workdir.as_ref().map(check_workdir).transpose()?;
        let paths: Vec<&OsStr> = raws(&args.paths).collect();
        let workspaces = match (paths.is_empty(), &name) {
            (true, None) => this_folder()?,
            _ => workspace::resolve(&paths, WORKSPACES_MAX, &places::private()?)?,
        };
        let hide = check_hide(raws(&args.hide), &workspaces)?;
        let policy = check_policy(args)?;
        let network = args.network.as_ref().map(|how| Network::parse(&how.0)).transpose()?;
        let ssh_agent = check_ssh_agent(raws(&args.ssh_agent), network)?;
        let ports = ports::parse(&args.publish, "-p")?;
        ports::check(&ports)?;
        ensure!(
            ports.is_empty() || network != Some(Network::None),
            "-p and --network none exclude each other: without a network there is no way in"
        );
        let ephemeral = args.rm;
        Ok(Self {
            agent,
            template,
            pull,
            name,
            cpus,
            memory_mib,
            disk_mib,
            idle_timeout_s,
            workspaces,
            hide,
            policy,
            no_docker: args.no_docker,
            network,
            ssh_agent,
            ports,
            env,
            workdir,
            ephemeral,
        })
    }

    /// Fills in what only a sandbox that does not exist yet needs. Returns what the user should know about it, in lines.
    pub fn complete(&mut self) -> Result<Vec<String>> {
        if self.workspaces.is_empty() {
            self.workspaces = this_folder()?;
        }
        let notes = git::add_repositories(&mut self.workspaces, &places::private()?)?;
        ensure!(
            self.workspaces.len() <= WORKSPACES_MAX,
            "{} workspaces, with the repositories of worktrees, are too many; at most {WORKSPACES_MAX} can be shown",
            self.workspaces.len()
        );
        Ok(notes)
    }

    /// The sandbox to create for it.
    pub fn config(&self, id: String, template: &Template, created_s: u64) -> SandboxConfig {
        let socket = (!self.ssh_agent.is_empty()).then(|| format!("SSH_AUTH_SOCK={AGENT_SOCKET}"));
        SandboxConfig {
            format: FORMAT,
            id,
            agent: self.agent.name.clone(),
            template: template.name.clone(),
            image: self.agent.image(&template.image),
            created_s,
            cpus: self.cpus.unwrap_or_else(default_cpus),
            memory_mib: self.memory_mib.unwrap_or_else(default_memory_mib),
            disk_mib: self.disk_mib(),
            idle_timeout_s: self.idle_timeout_s.unwrap_or(IDLE_DEFAULT_S),
            workspaces: self.workspaces.clone(),
            hide: self.hide.iter().map(|pattern| encode(pattern)).collect(),
            no_docker: self.no_docker,
            network: self.network.unwrap_or_default(),
            ssh_agent: self.ssh_agent.clone(),
            ports: self.ports.clone(),
            env: socket.into_iter().chain(self.env.iter().map(|variable| encode(variable))).collect(),
        }
    }

    pub fn disk_mib(&self) -> u64 {
        self.disk_mib.unwrap_or(DISK_MIB_DEFAULT)
    }

    /// Whether the sandbox that is there is one that was asked for. What it has is changed by other commands, or never.
    pub fn check_against(&self, name: &str, config: &SandboxConfig) -> Result<()> {
        let remedy =
            format!("leave it out, remove the sandbox with coracle rm {name}, or give another --name");
        let differs = |flag: &str, asked: Option<String>, has: String, remedy: &str| match asked {
            Some(asked) if asked != has => bail!("sandbox {name} has {flag} {has}, not {asked}; {remedy}"),
            _ => Ok(()),
        };
        let resize = &format!("change that with coracle resize {name}, leave it out, or give another --name");
        ensure!(
            config.agent == self.agent.name,
            "sandbox {name} is of agent {}; {remedy}",
            plain(&config.agent)
        );
        let written_out = |name: &String| match images::reference(name) {
            Ok(Some(reference)) => reference.to_string(),
            _ => name.clone(),
        };
        let template = self.template.as_ref().map(written_out);
        differs("--template", template, config.template.clone(), &remedy)?;
        differs("--cpus", self.cpus.map(|it| it.to_string()), config.cpus.to_string(), resize)?;
        let memory = |mib: u32| units::show_mib(mib.into());
        differs("--memory", self.memory_mib.map(memory), memory(config.memory_mib), resize)?;
        differs("--disk", self.disk_mib.map(units::show_mib), units::show_mib(config.disk_mib), resize)?;
        let idle = self.idle_timeout_s.map(|it| it.to_string());
        differs("--idle-timeout", idle, config.idle_timeout_s.to_string(), &remedy)?;
        let hide: Vec<String> = self.hide.iter().map(|pattern| encode(pattern)).collect();
        ensure!(
            hide.is_empty() || hide == config.hide,
            "sandbox {name} has other patterns of --hide{}; {remedy}",
            config.hide.iter().map(|it| format!(" {}", quoted(decode(it)))).collect::<String>()
        );
        ensure!(!self.no_docker || config.no_docker, "sandbox {name} has Docker; {remedy}");
        ensure!(
            self.ssh_agent.is_empty() || self.ssh_agent == config.ssh_agent,
            "sandbox {name} may use other keys of the SSH agent; {remedy}"
        );
        differs("--network", self.network.map(Network::name), config.network.name(), &remedy)?;
        for port in &self.ports {
            ensure!(
                config.ports.iter().any(|it| port.is_met_by(it)),
                "sandbox {name} does not publish {0}; add it with coracle ports {name} --publish {0}, or leave it out",
                ports::spec(port)
            );
        }
        for workspace in &self.workspaces {
            ensure!(
                config.workspaces.contains(workspace),
                "sandbox {name} does not see {}; {remedy}",
                workspace.show()
            );
        }
        Ok(())
    }

    /// Whether the sandbox that is there has the rules that were asked for.
    pub fn check_policy(&self, name: &str, read: impl FnOnce() -> Result<Option<Rules>>) -> Result<()> {
        if self.policy == Rules::default() {
            return Ok(());
        }
        let has = read()?.unwrap_or_default();
        for (verb, asked, has) in
            [("allow", &self.policy.allow, &has.allow), ("deny", &self.policy.deny, &has.deny)]
        {
            if let Some(rule) = asked.iter().find(|rule| !has.contains(rule)) {
                bail!(
                    "sandbox {name} has no rule --{verb} {rule}; add it with coracle policy {verb} --sandbox {name} {}, \
                     or leave it out",
                    quoted(rule.to_string())
                );
            }
        }
        Ok(())
    }
}

/// The keys by their fingerprints, in one order: what was typed may be a comment, which another key could have later.
fn check_ssh_agent<'a>(
    names: impl Iterator<Item = &'a OsStr>,
    network: Option<Network>,
) -> Result<Vec<String>> {
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    if names.is_empty() {
        return Ok(names);
    }
    ensure!(
        network != Some(Network::None),
        "--ssh-agent leads through the gateway, which --network none leaves out; leave out one of them"
    );
    let mut keys = agent::find(places::ssh_agent().as_deref(), &names).context("--ssh-agent")?;
    keys.sort();
    keys.dedup();
    Ok(keys)
}

/// The rules of `--allow` and `--deny`.
fn check_policy(args: &run::Args) -> Result<Rules> {
    let mut policy = Rules::default();
    for (typed, list, flag) in
        [(&args.allow, &mut policy.allow, "--allow"), (&args.deny, &mut policy.deny, "--deny")]
    {
        for typed in typed {
            Rules::add(list, &rules(typed).context(flag)?);
        }
    }
    Ok(policy)
}

fn this_folder() -> Result<Vec<Workspace>> {
    workspace::resolve(&[OsStr::new(".")], 1, &places::private()?)
}

pub fn raws(values: &[Raw]) -> impl Iterator<Item = &OsStr> {
    values.iter().map(|value| value.0.as_os_str())
}

fn flag<T>(
    value: Option<&Raw>,
    name: &'static str,
    check: impl FnOnce(&OsStr) -> Result<T>,
) -> Result<Option<T>> {
    value.map(|value| check(&value.0).context(name)).transpose()
}

pub fn check_name(name: &OsStr) -> Result<String> {
    match name.to_str() {
        Some(text) if is_name(text) => Ok(text.to_owned()),
        _ => bail!("{} is not a name; use {NAME_RULE}", quoted(name)),
    }
}

pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-')
}

/// `<agent>-<folder>`, made into a name; `number` tells several apart.
pub fn default_name(agent: &str, workspace: &Workspace, number: u32) -> String {
    let folder = workspace.path.file_name().unwrap_or_default();
    let mut name = agent.to_owned();
    let mut gap = true;
    for byte in folder.as_bytes().iter().map(u8::to_ascii_lowercase) {
        if !(byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            gap = true;
            continue;
        }
        if gap {
            name.push('-');
        }
        gap = false;
        name.push(byte.into());
    }
    let suffix = if number > 1 { format!("-{number}") } else { String::new() };
    name.truncate(NAME_MAX - suffix.len());
    name.truncate(name.trim_end_matches('-').len());
    name + &suffix
}

fn check_memory(text: &OsStr) -> Result<u32> {
    let mib = units::mib(text).map_err(|error| anyhow!(error))?;
    let max = host_memory_mib().min(MEMORY_MIB_MAX.into());
    ensure!(
        (u64::from(MEMORY_MIB_MIN)..=max).contains(&mib),
        "{} is not from {MEMORY_MIB_MIN}m to {} (all of this machine)",
        quoted(text),
        units::show_mib(max)
    );
    Ok(to_blocks(mib))
}

/// Rounds up to what can be added to a running guest.
fn to_blocks(mib: u64) -> u32 {
    let rounded = if mib > BOOT_MEMORY_MIB { mib.next_multiple_of(MEMORY_BLOCK_MIB) } else { mib };
    u32::try_from(rounded.min(MEMORY_MIB_MAX.into())).expect("the limit is a u32")
}

fn check_disk(text: &OsStr) -> Result<u64> {
    let mib = units::mib(text).map_err(|error| anyhow!(error))?;
    ensure!(
        (DISK_MIB_MIN..=DISK_MIB_MAX).contains(&mib),
        "{} is not from {} to {}",
        quoted(text),
        units::show_mib(DISK_MIB_MIN),
        units::show_mib(DISK_MIB_MAX)
    );
    Ok(mib)
}

/// The patterns of what is hidden. They must not contradict the folders that are shown.
fn check_hide<'a>(typed: impl Iterator<Item = &'a OsStr>, workspaces: &[Workspace]) -> Result<Vec<OsString>> {
    let mut hide: Vec<OsString> = typed.map(OsStr::to_owned).collect();
    for pattern in &hide {
        Patterns::new(&[pattern.as_bytes()])
            .map_err(|error| anyhow!("--hide {} {error}", quoted(pattern)))?;
    }
    hide.sort();
    hide.dedup();
    let bytes: Vec<&[u8]> = hide.iter().map(|pattern| pattern.as_bytes()).collect();
    workspace::check_shown(workspaces, &Patterns::new(&bytes).context("--hide")?)?;
    Ok(hide)
}

fn check_template(typed: &Raw) -> Result<String> {
    let name = typed.0.to_str().filter(|name| templates::is_name(name));
    let name = name
        .with_context(|| format!("--template {} is not the name of a template or image", quoted(&typed.0)))?;
    images::reference(name).context("--template")?;
    Ok(name.to_owned())
}

pub fn check_workdir(typed: &Raw) -> Result<OsString> {
    let bytes = typed.0.as_bytes();
    ensure!(
        bytes.starts_with(b"/") && bytes.len() <= protocol::PATH_LEN_MAX,
        "--workdir {} is not an absolute path of the sandbox; the default is the first workspace",
        quoted(&typed.0)
    );
    Ok(typed.0.clone())
}

/// `NAME`, `UID`, either with `:GROUP`.
pub fn check_user(typed: &Raw) -> Result<String> {
    let good = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('-')
    };
    let text = typed.0.to_str().unwrap_or_default();
    let mut parts = text.split(':');
    let user = parts.next().is_some_and(good);
    let group = parts.next().is_none_or(good);
    ensure!(
        user && group && parts.next().is_none() && text.len() <= protocol::USER_LEN_MAX,
        "--user {} is not a user; write NAME, UID, NAME:GROUP or UID:GID",
        quoted(&typed.0)
    );
    Ok(text.to_owned())
}

/// All CPUs that this process may use.
fn default_cpus() -> u8 {
    let count = rustix::thread::sched_getaffinity(None).map_or(1, |cpus| cpus.count());
    u8::try_from(count).unwrap_or(CPUS_MAX).clamp(1, CPUS_MAX)
}

/// Half of the machine's memory, within reason.
fn default_memory_mib() -> u32 {
    let half = (host_memory_mib() / 2).clamp(MEMORY_MIB_DEFAULT_MIN, MEMORY_MIB_DEFAULT_MAX);
    to_blocks(half - half % MEMORY_BLOCK_MIB)
}

fn host_memory_mib() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram.saturating_mul(host.mem_unit.into()) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn named(agent: &str, path: &str, number: u32) -> String {
        let workspace =
            Workspace { path: PathBuf::from(path), read_only: false, file: false, worktrees: Vec::new() };
        let name = default_name(agent, &workspace, number);
        assert!(is_name(&name), "{name}");
        name
    }

    #[test]
    fn default_names_follow_the_rule() {
        assert_eq!(named("shell", "/w/proj", 1), "shell-proj");
        assert_eq!(named("shell", "/w/My Project_2.0!", 1), "shell-my-project-2-0");
        assert_eq!(named("shell", "/w/日本", 1), "shell");
        assert_eq!(named("shell", "/w/日本", 2), "shell-2");
        assert_eq!(named("shell", &format!("/w/{}", "x".repeat(255)), 1).len(), 63);
        assert_eq!(named("shell", &format!("/w/{}", "x".repeat(255)), 17).len(), 63);
        assert_eq!(
            named("shell", &format!("/w/{}-b", "x".repeat(55)), 12),
            format!("shell-{}-12", "x".repeat(54))
        );
    }

    #[test]
    fn names() {
        for good in ["a", "0", "a-b", "shell-proj-2", &"x".repeat(63), "a-"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "/",
            "a/b",
            "-a",
            "A",
            "a.b",
            "a_b",
            "é",
            "a\0",
            "\u{202e}a",
            "$(id)",
            &"x".repeat(64),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn users() {
        let check = |text: &str| check_user(&Raw(text.into()));
        for good in ["root", "0", "99999", "agent:agent", "1000:1000", "www-data"] {
            assert_eq!(check(good).unwrap(), good);
        }
        for bad in ["", ":", "root:", ":root", "a:b:c", "a b", "a\n", "-a", "é", &"x".repeat(300)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn memory_is_rounded_up_to_blocks() {
        assert_eq!([128, 300, 512, 513, 1000, 1536].map(to_blocks), [128, 300, 512, 640, 1024, 1536]);
        let half = default_memory_mib();
        assert!((512..=32 << 10).contains(&half) && half.is_multiple_of(128));
    }

    #[test]
    fn an_image_is_as_large_as_the_memory_allows() {
        let config = |memory_mib, gib: u64| {
            let layer = templates::Layer { sha256: "0".repeat(64), size: gib << 29 };
            let image = Image { layers: vec![layer.clone(), layer], ..Image::default() };
            SandboxConfig { memory_mib, image, template: "big".into(), ..crate::store::tests::config("") }
        };
        for (memory_mib, gib) in [(128, 2), (512, 8), (MEMORY_MIB_MAX, 8)] {
            assert!(config(memory_mib, gib).check_memory().is_ok());
        }
        let said = |memory_mib, gib| config(memory_mib, gib).check_memory().unwrap_err().to_string();
        let start = "template big has 3g, and a sandbox with 128m of memory can use 2g at most; ";
        assert_eq!(said(128, 3), format!("{start}give it more --memory"));
        assert!(said(MEMORY_MIB_MAX, 9).ends_with("can use 8g at most; make the image smaller"));
    }

    #[test]
    fn damaged_configs_are_refused() {
        let cases: [&[u8]; 8] = [
            b"",
            b"null",
            b"{}",
            b"[]",
            b"\xff",
            b"{\"format\":2}",
            b"{\"format\":1}",
            b"{\"format\":\"1\"}",
        ];
        for json in cases {
            assert!(SandboxConfig::parse(json).is_err(), "{json:?}");
        }
    }
}
