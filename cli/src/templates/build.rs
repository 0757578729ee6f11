//! An agent's own template: the base, and a layer with the agent's packages and files.
//! It owns what goes into that layer and when it is out of date. The packages are fetched by the host, which only looks at their
//! hashes, and unpacked in a microVM.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::images::{self, Pull};
use super::store::Shelf;
use super::{FORMAT, INCOMPLETE, Image, Template, convert, find};
use crate::agents::{Agent, BASE, NewFile, Package};
use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::fetch::{self, Client, Wanted};
use crate::output::{note, now_s};
use crate::parts::broken;
use crate::places;
use crate::progress::Progress;
use crate::text::quoted;
use crate::units;

const REGISTRY: &str = "https://registry.npmjs.org";
/// Where a package's files are in the template.
const MODULES: &str = "usr/local/lib/node_modules";
const BIN: &str = "usr/local/bin";
/// Of a file whose time nobody cares for: 2025-01-01.
const EPOCH_S: u64 = 1_735_689_600;

/// A template for this agent: the one that is there and up to date, or one that is built now.
pub fn ensure_built(agent: &Agent) -> Result<Template> {
    let own = agent.template() == agent.name && agent.name != BASE;
    let found = find(agent.template())?;
    if !own {
        return match found {
            Some(template) => Ok(template),
            None if agent.template() == BASE => base(),
            // One that a user's own file names: it may be an image.
            None => images::obtain(agent.template(), Pull::Missing),
        };
    }
    let recipe = recipe(agent, &base()?.image)?;
    match found {
        Some(template) if template.recipe == recipe => Ok(template),
        Some(old) => build(agent).or_else(|error| {
            note(&format!("coracle: {error:#}; the older template {} is used\n", agent.name));
            Ok(old)
        }),
        None => build(agent),
    }
}

/// Whether `ensure_built` would have nothing to do.
pub fn is_built(agent: &Agent) -> Result<bool> {
    let own = agent.template() == agent.name && agent.name != BASE;
    Ok(match find(agent.template())? {
        Some(template) => !own || template.recipe == recipe(agent, &base()?.image)?,
        None => false,
    })
}

pub fn missing(name: &str) -> String {
    format!("there is no template {}; coracle template ls lists them", quoted(name))
}

pub fn base() -> Result<Template> {
    if let Some(base) = find(BASE)? {
        return Ok(base);
    }
    let path = places::share()?.join("templates").join(BASE).join("template.json");
    bail!("{INCOMPLETE}: {}: it is missing", broken("template", &path))
}

/// Builds it, whatever is there.
pub fn build(agent: &Agent) -> Result<Template> {
    let (download, unpacked) = sizes(agent);
    note(&format!(
        "coracle: building template {} ({} to download, {} on disk)\n",
        agent.name,
        units::show_mib(download.div_ceil(1 << 20)),
        units::show_mib(unpacked.div_ceil(1 << 20))
    ));
    let build = || -> Result<Template> {
        let archives = download_packages(agent)?;
        let shelf = Shelf::open()?;
        let base = base()?;
        note(&format!("coracle: unpacking {} in a virtual machine\n", agent.name));
        let layer = convert::folder(&shelf, &script(agent), |input| send(agent, &archives, input))?;
        let mut image = base.image.clone();
        let recipe = recipe(agent, &base.image)?;
        image.layers.push(layer);
        let created_s = now_s();
        let origin =
            agent.packages.iter().map(|it| format!("{}@{}", it.name, it.version)).collect::<Vec<_>>();
        let origin = origin.join(" ");
        let template =
            Template { format: FORMAT, name: agent.name.clone(), origin, created_s, recipe, image };
        shelf.publish(&template)?;
        Ok(template)
    };
    build().with_context(|| format!("build template {}", agent.name))
}

/// Of the packages, in bytes: to download, and on disk.
pub fn sizes(agent: &Agent) -> (u64, u64) {
    let sum = |of: fn(&Package) -> u64| agent.packages.iter().map(of).sum();
    (sum(|package| package.size), sum(|package| package.unpacked))
}

