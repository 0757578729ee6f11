//! Images loaded from folders and archives of all makes, good and bad.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::super::manifest::{INDEX, MANIFEST};
use super::super::tests::{Parts, config_json, gzip, layer};
use super::*;

struct Fixture {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(&folder.path().join("cache")).unwrap();
        Self { folder, blobs }
    }

    fn load(&self, file: &[u8]) -> Result<Vec<Named>> {
        let path = self.folder.path().join("image.tar");
        fs::write(&path, file).unwrap();
        load(&self.blobs, &path, &Progress::silent())
    }

    fn files(&self) -> usize {
        fs::read_dir(self.folder.path().join("cache/blobs/sha256")).unwrap().count()
    }
}

fn fails(file: &[u8]) -> String {
    let fixture = Fixture::new();
    let error = format!("{:#}", fixture.load(file).unwrap_err());
    assert!(!error.contains('\u{1b}'), "{error}");
    error
}

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        // As it is, for names that the library would not write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A layout of the usual image, whose index has these annotations and more entries.
fn layout(annotations: &Value, more: &[Value]) -> (Parts, Files) {
    let mut parts = Parts::usual();
    let mut entry = parts.put(MANIFEST, &parts.manifest_json());
    entry["annotations"] = annotations.clone();
    let entries = [&[entry], more].concat();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let mut files: Files = parts
        .blobs
        .iter()
        .map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes.clone()))
        .collect();
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    (parts, files)
}

#[test]
fn a_layout_is_loaded_in_all_its_forms() {
    let other = json!({"mediaType": MANIFEST, "digest": Digest::of(b"not there"), "size": 1,
        "platform": {"architecture": "arm64", "os": "linux"}});
    let (parts, files) = layout(&json!({"io.containerd.image.name": "docker.io/library/x:1"}), &[other]);
    let expected = Digest::of(&parts.manifest_json());
    let prefixed: Files =
        files.iter().map(|(name, content)| (format!("./{name}"), content.clone())).collect();
    for file in [archive(&files), archive(&prefixed), gzip(&archive(&files))] {
        let fixture = Fixture::new();
        let images = fixture.load(&file).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].0.as_deref(), Some("docker.io/library/x:1"));
        assert_eq!((&images[0].1.digest, images[0].1.layers.len()), (&expected, 4));
        assert_eq!(fixture.files(), 6);
        assert_eq!(fixture.load(&file).unwrap(), images, "a second time nothing changes");
    }
    let fixture = Fixture::new();
    let folder = fixture.folder.path().join("layout");
    for (name, content) in &files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    assert_eq!(load(&fixture.blobs, &folder, &Progress::silent()).unwrap()[0].1.digest, expected);
    // What is in the way in such a folder does not make us wait.
    let fixture = Fixture::new();
    let config = parts.manifest["config"]["digest"].as_str().unwrap().replace(':', "/");
    let path = folder.join("blobs").join(config);
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let error = format!("{:#}", load(&fixture.blobs, &folder, &Progress::silent()).unwrap_err());
    assert!(error.contains("is not a file"), "{error}");
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(load(&fixture.blobs, &folder, &Progress::silent()).is_err());
}

#[test]
fn a_layout_that_lies_leaves_nothing_of_the_lie() {
    let (parts, files) = layout(&json!({}), &[]);
    for digest in parts.blobs.keys() {
        let name = format!("blobs/{}", digest.replace(':', "/"));
        for change in [
            |content: &mut Vec<u8>| content[0] ^= 1,
            |content: &mut Vec<u8>| content.truncate(content.len() - 1),
            |content: &mut Vec<u8>| content.push(0),
        ] {
            let mut files = files.clone();
            change(&mut files.iter_mut().find(|(it, _)| *it == name).unwrap().1);
            let fixture = Fixture::new();
            let error = format!("{:#}", fixture.load(&archive(&files)).unwrap_err());
            assert!(error.contains(&name) || error.contains("not a manifest"), "{error}");
            assert!(fixture.blobs.get(&digest.parse().unwrap()).is_none());
        }
        let left: Files = files.iter().filter(|(it, _)| *it != name).cloned().collect();
        assert!(fails(&archive(&left)).contains("is not in it"));
    }
}

