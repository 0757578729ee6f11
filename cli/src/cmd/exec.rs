//! `coracle exec`: another command in a sandbox that exists.
//! It owns its flags, which are those of `docker exec`. It creates no sandbox.

use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use argh::{ArgsInfo, FromArgs};
use protocol::Stdio;

use crate::attach::Attach;
use crate::cmd::{Typed, run};
use crate::command::{self, Wishes};
use crate::credentials::{self, Credentials};
use crate::session::{self, Streams};
use crate::store::Store;
use crate::text::Raw;
use crate::{config, env, output, parts, templates};

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "exec",
    help_triggers("-h", "--help"),
    usage = "[FLAGS] NAME COMMAND [ARG...]",
    note = "NAME is the sandbox's name, or the beginning of its id. All that follows it is the command, flags included.",
    example = "coracle exec -it shell-proj bash             a second session
coracle exec shell-proj cat /etc/os-release  output only
tar c . | coracle exec -i shell-proj tar x   with input"
)]
/// Run another command in a sandbox, which is started when it is stopped.
pub struct Args {
    /// pass on this command's input
    #[argh(switch, short = 'i')]
    pub interactive: bool,
    /// give the command a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// environment variable; KEY alone passes on your own. Can be repeated
    #[argh(option, short = 'e', arg_name = "KEY[=VALUE]")]
    pub env: Vec<Raw>,
    /// file of environment variables, a KEY=VALUE in each line. Can be repeated
    #[argh(option, arg_name = "FILE")]
    pub env_file: Vec<Raw>,
    /// folder of the sandbox to start in; the default is the first workspace
    #[argh(option, short = 'w', arg_name = "DIR")]
    pub workdir: Option<Raw>,
    /// user, or user:group, of the sandbox; the default is agent, who can sudo
    #[argh(option, short = 'u', arg_name = "USER")]
    pub user: Option<Raw>,
    /// the sandbox
    #[argh(positional, arg_name = "NAME")]
    pub name: Raw,
}

impl Args {
    pub fn run(self, typed: Typed) -> Result<u8> {
        let argv: Vec<Vec<u8>> =
            typed.tail.unwrap_or_default().into_iter().map(|arg| arg.into_encoded_bytes()).collect();
        ensure!(!argv.is_empty(), "exec needs a command after the sandbox's name, such as bash");
        let env = env::gather(config::raws(&self.env_file), config::raws(&self.env))?;
        let workdir = self.workdir.as_ref().map(config::check_workdir).transpose()?;
        let user = self.user.as_ref().map(config::check_user).transpose()?;
        let stdio = match self.tty {
            true => command::terminal()?,
            false => Stdio::Pipes { stdin: self.interactive, stdout: true, stderr: true },
        };
        let store = Store::existing(&self.name.0)?;
        let sandbox = store.find(&self.name.0)?;
        let config = sandbox.config().with_context(|| run::broken(&sandbox.name))?;
        parts::ready(config.disk_mib)?;
        templates::layers(&config.image)?;
        let running = sandbox.is_running();
        let granted = Credentials::gather_for(&config.agent)?.grant(&sandbox, running)?;
        credentials::look_for_agent(&config, running);
        let (workdir, user) = (workdir.as_deref(), user.as_deref());
        let wishes = Wishes { env: &env, workdir, user, stdio, placeholders: &granted.env };
        let command = command::build(&config, argv, &wishes)?;
        store.collect_garbage();
        let signals = session::take_signals()?;
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams = Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let (store, sandbox, signals, lent) = (&store, &sandbox, &signals, &granted.lent);
        let attach = Attach { store, sandbox, streams, signals, console: false, config: &config, lent };
        let attached = attach.run(&command, None).attached?;
        if let Some(message) = attached.message {
            output::note(&format!("coracle: {message}\n"));
        }
        Ok(attached.code)
    }
}
