//! The pass over argv before argh: Docker's spellings in, argh's out, and the command to run in the sandbox kept aside
//! byte for byte. It knows which flags exist from argh's own tables, and reports the mistakes that argh words badly.
//! It does not look at values.

use std::ffi::{OsStr, OsString};
use std::vec::IntoIter;

use argh::{FlagInfo, FlagInfoKind, Optionality};

use crate::args;
use crate::text::{decode, encode, nearest, quoted};

/// Flags whose value may be left out, and what it is then.
const OPTIONAL_VALUES: [(&str, &str); 1] = [("--timings", "text")];
const TRUE: [&str; 3] = ["true", "1", "t"];
const FALSE: [&str; 3] = ["false", "0", "f"];

/// What was typed, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// For argh: the subcommand, its flags, `--` and its positional arguments, in the text form.
    pub words: Vec<String>,
    /// What the sandbox is to run: all after `--`, or after the name in `exec`.
    pub tail: Option<Vec<OsString>>,
    /// Errors are to be told with all their causes.
    pub verbose: bool,
}

/// Where a subcommand's own arguments end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nowhere; `--` only ends the flags.
    None,
    /// At `--`.
    Dashes,
    /// After the first positional argument, as in `docker exec`; a `--` there is allowed.
    FirstPositional,
}

/// Sorts the arguments (without the program's name); the error is one line for the user.
pub fn parse(args: Vec<OsString>) -> Result<Line, String> {
    let mut line = Line::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-h" | "--help") => break,
            Some("-V" | "--version") => return Ok(Line { words: vec!["version".into()], ..line }),
            Some("-v" | "--verbose") => line.verbose = true,
            Some("help") => return help(args.next(), args.next(), line),
            Some(group) if args::members(group).is_some() => return member(group, args, line),
            Some(name) if let Some((info, tail)) = args::describe(name) => {
                let pass = Pass { name, flags: info.flags, seen: Vec::new(), args, out: Vec::new() };
                return pass.sort(tail, line);
            }
            _ => return Err(unknown_command(&arg)),
        }
    }
    Ok(Line { words: vec!["--help".into()], ..line })
}

/// A command that is one of a group, such as `template ls`.
fn member(group: &str, mut args: IntoIter<OsString>, line: Line) -> Result<Line, String> {
    let members = args::members(group).unwrap_or_default();
    let help = Line { words: vec![group.into(), "--help".into()], ..Line::default() };
    let Some(typed) = args.next() else {
        return Err(format!("{group} needs one of: {}; see coracle {group} --help", members.join(", ")));
    };
    match typed.to_str() {
        Some("-h" | "--help" | "help") => Ok(help),
        Some(name) if members.contains(&name) => {
            let name = format!("{group} {name}");
            let (info, tail) = args::describe(&name).ok_or_else(|| unknown_command(&typed))?;
            Pass { name: &name, flags: info.flags, seen: Vec::new(), args, out: Vec::new() }.sort(tail, line)
        }
        name => {
            let guess = name.and_then(|typed| nearest(typed, members.iter().copied()));
            let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
            Err(format!("{group} has no {}; {guess}coracle {group} --help lists what it has", quoted(&typed)))
        }
    }
}

fn help(topic: Option<OsString>, extra: Option<OsString>, line: Line) -> Result<Line, String> {
    if let Some(extra) = extra {
        return Err(format!("help takes one command, not {} as well", quoted(&extra)));
    }
    let words = match topic {
        None => vec!["--help".into()],
        Some(topic) => match topic.to_str() {
            Some(name) if args::NAMES.contains(&name) => vec![name.into(), "--help".into()],
            Some("-h" | "--help") => vec!["--help".into()],
            _ => return Err(unknown_command(&topic)),
        },
    };
    Ok(Line { words, ..line })
}

fn unknown_command(typed: &OsStr) -> String {
    let kind = if typed.as_encoded_bytes().starts_with(b"-") { "flag" } else { "command" };
    let guess = typed.to_str().and_then(|typed| nearest(typed, args::NAMES));
    let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
    format!("unknown {kind} {}; {guess}coracle help lists the commands", quoted(typed))
}

/// The arguments of one subcommand on their way to argh.
struct Pass<'a> {
    name: &'a str,
    flags: &'a [FlagInfo<'a>],
    /// Flags that may not come again.
    seen: Vec<&'a str>,
    args: IntoIter<OsString>,
    /// The flags for argh.
    out: Vec<String>,
}

