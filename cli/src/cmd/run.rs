//! `coracle run`: the sandbox for an agent and a folder, made or started where need be, and a session in it.
//! It owns which sandbox a command line means. How one is made is in `store`, how one is entered in `attach`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use gateway::policy::{self, Rules};
use protocol::Stdio;
use rustix::process::{Pid, Signal, kill_process};
use vmm::marks::now_ns;

use crate::attach::{Attach, Removed, Visit, plain_lines};
use crate::cmd::Typed;
use crate::command::{self, Wishes};
use crate::config::{self, Request, SandboxConfig};
use crate::credentials::{self, Credentials};
use crate::parts;
use crate::ports::{self, Wish};
use crate::session::{self, Command, Streams};
use crate::store::{Lock, Sandbox, Store, file, new_id};
use crate::sys::Signals;
use crate::templates::{self, Template, build, images};
use crate::text::Raw;
use crate::timings::{Format, Own};
use crate::{agents, output};

/// Run an agent, or a command, in a sandbox on this folder.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    usage = "[FLAGS] AGENT [PATH[:ro]...] [-- ARGS...]",
    example = "coracle run shell                              bash in a sandbox on this folder
coracle run --rm shell ~/proj -- make -j4      one command; its exit code is this command's
echo data | coracle run --rm shell . -- sort   pipes
coracle run shell . -- -c 'echo hi'            the same as: bash -l -c 'echo hi'
coracle run shell ~/proj ~/docs:ro             more folders, this one read-only
coracle run -d --name box --cpus 2 -m 4g shell start it, to use with coracle exec box",
    note = "The sandbox is created when there is none for this agent and folder, started when it is stopped, and attached to.
It stays, with all that was installed in it, until coracle rm; it stops by itself when it has been unused for a while.
Arguments after -- replace the agent's command, or are added to it when the first begins with a dash.
Input and output are a terminal when this command's are, else three separate streams.",
    note = "What --hide matches does not exist for the sandbox, nor does anything in it, and nothing can be created in its place.
A folder that holds only hidden things looks empty and cannot be removed.",
    note = "docker, in the sandbox, is a daemon of its own that starts with its first use. A container that runs does not keep the
sandbox from stopping when no session is open: for that there is --idle-timeout 0.",
    note = "Credentials stay outside: see coracle help secret. ANTHROPIC_API_KEY, and its like for the services that the agent uses, are taken
from this command's environment when none is stored; the sandbox sees a placeholder. With -e it sees what you give it.
--ssh-agent is for the sandbox's whole life; the agent is the one at SSH_AUTH_SOCK of the command that starts it.",
    note = "A sandbox keeps the CPUs, memory and disk that it was created with until coracle resize changes them. Idle timeout, folders,