/// What `docker save` wrote before it wrote layouts, and what other tools write like it.
fn saved(names: [&str; 2], contents: [Vec<u8>; 2], layers: &[Vec<u8>]) -> Files {
    let config = config_json(layers).to_string().into_bytes();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["x:1", "x:2"], "Layers": names}]);
    let [first, second] = contents;
    vec![
        (names[0].into(), first),
        (names[1].into(), second),
        ("config.json".into(), config),
        ("manifest.json".into(), manifest.to_string().into_bytes()),
        ("repositories".into(), b"{}".to_vec()),
    ]
}

#[test]
fn an_archive_of_docker_save_is_loaded() {
    let layers = [layer(b"one"), layer(b"two")];
    let fixture = Fixture::new();
    let plain =
        fixture.load(&archive(&saved(["a/layer.tar", "b/layer.tar"], layers.clone(), &layers))).unwrap();
    let tags: Vec<_> = plain.iter().map(|(tag, _)| tag.as_deref()).collect();
    assert_eq!(tags, [Some("x:1"), Some("x:2")]);
    assert_eq!(plain[0].1.layers[1].digest, Digest::of(&layers[1]));
    assert_eq!(plain[0].1.config.entrypoint, ["/init"]);
    // The same image has the same digest, and is read from the cache alone.
    assert_eq!(Image::open(&fixture.blobs, &plain[1].1.digest).unwrap(), plain[1].1);
    assert_eq!(fixture.files(), 4);

    let packed = [gzip(&layers[0]), layers[1].clone()];
    let images = fixture.load(&archive(&saved(["a.tar.gz", "b.tar"], packed.clone(), &layers))).unwrap();
    assert_eq!(images[0].1.layers[0].digest, Digest::of(&packed[0]));
    assert_eq!(images[0].1.layers[0].diff_id, Digest::of(&layers[0]));
    assert_eq!(images[0].1.layers[0].compression, Compression::Gzip);
}

