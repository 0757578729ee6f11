//! The name of an image: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, with what Docker takes for granted filled in.
//! Source: OCI Distribution Specification 1.1, "Pulling manifests", and the grammar of github.com/distribution/reference.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

use crate::digest::Digest;
use crate::text::quoted;

const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
const HUB: &str = "docker.io";

/// Having one tells you: each part consists of characters that are harmless in a URL, a header and a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// With its port.
    pub registry: String,
    pub repository: String,
    /// What of that repository.
    pub version: Version,
}

/// A digest decides where there is a tag as well: the tag is then a remark of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| {
            format!(
                "{} is not the name of an image; it looks like debian:trixie or ghcr.io/owner/name:tag",
                quoted(text)
            )
        })
    }
}

fn parse(text: &str) -> Result<Reference> {
    ensure!(!text.is_empty(), "it is empty");
    ensure!(!text.contains("://"), "leave the scheme out");
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    // A colon after the last slash begins the tag; one before it, the port.
    let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
    let (name, tag) = match tag_at {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    ensure!(name.len() <= NAME_MAX, "its name is longer than {NAME_MAX} characters");
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (check_host(first)?, path),
        _ => (HUB.to_owned(), name),
    };
    path.split('/').try_for_each(check_component)?;
    let official = registry == HUB && !path.contains('/');
    let repository = if official { format!("library/{path}") } else { path.to_owned() };
    let version = match digest {
        Some(digest) => Version::Digest(digest),
        None => Version::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference { registry, repository, version })
}

/// Whether the first part of a name is a host and not a part of the path, as Docker decides it.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost"
}

/// A host in lower case.
fn check_host(host: &str) -> Result<String> {
    let complaint = || format!("{} is not a host", quoted(host));
    let bracket = host.rfind(']').unwrap_or(0);
    let (name, port) = match host[bracket..].rfind(':') {
        Some(at) => (&host[..bracket + at], Some(&host[bracket + at + 1..])),
        None => (host, None),
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(
            digits && port.parse::<u16>().is_ok_and(|port| port > 0),
            "{}: the port is from 1 to 65535",
            complaint()
        );
    }
    if let Some(address) = name.strip_prefix('[') {
        let address = address.strip_suffix(']').with_context(complaint)?;
        ensure!(address.parse::<std::net::Ipv6Addr>().is_ok(), "{}", complaint());
    } else {
        let is_label = |label: &str| {
            let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
        };
        ensure!(name.split('.').all(is_label), "{}", complaint());
    }
    let host = host.to_ascii_lowercase();
    Ok(if host == "index.docker.io" { HUB.to_owned() } else { host })
}

/// Lower case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn check_component(component: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let between = component.split(|c: char| c.is_ascii() && is_plain(c as u8));
    let separators = between.filter(|it| !it.is_empty());
    let mut separators_fit =
        separators.map(|it| matches!(it, "." | "_" | "__") || it.bytes().all(|byte| byte == b'-'));
    let bytes = component.as_bytes();
    let ends_fit = [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(|byte| is_plain(*byte)));
    ensure!(
        ends_fit && separators_fit.all(|fits| fits),
        "{} in it is not lower case letters and digits, with one of . _ __ or - between them",
        quoted(component)
    );
    Ok(())
}

fn check_tag(tag: &str) -> Result<()> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
    let first = tag.bytes().next().is_some_and(is_word);
    ensure!(
        first && inner && tag.len() <= TAG_MAX,
        "the tag {} is not 1 to {TAG_MAX} letters, digits, and _ . - after the first",
        quoted(tag)
    );
    Ok(())
}

impl Reference {
    /// As people write it: without what is taken for granted.
    pub fn short(&self) -> String {
        let full = self.to_string();
        let hub = full.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
        hub.map_or(full.clone(), str::to_owned)
    }
}

impl fmt::Display for Version {
    /// As it stands in the path of a request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.version, Version::Tag(_)) { ':' } else { '@' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_is_left_out_is_filled_in() {
        let digest = format!("@sha256:{HEX}");
        let tag_and_digest = format!("debian:12{digest}");
        let pinned = format!("docker.io/library/debian{digest}");
        for (typed, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:trixie-slim", "docker.io/library/debian:trixie-slim"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/grafana/k6", "docker.io/grafana/k6:latest"),
            ("grafana/k6:1", "docker.io/grafana/k6:1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
            ("GHCR.io/owner/a__b-c.d---e", "ghcr.io/owner/a__b-c.d---e:latest"),
            (&tag_and_digest, &pinned),
        ] {
            assert_eq!(typed.parse::<Reference>().unwrap().to_string(), full, "{typed}");
        }
        assert_eq!("debian".parse::<Reference>().unwrap().short(), "debian:latest");
        assert_eq!("docker.io/a/b:1".parse::<Reference>().unwrap().short(), "a/b:1");
        assert_eq!("ghcr.io/a/b:1".parse::<Reference>().unwrap().short(), "ghcr.io/a/b:1");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(300);
        let cases = [
            "",
            ":",
            "@",
            "/",
            "a:",
            ":a",
            "a:b:c",
            "x@",
            "UPPER",
            "UPPER/x",
            "UPPER/x y",
            "a//b",
            "/a",
            "a/",
            "../x",
            "a/../b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "localhost:/x",
            "localhost:0/x",
            "localhost:65536/x",
            "localhost:1a/x",
            "http://x/y",
            "[::1/x",
            "[zz]:1/x",
            "-x.y/z",
            "a.b.:5/x",
            "a:-tag",
            "a:.tag",
            "é",
            "a b",
            "a\n",
            "x.y/é",
            "x\u{0}y",
            "a@sha256:abc",
            "a@sha256",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            &long,
            "a:b/c:d:e",
        ];
        for case in cases
            .into_iter()
            .chain([format!("a:{}", "t".repeat(129)).as_str(), &format!("a@sha256:{HEX}@sha256:{HEX}")])
        {
            assert!(case.parse::<Reference>().is_err(), "{case:?}");
        }
        let error = format!("{:#}", "Debian Trixie\u{1b}[2J".parse::<Reference>().unwrap_err());
        assert!(
            error.starts_with("\"Debian Trixie\\u{1b}[2J\" is not the name of an image; it looks like"),
            "{error}"
        );
    }

    /// Whatever is accepted reads the same again and is harmless; the inputs are the good ones with characters exchanged.
    #[test]
    fn any_text_is_refused_or_has_one_form() {
        let seeds =
            [format!("localhost:5000/a.b/c__d:tag-1@sha256:{HEX}"), "debian:12".into(), "[::1]:80/x".into()];
        let alphabet: Vec<char> = "az09AZ._-:/@[] %?#\\\"\n\u{0}é\u{202e}".chars().collect();
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % below
        };
        let mut accepted = 0;
        for round in 0..200_000 {
            let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
            for _ in 0..=random(3) {
                let at = random(text.len());
                match random(3) {
                    0 => text[at] = alphabet[random(alphabet.len())],
                    1 => text.insert(at, alphabet[random(alphabet.len())]),
                    _ if text.len() > 1 => drop(text.remove(at)),
                    _ => (),
                }
            }
            let text: String = text.into_iter().collect();
            let Ok(reference) = text.parse::<Reference>() else { continue };
            accepted += 1;
            let full = reference.to_string();
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "{text}");
            assert!(
                full.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/@[]".contains(&byte)),
                "{text}"
            );
            assert!(!full.contains(".."), "{text}");
        }
        assert!(accepted > 1000);
    }
}
