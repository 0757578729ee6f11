//! Images from files: an OCI layout, as a folder or an archive, and what `docker save` writes, in its old form and its new
//! one, which is both. What is in an archive is found by its name and read from its place; nothing is extracted.
//! Sources: OCI Image Format Specification 1.1, "Image Layout"; POSIX.1-2024, pax, "ustar Interchange Format".

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use tar::EntryType;

use super::image::{Compression, Image};
use super::manifest::{
    CONFIG, DOCUMENT_MAX, Descriptor, Document, ImageConfig, LAYER, LAYER_GZIP, Manifest, for_this_machine,
};
use super::{INDEXES_MAX, SIZE_MAX};
use crate::blobs::{Blobs, Claim, Partial};
use crate::digest::{Digest, Hasher};
use crate::progress::Progress;
use crate::text::quoted;

const ENTRIES_MAX: usize = 100_000;
const IMAGES_MAX: usize = 1000;
/// Of what describes the next entry.
const EXTENSION_MAX: u64 = 64 << 10;
/// Links from one entry to another.
const LINKS_MAX: usize = 4;
const PIECE: usize = 128 << 10;
/// How often it is looked whether the disk has room for more.
const ROOM_EVERY: u64 = 256 << 20;

/// An image with the name that it has in the file, which may be any text.
type Named = (Option<String>, Image);

struct Loader<'a> {
    blobs: &'a Blobs,
    progress: &'a Progress,
    files: Files,
}

enum Files {
    Folder(PathBuf),
    Archive { file: File, entries: HashMap<String, Entry> },
}

enum Entry {
    /// From where to where.
    Content(u64, u64),
    Link(String),
}

/// One entry of manifest.json as `docker save` writes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub fn load(blobs: &Blobs, path: &Path, progress: &Progress) -> Result<Vec<Named>> {
    let file = File::open(path).context("it cannot be opened")?;
    let files = match file.metadata().context("it cannot be looked at")?.is_dir() {
        true => Files::Folder(path.to_owned()),
        false => {
            let file = plain_archive(blobs, file, progress)?;
            Files::Archive { entries: entries(&file)?, file }
        }
    };
    let loader = Loader { blobs, progress, files };
    if let Some(index) = loader.document("index.json")? {
        return loader.layout(&index).context("index.json");
    }
    match loader.document("manifest.json")? {
        Some(manifest) => loader.saved(&manifest).context("manifest.json"),
        None => bail!(
            "it has neither index.json nor manifest.json: it is not an image; try docker save or skopeo copy"
        ),
    }
}

/// The archive as a file that can be read at any place: itself, or what it is when it is not compressed.
fn plain_archive(blobs: &Blobs, mut file: File, progress: &Progress) -> Result<File> {
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start).context("it cannot be read")?;
    let is_regular = file.metadata().context("it cannot be looked at")?.is_file();
    let compression = Compression::of(&mut start.as_slice())?;
    let whole = start.chain(&file);
    let mut reader: Box<dyn Read> = match compression {
        Compression::None if is_regular => return Ok(file),
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PIECE, whole))),
        Compression::Zstd => bail!("it is compressed by zstd; decompress it first, by zstd -d"),
    };
    let mut plain = blobs.scratch()?;
    let mut room = 0;
    let mut length = 0;
    pieces(&mut reader, &mut |piece| {
        length += piece.len() as u64;
        ensure!(length <= SIZE_MAX, "it is longer than {} GiB", SIZE_MAX >> 30);
        if length > room {
            blobs.check_room(ROOM_EVERY)?;
            room = length + ROOM_EVERY;
        }
        progress.expect(piece.len() as u64);
        progress.advance(piece.len() as u64);
        plain.write_all(piece).context("write what is in it")
    })?;
    Ok(plain)
}

/// Everything that `reader` has, piece by piece.
fn pieces(reader: &mut dyn Read, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&piece[..count])?,
            Err(error) => return Err(error).context("it cannot be read to its end"),
        }
    }
}

