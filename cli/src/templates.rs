//! Templates: what a sandbox's root is made of, and how commands in it run. Each is a description, template.json, and a stack of
//! read-only layers that are stored once, by their hash, for all templates and sandboxes that use them.
//! It owns where they are found, and the check that they are whole. Making and removing them is in the modules below.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vmm::config::LAYERS_MAX;

use crate::parts::{broken, check_magic, open, part};
use crate::places;
use crate::text::quoted;

pub mod build;
mod convert;
pub mod images;
pub mod store;

/// Of template.json; raised when an older Coracle could not read it.
pub const FORMAT: u32 = 2;
/// The remedies, wherever a part of a template is missing or damaged.
pub const INCOMPLETE: &str = "Coracle is not installed completely, or a template was removed; install it again, or build or pull the \
                              template (coracle doctor tells more)";
const JSON_MAX: u64 = 1 << 20;
const NAME_MAX: usize = 200;
/// Stands for the slashes of an image's reference in a folder's name; no reference has it.
const SLASH: &str = "+";

/// A read-only EROFS image, one of a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Layer {
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// A root, and how commands in it run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Image {
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The program, always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Its default arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// KEY=VALUE.
    #[serde(default)]
    pub env: Vec<String>,
    /// NAME, NAME:GROUP or numbers; empty is root.
    #[serde(default)]
    pub user: String,
    /// Where `command` starts; empty is the workspace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
}

/// What template.json says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Template {
    pub format: u32,
    /// What users type: an agent's name, an image's reference, or a name that they have given.
    pub name: String,
    /// What it was made from, for people.
    #[serde(default)]
    pub origin: String,
    /// Seconds since the epoch.
    #[serde(default)]
    pub created_s: u64,
    /// Of all that went into it, by which an agent's template is known to be out of date. Empty for others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub recipe: String,
    #[serde(flatten)]
    pub image: Image,
}

/// The template of that name, its layers found to be whole: the user's own, else the installed one.
pub fn find(name: &str) -> Result<Option<Template>> {
    for folder in folders()? {
        let path = folder.join(folder_name(name)).join("template.json");
        if let Some(template) = read(&path).with_context(|| broken("template", &path)).context(INCOMPLETE)? {
            layers(&template.image)?;
            return Ok(Some(template));
        }
    }
    Ok(None)
}

/// The files of an image's layers, found to be whole.
pub fn layers(image: &Image) -> Result<Vec<PathBuf>> {
    let layers: Result<_> = image.layers.iter().map(layer).collect();
    layers.context(INCOMPLETE)
}

/// A layer's file: one of the user's, else an installed one. Its hash is not computed: that would take longer than a start.
fn layer(layer: &Layer) -> Result<PathBuf> {
    let file = layer.file();
    let own = places::data()?.join("layers").join(&file);
    let path = if own.exists() { own } else { places::share()?.join("layers").join(&file) };
    part("layer", path, |file, length| {
        ensure!(length == layer.size, "it is {length} bytes long, not {}", layer.size);
        check_magic(file, 1024, &EROFS_MAGIC, "an EROFS image")
    })
}

impl Layer {
    fn file(&self) -> String {
        format!("{}.erofs", self.sha256)
    }

    fn check(&self) -> Result<()> {
        let hash = self.sha256.len() == 64 && self.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(hash, "layer {} is not a hash", quoted(&self.sha256));
        Ok(())
    }
}

impl Image {
    /// Whether it is one that a sandbox can have.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (1..=LAYERS_MAX).contains(&self.layers.len()),
            "{} layers are not from 1 to {LAYERS_MAX}",
            self.layers.len()
        );
        self.layers.iter().try_for_each(Layer::check)
    }

    /// Of all its layers, in bytes.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// The user's own first.
fn folders() -> Result<[PathBuf; 2]> {
    Ok([places::data()?.join("templates"), places::share()?.join("templates")])
}

/// Whether a template may be called so: as an image's reference could be.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && !name.split('/').any(|part| part.is_empty() || part == "..")
}

fn folder_name(name: &str) -> String {
    name.replace('/', SLASH)
}

/// The description, if there is one.
fn read(path: &Path) -> Result<Option<Template>> {
    if matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let (file, length) = open(path)?;
    ensure!(length <= JSON_MAX, "it is too long");
    let mut json = Vec::new();
    file.take(JSON_MAX).read_to_end(&mut json).context("it cannot be read")?;
    let what = "it is not what a template.json should be";
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(&json).context(what)?;
    ensure!(format == FORMAT, "it has format {format}, this Coracle reads {FORMAT}; build it again");
    let template: Template = serde_json::from_slice(&json).context(what)?;
    template.image.check()?;
    Ok(Some(template))
}

/// Linux fs/erofs/erofs_fs.h, EROFS_SUPER_MAGIC_V1.
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

/// What the first bytes of a layer must be, for who makes one.
fn is_erofs(file: &fs::File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 1024).is_ok() && magic == EROFS_MAGIC
}

#[cfg(test)]
mod tests;
