//! Images pulled from registries of all manners. The registry is a server of this test that speaks the distribution
//! specification as far as pulling goes, with a log-in by token, and with the faults that a test gives it.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::stand_in::{Asked, Reply, Server};
use manifest::{INDEX, INDEX_DOCKER, LAYER, LAYER_GZIP, MANIFEST, MANIFEST_DOCKER};

/// What makes up an image, by digest.
#[derive(Clone, Default)]
pub struct Parts {
    pub blobs: HashMap<String, Vec<u8>>,
    pub manifest: Value,
}

/// A layer that is a valid archive with one file.
pub fn layer(content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", content).unwrap();
    archive.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn config_json(layers: &[Vec<u8>]) -> Value {
    json!({
        "architecture": "amd64", "os": "linux", "history": [],
        "config": {"Env": ["PATH=/bin", "A="], "Entrypoint": ["/init"], "Cmd": null, "WorkingDir": "/srv", "User": "1:2",
                   "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|it| Digest::of(it).to_string()).collect::<Vec<_>>()},
    })
}

impl Parts {
    pub fn put(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        self.blobs.insert(digest.clone(), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// An image of these archives; every second one is compressed.
    pub fn of(layers: &[Vec<u8>], config: &Value) -> Self {
        let mut parts = Self::default();
        let config = parts.put(manifest::CONFIG, config.to_string().as_bytes());
        let mut descriptors = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            descriptors.push(match number % 2 {
                0 => parts.put(LAYER, layer),
                _ => parts.put(LAYER_GZIP, &gzip(layer)),
            });
        }
        parts.manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
        parts
    }

    pub fn usual() -> Self {
        let layers = [layer(b"one"), layer(&[2; 100_000]), layer(b"three"), layer(b"four")];
        Self::of(&layers, &config_json(&layers))
    }

    pub fn manifest_json(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.manifest_json())
    }

    /// As a registry has them, under the tag `1` and the manifest's digest.
    fn served(&self) -> HashMap<String, Reply> {
        let mut replies = HashMap::new();
        for (digest, bytes) in &self.blobs {
            replies.insert(format!("/v2/a/b/blobs/{digest}"), Reply::of(200, bytes.as_slice()));
        }
        let manifest = Reply::of(200, self.manifest_json()).with("content-type", MANIFEST);
        replies.insert(format!("/v2/a/b/manifests/{}", self.digest()), manifest.clone());
        replies.insert("/v2/a/b/manifests/1".into(), manifest);
        replies
    }
}

pub struct Fixture {
    folder: tempfile::TempDir,
    pub blobs: Blobs,
    server: Server,
}

fn answer(replies: &HashMap<String, Reply>, asked: &Asked) -> Reply {
    match replies.get(&asked.path) {
        Some(reply) if reply.status == 200 && reply.cut.is_none() && reply.length.is_none() => {
            Reply { fields: reply.fields.clone(), ..Reply::file(asked, &reply.body) }
        }
        Some(reply) => reply.clone(),
        None => Reply::of(404, r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no\u001b[2J such"}]}"#),
    }
}

impl Fixture {
    fn new(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        Self { folder, blobs, server: Server::start(answer) }
    }

    fn serving(replies: HashMap<String, Reply>) -> Self {
        Self::new(move |asked| answer(&replies, asked))
    }

    fn reference(&self, version: &str) -> Reference {
        format!("{}/a/b{version}", self.server.address).parse().unwrap()
    }

    fn source(&self) -> Source<'_> {
        Source {
            client: Client::impatient(),
            blobs: &self.blobs,
            registries: Registries::default(),
            credentials: Credentials::default(),
        }
    }

    fn pull(&self) -> Result<Image> {
        self.source().pull(&self.reference(":1"), &Progress::silent())
    }

    fn fails(&self) -> String {
        let error = format!("{:#}", self.pull().unwrap_err());
        assert!(!error.contains('\u{1b}'), "{error}");
        error
    }

    fn login(&self, json: &Value) -> Credentials {
        let path = self.folder.path().join("config.json");
        fs::write(&path, json.to_string()).unwrap();
        Credentials::read(&path).unwrap()
    }

    /// Files of blobs, finished or not.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("blobs/sha256")).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn an_image_is_pulled_once() {
    let parts = Parts::usual();
    let fixture = Fixture::serving(parts.served());
    let image = fixture.pull().unwrap();
    assert_eq!(image.digest, parts.digest());
    assert_eq!(image.config.env, ["PATH=/bin", "A="]);
    assert_eq!(image.config.entrypoint, ["/init"]);
    assert_eq!((image.config.workdir.as_str(), image.config.user.as_str()), ("/srv", "1:2"));
    let compression: Vec<_> = image.layers.iter().map(|it| it.compression).collect();
    assert_eq!(compression, [Compression::None, Compression::Gzip, Compression::None, Compression::Gzip]);
    assert_eq!(image.layers[1].diff_id, Digest::of(&layer(&[2; 100_000])));
    for layer in &image.layers {
        assert_eq!(Digest::of(&fs::read(&layer.path).unwrap()), layer.digest);
    }
    assert_eq!(fixture.files().len(), 6);
    assert_eq!(fixture.server.asked().len(), 6);

    // Only what is missing is fetched again.
    fs::remove_file(&image.layers[3].path).unwrap();
    assert_eq!(fixture.pull().unwrap(), image);
    assert_eq!(fixture.server.asked().len(), 2);
}

#[test]
fn an_index_leads_to_this_machines_image() {
    let (parts, mut other) = (Parts::usual(), Parts::default());
    let entry = |parts: &mut Parts, bytes: &[u8], platform: Value| {
        let mut entry = parts.put(MANIFEST, bytes);
        entry["platform"] = platform;
        entry
    };
    let manifests = [
        entry(&mut other, b"arm", json!({"architecture": "arm64", "os": "linux", "variant": "v8"})),
        entry(&mut other, b"windows", json!({"architecture": "amd64", "os": "windows", "os.version": "10"})),
        entry(&mut other, b"new", json!({"architecture": "amd64", "os": "linux", "variant": "v3"})),
        entry(&mut other, &parts.manifest_json(), json!({"architecture": "amd64", "os": "linux"})),
        entry(&mut other, b"attestation", json!({"architecture": "unknown", "os": "unknown"})),
    ];
    for (kind, listed, wanted) in [
        (INDEX, &manifests[..], Ok(())),
        (INDEX_DOCKER, &manifests[..], Ok(())),
        (
            INDEX,
            &manifests[..2],
            Err("it is not there for linux/amd64, but for: \"linux/arm64, windows/amd64\""),
        ),
        (INDEX, &[], Err("but for: \"\"")),
    ] {
        let mut replies = parts.served();
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": listed}).to_string();
        let pin = format!("@{}", Digest::of(index.as_bytes()));
        for path in [":1", &pin] {
            replies.insert(format!("/v2/a/b/manifests/{}", &path[1..]), Reply::of(200, index.as_str()));
        }
        let fixture = Fixture::serving(replies);
        match wanted {
            Ok(()) => assert_eq!(fixture.pull().unwrap().digest, parts.digest()),
            Err(complaint) => assert!(fixture.fails().contains(complaint), "{}", fixture.fails()),
        }
        let pinned = fixture.source().pull(&fixture.reference(&pin), &Progress::silent());
        assert_eq!(pinned.is_ok(), wanted.is_ok());
    }
}

#[test]
fn an_index_that_leads_to_itself_ends() {
    // By its digest none can; a registry that does not care could send the same again and again.
    let index = |size: usize| {
        json!({"schemaVersion": 2, "manifests": [{"mediaType": INDEX, "size": size,
        "digest": Digest::of(b"x"), "platform": {"architecture": "amd64", "os": "linux"}}]})
        .to_string()
    };
    let fixture = Fixture::new(move |_| Reply::of(200, index(7)));
    assert!(fixture.fails().contains("its content has the digest"));
    // A chain of honest ones.
    let mut parts = Parts::usual();
    let mut replies = parts.served();
    let mut inner = parts.put(MANIFEST, &parts.manifest_json());
    for _ in 0..5 {
        inner["platform"] = json!({"architecture": "amd64", "os": "linux"});
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        replies.insert(
            format!("/v2/a/b/manifests/{}", Digest::of(index.as_bytes())),
            Reply::of(200, index.as_str()),
        );
        replies.insert("/v2/a/b/manifests/1".into(), Reply::of(200, index.as_str()));
        inner = parts.put(INDEX, index.as_bytes());
    }
    assert!(Fixture::serving(replies).fails().contains("leads to an index more than 3 times"));
}

#[test]
fn a_pin_is_what_comes() {
    let parts = Parts::usual();
    let mut replies = parts.served();
    let pin = Digest::of(b"pinned");
    replies.insert(format!("/v2/a/b/manifests/{pin}"), Reply::of(200, parts.manifest_json()));
    let fixture = Fixture::serving(replies);
    let pull = |version: &str| fixture.source().pull(&fixture.reference(version), &Progress::silent());
    assert_eq!(pull(&format!(":9@{}", parts.digest())).unwrap().digest, parts.digest());
    let error = format!("{:#}", pull(&format!("@{pin}")).unwrap_err());
    assert!(error.contains(&format!("digest {} instead of {pin}", parts.digest())), "{error}");
}

#[test]
fn a_bad_layer_leaves_nothing_behind() {
    type Fault = fn(&Reply) -> Reply;
    let faults: [(&str, Fault); 5] = [
        ("its content has the digest", |it| Reply::of(200, vec![0; it.body.len()])),
        ("has 3 bytes of it instead of", |_| Reply::of(200, "abc")),
        ("bytes of it instead of", |it| Reply::of(200, [it.body.as_slice(), b"x"].concat())),
        ("does not have it", |_| Reply::of(404, "")),
        ("given up after 5 tries", |it| it.clone().cut(0)),
    ];
    let parts = Parts::usual();
    for (number, layer) in parts.manifest["layers"].as_array().unwrap().iter().enumerate() {
        let (complaint, fault) = faults[number % faults.len()];
        let digest = layer["digest"].as_str().unwrap();
        let mut replies = parts.served();
        let path = format!("/v2/a/b/blobs/{digest}");
        let bad = fault(&replies[&path]);
        replies.insert(path, bad);
        let fixture = Fixture::serving(replies);
        let error = fixture.fails();
        assert!(error.contains(complaint) && error.contains(digest), "{error}");
        let hex = digest.strip_prefix("sha256:").unwrap();
        for name in fixture.files().iter().filter(|name| name.contains(hex)) {
            let left = fs::metadata(fixture.folder.path().join("blobs/sha256").join(name)).unwrap().len();
            assert!(name.starts_with('.') && left == 0, "{name} of {left} bytes is left of it");
        }
    }
}

#[test]
fn a_cut_pull_goes_on() {
    let parts = Parts::usual();
    let replies = Arc::new(parts.served());
    let cuts = AtomicU32::new(0);
    let fixture = Fixture::new(move |asked| {
        let reply = answer(&replies, asked);
        let half = reply.body.len() / 2;
        match cuts.fetch_add(1, Ordering::Relaxed) {
            0 => reply.cut(10),
            number @ 1..15 if number % 3 == 1 => reply.cut(half),
            number @ 1..15 if number % 3 == 2 => Reply::of(503, ""),
            _ => reply,
        }
    });
    assert_eq!(fixture.pull().unwrap().digest, parts.digest());
}

#[test]
fn two_pulls_of_one_image_fetch_it_once() {
    let parts = Parts::usual();
    let fixture = Fixture::serving(parts.served());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fixture.pull().unwrap().digest, parts.digest()));
        }
    });
    let blobs = fixture.server.asked().iter().filter(|it| it.path.contains("/blobs/")).count();
    assert_eq!(blobs, 5);
}