/// What is where in an archive. Long names are left as their first characters: no file of an image needs one.
fn entries(file: &File) -> Result<HashMap<String, Entry>> {
    let length = file.metadata().context("it cannot be looked at")?.len();
    std::io::Seek::rewind(&mut &*file).context("it cannot be read")?;
    let mut archive = tar::Archive::new(file);
    let mut entries = HashMap::new();
    for (number, entry) in archive.entries_with_seek().context("it is not an archive")?.raw(true).enumerate()
    {
        ensure!(number < ENTRIES_MAX, "it has more than {ENTRIES_MAX} entries");
        let mut entry = entry.context("it is not an archive of tar, or is broken")?;
        let (start, size) = (entry.raw_file_position(), entry.size());
        let end = start.checked_add(size).filter(|end| *end <= length).context("it is cut off")?;
        let name = normal(&entry.path_bytes());
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                drop(entries.insert(name, Entry::Content(start, end)))
            }
            EntryType::Link => {
                let target = normal(&entry.link_name_bytes().unwrap_or_default());
                entries.insert(name, Entry::Link(target));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                let target = normal(&[folder.as_bytes(), b"/", &target].concat());
                entries.insert(name, Entry::Link(target));
            }
            EntryType::XHeader => {
                let mut text = Vec::new();
                (&mut entry).take(EXTENSION_MAX).read_to_end(&mut text).context("it is broken")?;
                let has_size = text.windows(6).any(|window| window == b" size=");
                ensure!(!has_size, "it has an entry of 8 GiB or more, which is not understood");
            }
            _ => (),
        }
    }
    Ok(entries)
}

/// A name without what does not matter in it; `..` takes a part away, and above the top there is nothing.
fn normal(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file.
struct Window<'a> {
    file: &'a File,
    start: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..left], self.start)?;
        self.start += count as u64;
        Ok(count)
    }
}

