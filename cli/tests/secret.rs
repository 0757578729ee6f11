//! `coracle secret`, and what of it a sandbox gets: placeholders, never a secret, in no output and in no file but the one.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};
use support::{Home, Ran, Watchdog, eventually, share, terminal};

const CANARY: &str = "sk-canary-5f1d3b9c7a2e4d6f8091wxyz";

/// `coracle secret set` with the canary as its input.
fn set(home: &Home, args: &[&str]) -> Ran {
    let mut child = home.command([&["secret", "set"], args].concat()).stdin(Stdio::piped()).spawn().unwrap();
    // One that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(format!("{CANARY}\n").as_bytes());
    Ran::of(child)
}

fn ok(ran: &Ran) -> &str {
    assert!(ran.code == Some(0) && ran.stderr.is_empty(), "{ran:?}");
    ran.stdout()
}

#[test]
fn what_is_set_is_listed_masked_and_gone_when_removed() {
    let home = Home::new();
    assert_eq!(ok(&home.run(["secret", "ls"])), "SERVICE   SANDBOX   HOSTS   SECRET\n");
    for args in [
        &["anthropic"][..],
        &["anthropic", "--sandbox", "box"],
        &["github", "--command", "gh auth token"],
        &["mine", "--host", "api.example.com", "--host", "B.example.com:8443", "--header", "X-Key: k=%s"],
        &["anthropic"],
    ] {
        assert_eq!(ok(&set(&home, args)), "");
    }
    let list = home.run(["secret", "ls"]);
    let list: Vec<_> =
        ok(&list).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        list,
        [
            "SERVICE SANDBOX HOSTS SECRET",
            "anthropic box api.anthropic.com ...wxyz",
            "github all api.github.com uploads.github.com raw.githubusercontent.com api.githubcopilot.com \
             api.individual.githubcopilot.com api.business.githubcopilot.com api.enterprise.githubcopilot.com github.com \
             gist.github.com command: gh auth token",
            "mine all api.example.com b.example.com:8443 ...wxyz",
            "anthropic all api.anthropic.com ...wxyz",
        ]
    );
    let json: serde_json::Value = serde_json::from_str(ok(&home.run(["secret", "ls", "--json"]))).unwrap();
    assert_eq!((&json[0]["sandbox"], &json[0]["secret"]), (&"box".into(), &"...wxyz".into()));
    assert_eq!(json[1]["command"], "gh auth token");
    assert!(!json.to_string().contains("canary"));

    let file = home.path(".config/coracle/secrets.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(ok(&home.run(["secret", "rm", "--sandbox", "box", "anthropic"])), "");
    assert!(
        home.run(["secret", "rm", "--sandbox", "box", "anthropic"]).stderr.contains("no secret is stored")
    );
    assert_eq!(ok(&home.run(["secret", "rm", "anthropic"])), "");
    assert!(!fs::read_to_string(&file).unwrap().contains("anthropic"));
}

