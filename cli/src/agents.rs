//! The agents that can be run, one declarative file each: the user's own, and those that come with Coracle.
//! It owns what such a file may say, and reads it. What is made of an agent's packages is in `templates::recipe`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::config::is_name;
use crate::places;
use crate::templates::{INCOMPLETE, Image};
use crate::text::{nearest, plain, quoted};

/// Longer than any that a person writes.
const FILE_MAX: u64 = 256 << 10;
/// The template that an agent without packages runs in, and that those of others are built on.
pub const BASE: &str = "shell";
/// What an image runs that says nothing of it.
const FALLBACK: &str = "/bin/sh";

/// One agent, as its file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// What users type: the file's name.
    #[serde(skip)]
    pub name: String,
    /// One line for `coracle agents`.
    pub about: String,
    /// The template to run in, when it is not its own.
    pub template: Option<String>,
    /// The program, always; empty is the template's.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its default arguments: what follows `--` is added to them, or replaces them.
    #[serde(default)]
    pub args: Vec<String>,
    /// KEY=VALUE for every command in the sandbox.
    #[serde(default)]
    pub env: Vec<String>,
    /// The services whose credentials it wants.
    #[serde(default)]
    pub credentials: Vec<String>,
    /// What its template has besides the base.
    #[serde(default, rename = "npm")]
    pub packages: Vec<Package>,
    #[serde(default, rename = "file")]
    pub files: Vec<NewFile>,
}

/// A package of the npm registry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// As the registry has it: `sha512-` and base64.
    pub integrity: String,
    /// Of the download, in bytes.
    pub size: u64,
    /// Of what is in it, in bytes.
    pub unpacked: u64,
    /// Commands, and the files in the package that they are.
    #[serde(default)]
    pub bin: BTreeMap<String, PathBuf>,
}

/// A file that the agent's template has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewFile {
    pub path: PathBuf,
    pub text: String,
}

/// The agent of that name: the user's own, else the installed one.
pub fn find(name: &OsStr) -> Result<Agent> {
    for folder in folders()? {
        if let Some(name) = name.to_str().filter(|name| is_name(name))
            && let Some(agent) = read(&folder, name)?
        {
            return Ok(agent);
        }
    }
    let known = names()?;
    if known.is_empty() {
        let installed = places::share()?.join("agents");
        bail!("{INCOMPLETE}: {}: it is missing", plain(installed));
    }
    let guess = name.to_str().and_then(|typed| nearest(typed, known.iter().map(String::as_str)));
    let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
    bail!("unknown agent {}; {guess}known: {}", quoted(name), known.join(", "))
}

/// The names of all agents, sorted.
pub fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in folders()? {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", plain(&folder))),
        };
        let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.extend(files.filter_map(|file| Some(file.strip_suffix(".toml")?.to_owned())));
    }
    names.retain(|name| is_name(name));
    names.sort();
    names.dedup();
    Ok(names)
}

/// The user's folder first.
fn folders() -> Result<[PathBuf; 2]> {
    Ok([places::settings()?.join("agents"), places::share()?.join("agents")])
}

fn read(folder: &Path, name: &str) -> Result<Option<Agent>> {
    let path = folder.join(format!("{name}.toml"));
    let length = match fs::metadata(&path) {
        Ok(facts) => facts.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("agent file {}", plain(&path))),
    };
    let parsed = || -> Result<Agent> {
        ensure!(length <= FILE_MAX, "it is longer than {} KiB", FILE_MAX >> 10);
        parse(&fs::read_to_string(&path).context("it cannot be read")?, name)
    };
    parsed().map(Some).with_context(|| format!("agent file {}", plain(&path)))
}

fn parse(text: &str, name: &str) -> Result<Agent> {
    let mut agent: Agent = toml::from_str(text).map_err(|error| {
        // The library draws the place over several lines; one line is what users see.
        let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        anyhow::anyhow!("{line}{}", plain(error.message()))
    })?;
    agent.name = name.to_owned();
    for package in &agent.packages {
        package.check().with_context(|| format!("package {}", quoted(&package.name)))?;
    }
    for file in &agent.files {
        ensure!(is_absolute(&file.path), "file {}: write its path from /", quoted(&file.path));
    }
    let has_own = !agent.packages.is_empty() || !agent.files.is_empty();
    ensure!(
        agent.template.is_none() || !has_own,
        "it names a template and what a template of its own would have; leave out one of them"
    );
    ensure!(agent.template.is_some() || !has_own || !agent.command.is_empty(), "it has no command");
    ensure!(
        agent.env.iter().all(|variable| variable.split_once('=').is_some_and(|(key, _)| !key.is_empty())),
        "env holds what is not KEY=VALUE"
    );
    Ok(agent)
}

impl Agent {
    /// The name of the template it runs in.
    pub fn template(&self) -> &str {
        match &self.template {
            Some(template) => template,
            None if self.packages.is_empty() && self.files.is_empty() => BASE,
            None => &self.name,
        }
    }

    /// A template's image as this agent runs in it.
    pub fn image(&self, image: &Image) -> Image {
        let mut image = image.clone();
        if !self.command.is_empty() || !self.args.is_empty() {
            image.command.clone_from(&self.command);
            image.args.clone_from(&self.args);
            // An agent works where the user's files are.
            image.workdir.clear();
        }
        image.env.extend_from_slice(&self.env);
        image
    }
}

impl Package {
    /// Names and versions become parts of an address and of paths.
    fn check(&self) -> Result<()> {
        let word = |text: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed)
        };
        let (scope, base) = self.scope_and_base();
        ensure!(
            scope.is_none_or(word) && word(base),
            "that is not a package's name, such as left-pad or @scope/name"
        );
        ensure!(word(&self.version), "version {} is not one, such as 1.2.3", quoted(&self.version));
        ensure!(
            self.integrity.starts_with("sha512-"),
            "integrity is not sha512- and base64, as npm view shows it by dist.integrity"
        );
        for (command, path) in &self.bin {
            // It becomes part of a script.
            let words = path.to_str().is_some_and(|path| path.split('/').all(word));
            ensure!(word(command) && words, "bin {} is not a file in the package", quoted(command));
        }
        Ok(())
    }

    pub fn scope_and_base(&self) -> (Option<&str>, &str) {
        match self.name.strip_prefix('@').and_then(|name| name.split_once('/')) {
            Some((scope, base)) => (Some(scope), base),
            None => (None, &self.name),
        }
    }
}

fn is_absolute(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// What to run: with arguments added to the defaults when they begin with a dash, in their place when not. And whether it is the
/// image's own program.
pub fn command(image: &Image, args: &[OsString]) -> (Vec<Vec<u8>>, bool) {
    let replaces = args.first().is_some_and(|first| !first.as_encoded_bytes().starts_with(b"-"));
    let defaults = image.args.iter().filter(|_| !replaces);
    let own = image.command.iter().chain(defaults).map(|arg| arg.clone().into_bytes());
    let mut argv: Vec<_> = own.chain(args.iter().map(|arg| arg.clone().into_vec())).collect();
    if image.command.is_empty() && image.args.is_empty() && !replaces {
        argv.insert(0, FALLBACK.into());
    }
    (argv, !replaces || !image.command.is_empty())
}

#[cfg(test)]
mod tests;
