//! Agent files, good and bad, and what is run of them.

use super::*;

const CLAUDE: &str = r#"
about = "an agent"
command = ["claude"]
args = ["--yes"]
env = ["QUIET=1"]
credentials = ["anthropic"]

[[npm]]
name = "@scope/agent-linux-x64"
version = "1.2.3"
integrity = "sha512-AAAA"
size = 1
unpacked = 2
bin = { claude = "bin/claude" }

[[file]]
path = "/home/agent/.agent.json"
text = "{}"
"#;

fn argv(image: &Image, args: &[&str]) -> Vec<String> {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    command(image, &args).0.into_iter().map(|arg| String::from_utf8(arg).unwrap()).collect()
}

fn image(command: &[&str], args: &[&str]) -> Image {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Image { command: owned(command), args: owned(args), workdir: "/srv".into(), ..Image::default() }
}

#[test]
fn a_dash_appends_and_a_word_replaces() {
    let shell = image(&[], &["/bin/bash", "-l"]);
    assert_eq!(argv(&shell, &[]), ["/bin/bash", "-l"]);
    assert_eq!(argv(&shell, &["-c", "echo hi"]), ["/bin/bash", "-l", "-c", "echo hi"]);
    assert_eq!(argv(&shell, &["make", "-j4"]), ["make", "-j4"]);
    let claude = image(&["claude"], &["--yes"]);
    assert_eq!(argv(&claude, &["-p", "hi"]), ["claude", "--yes", "-p", "hi"]);
    assert_eq!(argv(&claude, &["mcp", "list"]), ["claude", "mcp", "list"]);
}

#[test]
fn an_image_without_a_command_has_a_shell() {
    let empty = image(&[], &[]);
    assert_eq!(argv(&empty, &[]), ["/bin/sh"]);
    assert_eq!(argv(&empty, &["-c", "true"]), ["/bin/sh", "-c", "true"]);
    assert_eq!(argv(&empty, &["true"]), ["true"]);
}

#[test]
fn an_agents_command_wins_over_its_templates() {
    let agent = parse(CLAUDE, "claude").unwrap();
    assert_eq!(agent.template(), "claude");
    let merged = agent.image(&image(&["entry"], &["cmd"]));
    assert_eq!((merged.command, merged.args), (vec!["claude".to_owned()], vec!["--yes".to_owned()]));
    assert_eq!((merged.env, merged.workdir), (vec!["QUIET=1".to_owned()], String::new()));
    let plain = parse("about = 'a'", "shell").unwrap();
    assert_eq!(plain.template(), BASE);
    assert_eq!(plain.image(&image(&["entry"], &["cmd"])), image(&["entry"], &["cmd"]));
}

#[test]
fn a_bad_file_says_where() {
    let error = |text: &str| parse(text, "x").map_or_else(|error| format!("{error:#}"), |_| "good".into());
    assert_eq!(error(CLAUDE), "good");
    assert!(error("").contains("about"), "{}", error(""));
    assert_eq!(
        error("about = 'a'\n\ncomand = ['x']"),
        "line 3: unknown field `comand`, expected one of `about`, `template`, `command`, `args`, `env`, `credentials`, `npm`, `file`"
    );
    assert!(
        error("about = 'a'\nargs = 'x'").starts_with("line 2: invalid type"),
        "{}",
        error("about = 'a'\nargs = 'x'")
    );
    assert!(error("about = ").starts_with("line 1: "), "{}", error("about = "));
    for (from, to, says) in [
        ("@scope/agent-linux-x64", "../x", "not a package's name"),
        ("@scope/agent-linux-x64", "@a/b/c", "not a package's name"),
        ("1.2.3", "1/../..", "is not one"),
        ("sha512-", "md5-", "integrity is not"),
        ("bin/claude", "/etc/passwd", "not a file in the package"),
        ("bin/claude", "../claude", "not a file in the package"),
        ("/home/agent/.agent.json", "home", "write its path from /"),
        ("/home/agent/.agent.json", "/home/../x", "write its path from /"),
        ("command = [\"claude\"]", "", "it has no command"),
        ("QUIET=1", "=1", "not KEY=VALUE"),
        ("about = \"an agent\"", "about = \"a\"\ntemplate = \"shell\"", "leave out one of them"),
    ] {
        let text = CLAUDE.replace(from, to);
        assert!(error(&text).contains(says), "{to}: {}", error(&text));
    }
}
