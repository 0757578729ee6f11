//! The commands as argh sees them, and what the pre-pass needs to know of each.
//! It owns the top-level help and the way to each command. Each command's flags and their help are with the command.

use std::ffi::OsString;

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, CommandInfoWithArgs, EarlyExit, FromArgs};
use rustix::fs::Mode;

use crate::argv::{self, Line, Tail};
use crate::cmd::{
    Typed, agents, doctor, exec, gateway, ls, policy, ports, resize, rm, run, secret, stats, stop, template,
    version, vmm,
};
use crate::output::print;
use crate::text::{decode, plain, quoted};

/// What users may type as a command.
pub const NAMES: [&str; 15] = [
    "run", "exec", "ls", "stats", "resize", "stop", "rm", "agents", "template", "policy", "ports", "secret",
    "doctor", "version", "help",
];

#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    description = "Coracle runs a coding agent, or any command you do not trust, in a Linux virtual
machine of its own, in milliseconds. It sees the folders you name, at the same
paths, and nothing else of this machine.",
    example = "coracle run shell                              bash in a sandbox on this folder
coracle run --rm shell ~/proj -- make -j4      one command, then the sandbox is gone
coracle run shell ~/proj ~/docs:ro             more folders, this one read-only
coracle run -p 3000 shell . -- npm run dev       localhost:3000 leads to port 3000 of the sandbox
coracle exec -it shell-proj bash               a second session in the same sandbox",
    note = "coracle help COMMAND tells more of each command.
-v before or after a command shows all causes of an error.

The exit code of run and exec is the command's own, but for
  125    Coracle itself failed, or was not understood; the message says what to do
  126    the command in the sandbox is there, but cannot be run
  127    the command in the sandbox was not found
  128+n  the command, or Coracle, was ended by signal n"
)]
pub struct Args {
    #[argh(subcommand)]
    pub command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is moved once")]
pub enum Command {
    Run(run::Args),
    Exec(exec::Args),
    Ls(ls::Args),
    Stats(stats::Args),
    Resize(resize::Args),
    Stop(stop::Args),
    Rm(rm::Args),
    Agents(agents::Args),
    Template(template::Args),
    Ports(ports::Args),
    Secret(secret::Args),
    Policy(policy::Args),
    Doctor(doctor::Args),
    Version(version::Args),
}

/// The flags of a command, and where its own arguments end. `vmm` and `gateway` are for Coracle itself and in no list.
pub fn describe(name: &str) -> Option<(CommandInfoWithArgs, Tail)> {
    Some(match name {
        "run" => (run::Args::get_args_info(), Tail::Dashes),
        "exec" => (exec::Args::get_args_info(), Tail::FirstPositional),
        "ls" => (ls::Args::get_args_info(), Tail::None),
        "stats" => (stats::Args::get_args_info(), Tail::None),
        "ports" => (ports::Args::get_args_info(), Tail::None),
        "resize" => (resize::Args::get_args_info(), Tail::None),
        "stop" => (stop::Args::get_args_info(), Tail::None),
        "rm" => (rm::Args::get_args_info(), Tail::None),
        "agents" => (agents::Args::get_args_info(), Tail::None),
        "doctor" => (doctor::Args::get_args_info(), Tail::None),
        "version" => (version::Args::get_args_info(), Tail::None),
        "vmm" => (vmm::Args::get_args_info(), Tail::None),
        "gateway" => (gateway::Args::get_args_info(), Tail::None),
        _ => {
            let info = template::describe(name)
                .or_else(|| policy::describe(name))
                .or_else(|| secret::describe(name));
            return info.map(|info| (info, Tail::None));
        }
    })
}

/// The commands of a group.
pub fn members(group: &str) -> Option<&'static [&'static str]> {
    match group {
        "template" => Some(&template::NAMES),
        "secret" => Some(&secret::NAMES),
        "policy" => Some(&policy::NAMES),
        _ => None,
    }
}

/// Parses and runs a command line. The first value is whether all causes of an error are wanted.
pub fn run(args: Vec<OsString>, start_ns: u64) -> (bool, Result<u8>) {
    let line = match argv::parse(args) {
        Ok(line) => line,
        Err(error) => return (false, Err(anyhow!(error))),
    };
    let verbose = line.verbose;
    (verbose, dispatch(line, start_ns))
}

fn dispatch(line: Line, start_ns: u64) -> Result<u8> {
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let typed = Typed { tail: line.tail, start_ns };
    if let ["vmm", rest @ ..] = words.as_slice() {
        return parsed(vmm::Args::from_args(&["coracle vmm"], rest), "vmm")?.map_or(Ok(0), vmm::Args::run);
    }
    if let ["gateway", rest @ ..] = words.as_slice() {
        let args = parsed(gateway::Args::from_args(&["coracle gateway"], rest), "gateway")?;
        return args.map_or(Ok(0), gateway::Args::run);
    }
    let Some(args) = parsed(Args::from_args(&["coracle"], &words), words[0])? else { return Ok(0) };
    // What this command creates is the user's alone, whatever their umask.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    match args.command {
        Command::Run(args) => args.run(typed),
        Command::Exec(args) => args.run(typed),
        Command::Ls(args) => args.run(typed),
        Command::Stats(args) => args.run(typed),
        Command::Resize(args) => args.run(typed),
        Command::Stop(args) => args.run(typed),
        Command::Rm(args) => args.run(typed),
        Command::Agents(args) => args.run(typed),
        Command::Template(args) => args.run(typed),
        Command::Ports(args) => args.run(typed),
        Command::Secret(args) => args.run(typed),
        Command::Policy(args) => args.run(typed),
        Command::Doctor(args) => args.run(typed),
        Command::Version(args) => args.run(typed),
    }
}

/// argh's result: `None` when it was help, which has been printed.
fn parsed<T>(result: Result<T, EarlyExit>, command: &str) -> Result<Option<T>> {
    match result {
        Ok(args) => Ok(Some(args)),
        Err(EarlyExit { output, status: Ok(()) }) => {
            // argh indents even empty lines of notes.
            print(
                &output.trim_end().lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>(),
            )?;
            Ok(None)
        }
        Err(EarlyExit { output, .. }) => {
            let missing = output.strip_prefix("Required positional arguments not provided:");
            let words = missing.unwrap_or(&output).split_whitespace().collect::<Vec<_>>().join(" ");
            let words = plain(words);
            if let Some(extra) = output.strip_prefix("Unrecognized argument: ") {
                bail!(
                    "{command} does not take {}; see coracle {command} --help",
                    quoted(decode(extra.trim_end()))
                );
            }
            Err(match missing {
                Some(_) => anyhow!("{command} needs {words}; see coracle {command} --help"),
                None => anyhow!("{words}; see coracle {command} --help"),
            })
        }
    }
}
