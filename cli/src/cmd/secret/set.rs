//! `coracle secret set`: a secret from a terminal, a pipe, this command's environment, or a command that is asked each time.

use std::ffi::OsStr;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use gateway::credentials::{Custom, Entry, Origin, SECRET_MAX, SERVICES, Store, check, find};
use gateway::intercept::is_host;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::config;
use crate::places;
use crate::sys::Signals;
use crate::term::Unseen;
use crate::text::{Raw, nearest, plain, quoted};

/// That end this command while it waits for somebody to type.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
const COMMAND_MAX: usize = 4096;
const HOSTS_MAX: usize = 16;
const HTTPS: u16 = 443;
/// Where most services want theirs.
const HEADER: &str = "Authorization: Bearer %s";
/// Headers that are the connection's, or say where a request goes.
const HEADERS_REFUSED: [&str; 7] =
    ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "accept-encoding"];

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "set",
    help_triggers("-h", "--help"),
    usage = "[FLAGS] SERVICE",
    example = "coracle secret set anthropic
coracle secret set anthropic --sandbox claude-proj <key.txt
coracle secret set openai --from-env
coracle secret set github --command 'gh auth token'
coracle secret set mine --host api.example.com --env MINE_API_KEY
coracle secret set mine --host a.example.com --host b.example.com:8443 --header 'X-Key: %s'",
    note = "The secret is read from a terminal without showing it, or from a pipe; never from the command line.
One for a sandbox comes before one for all, and that before what run finds in the environment.",
    note = "A command is run by sh on this machine when a request needs the secret, with your rights, and its answer is used for five minutes.
It cannot ask anything, and has a minute.",
    note = "A sandbox that runs without any secret uses those that are set from its next start on; in others they count at once.
Hosts other than those of the services are given by name; SERVICE is then any name for it."
)]
/// Store a secret, in place of the one that is there.
pub struct Args {
    /// for this sandbox only; it need not exist yet
    #[argh(option, arg_name = "NAME")]
    pub sandbox: Option<Raw>,
    /// take it from the variable that the service's own programs use, such as OPENAI_API_KEY
    #[argh(switch)]
    pub from_env: bool,
    /// ask this command for it whenever it is needed, and store the command
    #[argh(option, arg_name = "COMMAND")]
    pub command: Option<Raw>,
    /// a host that gets it, by HTTPS; can be repeated
    #[argh(option, arg_name = "HOST[:PORT]")]
    pub host: Vec<Raw>,
    /// how that host gets it, %s being the secret; the default is 'Authorization: Bearer %s'
    #[argh(option, arg_name = "HEADER")]
    pub header: Option<Raw>,
    /// variable that has the placeholder in sandboxes; can be repeated
    #[argh(option, arg_name = "NAME")]
    pub env: Vec<Raw>,
    /// anthropic, openai, github, google, or a name for other hosts
    #[argh(positional, arg_name = "SERVICE")]
    pub service: Raw,
}

impl Args {
    pub fn run(self) -> Result<u8> {
        let custom = self.custom()?;
        let service = self.service(custom.is_some())?;
        let sandbox = super::scope(self.sandbox.as_ref())?;
        ensure!(
            !(self.from_env && self.command.is_some()),
            "--from-env and --command are two sources; choose one"
        );
        let settings = places::settings()?;
        // Before anybody is asked for anything.
        Store::load(&settings)?;
        let origin = match &self.command {
            Some(line) => Origin::Command(command(&line.0)?),
            None if self.from_env => Origin::Value(from_environment(&service, custom.as_ref())?),
            None => Origin::Value(read(&service)?),
        };
        let entry = Entry { service, sandbox, origin, custom };
        Store::change(&settings, |secrets| {
            secrets.retain(|it| (&it.service, &it.sandbox) != (&entry.service, &entry.sandbox));
            secrets.push(entry);
        })?;
        Ok(0)
    }

    fn service(&self, custom: bool) -> Result<String> {
        let known = || SERVICES.iter().map(|service| service.name);
        let typed = &self.service.0;
        match typed.to_str() {
            Some(name) if find(name).is_some() => {
                ensure!(
                    !custom,
                    "{name} has hosts of its own; leave out --host, or give the secret another name"
                );
                Ok(name.to_owned())
            }
            _ if custom => config::check_name(typed),
            name => {
                let guess = name.and_then(|typed| nearest(typed, known()));
                let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
                let known = known().collect::<Vec<_>>().join(", ");
                bail!(
                    "unknown service {}; {guess}known: {known}; for others say which with --host",
                    quoted(typed)
                )
            }
        }
    }

