//! The user's own templates and layers on disk: how they get there whole, and how they go.
//! One command at a time changes them; reading needs no lock, as a file is there whole or not at all. A layer goes when neither a
//! template nor a sandbox is left that has it. What is installed with Coracle is only read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Image, Layer, SLASH, Template, folder_name, folders, is_erofs, read};
use crate::digest::Digest;
use crate::output::note;
use crate::places;
use crate::store::{Store, new_id};
use crate::text::{plain, quoted};

const NEW: &str = ".new-";

/// The right to change the user's templates.
#[derive(Debug)]
pub struct Shelf {
    templates: PathBuf,
    layers: PathBuf,
    _lock: File,
}

/// A layer that is being made. Dropping it removes what it has come to, unless that was kept.
#[derive(Debug)]
pub struct Draft {
    pub file: File,
    path: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Shelf {
    /// Waits while another command has the right, and removes what killed ones have left.
    pub fn open() -> Result<Self> {
        let data = places::data()?;
        let (templates, layers) = (data.join("templates"), data.join("layers"));
        for folder in [&templates, &layers] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| {
                format!("create {}; set XDG_DATA_HOME to a folder that you may write to", plain(folder))
            })?;
        }
        let lock = create(&layers.join(".lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            note("coracle: waiting for another command that is changing the templates\n");
            flock(&lock, FlockOperation::LockExclusive).context("wait for the templates' lock")?;
        }
        let shelf = Self { templates, layers, _lock: lock };
        shelf.collect_garbage();
        Ok(shelf)
    }

    pub fn new_layer(&self) -> Result<Draft> {
        let path = self.layers.join(format!("{NEW}{}", new_id()?));
        Ok(Draft { file: create(&path)?, path })
    }

    /// What was made of the archive with that digest before, if it is still there.
    pub fn converted(&self, archive: &Digest) -> Option<Layer> {
        let json = fs::read(self.layers.join(format!("{}.json", archive.hex()))).ok()?;
        let layer: Layer = serde_json::from_slice(&json).ok()?;
        layer.check().ok()?;
        let size = fs::metadata(self.layers.join(layer.file())).ok()?.len();
        (size == layer.size).then_some(layer)
    }

    /// For images that have the same layer.
    pub fn remember(&self, archive: &Digest, layer: &Layer) -> Result<()> {
        let json = serde_json::to_vec(layer).context("encode a layer")?;
        let path = self.layers.join(format!("{}.json", archive.hex()));
        fs::write(&path, json).with_context(|| format!("write {}", plain(&path)))
    }

    /// Gives a finished layer its place.
    pub fn keep(&self, draft: &Draft, layer: Layer) -> Result<Layer> {
        layer.check()?;
        ensure!(is_erofs(&draft.file), "what was made is not an EROFS image");
        draft.file.sync_all().context("write the layer to disk")?;
        fs::rename(&draft.path, self.layers.join(layer.file())).context("name the layer")?;
        Ok(layer)
    }

    /// Writes a template's description, in place of an older one, whose layers go.
    pub fn publish(&self, template: &Template) -> Result<()> {
        template.image.check()?;
        let folder = self.templates.join(folder_name(&template.name));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", plain(&folder)))?;
        let temporary = folder.join(format!("{NEW}{}", new_id()?));
        let mut json = serde_json::to_vec_pretty(template).context("encode template.json")?;
        json.push(b'\n');
        let mut file = create(&temporary)?;
        file.write_all(&json).and_then(|()| file.sync_all()).context("write template.json")?;
        fs::rename(&temporary, folder.join("template.json")).context("name template.json")?;
        // The template is there; that something older cannot be removed is no failure of it.
        if let Err(error) = self.sweep() {
            note(&format!("coracle: layers that nothing has any more were kept: {error:#}\n"));
        }
        Ok(())
    }

    /// Whether the user has a template of that name, whole or not.
    pub fn has(&self, name: &str) -> bool {
        self.templates.join(folder_name(name)).is_dir()
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let folder = self.templates.join(folder_name(name));
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", plain(&folder)))
    }

    /// Removes the layers that nothing has any more, and says how many bytes they had.
    pub fn sweep(&self) -> Result<u64> {
        let used = used_layers()?;
        let mut freed = 0;
        for entry in fs::read_dir(&self.layers).context("read the layers' folder")?.flatten() {
            let name = entry.file_name();
            let hash = name.to_str().and_then(|name| name.strip_suffix(".erofs"));
            let Some(hash) = hash.filter(|hash| !used.contains(*hash)) else { continue };
            let size = entry.metadata().map_or(0, |facts| facts.len());
            fs::remove_file(entry.path()).with_context(|| format!("remove layer {hash}"))?;
            freed += size;
        }
        self.forget_removed();
        Ok(freed)
    }

    /// What was remembered of layers that are gone.
    fn forget_removed(&self) {
        for entry in fs::read_dir(&self.layers).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let digest = digest.and_then(|hex| format!("sha256:{hex}").parse().ok());
            if digest.is_some_and(|digest| self.converted(&digest).is_none()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn collect_garbage(&self) {
        for entry in fs::read_dir(&self.layers).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// All templates, the user's and the installed ones, sorted by name; the user's hide those of the same name.
pub fn list() -> Result<Vec<(String, Result<Template>)>> {
    let mut found: Vec<(String, Result<Template>)> = Vec::new();
    for folder in folders()? {
        for name in names(&folder)? {
            if found.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let path = folder.join(folder_name(&name)).join("template.json");
            match read(&path).with_context(|| plain(&path)) {
                Ok(None) => {}
                Ok(Some(template)) => found.push((name, Ok(template))),
                Err(error) => found.push((name, Err(error))),
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", plain(folder))),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.map(|name| name.replace(SLASH, "/")).filter(|name| super::is_name(name)).collect())
}

/// One that cannot be read could have any layer, so then nothing is known to be unused.
fn used_layers() -> Result<BTreeSet<String>> {
    let mut used = BTreeSet::new();
    let mut add = |image: &Image| used.extend(image.layers.iter().map(|layer| layer.sha256.clone()));
    for (name, template) in list()? {
        add(&template.with_context(|| format!("template {} is damaged; remove it", quoted(name)))?.image);
    }
    if let Some(store) = Store::open()? {
        for name in store.names()?.into_iter().chain(store.drafts()?) {
            let name: OsString = name;
            let Some(sandbox) = store.open_folder(&name)? else { continue };
            match sandbox.config() {
                Ok(config) => add(&config.image),
                // It cannot run, and can be made again.
                Err(_) if !sandbox.has_config() => {}
                Err(error) => {
                    bail!("sandbox {} is broken ({error:#}); remove it with coracle rm -f", quoted(&name))
                }
            }
        }
    }
    Ok(used)
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).with_context(|| format!("create {}", plain(path)))
}
