//! The addresses that names have in a sandbox: each name one of its own, for as long as the sandbox exists.
//! It owns the file `names` in the sandbox's folder, a name a line, whose place is the address. It does not know policy.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
/// This machine, by all of its names.
pub use protocol::HOST;

use crate::policy::{HOST_NAMES, Name};

/// The file's name.
pub const NAME: &str = "names";
/// Names that a sandbox can know. No address is ever given to another name: what was told of it may be in use.
const NAMES_MAX: usize = 32 << 10;
const SIZE_MAX: u64 = NAMES_MAX as u64 * 254;
/// RFC 2544 has 198.18.0.0/15 for what no network routes. The first 256 are of the sandbox itself.
const NET: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const BITS: u32 = 15;
const FIRST: usize = 256;

#[derive(Debug)]
pub struct Names {
    file: File,
    names: Vec<Name>,
    places: HashMap<Name, usize>,
}

/// Whether an address stands for a name, of this sandbox or of none.
pub fn is_synthetic(address: Ipv4Addr) -> bool {
    (address.to_bits() ^ NET.to_bits()) >> (32 - BITS) == 0
}

impl Names {
    /// The names of the sandbox whose folder that is.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.custom_flags(flags).open(folder.join(NAME)).context("open the names")?;
        let mut text = Vec::new();
        (&file).take(SIZE_MAX).read_to_end(&mut text).context("read the names")?;
        let mut this = Self { file, names: Vec::new(), places: HashMap::new() };
        let mut whole = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line_text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
            let Some(Ok(name)) = line_text.map(Name::parse) else { break };
            if this.names.len() == NAMES_MAX || this.places.contains_key(&name) {
                break;
            }
            this.put(name);
            whole += line.len() as u64;
        }
        // What a gateway that was killed had not written to its end.
        this.file.set_len(whole).context("repair the names")?;
        Ok(this)
    }

    /// The address of a name, given to it now if it has none; `None` when there is no room for one more.
    pub fn address(&mut self, name: &Name) -> io::Result<Option<Ipv4Addr>> {
        if HOST_NAMES.contains(&name.as_str()) {
            return Ok(Some(HOST));
        }
        if let Some(place) = self.places.get(name) {
            return Ok(address(*place));
        }
        if self.names.len() >= NAMES_MAX {
            return Ok(None);
        }
        // Before anybody is told of it.
        let length = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(format!("{name}\n").as_bytes()) {
            // A part of it would become part of the next one.
            self.file.set_len(length)?;
            return Err(error);
        }
        Ok(address(self.put(name.clone())))
    }

    /// The name that an address stands for.
    pub fn name(&self, address: Ipv4Addr) -> Option<Name> {
        if address == HOST {
            return Name::parse(HOST_NAMES[0]).ok();
        }
        let place = address.to_bits().checked_sub(NET.to_bits())?;
        let place = usize::try_from(place).ok()?.checked_sub(FIRST)?;
        self.names.get(place).cloned()
    }

    fn put(&mut self, name: Name) -> usize {
        let place = self.names.len();
        self.names.push(name.clone());
        self.places.insert(name, place);
        place
    }
}

fn address(place: usize) -> Option<Ipv4Addr> {
    let offset = u32::try_from(place + FIRST).ok()?;
    Some(Ipv4Addr::from_bits(NET.to_bits() + offset)).filter(|address| is_synthetic(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn an_address_stays_that_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut names = Names::open(folder.path()).unwrap();
        let first = names.address(&name("a.example")).unwrap().unwrap();
        assert_eq!(first, Ipv4Addr::new(198, 18, 1, 0));
        let second = names.address(&name("b.example")).unwrap().unwrap();
        assert_eq!(names.address(&name("A.Example.")).unwrap(), Some(first));
        // Killed while it wrote.
        names.file.write_all(b"c.exam").unwrap();
        let mut names = Names::open(folder.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a.example\nb.example\n");
        let third = names.address(&name("c.example")).unwrap().unwrap();
        let known = [first, second, third].map(|it| names.name(it).unwrap().to_string());
        assert_eq!(known, ["a.example", "b.example", "c.example"]);
        assert_eq!(names.address(&name("host.docker.internal")).unwrap(), Some(HOST));
        assert_eq!(names.name(HOST).unwrap().as_str(), "host.coracle.internal");
        for none in ["198.18.1.3", "198.18.0.0", "198.19.255.255", "0.0.0.0", "255.255.255.255"] {
            assert_eq!(names.name(none.parse().unwrap()), None);
        }
    }

    #[test]
    fn there_is_an_end_to_names() {
        let folder = tempfile::tempdir().unwrap();
        let all: String = (0..NAMES_MAX + 5).map(|number| format!("x{number}.example\n")).collect();
        std::fs::write(folder.path().join(NAME), all).unwrap();
        let mut names = Names::open(folder.path()).unwrap();
        let last = format!("x{}.example", NAMES_MAX - 1);
        assert!(is_synthetic(names.address(&name(&last)).unwrap().unwrap()));
        assert_eq!(names.address(&name("new.example")).unwrap(), None);
    }
}
