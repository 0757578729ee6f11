//! What a session is to run: image, sandbox and command line put together.
//! It owns which of them wins. It encodes nothing and sends nothing.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, ensure};
use protocol::{Exec, Stdio};

use crate::config::SandboxConfig;
use crate::session::Command;
use crate::{env, term};

/// What a command line says about the command, besides the command.
pub struct Wishes<'a> {
    pub env: &'a [OsString],
    pub workdir: Option<&'a OsStr>,
    pub user: Option<&'a str>,
    pub stdio: Stdio,
    /// Placeholders for credentials; what else says a value comes before them.
    pub placeholders: &'a [OsString],
}

/// Where programs are, for an image that does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command for a sandbox: it starts in the first workspace, as the image's user, unless something else was wished.
pub fn build(config: &SandboxConfig, argv: Vec<Vec<u8>>, wishes: &Wishes<'_>) -> Result<Command> {
    let stored = config.env();
    let term = matches!(wishes.stdio, Stdio::Tty(_)).then(env::term);
    let image = [PATH].into_iter().chain(config.image.env.iter().map(String::as_str)).map(OsStr::new);
    let layers = image.chain(term.as_deref()).chain(wishes.placeholders.iter().map(OsString::as_os_str));
    let layers = layers.chain(stored.iter().chain(wishes.env).map(OsString::as_os_str));
    let first = config.workspaces[0].path.as_os_str();
    Command::new(Exec {
        argv,
        env: env::merge(layers),
        cwd: wishes.workdir.unwrap_or(first).as_bytes().to_vec(),
        user: match wishes.user.unwrap_or(&config.image.user) {
            "" => "0".to_owned(),
            user => user.to_owned(),
        },
        stdio: wishes.stdio,
    })
}

/// Whether this command's input and output are a terminal.
pub fn on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// A terminal of this one's size.
pub fn terminal() -> Result<Stdio> {
    ensure!(on_terminal(), "-t needs a terminal for input and output, and there is none; leave it out");
    Ok(Stdio::Tty(term::size(std::io::stdin().as_fd())))
}