template, what is hidden and Docker are fixed; to change them, remove it or give another --name. Variables of -e and --env-file
are kept with a new sandbox, and are for this session alone in one that exists. A path that itself ends in :ro is written with a
slash behind it."
)]
pub struct Args {
    /// name of the sandbox; the default is AGENT-FOLDER, with a number when another folder's sandbox has that name
    #[argh(option, arg_name = "NAME")]
    pub name: Option<Raw>,
    /// number of CPUs; the default is all of this machine's
    #[argh(option, arg_name = "N")]
    pub cpus: Option<Raw>,
    /// memory, such as 512m or 4g, rounded up to steps of 128m beyond 512m; the default is half of this machine's,
    /// from 512m to 32g. It is used only as far as it is needed
    #[argh(option, short = 'm', arg_name = "SIZE")]
    pub memory: Option<Raw>,
    /// size of the disk for what is written outside the workspaces; the default is 20g, used only as far as needed
    #[argh(option, arg_name = "SIZE")]
    pub disk: Option<Raw>,
    /// environment variable; KEY alone passes on your own. Can be repeated
    #[argh(option, short = 'e', arg_name = "KEY[=VALUE]")]
    pub env: Vec<Raw>,
    /// file of environment variables, a KEY=VALUE in each line. Can be repeated
    #[argh(option, arg_name = "FILE")]
    pub env_file: Vec<Raw>,
    /// folder of the sandbox to start in; the default is the first workspace
    #[argh(option, short = 'w', arg_name = "DIR")]
    pub workdir: Option<Raw>,
    /// hide PATTERN from the sandbox, in all folders: a name at any depth, such as .env, or a path from the folder,
    /// such as secrets/*.pem; * and ? stand for parts of a name. Can be repeated
    #[argh(option, arg_name = "PATTERN")]
    pub hide: Vec<Raw>,
    /// let the sandbox reach this as well, such as example.com or 10.0.0.5:5432; see coracle help policy. Can be
    /// repeated, or have commas
    #[argh(option, arg_name = "RULE")]
    pub allow: Vec<Raw>,
    /// refuse this to the sandbox, whatever else allows it. Can be repeated, or have commas
    #[argh(option, arg_name = "RULE")]
    pub deny: Vec<Raw>,
    /// open a port of this machine that leads to one of the sandbox: [[IP:]HOST:]PORT, such as 3000 or 8080:3000; see
    /// coracle help ports. Can be repeated
    #[argh(option, short = 'p', arg_name = "SPEC")]
    pub publish: Vec<Raw>,
    /// what there is of a network: gateway (the default), which is what policy allows, or none
    #[argh(option, arg_name = "HOW")]
    pub network: Option<Raw>,
    /// let the sandbox sign in by this key of your SSH agent, which is asked each time: its fingerprint as ssh-add -l shows it, or
    /// its comment. Can be repeated
    #[argh(option, arg_name = "KEY")]
    pub ssh_agent: Vec<Raw>,
    /// leave out the sandbox's private Docker
    #[argh(switch)]
    pub no_docker: bool,
    /// start the sandbox, print its id, and do not attach
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// a new sandbox, removed when this command ends
    #[argh(switch)]
    pub rm: bool,
    /// stop when no session has been open for this long, such as 30s or 5m; 0 is never, the default is 30s
    #[argh(option, arg_name = "TIME")]
    pub idle_timeout: Option<Raw>,
    /// print on the error stream where the time went; FORMAT is text or json
    #[argh(option, arg_name = "FORMAT")]
    pub timings: Option<Raw>,
    /// print the guest kernel's log on the error stream at the end, all of it, when this command starts the sandbox
    #[argh(switch)]
    pub console: bool,
    /// template or image to make the sandbox from, in place of the agent's; see coracle help template
    #[argh(option, short = 't', long = "template", arg_name = "NAME")]
    pub template: Option<Raw>,
    /// when to ask the registry for the image of -t: always, missing (the default) or never
    #[argh(option, arg_name = "WHEN")]
    pub pull: Option<Raw>,
    /// insist on a terminal; where there is one, run takes it anyway
    #[argh(switch)]
    pub tty: bool,
    /// what to run; coracle agents lists them
    #[argh(positional, arg_name = "AGENT")]
    pub agent: Raw,
    /// folders to show to the sandbox; the first, by default this one, is where it starts
    #[argh(positional, arg_name = "PATH")]
    pub paths: Vec<Raw>,
}

/// How often a sandbox may vanish under this command before it gives up.
const TRIES: usize = 20;
const NUMBERS: u32 = 1000;
/// Exit codes of `true` in a sandbox that works; an image need not have it.
const UP: [u8; 3] = [0, 126, 127];

impl Args {
    pub fn run(self, typed: Typed) -> Result<u8> {
        let request = Request::new(&self)?;
        let format = self.timings.as_ref().map(|format| Format::parse(&format.0)).transpose()?;
        let tail = typed.tail.unwrap_or_default();
        ensure!(
            !self.detach || tail.is_empty(),
            "-d starts a sandbox without running anything in it; leave out what follows --, or run it with coracle exec"
        );
        ensure!(
            !(self.detach && self.rm),
            "-d --rm would remove the sandbox before anything could use it; leave out one of them"
        );
        let stdio = if self.tty || command::on_terminal() && !self.detach {
            command::terminal()?
        } else {
            let wanted = !self.detach;
            Stdio::Pipes { stdin: wanted, stdout: wanted, stderr: wanted }
        };
        let fresh_disk = parts::ready(request.disk_mib())?;
        let credentials = Credentials::gather(&request.agent)?;
        let own = Own { start_ns: typed.start_ns, ..Own::default() };
        let run = Run {
            request,
            fresh_disk,
            credentials,
            template: None,
            tail,
            stdio,
            detach: self.detach,
            console: self.console,
            own,
            format,
        };
        run.go()
    }
}

/// One `run`, checked: nothing has been changed yet.
struct Run {
    request: Request,
    fresh_disk: PathBuf,
    credentials: Credentials,
    /// Once it is known to be needed, and there.
    template: Option<Template>,
    /// What followed `--`.
    tail: Vec<OsString>,
    stdio: Stdio,
    detach: bool,
    console: bool,
    own: Own,
    format: Option<Format>,
}

