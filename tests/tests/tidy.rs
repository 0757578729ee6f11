//! The house rules that a program can check: sizes, module docs, leftovers, and documents that name what is there.
//! It owns the rules and their limits. It reads text and knows no Rust beyond the shape that rustfmt gives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
/// How far above an unsafe block its SAFETY comment may begin.
const SAFETY_LINES: usize = 8;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Path and content of every text file that is in git, or would be.
fn files() -> Vec<(String, String)> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(list).current_dir(top()).output().expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are text");
    names
        .lines()
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(top().join(name)).ok()?)))
        .collect()
}

/// Fails with a line for everything that `rule` finds in a file.
fn check(suffix: &str, rule: impl Fn(&str) -> Vec<String>) {
    let of_kind = files().into_iter().filter(|(name, _)| name.ends_with(suffix));
    let found: Vec<_> = of_kind
        .flat_map(|(name, text)| rule(&text).into_iter().map(move |line| format!("{name}: {line}")))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The numbered lines, from 1, of which `is_bad` says so.
fn lines(text: &str, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let numbered = text.lines().enumerate().filter(|(_, line)| is_bad(line));
    numbered.map(|(index, line)| format!("{}: {}", index + 1, line.trim())).collect()
}

#[test]
fn files_are_short_and_say_what_they_are() {
    check(".rs", |text| {
        let count = text.lines().count();
        let mut found = Vec::new();
        if !text.starts_with("//!") && !text.starts_with("#!") {
            found.push("does not start with //!".to_owned());
        }
        if count > FILE_LINES_MAX {
            found.push(format!("{count} lines, at most {FILE_LINES_MAX}"));
        }
        found
    });
}

/// Name and length of every function: from its first line to the brace below it.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let length = lines[start..].iter().position(|line| line.trim_end() == end).map_or(1, |at| at + 1);
        let one_line = line.ends_with(';') || line.ends_with('}');
        found.push((name.to_owned(), if one_line { 1 } else { length }));
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    const QUALIFIERS: [&str; 8] =
        ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    let mut words = line.split_whitespace().skip_while(|word| QUALIFIERS.contains(word));
    (words.next() == Some("fn")).then(|| words.next())??.split(['(', '<']).next()
}

#[test]
fn functions_fit_on_a_screen() {
    check(".rs", |text| {
        let long = functions(text).into_iter().filter(|(_, length)| *length > FUNCTION_LINES_MAX);
        long.map(|(name, length)| format!("fn {name} has {length} lines, at most {FUNCTION_LINES_MAX}"))
            .collect()
    });
}

#[test]
fn functions_are_measured_by_their_shape() {
    let text = "fn a() {\n    b();\n}\npub const fn b<T>() -> T;\n    fn c() {}\n    pub(crate) unsafe fn d(\n    ) {\n    }\n";
    let expected = [("a", 3), ("b", 1), ("c", 1), ("d", 3)].map(|(name, length)| (name.to_owned(), length));
    assert_eq!(functions(text), expected);
}

#[test]
fn nothing_is_left_to_do_and_no_test_is_skipped() {
    // Written in two halves, or this file would find itself.
    let leftovers = ["todo", "dbg", "unimplemented"].map(|name| format!("{name}{}", "!("));
    let skipped = format!("#[{}", "ignore");
    check(".rs", |text| {
        lines(text, |line| {
            leftovers.iter().any(|word| line.contains(word.as_str())) || line.trim().starts_with(&skipped)
        })
    });
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    check(".rs", |text| {
        let all: Vec<&str> = text.lines().collect();
        let argued = |index: usize| {
            all[index.saturating_sub(SAFETY_LINES)..=index].iter().any(|line| line.contains("// SAFETY:"))
        };
        let is_block = |line: &str| {
            line.contains("unsafe {") && !line.trim_start().starts_with("//") && !line.contains('"')
        };
        let bare = all.iter().enumerate().filter(|(index, line)| is_block(line) && !argued(*index));
        bare.map(|(index, line)| format!("{}: {}", index + 1, line.trim())).collect()
    });
}

/// The words of a document in backquotes that look like a path of this project.
fn paths_named(text: &str) -> Vec<String> {
    let words = text.split('`').skip(1).step_by(2).map(|word| word.trim_end_matches('/'));
    let is_path = |word: &&str| {
        word.contains('/')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
            && !word.starts_with('/')
    };
    words.filter(is_path).map(str::to_owned).collect()
}

#[test]
fn documents_name_only_what_is_there() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let Ok(text) = fs::read_to_string(top().join(document)) else { continue };
        for path in paths_named(&text) {
            let first = top().join(path.split('/').next().unwrap_or_default());
            // What does not begin at one of our folders is somebody else's path.
            assert!(
                !first.exists() || path.starts_with("target/") || top().join(&path).exists(),
                "{document} names {path}"
            );
        }
    }
}

#[test]
fn no_file_names_a_developers_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    let folder = top().parent().map(|it| it.display().to_string()).unwrap_or_default();
    let is_own = |line: &str| {
        let names = |dir: &str| dir.len() > 5 && line.contains(&format!("{dir}/"));
        names(&home) || names(&folder)
    };
    check("", |text| lines(text, is_own));
}
