//! The file of secrets that `coracle secret` keeps.
//! It owns the file: for this user only, replaced as a whole, and refused when others could read it. It does not know what a
//! secret is used for.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// In the folder of settings.
pub const FILE: &str = "secrets.json";
const FILE_MAX: u64 = 4 << 20;
const FORMAT: u32 = 1;

/// What is stored.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    format: u32,
    pub secrets: Vec<Entry>,
}

/// One secret: of a known service, or with hosts and header of its own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub service: String,
    /// The only one that it is for; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    #[serde(flatten)]
    pub origin: Origin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Value(String),
    Command(String),
}

/// What the table of services says of those that are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Host and port.
    pub hosts: Vec<(String, u16)>,
    pub header: String,
    /// With `%s` where the secret goes.
    pub format: String,
    /// What the guest has set to the placeholder.
    #[serde(default)]
    pub variables: Vec<String>,
}

impl Store {
    /// What is stored in a folder of settings; nothing where there is no file.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        Self::read(&path).with_context(|| format!("{}", path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).context("it cannot be opened"),
        };
        let facts = file.metadata().context("it cannot be looked at")?;
        ensure!(
            facts.mode() & 0o077 == 0 && facts.uid() == rustix::process::geteuid().as_raw(),
            "others can read or change these secrets; make the file yours with chmod 600, and replace them if they could be known"
        );
        let mut json = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut json).context("it cannot be read")?;
        // The error would quote what it stumbled upon, which can be a secret.
        let store: Self = serde_json::from_slice(&json).map_err(|error| {
            anyhow::anyhow!(
                "it is damaged (line {}, column {}); remove it and set the secrets again",
                error.line(),
                error.column()
            )
        })?;
        ensure!(store.format == FORMAT, "it is of format {}, this Coracle knows {FORMAT}", store.format);
        Ok(store)
    }

    /// Changes what is stored, with no other command in between; what `change` returns comes back.
    pub fn change<T>(folder: &Path, change: impl FnOnce(&mut Vec<Entry>) -> T) -> Result<T> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("create {}", folder.display()))?;
        let lock = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
        flock(&lock, FlockOperation::LockExclusive).context("lock the folder of settings")?;
        let mut store = Self::load(folder)?;
        let result = change(&mut store.secrets);
        store.format = FORMAT;
        store.write(folder).context("write the secrets")?;
        Ok(result)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let new = folder.join(format!("{FILE}.new"));
        let json = serde_json::to_vec_pretty(self)?;
        // One that a killed command has left might be another's by its mode.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&new, folder.join(FILE))?;
        Ok(())
    }
}

/// Secrets are never printed.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn entry(service: &str, value: &str) -> Entry {
        Entry { service: service.into(), sandbox: None, origin: Origin::Value(value.into()), custom: None }
    }

    #[test]
    fn what_is_stored_is_there_again_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("new/coracle");
        assert!(Store::load(&settings).unwrap().secrets.is_empty());
        let custom = Custom {
            hosts: vec![("api.example.com".into(), 8443)],
            header: "x-key".into(),
            format: "%s".into(),
            variables: vec!["KEY".into()],
        };
        let own = Entry {
            sandbox: Some("box".into()),
            origin: Origin::Command("pass x".into()),
            custom: Some(custom),
            ..entry("mine", "")
        };
        Store::change(&settings, |secrets| secrets.extend([entry("openai", "s3cret"), own.clone()])).unwrap();
        assert_eq!(Store::load(&settings).unwrap().secrets, [entry("openai", "s3cret"), own]);
        let file = settings.join(FILE);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&settings).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&settings).unwrap().count(), 1);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = format!("{:#}", Store::load(&settings).err().unwrap());
        assert!(error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
        Store::change(&settings, Vec::clear).unwrap_err();
    }

    #[test]
    fn what_is_damaged_is_told_without_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            r#"{"format": 1, "secrets": "s3cret"}"#,
            r#"{"format": 1, "secrets": [{"service": "x", "value": 7, "s3cret": 1}]}"#,
            r#"{"format": 2, "secrets": []}"#,
        ] {
            let mut file = File::create(folder.path().join(FILE)).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let error = format!("{:#}", Store::load(folder.path()).err().unwrap());
            assert!(!error.contains("s3cret") && error.contains(FILE), "{error}");
        }
        assert_eq!(format!("{:?}", entry("x", "s3cret")), "Entry(x)");
    }
}