/// A sandbox to run in.
struct Chosen {
    sandbox: Sandbox,
    config: SandboxConfig,
    /// It was created just now, and is locked.
    created: Option<Lock>,
}

impl Run {
    fn go(mut self) -> Result<u8> {
        // What would be wrong with the command in a new sandbox is wrong in any.
        let draft = self.request.config(String::new(), &Template::default(), 0);
        if !draft.workspaces.is_empty() {
            self.command(&draft, &[])?;
        }
        // Before anything is changed; and it may take minutes, in which signals end this command as any other.
        let is_new = match Store::open()? {
            Some(store) => matches!(self.choose(&store)?, Choice::New(_)),
            None => true,
        };
        if is_new {
            // A test: they are opened for good when the sandbox starts.
            ports::open(&mut self.request.ports.clone(), Wish::Flag("-p"))?;
            self.template()?;
        }
        let store = Store::open_or_create()?;
        let signals = session::take_signals()?;
        for _ in 0..TRIES {
            let chosen = match self.choose(&store)? {
                Choice::Found(chosen) => *chosen,
                Choice::New(name) => match self.create(&store, &name)? {
                    Some(chosen) => chosen,
                    None => continue,
                },
            };
            match self.visit(&store, chosen, &signals) {
                Err(error) if error.is::<Removed>() => {}
                result => return result,
            }
        }
        bail!("other commands keep removing the sandbox; try again")
    }

    fn command(&self, config: &SandboxConfig, placeholders: &[OsString]) -> Result<Command> {
        let image = &config.image;
        let (argv, is_own) = match self.detach {
            // Any command that ends at once shows that the sandbox is up.
            true => (vec![b"true".to_vec()], false),
            false => agents::command(image, &self.tail),
        };
        let own_place = Some(image.workdir.as_str()).filter(|workdir| is_own && !workdir.is_empty());
        let workdir = self.request.workdir.as_deref().or(own_place.map(OsStr::new));
        let env = &self.request.env;
        let wishes = Wishes { env, workdir, user: None, stdio: self.stdio, placeholders };
        command::build(config, argv, &wishes)
    }

    /// The template for a new sandbox, made if it has to be.
    fn template(&mut self) -> Result<Template> {
        if let Some(template) = &self.template {
            return Ok(template.clone());
        }
        let template = match &self.request.template {
            None => build::ensure_built(&self.request.agent)?,
            Some(name) => images::obtain(name, self.request.pull)?,
        };
        Ok(self.template.insert(template).clone())
    }

    /// Which sandbox is meant. `--rm` never means one that is there already: it would remove it.
    fn choose(&mut self, store: &Store) -> Result<Choice> {
        if let Some(name) = &self.request.name {
            let Some(sandbox) = store.open_sandbox(OsStr::new(name))? else {
                return Ok(Choice::New(name.clone()));
            };
            ensure!(
                !self.request.ephemeral,
                "sandbox {name} exists, and --rm is for new ones; leave out --rm, or give another --name"
            );
            let config = sandbox.config().with_context(|| broken(name))?;
            self.check_against(&sandbox, &config)?;
            return Ok(Choice::Found(Box::new(Chosen { sandbox, config, created: None })));
        }
        if !self.request.ephemeral
            && let Some((sandbox, config)) = self.sandbox_here(store)?
        {
            self.check_against(&sandbox, &config)?;
            return Ok(Choice::Found(Box::new(Chosen { sandbox, config, created: None })));
        }
        let agent = &self.request.agent.name;
        let mut names =
            (1..=NUMBERS).map(|number| config::default_name(agent, &self.request.workspaces[0], number));
        let free =
            names.find(|name| store.open_sandbox(OsStr::new(name)).is_ok_and(|sandbox| sandbox.is_none()));
        Ok(Choice::New(free.context("no name is free for the sandbox; give one with --name")?))
    }

    fn check_against(&self, sandbox: &Sandbox, config: &SandboxConfig) -> Result<()> {
        self.request.check_against(&sandbox.name, config)?;
        self.request.check_policy(&sandbox.name, || Rules::read(&sandbox.path.join(policy::NAME)))
    }