#[test]
fn what_is_no_image_is_refused() {
    let change = |change: &dyn Fn(&mut Value)| {
        let mut parts = Parts::usual();
        change(&mut parts.manifest);
        Fixture::serving(parts.served()).fails()
    };
    let layers =
        |count: usize| move |it: &mut Value| it["layers"] = vec![it["layers"][0].clone(); count].into();
    for (complaint, error) in [
        ("it has no layers", change(&layers(0))),
        ("its configuration names 4 layers, its manifest 3", change(&layers(3))),
        ("it has 128 layers; at most 127", change(&layers(128))),
        ("has version 1 of the format", change(&|it| it["schemaVersion"] = 1.into())),
        ("calls itself \"text/html\"", change(&|it| it["mediaType"] = "text/html".into())),
        ("calls itself", change(&|it| it["mediaType"] = INDEX.into())),
        ("neither a manifest nor an index", change(&|it| it["manifests"] = json!([]))),
        ("not a container image", change(&|it| it["config"]["mediaType"] = "application/wasm".into())),
        ("layer of the type \"x\\u{1b}\"", change(&|it| it["layers"][2]["mediaType"] = "x\u{1b}".into())),
        ("is not a digest", change(&|it| it["layers"][2]["digest"] = "sha256:../../x".into())),
        ("not a manifest that is understood", change(&|it| it["layers"][2]["size"] = (-1).into())),
        ("at most 64 are accepted", change(&|it| it["layers"][2]["size"] = u64::MAX.into())),
        ("configuration is longer", change(&|it| it["config"]["size"] = (5 << 20).into())),
        ("not a manifest that is understood", change(&|it| *it = json!([]))),
    ] {
        assert!(error.contains(complaint), "{complaint}: {error}");
    }
    let huge = Fixture::new(|_| Reply::of(200, vec![b' '; 5 << 20]));
    assert!(huge.fails().contains("more than 4194304 bytes"));
    let missing = Fixture::serving(HashMap::new()).fails();
    assert!(missing.contains("check name and tag (NAME_UNKNOWN: no\\u{1b}[2J such)"), "{missing}");
}

