//! The agents that can be run: a table. What an agent consists of is in its template, not here.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Result, bail};

use crate::text::quoted;

/// A kind of sandbox.
#[derive(Debug, PartialEq, Eq)]
pub struct Agent {
    /// What users type, and the name of its template.
    pub name: &'static str,
    pub about: &'static str,
}

pub const AGENTS: [Agent; 1] = [Agent { name: "shell", about: "bash, git, python3 and friends; no agent" }];

/// The agent of that name.
pub fn find(name: &std::ffi::OsStr) -> Result<&'static Agent> {
    let Some(agent) = AGENTS.iter().find(|agent| name == agent.name) else {
        let known: Vec<String> = AGENTS.iter().map(|it| format!("{} ({})", it.name, it.about)).collect();
        bail!("unknown agent {}; known: {}", quoted(name), known.join(", "));
    };
    Ok(agent)
}

/// What to run: the template's command; with arguments appended when they begin with a dash, replaced by them when not.
pub fn command(template: &[String], args: &[OsString]) -> Vec<Vec<u8>> {
    let replaces = args.first().is_some_and(|first| !first.as_encoded_bytes().starts_with(b"-"));
    let own = template.iter().filter(|_| !replaces).map(|arg| arg.clone().into_bytes());
    own.chain(args.iter().map(|arg| arg.clone().into_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_appends_and_a_word_replaces() {
        let template = ["/bin/bash".to_owned(), "-l".to_owned()];
        let run = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            command(&template, &args)
                .iter()
                .map(|it| String::from_utf8(it.clone()).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(&[]), ["/bin/bash", "-l"]);
        assert_eq!(run(&["-c", "echo hi"]), ["/bin/bash", "-l", "-c", "echo hi"]);
        assert_eq!(run(&["make", "-j4"]), ["make", "-j4"]);
    }
}