    /// The sandbox of this agent on this folder: the only one, or the one with the default name.
    fn sandbox_here(&self, store: &Store) -> Result<Option<(Sandbox, SandboxConfig)>> {
        let (agent, folder) = (&self.request.agent.name, &self.request.workspaces[0]);
        let mut here: Vec<_> =
            store.sandboxes()?.into_iter().filter(|sandbox| !sandbox.is_ephemeral()).collect();
        let mut here: Vec<_> = here
            .drain(..)
            .filter_map(|sandbox| Some((sandbox.config().ok()?, sandbox)))
            .filter(|(config, _)| config.agent == *agent && config.workspaces[0].path == folder.path)
            .map(|(config, sandbox)| (sandbox, config))
            .collect();
        let default = config::default_name(agent, folder, 1);
        let index = match here.len() {
            0 => return Ok(None),
            1 => 0,
            _ => here.iter().position(|(sandbox, _)| sandbox.name == default).with_context(|| {
                let names: Vec<_> = here.iter().map(|(sandbox, _)| sandbox.name.as_str()).collect();
                format!("several sandboxes are on this folder ({}); say which with --name", names.join(", "))
            })?,
        };
        Ok(Some(here.swap_remove(index)))
    }

    /// A new sandbox; `None` when another command has taken the name meanwhile.
    fn create(&mut self, store: &Store, name: &str) -> Result<Option<Chosen>> {
        store.check_room()?;
        for note in self.request.complete()? {
            output::note(&format!("coracle: {note}\n"));
        }
        let now_s = output::now_s();
        let template = self.template()?;
        let config = self.request.config(new_id()?, &template, now_s);
        config.check_memory()?;
        self.command(&config, &[])?;
        let draft = store.draft(&config, &self.fresh_disk, self.request.ephemeral)?;
        draft.write_policy(&self.request.policy)?;
        match store.publish(draft, name)? {
            Ok((sandbox, lock)) => Ok(Some(Chosen { sandbox, config, created: Some(lock) })),
            Err(draft) => {
                store.discard(&draft);
                Ok(None)
            }
        }
    }

    fn visit(&mut self, store: &Store, chosen: Chosen, signals: &Signals) -> Result<u8> {
        let Chosen { sandbox, config, created: lock } = chosen;
        templates::layers(&config.image)?;
        let running = lock.is_none() && sandbox.is_running();
        let granted = self.credentials.grant(&sandbox, running)?;
        credentials::look_for_agent(&config, running);
        let command = self.command(&config, &granted.env)?;
        let created = lock.is_some();
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams = Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let (console, lent) = (self.console, &granted.lent);
        let attach = Attach { store, sandbox: &sandbox, streams, signals, console, config: &config, lent };
        let visit = attach.run(&command, lock);
        self.own.exit_code_ns = now_ns();
        if self.console && visit.launched.is_some() {
            print_console(&sandbox);
        }
        // One that never worked is not kept either: the next run starts afresh.
        let unwanted = self.request.ephemeral && !self.detach || created && !visit.entered;
        // The command's result is worth more than a folder that the next command will collect.
        if unwanted && let Err(error) = remove(store, &sandbox, &visit) {
            output::note(&format!("coracle: {}\n", output::explain(&error, false)));
        }
        self.report(visit, &config)
    }

    fn report(&mut self, visit: Visit, config: &SandboxConfig) -> Result<u8> {
        let marks = visit.launched.map(|launched| launched.marks);
        let attached = visit.attached?;
        self.own.first_byte_ns = attached.first_byte_ns;
        if let Some(marks) = &marks {
            self.own.record(marks);
        }
        if let Some(format) = self.format {
            output::note(&self.own.report(marks.as_ref(), format));
        }
        if self.detach && UP.contains(&attached.code) {
            output::print(&format!("{}\n", config.id))?;
            return Ok(0);
        }
        if let Some(message) = attached.message {
            output::note(&format!("coracle: {message}\n"));
        }
        Ok(attached.code)
    }
}

enum Choice {
    Found(Box<Chosen>),
    New(String),
}

pub fn broken(name: &str) -> String {
    format!("sandbox {name} is broken; coracle rm -f {name} removes it")
}

/// Out of sight at once; the VMM removes the rest when it has ended, which nobody waits for.
fn remove(store: &Store, sandbox: &Sandbox, visit: &Visit) -> Result<()> {
    store.trash(sandbox)?;
    match &visit.launched {
        Some(launched) => {
            let _ = kill_process(Pid::from_child(&launched.child), Signal::TERM);
        }
        None => drop(sandbox.signal(Signal::TERM)),
    }
    if visit.attached.is_err() {
        store.collect_garbage();
    }
    Ok(())
}

fn print_console(sandbox: &Sandbox) {
    let log = sandbox.open_file(file::CONSOLE).and_then(|file| Ok(io::read_to_string(file)?));
    output::note(&(plain_lines(&log.unwrap_or_default()) + "\n"));
}
