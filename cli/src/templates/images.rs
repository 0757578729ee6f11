//! Templates from container images, and the way from what was typed with -t to a template.
//! It owns when a registry is asked. Where the blobs come from is in `oci`, what is made of them in `convert`.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use vmm::config::LAYERS_MAX;

use super::convert::{self, Packed};
use super::store::Shelf;
use super::{FORMAT, Image, Layer, Template, build, find, is_name};
use crate::agents;
use crate::blobs::Blobs;
use crate::config::SandboxConfig;
use crate::oci::{self, Compression, ImageConfig, Reference};
use crate::output::{note, now_s};
use crate::progress::Progress;
use crate::store::{Sandbox, file};
use crate::text::quoted;

/// When a registry is asked for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    Always,
    /// When the template is not there.
    #[default]
    Missing,
    Never,
}

impl Pull {
    pub fn parse(text: &OsStr) -> Result<Self> {
        Ok(match text.to_str() {
            Some("always") => Self::Always,
            Some("missing") => Self::Missing,
            Some("never") => Self::Never,
            _ => bail!("--pull {} is not one of always, missing, never", quoted(text)),
        })
    }
}

/// The template of that name, or of the image of that name.
pub fn obtain(name: &str, pull: Pull) -> Result<Template> {
    let reference = reference(name)?;
    let found = || -> Result<Option<Template>> {
        match (find(name)?, &reference) {
            (None, Some(reference)) => find(&reference.to_string()),
            (found, _) => Ok(found),
        }
    };
    if pull != Pull::Always || reference.is_none() {
        if let Some(template) = found()? {
            return Ok(template);
        }
        ensure!(pull != Pull::Never || reference.is_none(), "{}, and --pull is never", build::missing(name));
    }
    match &reference {
        Some(reference) => self::pull(reference),
        None => bail!(
            "{}; the name of an image begins with its registry, such as docker.io/library/debian:trixie",
            build::missing(name)
        ),
    }
}

/// The image that a name means, if it is one: with a registry in front, so that no typing error asks the network.
pub fn reference(name: &str) -> Result<Option<Reference>> {
    let host = name.split_once('/').map(|(host, _)| host);
    let is_image = host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost");
    is_image.then(|| name.parse()).transpose()
}

/// Gets an image from its registry and makes a template of it.
pub fn pull(reference: &Reference) -> Result<Template> {
    let name = reference.to_string();
    ensure!(is_name(&name), "{} is too long for a template's name", quoted(&name));
    let blobs = Blobs::open()?;
    let progress = Progress::new(&format!("pulling {name}"));
    let pulled = oci::pull(&blobs, reference, &progress);
    progress.finish(pulled.is_ok());
    make(&Shelf::open()?, &name, &name, &pulled?)
}

/// Makes a template of the one image in a file, or of the one of several that has this name there.
pub fn load(path: &Path, name: Option<&str>) -> Result<Template> {
    let blobs = Blobs::open()?;
    let progress = Progress::new(&format!("reading {}", path.display()));
    let loaded = oci::load(&blobs, path, &progress);
    progress.finish(loaded.is_ok());
    let mut images = loaded?;
    let named = |wanted: &str| images.iter().position(|(name, _)| name.as_deref() == Some(wanted));
    let index = match (images.len(), name) {
        (1, _) => 0,
        (_, Some(name)) if let Some(index) = named(name) => index,
        (count, _) => {
            let names: Vec<_> = images.iter().filter_map(|(name, _)| name.as_deref()).map(quoted).collect();
            bail!("it holds {count} images ({}); say which with --name", names.join(", "))
        }
    };
    let (own, image) = images.swap_remove(index);
    let name = name.or(own.as_deref()).context("the image has no name; give it one with --name")?;
    ensure!(is_name(name), "{} is not a template's name; give one with --name", quoted(name));
    // A name that a registry would have as well is written out, so that run finds it by either.
    let name = reference(name)?.map_or_else(|| name.to_owned(), |reference| reference.to_string());
    make(&Shelf::open()?, &name, &format!("image {}", image.digest), &image)
}

/// Makes a template of a stopped sandbox, whose lock is the caller's.
pub fn save(name: &str, sandbox: &Sandbox, config: &SandboxConfig) -> Result<Template> {
    ensure!(
        config.image.layers.len() < LAYERS_MAX,
        "sandbox {} has {LAYERS_MAX} layers already, and a template cannot have more",
        sandbox.name
    );
    let shelf = Shelf::open()?;
    note(&format!("coracle: packing what was changed in {}, in a virtual machine\n", sandbox.name));
    let made = convert::upper(&shelf, &sandbox.path.join(file::DISK));
    let layer = made.with_context(|| format!("save sandbox {}", sandbox.name))?;
    let mut image = config.image.clone();
    image.layers.push(layer);
    if agents::find(config.agent.as_ref()).is_ok_and(|agent| !agent.command.is_empty()) {
        // That is the agent's, whichever it will be; what others run is as in the base.
        let base = build::base()?.image;
        (image.command, image.args) = (base.command, base.args);
    }
    let (origin, recipe) = (format!("sandbox {}", sandbox.name), String::new());
    let template =
        Template { format: FORMAT, name: name.to_owned(), origin, created_s: now_s(), recipe, image };
    shelf.publish(&template)?;
    Ok(template)
}

fn make(shelf: &Shelf, name: &str, origin: &str, image: &oci::Image) -> Result<Template> {
    let layers =
        layers(shelf, name, &image.layers).with_context(|| format!("make template {}", quoted(name)))?;
    let ImageConfig { env, entrypoint, cmd, workdir, user, .. } = image.config.clone();
    let image = Image { layers, command: entrypoint, args: cmd, env, user, workdir };
    let (origin, recipe) = (origin.to_owned(), String::new());
    let template =
        Template { format: FORMAT, name: name.to_owned(), origin, created_s: now_s(), recipe, image };
    shelf.publish(&template)?;
    Ok(template)
}

/// Ours for theirs: each for itself, so that images share what they have in common, or all in one when they are too many.
fn layers(shelf: &Shelf, name: &str, theirs: &[oci::Layer]) -> Result<Vec<Layer>> {
    if theirs.len() > LAYERS_MAX {
        note(&format!(
            "coracle: unpacking {} layers of {name} into one in a virtual machine\n",
            theirs.len()
        ));
        let archives: Vec<_> = theirs.iter().map(|layer| (&*layer.path, packed(layer))).collect();
        return Ok(vec![convert::merged(shelf, &archives)?]);
    }
    let mut ours = Vec::with_capacity(theirs.len());
    for (number, layer) in theirs.iter().enumerate() {
        if let Some(known) = shelf.converted(&layer.digest) {
            ours.push(known);
            continue;
        }
        note(&format!(
            "coracle: unpacking layer {} of {} of {name} in a virtual machine\n",
            number + 1,
            theirs.len()
        ));
        let made = convert::tar(shelf, &layer.path, packed(layer));
        let made = made.with_context(|| format!("layer {}", layer.digest))?;
        shelf.remember(&layer.digest, &made)?;
        ours.push(made);
    }
    Ok(ours)
}

fn packed(layer: &oci::Layer) -> Packed {
    match layer.compression {
        Compression::None => Packed::Plain,
        Compression::Gzip => Packed::Gzip,
        Compression::Zstd => Packed::Zstd,
    }
}
