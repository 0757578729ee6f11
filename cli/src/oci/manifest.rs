//! The JSON documents of an image: index, manifest, configuration. From bytes of anybody to values that are checked.
//! It owns which kinds of documents and layers are understood, and the limits. It does no I/O.
//! Sources: OCI Image Format Specification 1.1, "Image Index", "Image Manifest", "Image Configuration"; Docker's "Image
//! Manifest Version 2, Schema 2", which differs in the names of its types only.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::text::quoted;

/// Of each document.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Linux's overlayfs stacks more, but Docker does not build images with more.
const LAYERS_MAX: usize = 127;
/// Of an index.
const MANIFESTS_MAX: usize = 1000;
const ENV_MAX: usize = 4096;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const MANIFEST_DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const INDEX_DOCKER: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIGS: [&str; 2] = [CONFIG, "application/vnd.docker.container.image.v1+json"];
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const LAYERS: [&str; 6] = [
    LAYER,
    LAYER_GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Where something is, and what its content has to be. Its `urls` are not read: they lead anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, platform: None, annotations: None }
    }

    /// What containerd, or a layout, calls it.
    pub fn name(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        let name = |key| annotations.get(key).map(String::as_str);
        name("io.containerd.image.name").or_else(|| name("org.opencontainers.image.ref.name"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A document that leads to an image.
#[derive(Clone, Debug)]
pub enum Document {
    /// The same image for several platforms, or several images.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// The lowest first; at least one.
    pub layers: Vec<Descriptor>,
}

/// Any of them, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    pub fn parse(json: &[u8]) -> Result<Self> {
        let written: Written =
            serde_json::from_slice(json).context("it is not a manifest that is understood")?;
        ensure!(
            written.schema_version == 2,
            "it has version {} of the format, which nobody writes any more; build or push the image again",
            written.schema_version
        );
        let kind = written.media_type.as_deref();
        match (written.config, written.layers, written.manifests) {
            (Some(config), Some(layers), None) => {
                ensure!(
                    kind.is_none_or(|kind| [MANIFEST, MANIFEST_DOCKER].contains(&kind)),
                    "it calls itself {}, but is a manifest",
                    quoted(kind.unwrap_or_default())
                );
                Ok(Self::Manifest(checked(config, layers)?))
            }
            (None, None, Some(manifests)) => {
                ensure!(
                    kind.is_none_or(|kind| [INDEX, INDEX_DOCKER].contains(&kind)),
                    "it calls itself {}, but is an index",
                    quoted(kind.unwrap_or_default())
                );
                let count = manifests.len();
                ensure!(
                    count <= MANIFESTS_MAX,
                    "it lists {count} manifests; at most {MANIFESTS_MAX} are accepted"
                );
                Ok(Self::Index(manifests))
            }
            // What is both could be one thing to us and another to who has signed it.
            _ => bail!("it is neither a manifest nor an index"),
        }
    }
}

fn checked(config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest> {
    ensure!(
        CONFIGS.contains(&config.media_type.as_str()),
        "its configuration is of the type {}: it is not a container image",
        quoted(&config.media_type)
    );
    ensure!(config.size <= DOCUMENT_MAX, "its configuration is longer than {DOCUMENT_MAX} bytes");
    ensure!(!layers.is_empty(), "it has no layers, and so no files");
    ensure!(layers.len() <= LAYERS_MAX, "it has {} layers; at most {LAYERS_MAX} are accepted", layers.len());
    for layer in &layers {
        ensure!(
            LAYERS.contains(&layer.media_type.as_str()),
            "it has a layer of the type {}, which is not understood",
            quoted(&layer.media_type)
        );
    }
    Ok(Manifest { config, layers })
}

impl Manifest {
    /// Its parts, as they are stored.
    pub fn parts(&self) -> impl Iterator<Item = (&Digest, u64)> {
        [&self.config].into_iter().chain(&self.layers).map(|part| (&part.digest, part.size))
    }

    /// Of all of them.
    pub fn size(&self) -> u64 {
        self.parts().fold(0, |sum, (_, size)| sum.saturating_add(size))
    }

    pub fn to_json(&self) -> Vec<u8> {
        write(MANIFEST, Some(self), None)
    }
}

/// An index of these.
#[cfg(test)]
pub fn index_json(manifests: Vec<Descriptor>) -> Vec<u8> {
    write(INDEX, None, Some(manifests))
}

fn write(media_type: &str, manifest: Option<&Manifest>, manifests: Option<Vec<Descriptor>>) -> Vec<u8> {
    let written = Written {
        schema_version: 2,
        media_type: Some(media_type.into()),
        config: manifest.map(|it| it.config.clone()),
        layers: manifest.map(|it| it.layers.clone()),
        manifests,
    };
    serde_json::to_vec(&written).expect("it has no maps with keys other than text")
}

/// The one of an index that is for this machine.
pub fn for_this_machine(manifests: &[Descriptor]) -> Result<&Descriptor> {
    let fits = |it: &&Descriptor| it.platform.as_ref().is_some_and(Platform::fits);
    let baseline = |it: &&Descriptor| {
        it.platform
            .as_ref()
            .and_then(|it| it.variant.as_deref())
            .is_none_or(|variant| matches!(variant, "" | "v1"))
    };
    let all = || manifests.iter().filter(fits);
    if let Some(found) = all().find(baseline).or_else(|| all().next()) {
        return Ok(found);
    }
    match manifests {
        [only] if only.platform.is_none() => Ok(only),
        _ => {
            let mut known: Vec<_> =
                manifests.iter().filter_map(|it| it.platform.as_ref()).map(Platform::name).collect();
            known.sort();
            known.dedup();
            known.retain(|it| it != "unknown/unknown");
            bail!("it is not there for linux/amd64, but for: {}", quoted(known.join(", ")))
        }
    }
}

impl Platform {
    pub fn fits(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    fn name(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }
}

/// How a command in the image is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Absolute, or empty.
    pub workdir: String,
    /// A name or number, with a group after a colon; or empty, which is root.
    pub user: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WrittenConfig {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<WrittenRun>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WrittenRun {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

impl ImageConfig {
    /// It, and the digests of the layers when they are not compressed.
    pub fn parse(json: &[u8]) -> Result<(Self, Vec<Digest>)> {
        let written: WrittenConfig =
            serde_json::from_slice(json).context("its configuration is not one that is understood")?;
        let platform = Platform { os: written.os, architecture: written.architecture, variant: None };
        ensure!(platform.fits(), "it is for {}, not for linux/amd64", quoted(platform.name()));
        ensure!(
            written.rootfs.kind == "layers",
            "its files are {}, not layers",
            quoted(&written.rootfs.kind)
        );
        let run = written.config.unwrap_or_default();
        let config = Self {
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            workdir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
        };
        config.check().context("its configuration makes no sense")?;
        Ok((config, written.rootfs.diff_ids))
    }

    fn check(&self) -> Result<()> {
        let lists = [&self.env, &self.entrypoint, &self.cmd];
        for text in lists.into_iter().flatten().chain([&self.workdir, &self.user]) {
            ensure!(!text.contains('\0'), "{} has a NUL in it", quoted(text));
        }
        for list in lists {
            ensure!(
                list.len() <= ENV_MAX,
                "a list in it has {} entries; at most {ENV_MAX} are accepted",
                list.len()
            );
        }
        for variable in &self.env {
            ensure!(
                variable.find('=').is_some_and(|at| at > 0),
                "the variable {} is not NAME=VALUE",
                quoted(variable)
            );
        }
        ensure!(
            self.workdir.is_empty() || Path::new(&self.workdir).is_absolute(),
            "the working directory {} is not absolute",
            quoted(&self.workdir)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
