//! An image whose parts are all in the cache. It is read from its manifest there, so that one which was pulled, loaded or
//! pulled last week is the same thing. Nothing of its layers but their first bytes is looked at.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::manifest::{DOCUMENT_MAX, Descriptor, Document, ImageConfig, Manifest};
use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::text::plain;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of its manifest for this machine's platform.
    pub digest: Digest,
    pub config: ImageConfig,
    /// The lowest first; at least one.
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Of the file. It has been verified.
    pub digest: Digest,
    /// Of the archive in the file, as the image's configuration claims it. For a compressed layer that was pulled nobody
    /// has verified it, so what is kept for other images as well must not be kept under this name.
    pub diff_id: Digest,
    pub compression: Compression,
    /// Of the file.
    pub size: u64,
    pub path: PathBuf,
}

/// As the file's first bytes tell, whatever the manifest says; so Docker does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Image {
    /// The image of that manifest; an error when a part of it is not in the cache.
    pub fn open(blobs: &Blobs, digest: &Digest) -> Result<Self> {
        let manifest = match Document::parse(&blobs.read(digest, DOCUMENT_MAX)?)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => bail!("{digest} is an index"),
        };
        let (config, diff_ids) = config(blobs, &manifest)?;
        let layers =
            manifest.layers.iter().zip(diff_ids).map(|(layer, diff_id)| Layer::open(blobs, layer, diff_id));
        Ok(Self { digest: digest.clone(), config, layers: layers.collect::<Result<_>>()? })
    }
}

/// The configuration of an image and the digests of its layers' archives, which are as many as its layers.
pub fn config(blobs: &Blobs, manifest: &Manifest) -> Result<(ImageConfig, Vec<Digest>)> {
    let (config, diff_ids) = ImageConfig::parse(&blobs.read(&manifest.config.digest, DOCUMENT_MAX)?)?;
    let (named, there) = (diff_ids.len(), manifest.layers.len());
    ensure!(named == there, "its configuration names {named} layers, its manifest {there}");
    Ok((config, diff_ids))
}

impl Layer {
    fn open(blobs: &Blobs, descriptor: &Descriptor, diff_id: Digest) -> Result<Self> {
        let digest = descriptor.digest.clone();
        let path = blobs.get(&digest).with_context(|| format!("the layer {digest} is not in the cache"))?;
        let mut file = File::open(&path).with_context(|| format!("open {}", plain(&path)))?;
        let size = file.metadata().with_context(|| format!("look at {}", plain(&path)))?.len();
        ensure!(
            size == descriptor.size,
            "the layer {digest} has {size} bytes, the manifest says {}",
            descriptor.size
        );
        let compression = Compression::of(&mut file).with_context(|| format!("read {}", plain(&path)))?;
        Ok(Self { digest, diff_id, compression, size, path })
    }
}

impl Compression {
    /// RFC 1952, 2.3.1 "Member header and trailer"; RFC 8878, 3.1.1 "Zstandard Frames". Reads at most four bytes.
    pub fn of(reader: &mut impl Read) -> std::io::Result<Self> {
        let mut start = Vec::new();
        reader.take(4).read_to_end(&mut start)?;
        Ok(match start.as_slice() {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            _ => Self::None,
        })
    }
}