#[test]
fn the_configuration_is_looked_at_before_layers_are_fetched() {
    let layers = [layer(b"x")];
    let mut config = config_json(&layers);
    config["architecture"] = "arm64".into();
    let fixture = Fixture::serving(Parts::of(&layers, &config).served());
    assert!(fixture.fails().contains("it is for \"linux/arm64\", not for linux/amd64"));
    assert_eq!(fixture.server.asked().len(), 2);
}

/// A registry that wants a token, and the place where tokens come from. The first is good for so many requests.
fn with_tokens(parts: &Parts, uses: u32) -> Fixture {
    let replies = parts.served();
    let (given, used) = (AtomicU32::new(0), AtomicU32::new(0));
    Fixture::new(move |asked| {
        if asked.path.starts_with("/token") {
            if asked.path != "/token?a=b&service=the%20registry&scope=repository%3Aa%2Fb%3Apull" {
                return Reply::of(400, "");
            }
            return match asked.field("authorization") {
                None | Some("Basic bWU6czpjcmV0") => {
                    let number = given.fetch_add(1, Ordering::Relaxed) + 1;
                    Reply::of(200, json!({"token": format!("t{number}"), "expires_in": 300}).to_string())
                }
                Some(_) => Reply::of(401, ""),
            };
        }
        let is_valid = match asked.field("authorization") {
            Some("Bearer t1") => used.fetch_add(1, Ordering::Relaxed) < uses,
            Some(other) => uses > 0 && other.starts_with("Bearer t"),
            None => false,
        };
        if is_valid {
            return answer(&replies, asked);
        }
        let host = asked.field("host").unwrap();
        let challenge = format!(
            r#"Bearer realm="http://{host}/token?a=b",service="the registry",scope="repository:other:push""#
        );
        Reply::of(401, "").with("www-authenticate", "Negotiate").with("www-authenticate", challenge)
    })
}