#[test]
fn bad_input_stores_nothing_and_shows_no_secret() {
    let home = Home::new();
    for (args, said) in [
        (&["secret"][..], "secret needs one of: set, ls, rm"),
        (&["secret", "set"], "secret needs SERVICE"),
        (&["secret", "add", "x"], r#"secret has no "add""#),
        (&["secret", "set", "antropic"], "did you mean anthropic? known: anthropic, openai, github, google"),
        (&["secret", "set", "anthropic", CANARY], "secret does not take"),
        (&["secret", "set", "anthropic", "--host", "a.example"], "anthropic has hosts of its own"),
        (&["secret", "set", "anthropic", "--header", "X: %s"], "--header is for hosts of your own"),
        (&["secret", "set", "anthropic", "--env", "X"], "--env is for hosts of your own"),
        (&["secret", "set", "anthropic", "--from-env", "--command", "x"], "two sources"),
        (
            &["secret", "set", "anthropic", "--from-env"],
            "ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN is not set",
        ),
        (&["secret", "set", "anthropic", "--command", " "], "--command needs a command"),
        (&["secret", "set", "anthropic", "--sandbox", "A"], r#"--sandbox: "A" is not a name"#),
        (&["secret", "set", "Mine", "--host", "a.example"], r#""Mine" is not a name"#),
        (&["secret", "set", "mine", "--host", "192.0.2.1"], "is not a host's name"),
        (&["secret", "set", "mine", "--host", "a.example:0"], "is not a host's name"),
        (&["secret", "set", "mine", "--host", "*.example"], "is not a host's name"),
        (&["secret", "set", "mine", "--host", "https://a.example"], "is not a host's name"),
        (&["secret", "set", "mine", "--host", "a.example", "--header", "X"], "write NAME: VALUE"),
        (&["secret", "set", "mine", "--host", "a.example", "--header", "X: y"], "must have %s once"),
        (&["secret", "set", "mine", "--host", "a.example", "--header", "Host: %s"], "not for credentials"),
        (&["secret", "set", "mine", "--host", "a.example", "--env", "A=B"], "is not a variable's name"),
        (&["secret", "set", "mine", "--host", "a.example", "--from-env"], "--from-env needs --env"),
        (&["secret", "rm", "anthropic"], "no secret is stored for"),
        (&["secret", "set", "anthropic"], "the input: there is no secret in it"),
    ] {
        let ran = home.run(args);
        assert!(ran.code == Some(125) && ran.stderr.contains(said), "{args:?}: {ran:?}");
        // What is typed as an argument is no secret any more.
        assert!(ran.stdout.is_empty() && (args.contains(&CANARY) || !ran.stderr.contains(CANARY)));
    }
    for bad in ["two words\n", "two\nlines\n", "\u{e9}\n", "\0"] {
        let mut child = home.command(["secret", "set", "anthropic"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{CANARY}{bad}").as_bytes()).unwrap();
        let ran = Ran::of(child);
        assert!(ran.code == Some(125) && !ran.stderr.contains("canary"), "{ran:?}");
    }
    assert!(!home.path(".config").exists());
}

#[test]
fn a_terminal_does_not_show_what_is_typed() {
    let home = Home::new();
    let (mut user, program) = terminal();
    let shows = || tcgetattr(&program).unwrap().local_modes.contains(LocalModes::ECHO);
    let start = || {
        let mut command = home.command(["secret", "set", "openai"]);
        command.stdin(share(&program)).stdout(share(&program)).stderr(share(&program));
        let child = command.spawn().unwrap();
        let watchdog = Watchdog::new(&child);
        eventually("the question", || !shows());
        (child, watchdog)
    };
    let (mut child, _watchdog) = start();
    user.write_all(format!("{CANARY}\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(shows());
    let mut said = [0; 200];
    let count = user.read(&mut said).unwrap();
    assert_eq!(String::from_utf8_lossy(&said[..count]), "secret for openai: \r\n");
    assert!(ok(&home.run(["secret", "ls"])).contains("...wxyz"));

    let (mut child, _watchdog) = start();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert!(shows(), "the terminal is as it was");
}

/// The environment that the command in a running sandbox is given, and what was said besides.
fn entered(
    home: &Home,
    prepare: impl FnOnce(&std::path::Path),
    variables: &[(&str, &str)],
) -> (String, String) {
    let (send, receive) = mpsc::channel();
    let running = home.running("claude-proj", move |session| {
        send.send(session.exec.clone()).unwrap();
        session.finish(b"", 0);
    });
    prepare(&running.folder);
    let mut command = home.command(["exec", "claude-proj", "true"]);
    let ran = Ran::of(command.envs(variables.iter().copied()).spawn().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let env = receive.recv().unwrap().env.into_iter().map(|it| String::from_utf8(it).unwrap());
    (env.collect::<Vec<_>>().join(" "), ran.stderr)
}

/// A home with an agent that uses a service, whose sandboxes are found under their own name.
fn with_agent(text: &str) -> Home {
    let home = Home::new();
    fs::write(home.path("share/agents/shell.toml"), text).unwrap();
    home
}

#[test]
fn a_sandbox_gets_placeholders() {
    const PLAIN: &str = "PATH=/usr/bin:/bin STORED=1";
    const PLACEHOLDER: &str =
        "PATH=/usr/bin:/bin ANTHROPIC_API_KEY=sk-ant-api03-coracle-placeholder STORED=1";
    let uses = "about = 'x'\ncredentials = ['anthropic']";
    let key = [("ANTHROPIC_API_KEY", CANARY)];
    let nothing = |_: &std::path::Path| ();
    let with_authority = |folder: &std::path::Path| {
        fs::write(folder.join("authority.key"), "key").unwrap();
        fs::write(folder.join("authority.pem"), "certificate").unwrap();
    };
    // Nothing stored, nothing lent: nothing made.
    assert_eq!(entered(&with_agent(uses), nothing, &[]), (PLAIN.into(), String::new()));
    // It runs, and was not lent this when it started.
    assert_eq!(entered(&with_agent(uses), with_authority, &key), (PLAIN.into(), String::new()));
    let lent = |folder: &std::path::Path| {
        with_authority(folder);
        fs::write(folder.join("lent"), "anthropic\n").unwrap();
    };
    assert_eq!(entered(&with_agent(uses), lent, &key), (PLACEHOLDER.into(), String::new()));
    // An agent that does not use the service is lent nothing.
    assert_eq!(entered(&Home::new(), lent, &key).0, PLAIN);
    // What is stored is for all sandboxes.
    let home = Home::new();
    set(&home, &["anthropic"]);
    assert_eq!(entered(&home, with_authority, &[]), (PLACEHOLDER.into(), String::new()));
    // Or for one.
    let home = Home::new();
    set(&home, &["anthropic", "--sandbox", "other"]);
    assert_eq!(entered(&home, with_authority, &[]).0, PLAIN);
    // A guest that does not believe us is not fooled with a placeholder.
    let home = Home::new();
    set(&home, &["anthropic"]);
    let (env, said) = entered(&home, nothing, &[]);
    assert_eq!(env, PLAIN);
    assert!(said.contains("coracle stop claude-proj"), "{said}");
}

#[test]
fn a_broken_secret_is_told_before_anything_is_made() {
    let home = with_agent("about = 'x'\ncredentials = ['openai']");
    let mut command = home.command(["run", "shell"]);
    let ran = Ran::of(command.env("OPENAI_API_KEY", "s3cret with spaces").spawn().unwrap());
    assert!(
        ran.code == Some(125)
            && ran
                .stderr
                .contains("OPENAI_API_KEY of your environment is not used; correct or unset it: a secret"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("s3cret") && !home.path("state").exists());
    set(&home, &["openai"]);
    let file = home.path(".config/coracle/secrets.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = home.run(["run", "shell"]);
    assert!(ran.code == Some(125) && ran.stderr.contains("chmod 600"), "{ran:?}");
    assert!(!home.path("state").exists());
}