/// Into the cache; what is there already is not fetched again.
pub fn download_packages(agent: &Agent) -> Result<Vec<PathBuf>> {
    let (client, blobs) = (Client::new(), Blobs::open()?);
    let registry = registry()?;
    let digests = agent.packages.iter().map(|package| Digest::from_integrity(&package.integrity));
    let digests = digests.collect::<Result<Vec<_>>>()?;
    if let Some(here) = digests.iter().map(|digest| blobs.get(digest)).collect() {
        return Ok(here);
    }
    blobs.check_room(sizes(agent).0)?;
    let progress = Progress::new(&format!("downloading {}", agent.name));
    progress.expect(sizes(agent).0);
    let fetched = agent.packages.iter().zip(&digests).map(|(package, digest)| {
        let wanted = Wanted { digest, size: Some(package.size), size_max: package.size };
        fetch::to_file(&client, &blobs, &url(&registry, package), wanted, &progress)
    });
    let fetched: Result<Vec<_>> = fetched.collect();
    progress.finish(fetched.is_ok());
    fetched
}

/// npm's own variable says where its registry is, for who has another.
fn registry() -> Result<String> {
    let set =
        ["npm_config_registry", "NPM_CONFIG_REGISTRY"].into_iter().find_map(|name| std::env::var(name).ok());
    let registry = set.filter(|text| !text.is_empty()).unwrap_or_else(|| REGISTRY.into());
    ensure!(
        registry.starts_with("https://") || registry.starts_with("http://"),
        "npm_config_registry is {}, which is not an address; correct or unset it",
        quoted(&registry)
    );
    Ok(registry.trim_end_matches('/').to_owned())
}

fn url(registry: &str, package: &Package) -> String {
    let (_, base) = package.scope_and_base();
    format!("{registry}/{}/-/{base}-{}.tgz", package.name, package.version)
}

/// Of all that goes into the template: with another one, it is to be built again.
fn recipe(agent: &Agent, base: &Image) -> Result<String> {
    let all = json!({
        "base": base.layers, "packages": agent.packages, "files": agent.files, "script": script(agent),
    });
    Ok(Digest::of(&serde_json::to_vec(&all).context("encode the recipe")?).hex().to_owned())
}

/// What is done in the VM with what was sent. Names in it have been checked to be words.
fn script(agent: &Agent) -> String {
    let mut script = String::new();
    for (number, package) in agent.packages.iter().enumerate() {
        let folder = format!("root/{MODULES}/{}", package.name);
        script += &format!(
            "mkdir -p {folder}; tar -xzf {number}.tgz -C {folder} --strip-components=1 --no-same-owner; "
        );
        for path in package.bin.values() {
            script += &format!("chmod 755 {folder}/{}; ", path.display());
        }
    }
    script + "chmod -R a+rX root"
}

fn send(agent: &Agent, archives: &[PathBuf], input: &mut ChildStdin) -> Result<()> {
    let mut tar = tar::Builder::new(input);
    for (number, archive) in archives.iter().enumerate() {
        let mut file = File::open(archive).context("open the package")?;
        let size = file.metadata().context("look at the package")?.len();
        append(&mut tar, format!("{number}.tgz"), size, &mut file)?;
    }
    for NewFile { path, text } in &agent.files {
        let path = Path::new("root").join(path.strip_prefix("/").unwrap_or(path));
        let text = text.trim_start_matches('\n').as_bytes();
        append(&mut tar, &path, text.len() as u64, &mut &*text)?;
    }
    for package in &agent.packages {
        for (command, file) in &package.bin {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_mtime(EPOCH_S);
            header.set_size(0);
            let target = Path::new("../lib/node_modules").join(&package.name).join(file);
            tar.append_link(&mut header, Path::new("root").join(BIN).join(command), target)
                .context("send a link")?;
        }
    }
    tar.finish().context("send the packages")
}

fn append<P: AsRef<Path>>(
    tar: &mut tar::Builder<&mut ChildStdin>,
    path: P,
    size: u64,
    content: &mut dyn Read,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(EPOCH_S);
    header.set_size(size);
    tar.append_data(&mut header, path, content).context("send the packages")
}
