//! What the user has logged in to with `docker login`: config.json of the Docker CLI and its credential helpers. Nothing is
//! written there. Source: docs.docker.com/reference/cli/docker/login, "Credential stores" and "Credential helpers".

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::program;
use crate::text::{plain, quoted};

const FILE_MAX: u64 = 1 << 20;
const HELPER_ANSWER_MAX: usize = 64 << 10;
/// A person may be asked for a password.
const HELPER_TIMEOUT: Duration = Duration::from_secs(120);
/// What Docker calls its own registry in these files.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for other tokens.
    IdentityToken(String),
}

/// The settings of the Docker CLI that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Credentials {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Credentials {
    /// Of this user; none where there is no such file.
    pub fn load() -> Result<Self> {
        let folder = match env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => match env::var_os("HOME").filter(|home| !home.is_empty()) {
                Some(home) => Path::new(&home).join(".docker"),
                None => return Ok(Self::default()),
            },
        };
        Self::read(&folder.join("config.json"))
    }

    pub fn read(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            other => other.with_context(|| format!("open {}", plain(path)))?,
        };
        let mut json = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut json).with_context(|| format!("read {}", plain(path)))?;
        // The error would quote what it stumbled upon, which can be a password.
        serde_json::from_slice(&json).map_err(|error| {
            anyhow::anyhow!(
                "{} is not what docker login writes (line {}); correct it",
                plain(path),
                error.line()
            )
        })
    }

    /// For a registry, by its host and port.
    pub fn of(&self, registry: &str) -> Result<Option<Login>> {
        let server = if registry == "docker.io" { HUB } else { registry };
        let helper = self.cred_helpers.iter().find(|(key, _)| names(key, registry)).map(|(_, helper)| helper);
        let helper = helper.unwrap_or(&self.creds_store);
        if !helper.is_empty()
            && let Some(login) =
                ask(helper, server).with_context(|| format!("docker-credential-{}", plain(helper)))?
        {
            return Ok(Some(login));
        }
        let auth = self.auths.iter().find(|(key, _)| names(key, registry));
        auth.map_or(Ok(None), |(key, auth)| {
            auth.login().with_context(|| {
                format!("what docker login has written for {} is broken; log in again", plain(key))
            })
        })
    }
}

/// Whether a key of those files is that registry: a host, or a URL from the times of the first protocol.
fn names(key: &str, registry: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = key.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    host.eq_ignore_ascii_case(registry)
}

impl Auth {
    fn login(&self) -> Result<Option<Login>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::IdentityToken(self.identitytoken.clone())));
        }
        let (mut user, mut password) = (self.username.clone(), self.password.clone());
        if !self.auth.is_empty() {
            let decoded = STANDARD.decode(&self.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.context("it is not base64")?;
            let (name, word) = decoded.split_once(':').context("it has no colon")?;
            (user, password) = (name.to_owned(), word.trim_end_matches('\0').to_owned());
        }
        Ok((!user.is_empty()).then_some(Login::Password { user, password }))
    }
}

/// The protocol of credential helpers: the server's name in, JSON out.
fn ask(helper: &str, server: &str) -> Result<Option<Login>> {
    let is_name = helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    ensure!(is_name, "{} is not the name of a credential helper", quoted(helper));
    let mut command = Command::new(format!("docker-credential-{helper}"));
    let (status, answer) =
        program::ask(command.arg("get"), server.as_bytes(), HELPER_ANSWER_MAX, HELPER_TIMEOUT)?;
    understand(status.success(), &answer)
}

fn understand(succeeded: bool, answer: &[u8]) -> Result<Option<Login>> {
    if !succeeded {
        let said = String::from_utf8_lossy(answer);
        ensure!(said.contains("credentials not found"), "it fails: {}", quoted(said.trim()));
        return Ok(None);
    }
    let helped: Helped =
        serde_json::from_slice(answer).map_err(|_| anyhow::anyhow!("its answer is not understood"))?;
    Ok(Some(match helped.username.as_str() {
        "<token>" => Login::IdentityToken(helped.secret),
        _ => Login::Password { user: helped.username, password: helped.secret },
    }))
}