#[test]
fn what_an_archive_of_docker_save_claims_is_verified() {
    let layers = [layer(b"one"), layer(b"two")];
    let names = ["a/layer.tar", "b/layer.tar"];
    let swapped = [layers[1].clone(), layers[0].clone()];
    assert!(
        fails(&archive(&saved(names, swapped.clone(), &layers)))
            .contains("\"a/layer.tar\": its content has the digest")
    );
    let packed = swapped.map(|layer| gzip(&layer));
    assert!(fails(&archive(&saved(names, packed, &layers))).contains("its content has the digest"));
    let cut = [gzip(&layers[0])[..40].to_vec(), layers[1].clone()];
    assert!(fails(&archive(&saved(names, cut, &layers))).contains("cannot be read to its end"));
    assert!(
        fails(&archive(&saved(names, layers.clone(), &layers[..1])))
            .contains("names 1 layers, but there are 2")
    );
    assert!(fails(&archive(&saved(["a", "b"], layers.clone(), &layers)[1..])).contains("\"a\" is not in it"));
    for (manifest, complaint) in [
        ("", "not what docker save writes"),
        ("[]", "lists no image"),
        (r#"[{"Config": "../../../etc/passwd", "Layers": []}]"#, "\"../../../etc/passwd\" is not in it"),
        (r#"[{"Config": "c", "Layers": []}]"#, "not one that is understood"),
    ] {
        let files = [("manifest.json".into(), manifest.into()), ("c".into(), b"{}".to_vec())];
        assert!(fails(&archive(&files)).contains(complaint), "{manifest}");
    }
    let none = config_json(&[]).to_string().into_bytes();
    let manifest = br#"[{"Config": "c", "Layers": []}]"#.to_vec();
    assert!(
        fails(&archive(&[("manifest.json".into(), manifest), ("c".into(), none)]))
            .contains("it has no layers")
    );
}

#[test]
fn links_are_followed_inside_of_the_archive_only() {
    let layers = [layer(b"same"), layer(b"same")];
    let link = |target: &str, kind: EntryType, more: &[(&str, &str)]| {
        let files = saved(["a/layer.tar", "b/layer.tar"], layers.clone(), &layers);
        let plain: Files = files.into_iter().filter(|(name, _)| name != "b/layer.tar").collect();
        let mut builder = tar::Builder::new(Vec::new());
        for (name, to) in [("b/layer.tar", target)].iter().chain(more) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            builder.append_link(&mut header, name, to).unwrap();
        }
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(512 * (1 + more.len()));
        [bytes, archive(&plain)].concat()
    };
    for (target, kind) in [("../a/layer.tar", EntryType::Symlink), ("a/layer.tar", EntryType::Link)] {
        assert_eq!(Fixture::new().load(&link(target, kind, &[])).unwrap().len(), 2);
    }
    for target in ["/etc/passwd", "../../../../etc/passwd", "b/layer.tar", "x"] {
        assert!(fails(&link(target, EntryType::Symlink, &[])).contains("is not in it"), "{target}");
    }
    assert!(fails(&link("c", EntryType::Link, &[("c", "b/layer.tar")])).contains("link to a link"));
}

#[test]
fn what_is_no_archive_of_an_image_is_refused() {
    let (_, files) = layout(&json!({}), &[]);
    let whole = archive(&files);
    for (file, complaint) in [
        (Vec::new(), "neither index.json nor manifest.json"),
        (b"hello".to_vec(), "archive"),
        (vec![0xff; 4096], "not an archive"),
        (vec![0; 10240], "neither index.json nor manifest.json"),
        (b"\x28\xb5\x2f\xfdxxxx".to_vec(), "compressed by zstd"),
        (b"\x1f\x8b\x08xxxxxxxxxxxxxxxxxx".to_vec(), "cannot be read to its end"),
        (gzip(&whole)[..1000].to_vec(), "cannot be read to its end"),
        (archive(&[("index.json".into(), vec![b' '; 5 << 20])]), "longer than 4194304 bytes"),
        (archive(&[("index.json".into(), b"{}".to_vec())]), "not a manifest that is understood"),
        (
            archive(&[("index.json".into(), br#"{"schemaVersion": 2, "manifests": []}"#.to_vec())]),
            "not there for linux/amd64",
        ),
    ] {
        let error = fails(&file);
        assert!(error.contains(complaint), "{complaint}: {error}");
    }
    // What is cut off may be what does not matter, such as the end's zeroes.
    let image = Fixture::new().load(&whole).unwrap()[0].1.digest.clone();
    let loaded = |length: &usize| match Fixture::new().load(&whole[..*length]) {
        Ok(images) => images[0].1.digest == image,
        Err(_) => false,
    };
    let lengths: Vec<_> = (0..whole.len()).step_by(whole.len() / 50).filter(loaded).collect();
    assert!(lengths.iter().all(|length| whole.len() - length < 4096), "{lengths:?} of {}", whole.len());
    let fixture = Fixture::new();
    assert!(load(&fixture.blobs, Path::new("/nonexistent"), &Progress::silent()).is_err());
    assert!(load(&fixture.blobs, fixture.folder.path(), &Progress::silent()).is_err());
}

#[test]
fn an_entry_whose_length_is_elsewhere_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let content = b"22 size=9999999999999\n".as_slice();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, "x", content).unwrap();
    assert!(fails(&builder.into_inner().unwrap()).contains("8 GiB or more"));
}

/// Any bytes in place of some of an archive: an error, or an image whose every part is right.
#[test]
fn any_archive_is_loaded_or_refused() {
    let layers = [layer(b"1"), layer(b"2")];
    let old = archive(&saved(["a", "b"], [layers[0].clone(), gzip(&layers[1])], &layers));
    let new = archive(&layout(&json!({}), &[]).1);
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let fixture = Fixture::new();
    for round in 0..300 {
        let mut file = if round % 2 == 0 { old.clone() } else { new.clone() };
        for _ in 0..=random(6) {
            // Headers are where it matters most.
            let at = if random(2) == 0 {
                random(file.len())
            } else {
                random(file.len() / 512) * 512 + random(160)
            };
            file[at] = b"0717/.\x00\x80\xffLKx2"[random(13)];
        }
        for (_, image) in fixture.load(&file).unwrap_or_default() {
            for layer in image.layers {
                assert_eq!(Digest::of(&fs::read(layer.path).unwrap()), layer.digest);
            }
        }
    }
}
