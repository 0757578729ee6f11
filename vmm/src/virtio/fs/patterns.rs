//! Patterns for paths in a share.
//! It owns what a pattern may be and what it matches. It knows neither files nor inodes: a path is its names.
//!
//! A pattern without a slash matches a name at any depth; one with a slash is a path from the share's root, with or
//! without a slash in front. `*` stands for any bytes of one name and `?` for any one byte; a slash at the end means
//! nothing. Bytes are compared as they are.

/// The longest pattern, in bytes.
pub const PATTERN_MAX: usize = 4096;
/// The most patterns of one list: each is tried for each name on the way to a file.
pub const PATTERNS_MAX: usize = 64;

/// Why something is not a pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    #[error("is empty; name a file or a folder, such as .env")]
    Empty,
    #[error("is {0} bytes long; at most {PATTERN_MAX} are allowed")]
    Long(usize),
    #[error("has a NUL byte in it, which no name has; leave it out")]
    Nul,
    #[error("has an empty part, . or .. in it; write the path from the workspace, such as secrets/*.pem")]
    Part,
    #[error("has ** in it, which is not known; a pattern without a slash matches at any depth")]
    Stars,
    #[error("matches everything; leave the folder out, or name what to hide in it")]
    Everything,
    #[error("{0} patterns are too many; at most {PATTERNS_MAX} are allowed")]
    Many(usize),
}

/// A list of patterns.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug)]
struct Pattern {
    /// It is a path from the root; otherwise it has one part.
    anchored: bool,
    parts: Vec<Box<[u8]>>,
}

impl Patterns {
    /// # Errors
    /// When one of them is not a pattern, or there are too many.
    pub fn new<T: AsRef<[u8]>>(texts: &[T]) -> Result<Self, BadPattern> {
        if texts.len() > PATTERNS_MAX {
            return Err(BadPattern::Many(texts.len()));
        }
        texts.iter().map(|text| Pattern::new(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one matches the entry whose path is `way`: its own name first, then those of the folders it is in.
    /// Whether one matches such a folder is another question.
    pub fn matches<'a>(&self, way: &(impl Iterator<Item = &'a [u8]> + Clone)) -> bool {
        self.0.iter().any(|pattern| pattern.matches(way.clone()))
    }

    /// Whether one could match something in the folder whose path is `way` for being in just this folder.
    pub fn lead_through<'a>(&self, way: &(impl Iterator<Item = &'a [u8]> + Clone)) -> bool {
        self.0.iter().any(|pattern| pattern.leads_through(way.clone()))
    }
}

impl Pattern {
    fn new(text: &[u8]) -> Result<Self, BadPattern> {
        if text.len() > PATTERN_MAX {
            return Err(BadPattern::Long(text.len()));
        }
        let whole = text.strip_suffix(b"/").unwrap_or(text);
        let path = whole.strip_prefix(b"/").unwrap_or(whole);
        if path.is_empty() {
            return Err(if text.is_empty() { BadPattern::Empty } else { BadPattern::Everything });
        }
        let parts: Vec<Box<[u8]>> = path.split(|&byte| byte == b'/').map(Box::from).collect();
        for part in &parts {
            match &**part {
                b"" | b"." | b".." => return Err(BadPattern::Part),
                part if part.contains(&0) => return Err(BadPattern::Nul),
                part if part.windows(2).any(|two| two == b"**") => return Err(BadPattern::Stars),
                _ => (),
            }
        }
        if parts.len() == 1 && matches!(&*parts[0], b"*" | b"?*" | b"*?") {
            return Err(BadPattern::Everything);
        }
        Ok(Self { anchored: whole.contains(&b'/'), parts })
    }

    fn matches<'a>(&self, mut way: impl Iterator<Item = &'a [u8]>) -> bool {
        let name = self.parts.iter().rev().all(|part| way.next().is_some_and(|name| matches(part, name)));
        name && (!self.anchored || way.next().is_none())
    }

    fn leads_through<'a>(&self, way: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
        let depth = way.clone().take(self.parts.len()).count();
        let above = self.parts.get(..depth).filter(|above| above.len() < self.parts.len());
        above.is_some_and(|above| above.iter().rev().zip(way).all(|(part, name)| matches(part, name)))
    }
}