    fn custom(&self) -> Result<Option<Custom>> {
        if self.host.is_empty() {
            ensure!(self.header.is_none(), "--header is for hosts of your own; name one with --host");
            ensure!(self.env.is_empty(), "--env is for hosts of your own; name one with --host");
            return Ok(None);
        }
        ensure!(self.host.len() <= HOSTS_MAX, "{} hosts are too many; at most {HOSTS_MAX}", self.host.len());
        let hosts =
            self.host.iter().map(|it| host(&it.0).with_context(|| format!("--host {}", quoted(&it.0))));
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let text = self.header.as_ref().map_or(OsStr::new(HEADER), |it| &it.0);
        let (header, format) = header(text).with_context(|| format!("--header {}", quoted(text)))?;
        let variables = self.env.iter().map(|it| variable(&it.0)).collect::<Result<_>>()?;
        Ok(Some(Custom { hosts, header, format, variables }))
    }
}

fn host(typed: &OsStr) -> Result<(String, u16)> {
    let text = typed.to_str().unwrap_or_default().to_ascii_lowercase();
    let (name, port) = match text.rsplit_once(':') {
        None => (text.as_str(), Some(HTTPS)),
        Some((name, port)) => (name, port.parse().ok().filter(|&port| port > 0)),
    };
    let port = port.filter(|_| is_host(name));
    Ok((
        name.to_owned(),
        port.context("is not a host's name, such as api.example.com, with :PORT if it is not 443")?,
    ))
}

fn header(typed: &OsStr) -> Result<(String, String)> {
    let text = typed.to_str().unwrap_or_default();
    let (name, format) = text.split_once(':').context("write NAME: VALUE, with %s where the secret goes")?;
    let (name, format) = (name.trim().to_ascii_lowercase(), format.trim());
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ensure!(!name.is_empty() && name.bytes().all(word), "has no header's name before the colon");
    ensure!(!HEADERS_REFUSED.contains(&name.as_str()), "that header is not for credentials");
    let plain = format.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    ensure!(plain && format.matches("%s").count() == 1, "must have %s once where the secret goes");
    Ok((name, format.to_owned()))
}

fn variable(typed: &OsStr) -> Result<String> {
    let word = |name: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        !name.is_empty()
            && name.bytes().all(allowed)
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    let name = typed.to_str().filter(word);
    Ok(name.with_context(|| format!("--env {} is not a variable's name", quoted(typed)))?.to_owned())
}

fn command(typed: &OsStr) -> Result<String> {
    let line = typed.to_str().filter(|line| !line.trim().is_empty() && line.len() <= COMMAND_MAX);
    Ok(line.context("--command needs a command for sh, in UTF-8 and at most 4096 bytes")?.to_owned())
}

fn from_environment(service: &str, custom: Option<&Custom>) -> Result<String> {
    let names: Vec<&str> = match (custom, find(service)) {
        (Some(custom), _) => custom.variables.iter().map(String::as_str).collect(),
        (None, known) => known.into_iter().flat_map(|known| known.variables()).collect(),
    };
    ensure!(!names.is_empty(), "--from-env needs --env, which says which variable");
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let Some((name, value)) = names.iter().find_map(|&name| Some((name, set(name)?))) else {
        bail!("{} is not set; set it, or leave out --from-env", names.join(" or "));
    };
    check(value.into_encoded_bytes()).context(name.to_owned())
}

/// For a line, which is what a terminal has when it has anything; an error when a signal comes first.
fn wait(signals: &Signals) -> Result<()> {
    let input = io::stdin();
    let mut ready = [PollFd::new(&input, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    while poll(&mut ready, None).or_else(retry).context("wait for the terminal")? == 0 {}
    ensure!(ready[1].revents().is_empty(), "interrupted");
    Ok(())
}

fn retry(error: Errno) -> Result<usize, Errno> {
    if error == Errno::INTR { Ok(0) } else { Err(error) }
}

/// From the terminal, or all of the input.
fn read(service: &str) -> Result<String> {
    let input = io::stdin();
    let mut bytes = Vec::new();
    if input.is_terminal() {
        // A signal ends this command when both are dropped, the terminal first.
        let signals = Signals::take(&ENDING, &[]).context("take over signals")?;
        let _unseen = Unseen::enter(input.as_fd()).context("keep the terminal from showing it")?;
        write!(io::stderr(), "secret for {}: ", plain(service))?;
        wait(&signals)?;
        let line = input.lock().take(SECRET_MAX as u64 + 2).read_until(b'\n', &mut bytes);
        let _ = writeln!(io::stderr());
        line.context("read the secret")?;
    } else {
        input.lock().take(SECRET_MAX as u64 + 2).read_to_end(&mut bytes).context("read the secret")?;
    }
    check(bytes).context("the input")
}
