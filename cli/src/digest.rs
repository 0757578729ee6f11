//! The hash that names a file's content: SHA-256 or SHA-512, as OCI writes it and as npm does.
//! It owns both spellings. It reads no files.
//! Sources: OCI Image Format Specification 1.1, descriptor.md, "Digests"; W3C Subresource Integrity, 3.1 "Integrity
//! metadata".

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::text::quoted;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// Having one tells you: its hexadecimal form is of the right length and in lower case, so it is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn implementation(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

impl Digest {
    /// `sha512-` and base64, as in npm's package-lock.json.
    pub fn from_integrity(text: &str) -> Result<Self> {
        let parse = || {
            let (name, hash) = text.split_once('-')?;
            let algorithm = Algorithm::of(name)?;
            let bytes = STANDARD.decode(hash).ok()?;
            let whole = bytes.len() == algorithm.implementation().output_len();
            whole.then(|| Self { algorithm, hex: hex(&bytes) })
        };
        parse().with_context(|| {
            format!("{} is not an integrity hash; it looks like sha512-BASE64", quoted(text))
        })
    }

    /// Of bytes at hand, by SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, bytes);
        Self { algorithm: Algorithm::Sha256, hex: hex(hash.as_ref()) }
    }

    pub fn algorithm(&self) -> &'static str {
        self.algorithm.name()
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Fails, naming both, unless it is what `found` says.
    pub fn expect(&self, found: &Self) -> Result<()> {
        ensure!(self == found, "its content has the digest {found} instead of {self}");
        Ok(())
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, hex) = text.split_once(':').unwrap_or((text, ""));
        let Some(algorithm) = Algorithm::of(name) else {
            bail!("{} is not a digest; it looks like sha256:HEX", quoted(text));
        };
        let digits = 2 * algorithm.implementation().output_len();
        ensure!(
            hex.len() == digits && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{} is not a digest: {name}: is followed by {digits} hexadecimal digits in lower case",
            quoted(text)
        );
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// A digest that is being computed.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: digest::Context,
}

impl Hasher {
    /// By the algorithm of that digest.
    pub fn like(digest: &Digest) -> Self {
        Self::by(digest.algorithm)
    }

    pub fn sha256() -> Self {
        Self::by(Algorithm::Sha256)
    }

    fn by(algorithm: Algorithm) -> Self {
        Self { algorithm, context: digest::Context::new(algorithm.implementation()) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub fn finish(self) -> Digest {
        Digest { algorithm: self.algorithm, hex: hex(self.context.finish().as_ref()) }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same() {
        let mut hasher = Hasher::by(Algorithm::Sha512);
        hasher.update(b"a");
        hasher.update(b"bc");
        let digest = hasher.finish();
        let integrity =
            "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
        assert_eq!(Digest::from_integrity(integrity).unwrap(), digest);
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        let json = serde_json::to_string(&Digest::of(b"abc")).unwrap();
        assert_eq!(json, "\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"");
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), Digest::of(b"abc"));
    }

    #[test]
    fn a_digest_is_a_safe_file_name() {
        let good = Digest::of(b"").to_string();
        let bad = [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &good.to_uppercase(),
            &good.replace('e', "E"),
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.replace("sha256", "sha512"),
            &format!(" {good}"),
        ];
        for bad in bad {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
        for bad in ["", "sha512-", "sha512-AAAA", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "sha512-!"] {
            assert!(Digest::from_integrity(bad).is_err(), "{bad:?}");
        }
    }
}