impl Login {
    /// RFC 7617, 2 "The 'Basic' Authentication Scheme". An identity token cannot be sent like that.
    pub fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}

/// Neither is ever printed.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn of(json: &str, registry: &str) -> Result<Option<Login>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, json).unwrap();
        Credentials::read(&path)?.of(registry)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn what_docker_login_writes_is_read() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6czpjcmV0"},
            "localhost:5000": {"username": "u", "password": "p"},
            "https://Old.example/v1/": {"auth": "bWU6czpjcmV0"},
            "azure.example": {"auth": "MDA6", "identitytoken": "id"},
            "empty.example": {}
        }, "HttpHeaders": {"x": "y"}, "credsStore": ""}"#;
        assert_eq!(of(json, "docker.io").unwrap(), password("me", "s:cret"));
        assert_eq!(of(json, "localhost:5000").unwrap(), password("u", "p"));
        assert_eq!(of(json, "old.example").unwrap(), password("me", "s:cret"));
        assert_eq!(of(json, "azure.example").unwrap(), Some(Login::IdentityToken("id".into())));
        for other in
            ["empty.example", "localhost", "localhost:5001", "example", "index.docker.io.evil.example"]
        {
            assert_eq!(of(json, other).unwrap(), None, "{other}");
        }
        assert_eq!(password("a", "b").unwrap().basic().unwrap(), "Basic YTpi");
        assert_eq!(Credentials::read(Path::new("/nonexistent/x")).unwrap().of("x").unwrap(), None);
    }

    #[test]
    fn what_is_broken_is_told_without_the_secret() {
        for json in [
            "",
            "{",
            r#"{"auths": {"x": {"auth": 7}}, "password": "s3cret"}"#,
            r#"{"auths": {"x": {"auth": "s3cret!"}}}"#,
        ] {
            let error = format!("{:#}", of(json, "x").unwrap_err());
            assert!(!error.contains("s3cret"), "{error}");
        }
        let json = r#"{"auths": {"x": {"auth": "s3cret!"}}, "credHelpers": {"y": "../../bin/sh"}}"#;
        assert_eq!(of(json, "z").unwrap(), None, "what is not asked for does not matter");
        assert!(format!("{:#}", of(json, "y").unwrap_err()).contains("not the name of a credential helper"));
        assert!(format!("{:?}", Credentials::read(Path::new("/x")).unwrap()).len() < 100);
    }

    #[test]
    fn helpers_are_asked() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("docker-credential-coracle-test");
        let script = "#!/bin/sh\nread -r host || true\ncase $host in\n\
            none.example) echo 'credentials not found in native keychain'; exit 1;;\n\
            token.example) echo '{\"ServerURL\":\"x\",\"Username\":\"<token>\",\"Secret\":\"id\"}';;\n\
            bad.example) echo 's3cret';;\n\
            locked.example) echo 'the keychain is locked'; exit 1;;\n\
            *) echo \"{\\\"ServerURL\\\":\\\"x\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"for $host\\\"}\";;\nesac\n";
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        // The name is looked for in PATH, which a test must not change under the others.
        let name = format!("../{}/docker-credential-coracle-test", folder.path().display());
        assert!(ask(&name, "x").is_err());
        let run = |host: &str| {
            let (status, answer) =
                program::ask(Command::new(&helper).arg("get"), host.as_bytes(), 4096, HELPER_TIMEOUT)?;
            understand(status.success(), &answer)
        };
        assert_eq!(run("x.example").unwrap(), password("me", "for x.example"));
        assert_eq!(run("token.example").unwrap(), Some(Login::IdentityToken("id".into())));
        assert_eq!(run("none.example").unwrap(), None);
        assert!(format!("{:#}", run("locked.example").unwrap_err()).contains("the keychain is locked"));
        assert!(!format!("{:#}", run("bad.example").unwrap_err()).contains("s3cret"));
        assert!(ask("coracle-test-surely-missing", "x").is_err());
    }
}
