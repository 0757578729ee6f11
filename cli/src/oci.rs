//! Container images on this machine: pulled from a registry or loaded from a file, as verified blobs in the cache.
//! Nothing is unpacked, and no name of anybody becomes a path: what is in the layers is for a sandbox to look at.
//! `fetch` has the network and `blobs` the files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

mod credentials;
mod image;
mod layout;
mod manifest;
mod reference;
mod registry;

pub use image::{Compression, Image, Layer};
pub use manifest::ImageConfig;
pub use reference::{Reference, Version};

use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::fetch::{self, Client, Wanted};
use crate::output;
use crate::places;
use crate::progress::Progress;
use crate::text::plain;
use credentials::Credentials;
use manifest::{Descriptor, Document, Manifest, for_this_machine};
use registry::Repository;

/// Of all layers of an image, as they are stored.
const SIZE_MAX: u64 = 64 << 30;
/// Layers that are fetched at the same time.
const WORKERS: usize = 3;
/// An index may lead to an index, but not for ever.
const INDEXES_MAX: usize = 3;
const SETTINGS_MAX: u64 = 1 << 20;

/// registries.json in the folder of settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    /// Where to ask instead of a registry, in that order; the registry itself comes last.
    #[serde(default)]
    mirrors: BTreeMap<String, Vec<String>>,
}

/// What pulling needs of its surroundings.
#[derive(Debug)]
struct Source<'a> {
    client: Client,
    blobs: &'a Blobs,
    registries: Registries,
    credentials: Credentials,
}

/// The image of that name as its registry has it now. Blobs that are in the cache are not fetched again.
pub fn pull(blobs: &Blobs, reference: &Reference, progress: &Progress) -> Result<Image> {
    let source = Source {
        client: Client::new(),
        blobs,
        registries: Registries::read(&places::settings()?.join("registries.json"))?,
        credentials: Credentials::load()?,
    };
    source.pull(reference, progress)
}

/// The images of an OCI layout (a folder or an archive of one) or of an archive of `docker save`, with the names that they
/// have there.
pub fn load(blobs: &Blobs, path: &Path, progress: &Progress) -> Result<Vec<(Option<String>, Image)>> {
    layout::load(blobs, path, progress).with_context(|| format!("load {}", plain(path)))
}

impl Registries {
    pub fn read(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.with_context(|| format!("open {}", plain(path)))?,
        };
        let mut json = Vec::new();
        file.take(SETTINGS_MAX).read_to_end(&mut json).with_context(|| format!("read {}", plain(path)))?;
        let check = || -> Result<Self> {
            let registries: Self = serde_json::from_slice(&json)?;
            registries.mirrors.values().flatten().try_for_each(|mirror| registry::check_base(mirror))?;
            Ok(registries)
        };
        check().with_context(|| {
            format!(
                "{} is not like {{\"mirrors\": {{\"docker.io\": [\"https://mirror.example\"]}}}}",
                plain(path)
            )
        })
    }

    /// Where to ask for what a registry has, the best place first.
    fn places(&self, registry: &str) -> Vec<String> {
        let mirrors = self.mirrors.get(registry).into_iter().flatten().cloned();
        mirrors.chain([registry::base(registry)]).collect()
    }
}

impl Source<'_> {
    fn pull(&self, reference: &Reference, progress: &Progress) -> Result<Image> {
        let places = self.registries.places(&reference.registry);
        for (number, base) in places.iter().enumerate() {
            let is_last = number + 1 == places.len();
            match self.pull_from(base, is_last, reference, progress) {
                Err(error) if !is_last => {
                    output::note(&format!("coracle: {base} is passed over: {error:#}\n"));
                }
                result => return result.with_context(|| format!("pull {}", reference.short())),
            }
        }
        bail!("there is nowhere to pull {} from", reference.short())
    }

    fn pull_from(
        &self,
        base: &str,
        is_own: bool,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<Image> {
        let registry = if is_own { &reference.registry } else { registry::authority(base) };
        let login = self.credentials.of(registry)?;
        let repository = Repository::new(&self.client, base, &reference.repository, login);
        let (digest, manifest) = self.manifest(&repository, &reference.version)?;
        let total = manifest.size();
        ensure!(total <= SIZE_MAX, "it has {} GiB; at most {} are accepted", total >> 30, SIZE_MAX >> 30);
        self.blobs.check_room(self.blobs.missing(manifest.parts()))?;
        progress.expect(total);
        // The configuration first: it may say that the layers are of no use.
        self.blob(&repository, &manifest.config, progress)?;
        image::config(self.blobs, &manifest)?;
        self.layers(&repository, &manifest, progress)?;
        Image::open(self.blobs, &digest)
    }

    /// The manifest for this machine, which is in the cache then.
    fn manifest(&self, repository: &Repository<'_>, version: &Version) -> Result<(Digest, Manifest)> {
        let mut version = version.clone();
        for _ in 0..=INDEXES_MAX {
            let (bytes, digest) = repository.manifest(&version)?;
            match Document::parse(&bytes)? {
                Document::Manifest(manifest) => {
                    self.blobs.write(&digest, &bytes)?;
                    return Ok((digest, manifest));
                }
                Document::Index(manifests) => {
                    version = Version::Digest(for_this_machine(&manifests)?.digest.clone());
                }
            }
        }
        bail!("its index leads to an index more than {INDEXES_MAX} times")
    }

    fn blob(&self, repository: &Repository<'_>, wanted: &Descriptor, progress: &Progress) -> Result<PathBuf> {
        let Descriptor { digest, size, .. } = wanted;
        let file = Wanted { digest, size: Some(*size), size_max: *size };
        fetch::to_file_by(&self.client, self.blobs, file, progress, &mut |from| repository.blob(digest, from))
            .with_context(|| format!("fetch {digest} from {}", repository.host))
    }

    /// All layers, some at a time; the first error is the one that counts.
    fn layers(&self, repository: &Repository<'_>, manifest: &Manifest, progress: &Progress) -> Result<()> {
        let queue = Mutex::new(manifest.layers.iter());
        let failed = Mutex::new(None);
        let work = || {
            loop {
                let next = queue.lock().expect("no one panics while holding it").next();
                let Some(layer) = next else { return };
                if let Err(error) = self.blob(repository, layer, progress) {
                    failed.lock().expect("no one panics while holding it").get_or_insert(error);
                    *queue.lock().expect("no one panics while holding it") = [].iter();
                }
            }
        };
        thread::scope(|scope| (0..WORKERS.min(manifest.layers.len())).for_each(|_| drop(scope.spawn(work))));
        failed.into_inner().map_err(|_| anyhow!("a thread has failed"))?.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
