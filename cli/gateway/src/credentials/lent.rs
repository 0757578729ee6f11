//! Secrets that whoever starts a sandbox has in its environment, on their way to the gateway.
//! It owns that way: a file in memory, which goes when the last process that has it open does. They are never on a disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use super::service::find;
use super::source::{SECRET_MAX, check};

const FILE_MAX: u64 = 1 << 20;

/// A secret, for as long as the sandbox runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    pub service: String,
    pub secret: String,
}

impl Lent {
    /// What the environment has for these services. A variable that holds no secret is an error that names it.
    pub fn from_environment<'a>(
        services: impl IntoIterator<Item = &'a str>,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Vec<Self>> {
        let mut lent = Vec::new();
        for service in services.into_iter().filter_map(find) {
            let set = |name| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
            let Some((name, value)) = service.variables().find_map(set) else { continue };
            let secret = check(value.into_encoded_bytes())
                .with_context(|| format!("{name} of your environment is not used; correct or unset it"))?;
            lent.push(Self { service: service.name.to_owned(), secret });
        }
        Ok(lent)
    }

    /// These as a file to inherit, which can be read again and again, and not changed.
    pub fn seal(lent: &[Self]) -> Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("coracle-lent", flags).context("create a file in memory")?);
        file.write_all(&serde_json::to_vec(lent)?).context("write into memory")?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).context("seal the file in memory")?;
        Ok(file.into())
    }

    /// What was sealed.
    pub fn read(file: OwnedFd) -> Result<Vec<Self>> {
        let mut file = File::from(file);
        let mut json = Vec::new();
        file.seek(SeekFrom::Start(0)).context("read what was lent")?;
        file.take(FILE_MAX).read_to_end(&mut json).context("read what was lent")?;
        let lent: Vec<Self> =
            serde_json::from_slice(&json).map_err(|_| anyhow::anyhow!("what was lent is not understood"))?;
        ensure!(lent.iter().all(|it| it.secret.len() <= SECRET_MAX), "what was lent is too long");
        Ok(lent)
    }
}

/// The secret is never printed.
impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lent({})", self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_can_be_read_as_often_as_needed() {
        let environment = |name: &str| match name {
            "ANTHROPIC_API_KEY" => Some("".into()),
            "CLAUDE_CODE_OAUTH_TOKEN" => Some("sk-ant-oat01-s3cret".into()),
            "OPENAI_API_KEY" => Some("s3cret\n".into()),
            "GH_TOKEN" => Some("not lent".into()),
            _ => None,
        };
        let lent = Lent::from_environment(["anthropic", "openai", "google", "unknown"], environment).unwrap();
        let is = |service: &str, secret: &str| Lent { service: service.into(), secret: secret.into() };
        assert_eq!(lent, [is("anthropic", "sk-ant-oat01-s3cret"), is("openai", "s3cret")]);
        let file = Lent::seal(&lent).unwrap();
        for _ in 0..2 {
            assert_eq!(Lent::read(file.try_clone().unwrap()).unwrap(), lent);
        }
        assert!(File::from(file).write_all(b"x").is_err());
        let error = format!("{:#}", Lent::from_environment(["github"], environment).unwrap_err());
        assert!(error.starts_with("GH_TOKEN ") && !error.contains("not lent"), "{error}");
        assert!(!format!("{lent:?}").contains("s3cret"));
    }
}