#[test]
fn a_registry_may_want_a_token() {
    let parts = Parts::usual();
    let fixture = with_tokens(&parts, 1000);
    assert_eq!(fixture.pull().unwrap().digest, parts.digest());
    let tokens = fixture.server.asked().iter().filter(|it| it.path.starts_with("/token")).count();
    assert_eq!(tokens, 1);
    // Tokens that end in the middle are asked for anew; ones that never work are not for ever.
    assert_eq!(with_tokens(&parts, 3).pull().unwrap().digest, parts.digest());
    let error = with_tokens(&parts, 0).fails();
    assert!(
        error.contains("does not exist or is not for everybody") && error.contains("docker login 127.0.0.1:"),
        "{error}"
    );
}

#[test]
fn who_has_logged_in_says_so() {
    let parts = Parts::usual();
    let pull = |fixture: &Fixture, auth: Value| {
        let mut auths = serde_json::Map::new();
        auths.insert(fixture.server.address.to_string(), auth);
        let credentials = fixture.login(&json!({"auths": auths}));
        Source { credentials, ..fixture.source() }.pull(&fixture.reference(":1"), &Progress::silent())
    };
    let fixture = with_tokens(&parts, 1000);
    pull(&fixture, json!({"auth": "bWU6czpjcmV0"})).unwrap();
    let asked = fixture.server.asked();
    let token = asked.iter().find(|it| it.path.starts_with("/token")).unwrap();
    assert_eq!(token.field("authorization"), Some("Basic bWU6czpjcmV0"));
    let error =
        format!("{:#}", pull(&with_tokens(&parts, 1000), json!({"auth": "bWU6d3Jvbmc="})).unwrap_err());
    assert!(error.contains("is not accepted; use docker login 127.0.0.1:"), "{error}");

    let replies = parts.served();
    let basic = Fixture::new(move |asked| match asked.field("authorization") {
        Some("Basic bWU6czpjcmV0") => answer(&replies, asked),
        _ => Reply::of(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
    assert!(basic.fails().contains("is not for everybody"));
    pull(&basic, json!({"auth": "bWU6czpjcmV0"})).unwrap();
    assert!(pull(&basic, json!({"auth": "bWU6d3Jvbmc="})).is_err());

    let replies = parts.served();
    let exchange = Fixture::new(move |asked| match (asked.path.as_str(), asked.field("authorization")) {
        ("/oauth2", _) => {
            assert!(
                asked.body.starts_with("grant_type=refresh_token&service=s&scope=repository%3Aa%2Fb%3Apull")
            );
            assert!(asked.body.ends_with("refresh_token=i%2Fd"), "{}", asked.body);
            Reply::of(200, r#"{"access_token": "t"}"#)
        }
        (_, Some("Bearer t")) => answer(&replies, asked),
        _ => {
            let host = asked.field("host").unwrap();
            Reply::of(401, "")
                .with("www-authenticate", format!(r#"Bearer realm="http://{host}/oauth2",service="s""#))
        }
    });
    pull(&exchange, json!({"auth": "MDA6", "identitytoken": "i/d"})).unwrap();
}

#[test]
fn a_log_in_that_makes_no_sense_is_refused() {
    for (challenge, complaint) in [
        ("Negotiate", "of a kind that is not understood"),
        ("Bearer service=\"x\"", "does not say where tokens come from"),
        ("Bearer realm=\"x y\"", "which is no URL"),
        ("Bearer realm=\"http://192.0.2.1/token\"", "is not encrypted"),
        ("Bearer realm=\"file:///etc/passwd\"", "which is no URL"),
        ("Bearer realm=\"http://HOST/none\"", "404 Not Found"),
        ("Bearer realm=\"http://HOST/odd\"", "no token in it"),
        ("Bearer realm=\"http://HOST/text\"", "is not a token"),
    ] {
        let fixture = Fixture::new(move |asked| match asked.path.split('?').next().unwrap() {
            "/none" => Reply::of(404, ""),
            "/odd" => Reply::of(200, r#"{"token": "a\r\nx: y"}"#),
            "/text" => Reply::of(200, "secret"),
            _ => Reply::of(401, "")
                .with("www-authenticate", challenge.replace("HOST", asked.field("host").unwrap())),
        });
        let error = fixture.fails();
        assert!(error.contains(complaint) && !error.contains("secret"), "{challenge}: {error}");
    }
}

#[test]
fn mirrors_come_first() {
    let parts = Parts::usual();
    let served = |parts: &Parts| {
        let replies = parts.served();
        let renamed: HashMap<_, _> =
            replies.into_iter().map(|(path, reply)| (path.replace("/v2/", "/hub/v2/"), reply)).collect();
        Fixture::serving(renamed)
    };
    let (mirror, own) = (served(&parts), Fixture::serving(parts.served()));
    let broken = Fixture::new(|_| Reply::of(500, ""));
    let fixture = Fixture::serving(HashMap::new());
    let pull = |mirrors: Vec<String>| {
        let registries = Registries { mirrors: [(own.server.address.to_string(), mirrors)].into() };
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let source = Source { registries, blobs: &blobs, ..fixture.source() };
        source.pull(&own.reference(":1"), &Progress::silent()).unwrap();
        (broken.server.asked().len(), mirror.server.asked().len(), own.server.asked().len())
    };
    assert_eq!(pull(vec![mirror.server.url("/hub/")]), (0, 6, 0));
    assert_eq!(pull(vec![broken.server.url(""), mirror.server.url("/hub")]), (4, 6, 0));
    assert_eq!(pull(vec![broken.server.url("")]), (4, 0, 6));
}

#[test]
fn the_settings_of_registries_are_strict() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.json");
    assert_eq!(Registries::read(&path).unwrap().places("docker.io"), ["https://registry-1.docker.io"]);
    fs::write(&path, r#"{"mirrors": {"docker.io": ["https://m.example/x", "http://localhost:5000"]}}"#)
        .unwrap();
    let registries = Registries::read(&path).unwrap();
    assert_eq!(
        registries.places("docker.io"),
        ["https://m.example/x", "http://localhost:5000", "https://registry-1.docker.io"]
    );
    assert_eq!(registries.places("ghcr.io"), ["https://ghcr.io"]);
    for bad in [
        "",
        r#"{"mirror": {}}"#,
        r#"{"mirrors": {"docker.io": "x"}}"#,
        r#"{"mirrors": {"a": ["http://m.example"]}}"#,
    ] {
        fs::write(&path, bad).unwrap();
        let error = format!("{:#}", Registries::read(&path).unwrap_err());
        assert!(error.contains("registries.json is not like"), "{error}");
    }
}

#[test]
fn documents_of_both_makes_are_read() {
    let mut parts = Parts::usual();
    let text = parts.manifest.to_string();
    let text = text.replace("oci.image.manifest.v1", "docker.distribution.manifest.v2");
    let text = text.replace("oci.image.config.v1", "docker.container.image.v1");
    let text = text.replace("oci.image.layer.v1.tar+gzip", "docker.image.rootfs.diff.tar.gzip");
    parts.manifest = serde_json::from_str(&text).unwrap();
    assert_eq!(parts.manifest["mediaType"], MANIFEST_DOCKER);
    Fixture::serving(parts.served()).pull().unwrap();
    parts.manifest.as_object_mut().unwrap().remove("mediaType");
    Fixture::serving(parts.served()).pull().unwrap();
}
