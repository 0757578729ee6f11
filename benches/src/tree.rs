//! The tree that the share is measured on: like a JavaScript project with its packages, and the same to the byte each time.
//! It owns names, sizes and contents. What is done with the tree is in `workloads`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const FILES_PER_PACKAGE: usize = 20;
/// A folder that a file of a package is in. The depths from the top are 3 to 6.
const FOLDERS: &[&str] = &["", "lib", "lib/internal", "dist/esm/util"];
/// Most files are this long, in bytes, ...
const SMALL: std::ops::Range<usize> = 200..20_000;
/// ... and one in so many is a bundle.
const BUNDLE_EVERY: usize = 100;
const BUNDLE: usize = 100_000;
const LINE: &[u8] = b"export const value = require('./other').value; // what the package does\n";

/// A file of the tree.
#[derive(Debug, PartialEq)]
pub struct File {
    pub path: PathBuf,
    pub len: usize,
}

/// The files of a tree of `count`.
pub fn files(count: usize) -> impl Iterator<Item = File> {
    (0..count).map(|index| {
        let (package, number) = (index / FILES_PER_PACKAGE, index % FILES_PER_PACKAGE);
        let folder = FOLDERS[number % FOLDERS.len()];
        let name = if number == 0 { "package.json".to_owned() } else { format!("module-{number}.js") };
        let path = Path::new("node_modules").join(format!("package-{package}")).join(folder).join(name);
        let small = SMALL.start + mixed(index) % (SMALL.end - SMALL.start);
        File { path, len: if index % BUNDLE_EVERY == BUNDLE_EVERY - 1 { BUNDLE } else { small } }
    })
}

/// Writes a tree of `count` files into `top`.
///
/// # Errors
/// When a file or folder cannot be written.
pub fn write(top: &Path, count: usize) -> Result<()> {
    for (index, file) in files(count).enumerate() {
        let path = top.join(&file.path);
        let folder = path.parent().unwrap_or(top);
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(&path, content(index, file.len)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// No two files have the same content, as git would keep them once.
fn content(index: usize, len: usize) -> Vec<u8> {
    let first = format!("// module {index}\n").into_bytes();
    first.into_iter().chain(LINE.iter().copied().cycle()).take(len).collect()
}

/// The finalizer of `SplitMix64`: near numbers become far ones.
fn mixed(number: usize) -> usize {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_file_has_a_place_of_its_own_and_a_size_of_its_kind() {
        let files: Vec<_> = files(2000).collect();
        assert_eq!(files.iter().map(|file| &file.path).collect::<HashSet<_>>().len(), 2000);
        assert_eq!(files.iter().filter(|file| file.len == BUNDLE).count(), 20);
        assert!(files.iter().all(|file| SMALL.contains(&file.len) || file.len == BUNDLE));
        let depths: HashSet<_> = files.iter().map(|file| file.path.components().count()).collect();
        assert_eq!(depths, HashSet::from([3, 4, 5, 6]));
    }

    #[test]
    fn what_is_written_is_what_was_named() {
        let top = tempfile::tempdir().unwrap();
        write(top.path(), 40).unwrap();
        for file in files(40) {
            assert_eq!(top.path().join(&file.path).metadata().unwrap().len(), file.len as u64, "{file:?}");
        }
        assert_ne!(content(0, 200), content(1, 200));
    }
}
