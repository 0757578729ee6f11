//! The environment of a command in the sandbox: `-e`, `--env-file`, and how the sources override each other.
//! It reads files and this process's environment; what it returns is plain KEY=VALUE bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail, ensure};

use crate::text::quoted;

/// An environment file is never longer than what a command's environment can hold.
const FILE_MAX: u64 = protocol::FRAME_MAX as u64;
/// What the template's terminal data base knows; anything else is shown as the one that all emulators imitate.
const TERMS: [&str; 10] = [
    "dumb",
    "linux",
    "rxvt",
    "screen",
    "screen-256color",
    "tmux",
    "tmux-256color",
    "vt100",
    "vt220",
    "xterm",
];
const TERM_DEFAULT: &str = "xterm-256color";

/// Variables from files, in order, then from flags: a later one wins when they are merged.
pub fn gather<'a>(
    files: impl IntoIterator<Item = &'a OsStr>,
    flags: impl IntoIterator<Item = &'a OsStr>,
) -> Result<Vec<OsString>> {
    let mut env = Vec::new();
    for file in files {
        let content = read_file(file).with_context(|| format!("--env-file {}", quoted(file)))?;
        for (number, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let variable = variable(OsStr::from_bytes(line))
                .with_context(|| format!("--env-file {}, line {}", quoted(file), number + 1))?;
            env.extend(variable);
        }
    }
    for flag in flags {
        env.extend(variable(flag).with_context(|| format!("-e {}", quoted(flag)))?);
    }
    ensure!(
        env.len() <= protocol::ENV_MAX,
        "{} variables are too many; at most {}",
        env.len(),
        protocol::ENV_MAX
    );
    Ok(env)
}

fn read_file(path: &OsStr) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = fs::File::open(path).context("cannot be opened; correct the path")?;
    ensure!(!file.metadata()?.is_dir(), "is a folder; name a file with KEY=VALUE lines");
    file.take(FILE_MAX + 1).read_to_end(&mut content).context("cannot be read")?;
    ensure!(content.len() as u64 <= FILE_MAX, "is longer than {FILE_MAX} bytes");
    Ok(content)
}

/// `KEY=VALUE` as it is; `KEY` with this process's value, or nothing where it has none.
fn variable(typed: &OsStr) -> Result<Option<OsString>> {
    let bytes = typed.as_bytes();
    let key = bytes.split(|&byte| byte == b'=').next().unwrap_or_default();
    if key.is_empty() {
        bail!("has no name; write KEY=VALUE, or KEY to pass on your own");
    }
    ensure!(!bytes.contains(&0), "contains a NUL byte");
    ensure!(
        !key.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()),
        "has white space in its name; write KEY=VALUE"
    );
    let full = match bytes.len() == key.len() {
        false => typed.to_owned(),
        true => match std::env::var_os(typed) {
            Some(value) => OsString::from_vec([bytes, b"=", value.as_bytes()].concat()),
            None => return Ok(None),
        },
    };
    ensure!(
        full.len() <= protocol::ARG_LEN_MAX,
        "is {} bytes long; Linux allows {}",
        full.len(),
        protocol::ARG_LEN_MAX
    );
    Ok(Some(full))
}

/// One list from several: the last value of a name wins, at the place of its first.
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a OsStr>) -> Vec<Vec<u8>> {
    let mut merged: Vec<Vec<u8>> = Vec::new();
    let mut places = BTreeMap::new();
    for variable in layers {
        let variable = variable.as_bytes();
        let name = variable.split(|&byte| byte == b'=').next().unwrap_or_default();
        match places.entry(name) {
            Entry::Occupied(place) => merged[*place.get()] = variable.to_vec(),
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(variable.to_vec());
            }
        }
    }
    merged
}

/// `TERM` for a command on a terminal.
pub fn term() -> OsString {
    let known = std::env::var("TERM").ok().filter(|term| TERMS.contains(&term.as_str()));
    format!("TERM={}", known.as_deref().unwrap_or(TERM_DEFAULT)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn flags(flags: &[&str]) -> Result<Vec<OsString>> {
        gather([], flags.iter().map(OsStr::new))
    }

    #[test]
    fn flags_are_taken_as_they_are() {
        assert_eq!(
            flags(&["A=", "A=B=C", "B=x y\n", "LD_PRELOAD=/x"]).unwrap(),
            ["A=", "A=B=C", "B=x y\n", "LD_PRELOAD=/x"]
        );
        assert!(flags(&["CORACLE_TEST_SURELY_UNSET"]).unwrap().is_empty());
        assert_eq!(
            flags(&["PATH"]).unwrap(),
            [OsString::from(format!("PATH={}", std::env::var("PATH").unwrap()))]
        );
        for bad in ["", "=", "=B", "A B=1", "A\n=1"] {
            assert!(flags(&[bad]).is_err(), "{bad:?}");
        }
        assert!(flags(&[&format!("A={}", "x".repeat(128 << 10))]).is_err());
    }

    #[test]
    fn files_hold_lines_and_comments() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"# comment\n\nA=1\r\n  B=2\nC=\xff\n").unwrap();
        let env = gather([file.path().as_os_str()], [OsStr::new("A=3")]).unwrap();
        let merged = merge(env.iter().map(OsString::as_os_str));
        assert_eq!(merged, [b"A=3".to_vec(), b"B=2".to_vec(), b"C=\xff".to_vec()]);
        file.write_all(b"=x\n").unwrap();
        let error = format!("{:#}", gather([file.path().as_os_str()], []).unwrap_err());
        assert!(error.contains("line 6: has no name"), "{error}");
        assert!(gather([OsStr::new("/")], []).is_err());
        assert!(gather([OsStr::new("/nonexistent")], []).is_err());
    }
}