impl Loader<'_> {
    /// A file by its name, and its length. In a folder only names of a layout are looked for.
    fn open(&self, name: &str) -> Result<Option<(Box<dyn Read + '_>, u64)>> {
        match &self.files {
            Files::Folder(folder) => {
                use rustix::fs::{Mode, OFlags, open};
                // What is no file must not make us wait for who writes to it.
                let opened = open(
                    folder.join(name),
                    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                );
                let file = match opened {
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    other => File::from(other.with_context(|| format!("open {name}"))?),
                };
                let stat = file.metadata().with_context(|| format!("look at {name}"))?;
                ensure!(stat.is_file(), "{name} is not a file");
                Ok(Some((Box::new(file), stat.len())))
            }
            Files::Archive { file, entries } => {
                let mut name = normal(name.as_bytes());
                for _ in 0..=LINKS_MAX {
                    match entries.get(&name) {
                        Some(&Entry::Content(start, end)) => {
                            return Ok(Some((Box::new(Window { file, start, end }), end - start)));
                        }
                        Some(Entry::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                bail!("{} is a link to a link to a link", quoted(name))
            }
        }
    }

    /// A short file.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((reader, size)) = self.open(name)? else { return Ok(None) };
        ensure!(size <= DOCUMENT_MAX, "{} is longer than {DOCUMENT_MAX} bytes", quoted(name));
        let mut bytes = Vec::new();
        reader
            .take(DOCUMENT_MAX)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read {}", quoted(name)))?;
        Ok(Some(bytes))
    }

    fn layout(&self, index: &[u8]) -> Result<Vec<Named>> {
        let Document::Index(manifests) = Document::parse(index)? else { bail!("it is not an index") };
        let is_ours = |it: &&Descriptor| it.platform.as_ref().is_none_or(|platform| platform.fits());
        let ours: Vec<_> = manifests.iter().filter(is_ours).collect();
        if ours.is_empty() {
            for_this_machine(&manifests)?;
        }
        ours.into_iter().map(|it| Ok((it.name().map(str::to_owned), self.image(it)?))).collect()
    }

    /// The image that a manifest or an index of the layout is.
    fn image(&self, descriptor: &Descriptor) -> Result<Image> {
        let mut digest = descriptor.digest.clone();
        for _ in 0..=INDEXES_MAX {
            let name = blob(&digest);
            let bytes = self.document(&name)?.with_context(|| format!("{name} is not in it"))?;
            match Document::parse(&bytes)? {
                Document::Index(manifests) => {
                    let mut hasher = Hasher::like(&digest);
                    hasher.update(&bytes);
                    digest.expect(&hasher.finish()).context(name)?;
                    digest = for_this_machine(&manifests)?.digest.clone();
                }
                Document::Manifest(manifest) => {
                    self.blobs.write(&digest, &bytes).context(name)?;
                    let size = manifest.size();
                    ensure!(
                        size <= SIZE_MAX,
                        "it has {} GiB; at most {} are accepted",
                        size >> 30,
                        SIZE_MAX >> 30
                    );
                    self.blobs.check_room(self.blobs.missing(manifest.parts()))?;
                    self.progress.expect(size);
                    for (digest, size) in manifest.parts() {
                        self.store(&blob(digest), digest, size)?;
                    }
                    return Image::open(self.blobs, &digest);
                }
            }
        }
        bail!("its index leads to an index more than {INDEXES_MAX} times")
    }

    fn saved(&self, manifest: &[u8]) -> Result<Vec<Named>> {
        let saved: Vec<Saved> =
            serde_json::from_slice(manifest).context("it is not what docker save writes")?;
        ensure!(!saved.is_empty(), "it lists no image");
        ensure!(saved.len() <= IMAGES_MAX, "it lists more than {IMAGES_MAX} images");
        let mut images = Vec::new();
        for saved in saved {
            let image = self.saved_image(&saved)?;
            let tags = saved.repo_tags.unwrap_or_default();
            if tags.is_empty() {
                images.push((None, image));
            } else {
                images.extend(tags.into_iter().map(|tag| (Some(tag), image.clone())));
            }
        }
        Ok(images)
    }

    /// An image that has no manifest yet. All that says what its layers have to be is in its configuration.
    fn saved_image(&self, saved: &Saved) -> Result<Image> {
        let missing = |name: &str| format!("{} is not in it", quoted(name));
        let config = self.document(&saved.config)?.with_context(|| missing(&saved.config))?;
        let (_, diff_ids) = ImageConfig::parse(&config)?;
        let (named, there) = (diff_ids.len(), saved.layers.len());
        ensure!(named == there, "the configuration names {named} layers, but there are {there}");
        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&diff_ids) {
            let (mut reader, size) = self.open(name)?.with_context(|| missing(name))?;
            self.progress.expect(size);
            let (digest, media_type) = match Compression::of(&mut reader)? {
                Compression::None => (diff_id.clone(), LAYER),
                Compression::Gzip => (self.compressed(name, diff_id)?, LAYER_GZIP),
                Compression::Zstd => {
                    bail!("{} is compressed by zstd, which is not understood here", quoted(name))
                }
            };
            self.store(name, &digest, size)?;
            layers.push(Descriptor::new(media_type, digest, size));
        }
        let digest = Digest::of(&config);
        self.blobs.write(&digest, &config)?;
        let manifest = Manifest { config: Descriptor::new(CONFIG, digest, config.len() as u64), layers };
        let json = manifest.to_json();
        let digest = Digest::of(&json);
        self.blobs.write(&digest, &json)?;
        Image::open(self.blobs, &digest)
    }

    /// The digest of a compressed layer, once its content is found to be what the configuration says.
    fn compressed(&self, name: &str, diff_id: &Digest) -> Result<Digest> {
        let missing = || format!("{} is not in it", quoted(name));
        let mut outer = Hasher::sha256();
        pieces(&mut self.open(name)?.with_context(missing)?.0, &mut |piece| {
            outer.update(piece);
            Ok(())
        })?;
        let (mut inner, mut length) = (Hasher::like(diff_id), 0);
        let mut reader =
            MultiGzDecoder::new(BufReader::with_capacity(PIECE, self.open(name)?.with_context(missing)?.0));
        pieces(&mut reader, &mut |piece| {
            length += piece.len() as u64;
            ensure!(length <= SIZE_MAX, "it unpacks to more than {} GiB", SIZE_MAX >> 30);
            inner.update(piece);
            Ok(())
        })
        .with_context(|| format!("the layer {}", quoted(name)))?;
        diff_id.expect(&inner.finish()).with_context(|| format!("the layer {}", quoted(name)))?;
        Ok(outer.finish())
    }

    /// A file of that content into the cache; when it is another, nothing is.
    fn store(&self, name: &str, digest: &Digest, size: u64) -> Result<()> {
        let Claim::Ours(mut partial) = self.blobs.claim(digest)? else {
            self.progress.found(size);
            return Ok(());
        };
        match self.copy(name, size, &mut partial) {
            Ok(()) => partial.finish().map(drop).with_context(|| quoted(name)),
            Err(error) => {
                partial.abandon();
                Err(error)
            }
        }
    }

    fn copy(&self, name: &str, size: u64, partial: &mut Partial) -> Result<()> {
        partial.restart()?;
        let (mut reader, length) =
            self.open(name)?.with_context(|| format!("{} is not in it", quoted(name)))?;
        ensure!(length == size, "{} has {length} bytes instead of {size}", quoted(name));
        self.blobs.check_room(size)?;
        pieces(&mut reader, &mut |piece| {
            self.progress.advance(piece.len() as u64);
            partial.append(piece)
        })
    }
}

/// Where a layout has a blob.
fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

#[cfg(test)]
mod tests;
