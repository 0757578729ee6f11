//! Images for tests, made of layers that are made here, and a registry on this machine that has them. It speaks the OCI
//! Distribution Specification 1.1 as far as pulling goes, without a log-in and without faults (those are in the tests of
//! `cli`), and ends with the test's process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer being made: any entries, good and bad.
pub type Archive = tar::Builder<Vec<u8>>;

/// An image for linux/amd64.
#[derive(Clone, Debug)]
pub struct Image {
    /// Archives, the lowest first.
    pub layers: Vec<Vec<u8>>,
    /// How it is run: the object `config` of an image's configuration.
    pub run: Value,
}

/// A layer with what `fill` puts into it.
///
/// # Errors
/// When an entry is not one that an archive can have.
pub fn layer(fill: impl FnOnce(&mut Archive) -> std::io::Result<()>) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    fill(&mut archive).context("make a layer")?;
    archive.into_inner().context("end a layer")
}

/// Adds a file of root's.
///
/// # Errors
/// When the name is not one that an archive can have.
pub fn file(archive: &mut Archive, name: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

impl Image {
    fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| digest(layer)).collect();
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let config = json!({"architecture": "amd64", "os": "linux", "config": self.run, "rootfs": rootfs});
        config.to_string().into_bytes()
    }

    /// It as `docker save` writes it.
    ///
    /// # Errors
    /// When the archive cannot be made.
    pub fn archive(&self, tag: &str) -> Result<Vec<u8>> {
        let names: Vec<_> = (0..self.layers.len()).map(|number| format!("{number}/layer.tar")).collect();
        let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]);
        layer(|archive| {
            file(archive, "config.json", 0o644, &self.config())?;
            for (name, layer) in names.iter().zip(&self.layers) {
                file(archive, name, 0o644, layer)?;
            }
            file(archive, "manifest.json", 0o644, manifest.to_string().as_bytes())
        })
    }
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By the path of a request: the type, and the content.
    files: HashMap<String, (&'static str, Vec<u8>)>,
    asked: Vec<String>,
}

impl Registry {
    /// On a port of its own.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let address = listener.local_addr().context("ask for the port")?;
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || serve(&stream, &shared));
            }
        });
        Ok(Self { address, state })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has an image under that name from here on. Returns how it is referred to, by its tag and by its digest.
    ///
    /// # Panics
    /// When a thread of the registry has panicked.
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> (String, String) {
        let mut state = self.state.lock().expect("no thread has panicked");
        let mut put = |kind: &'static str, content: &[u8]| {
            let digest = digest(content);
            let folder = if kind == MANIFEST { "manifests" } else { "blobs" };
            state.files.insert(format!("/v2/{name}/{folder}/{digest}"), (kind, content.to_vec()));
            json!({"mediaType": kind, "digest": digest, "size": content.len()})
        };
        let config = put(CONFIG, &image.config());
        let layers: Vec<_> = image.layers.iter().map(|layer| put(LAYER, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        put(MANIFEST, &manifest);
        let digest = digest(&manifest);
        state.files.insert(format!("/v2/{name}/manifests/{tag}"), (MANIFEST, manifest));
        let name = format!("{}/{name}", self.address);
        (format!("{name}:{tag}"), format!("{name}@{digest}"))
    }

    /// The paths that were asked for since the last call.
    ///
    /// # Panics
    /// When a thread of the registry has panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("no thread has panicked").asked)
    }
}

/// One answer to a connection. Whoever goes away early is no concern of ours.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)) else { return };
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let mut state = state.lock().expect("no thread has panicked");
    let (status, kind, body) = match state.files.get(&path) {
        Some((kind, content)) => ("200 OK", *kind, content.clone()),
        None => ("404 Not Found", "application/json", b"{}".to_vec()),
    };
    state.asked.push(path);
    drop(state);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    let _ = (&mut &*stream).write_all(&[head.as_bytes(), &body].concat());
}

fn digest(content: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, content);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