impl Pass<'_> {
    fn sort(mut self, tail: Tail, mut line: Line) -> Result<Line, String> {
        let mut positionals = Vec::new();
        let mut flags_ended = false;
        while let Some(arg) = self.args.next() {
            let bytes = arg.as_encoded_bytes();
            match bytes {
                b"--" if !flags_ended && tail == Tail::Dashes => {
                    line.tail = Some(self.args.by_ref().collect());
                }
                b"--" if !flags_ended => flags_ended = true,
                b"-v" | b"--verbose" if !flags_ended => line.verbose = true,
                b"-h" | b"--help" if !flags_ended => {
                    return Ok(Line { words: self.words(["--help".into()]), tail: None, ..line });
                }
                [b'-', b'-', ..] if !flags_ended => self.long(&encode(&arg))?,
                [b'-', _, ..] if !flags_ended => self.cluster(&encode(&arg))?,
                _ => positionals.push(encode(&arg)),
            }
            if tail == Tail::FirstPositional && !positionals.is_empty() {
                let mut rest: Vec<_> = self.args.by_ref().collect();
                if rest.first().is_some_and(|first| first == "--") {
                    rest.remove(0);
                }
                line.tail = Some(rest);
            }
        }
        // The `--` keeps argh from taking a path for a flag by its first character.
        let out = [std::mem::take(&mut self.out), vec!["--".into()], positionals].concat();
        line.words = self.words(out);
        Ok(line)
    }

    /// The command's name, of which each word is one for argh, and what follows it.
    fn words(&self, rest: impl IntoIterator<Item = String>) -> Vec<String> {
        self.name.split(' ').map(String::from).chain(rest).collect()
    }

    /// `--key value`, `--key=value`, `--switch`, `--switch=false`.
    fn long(&mut self, typed: &str) -> Result<(), String> {
        let (key, value) = match typed.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (typed, None),
        };
        let index = self.flags.iter().position(|flag| flag.long == key).ok_or_else(|| self.unknown(key))?;
        self.take(index, key, value)
    }

    /// `-it`, `-m4g`, `-m=4g`, `-m 4g`.
    fn cluster(&mut self, typed: &str) -> Result<(), String> {
        let mut rest = typed[1..].chars();
        while let Some(short) = rest.next() {
            let key = format!("-{short}");
            let index = self.flags.iter().position(|flag| flag.short == Some(short));
            let index = index.ok_or_else(|| self.unknown(&key))?;
            let after = rest.as_str();
            let is_switch = matches!(self.flags[index].kind, FlagInfoKind::Switch);
            if is_switch && !after.starts_with('=') {
                self.take(index, &key, None)?;
                continue;
            }
            let value = after.strip_prefix('=').unwrap_or(after);
            return self.take(index, &key, (is_switch || !after.is_empty()).then(|| value.to_owned()));
        }
        Ok(())
    }

    fn take(&mut self, index: usize, typed: &str, value: Option<String>) -> Result<(), String> {
        let flag = &self.flags[index];
        let FlagInfoKind::Option { arg_name } = flag.kind else {
            return self.switch(flag.long, typed, value.as_deref());
        };
        if flag.optionality != Optionality::Repeating {
            if self.seen.contains(&flag.long) {
                return Err(format!("{typed} is given twice; keep one"));
            }
            self.seen.push(flag.long);
        }
        let default =
            OPTIONAL_VALUES.iter().find(|(long, _)| *long == flag.long).map(|(_, value)| (*value).into());
        let value = value.or(default).or_else(|| self.args.next().map(|value| encode(&value)));
        let value = value.ok_or_else(|| {
            format!("{typed} needs a value: {typed} {arg_name}; see coracle {} --help", self.name)
        })?;
        self.out.extend([flag.long.into(), value]);
        Ok(())
    }

    fn switch(&mut self, long: &str, typed: &str, value: Option<&str>) -> Result<(), String> {
        match value {
            None => self.out.push(long.into()),
            Some(value) if TRUE.contains(&value) => self.out.push(long.into()),
            Some(value) if FALSE.contains(&value) => {}
            Some(value) => {
                return Err(format!(
                    "{typed} takes no value, or true or false, not {}",
                    quoted(decode(value))
                ));
            }
        }
        Ok(())
    }

    fn unknown(&self, key: &str) -> String {
        let guess = nearest(key, self.flags.iter().map(|flag| flag.long));
        let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
        format!("unknown flag {}; {guess}coracle {} --help lists them", quoted(decode(key)), self.name)
    }
}

#[cfg(test)]
mod tests;