/// Whether a part of a pattern matches a name. Only the last star is ever tried again, so that the time is at most
/// the product of both lengths.
fn matches(part: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star = None;
    while seen < name.len() {
        match part.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, seen));
            }
            Some(&byte) if byte == b'?' || byte == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((after, taken)) = star else { return false };
                star = Some((after, taken + 1));
                (at, seen) = (after, taken + 1);
            }
        }
    }
    part[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a pattern matches a path.
    fn hit(pattern: &str, path: &str) -> bool {
        Patterns::new(&[pattern]).unwrap().matches(&path.rsplit('/').map(str::as_bytes))
    }

    fn through(pattern: &str, path: &str) -> bool {
        Patterns::new(&[pattern]).unwrap().lead_through(&path.rsplit('/').map(str::as_bytes))
    }

    #[test]
    fn a_name_matches_at_any_depth_and_a_path_from_the_root() {
        for (pattern, path) in [
            (".env", ".env"),
            (".env", "a/b/.env"),
            ("node_modules/", "a/node_modules"),
            ("/.env", ".env"),
            ("secrets/*.pem", "secrets/a.pem"),
            ("/secrets/*.pem/", "secrets/.pem"),
            ("*/x", "a/x"),
            (".env*", ".env.local"),
            ("?.key", "a.key"),
            ("[id].tsx", "app/[id].tsx"),
        ] {
            assert!(hit(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            (".env", ".ENV"),
            (".env", ".env.local"),
            (".env", ".env/x"),
            ("/.env", "a/.env"),
            ("secrets/*.pem", "a/secrets/a.pem"),
            ("secrets/*.pem", "secrets/a/b.pem"),
            ("secrets/*.pem", "a.pem"),
            ("?.key", ".key"),
            ("a?", "a"),
        ] {
            assert!(!hit(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn stars_match_as_little_and_as_much_as_it_takes() {
        for (part, name) in
            [("a*b*c", "abc"), ("a*b*c", "axxbyybzzc"), ("*a", "aaa"), ("a*", "a"), ("*.*", ".")]
        {
            assert!(matches(part.as_bytes(), name.as_bytes()), "{part} {name}");
        }
        for (part, name) in [("a*b*c", "acb"), ("*a", "ab"), ("*ab*ab", "abab-"), ("a*?", "a"), ("x", "")] {
            assert!(!matches(part.as_bytes(), name.as_bytes()), "{part} {name}");
        }
    }

    #[test]
    fn a_hostile_name_takes_no_more_than_the_product_of_the_lengths() {
        // With a memory of more than one star this would not end.
        let (part, name) = ("*a".repeat(2000) + "b", "a".repeat(255));
        assert!(!matches(part.as_bytes(), name.as_bytes()));
        assert!(!matches("*a*a*a*a*a*a*a*a*b".as_bytes(), name.as_bytes()));
    }

    #[test]
    fn a_path_leads_through_its_folders_and_nothing_else() {
        assert!(through("a/b/c", "a") && through("a/b/c", "a/b") && through("*/x", "any"));
        assert!(!through("a/b/c", "a/b/c") && !through("a/b/c", "b") && !through("a/b/c", "a/b/c/d"));
        assert!(!through("name", "name") && !through("/name", "name"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let bad = |text: &str| Patterns::new(&[text]).unwrap_err();
        assert_eq!(bad(""), BadPattern::Empty);
        assert_eq!(bad("a\0b"), BadPattern::Nul);
        for text in [".", "..", "a/../b", "./a", "a//b", "//a", "a//"] {
            assert_eq!(bad(text), BadPattern::Part, "{text}");
        }
        for text in ["/", "*", "/*", "*/", "?*"] {
            assert_eq!(bad(text), BadPattern::Everything, "{text}");
        }
        assert_eq!(bad("a/**/b"), BadPattern::Stars);
        assert_eq!(bad(&"x".repeat(PATTERN_MAX + 1)), BadPattern::Long(PATTERN_MAX + 1));
        assert_eq!(Patterns::new(&["a"; PATTERNS_MAX + 1]).unwrap_err(), BadPattern::Many(PATTERNS_MAX + 1));
        assert!(Patterns::new(&[b"\xff\xfe"]).is_ok());
    }
}
