//! Bad input: refused with a reason in one line, exit code 125, and nothing on disk touched.

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Home, Ran};

/// A command line, and a part of what is said about it.
type Case = (&'static [&'static str], &'static str);

const USAGE: [Case; 32] = [
    (&["rnu"], r#"unknown command "rnu"; did you mean run?"#),
    (&[""], r#"unknown command """#),
    (&["-"], r#"unknown flag "-""#),
    (&["--"], r#"unknown flag "--""#),
    (&["--frob"], r#"unknown flag "--frob""#),
    (&["RUN"], r#"unknown command "RUN""#),
    (&["\x1b[31mrun"], r#"unknown command "\u{1b}[31mrun""#),
    (&["help", "frob"], r#"unknown command "frob""#),
    (&["run"], "run needs AGENT"),
    (&["run", "--"], "run needs AGENT"),
    (&["run", "--", "shell"], "run needs AGENT"),
    (&["run", "--frob", "shell"], r#"unknown flag "--frob""#),
    (&["run", "-x", "shell"], r#"unknown flag "-x""#),
    (&["run", "--name"], "--name needs a value: --name NAME"),
    (&["run", "--name", "a", "--name", "b", "shell"], "--name is given twice"),
    (&["run", "-m", "1g", "--memory", "2g", "shell"], "--memory is given twice"),
    (&["run", "--rm=2", "shell"], "--rm takes no value, or true or false"),
    (&["run", "-d", "shell", ".", "--", "x"], "-d starts a sandbox without running anything"),
    (&["run", "--tty", "shell"], "-t needs a terminal"),
    (&["run", "--timings=xml", "shell"], r#"--timings "xml" is not a format"#),
    (&["run", "--timings=", "shell"], r#"--timings "" is not a format"#),
    (&["exec"], "exec needs NAME"),
    (&["exec", "box"], "exec needs a command"),
    (&["exec", "-d", "box", "x"], r#"unknown flag "-d""#),
    (&["ls", "extra"], r#"ls does not take "extra""#),
    (&["stop"], "stop needs the name of a sandbox"),
    (&["rm"], "rm needs the name of a sandbox"),
    (&["ls", "-q", "--json"], "choose one"),
    (&["ls", "more"], r#"ls does not take "more""#),
    (&["help", "run", "more"], r#"help takes one command, not "more""#),
    (&["run", "-d", "--rm", "shell"], "leave out one of them"),
    (&["run", "--ssh-agent", "me", "--network", "none", "shell"], "--ssh-agent leads through the gateway"),
];

const AGENTS: [Case; 6] = [
    (&["run", "claude2"], r#"unknown agent "claude2"; known: shell"#),
    (&["run", ""], r#"unknown agent """#),
    (&["run", "Shell"], r#"unknown agent "Shell""#),
    (&["run", "../shell"], r#"unknown agent "../shell""#),
    (&["run", "shell\n"], r#"unknown agent "shell\n""#),
    (&["run", "."], r#"unknown agent ".""#),
];

const NAMES: [&str; 18] = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "../x",
    "-a",
    "A",
    "Box",
    "a.b",
    "a_b",
    "é",
    "日本",
    "\u{202e}a",
    "a b",
    "$(id)",
    "\x1b[2J",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const CPUS: [&str; 16] = [
    "",
    "0",
    "-1",
    "0.5",
    "1e9",
    "٣",
    "1_000",
    " 4",
    "4 ",
    "4k",
    "+4",
    "0x4",
    "NaN",
    "65",
    "18446744073709551615",
    "18446744073709551616",
];

const MEMORY: [&str; 20] = [
    "",
    "0",
    "1",
    "16M",
    "127m",
    "8EiB",
    "-1",
    "-512m",
    "512k",
    "NaN",
    "0x10",
    "1.0001g",
    "1..5g",
    ".5g",
    "512 m",
    " 512m",
    "513t",
    "1000000g",
    "18446744073709551616",
    "512\u{1b}[31mm",
];

const DISK: [&str; 10] = ["", "0", "1", "1023m", "-20g", "2t", "1.5", "9223372036854775808", "20gg", "g"];

const IDLE: [&str; 9] = ["", "-1", "1.5", "30x", "inf", "99999999999", "31d", " 30", "s"];

const ENV: [Case; 9] = [
    (&["-e", ""], "has no name"),
    (&["-e", "="], "has no name"),
    (&["-e", "=B"], "has no name"),
    (&["-e", "A B=1"], "white space in its name"),
    (&["-e", "A\n=1"], "white space in its name"),
    (&["--env-file", "missing"], "cannot be opened"),
    (&["--env-file", ""], "cannot be opened"),
    (&["--env-file", "."], "is a folder"),
    (&["--env-file", "../bad.env"], r#"line 2: has no name"#),
];

const WORKSPACES: [Case; 22] = [
    (&[""], "is empty"),
    (&["missing"], "does not exist"),
    (&["../file"], "is a file; the first workspace must be a folder"),
    (&["../file/x"], "goes through a file"),
    (&["../loop"], "goes round in circles"),
    (&["/"], "belongs to the system"),
    (&["/proc"], "belongs to the system"),
    (&["/proc/self/cwd/../.."], "belongs to the system"),
    (&["/sys"], "belongs to the system"),
    (&["/dev"], "belongs to the system"),
    (&["/etc"], "belongs to the system"),
    (&["/usr/bin"], "belongs to the system"),
    (&["/tmp"], "belongs to the system"),
    (&[".", "/etc/passwd:ro"], "belongs to the system"),
    (&[".."], "holds Coracle's own files"),
    (&["../state"], "holds Coracle's own files"),
    (&[".", "../state:ro"], "holds Coracle's own files"),
    (&[".", "."], "is given twice"),
    (&[".", "../proj:ro"], "is given twice"),
    (&[".", "sub:ro"], "cannot be read-only: it is inside"),
    (&["../.ssh"], "holds your keys"),
    (&[".", "../.ssh:ro"], "holds your keys"),
];

const HIDE: [Case; 11] = [
    (&["--hide", ""], r#"--hide "" is empty; name a file or a folder"#),
    (&["--hide", "/"], "matches everything"),
    (&["--hide", "*"], "matches everything"),
    (&["--hide", "/*"], "matches everything"),
    (&["--hide", "."], "has an empty part, . or .. in it"),
    (&["--hide", "a/../b"], "has an empty part, . or .. in it"),
    (&["--hide", "a//b"], "has an empty part, . or .. in it"),
    (&["--hide", "a/**/b"], "has ** in it, which is not known"),
    (&["--hide", ".env", "--hide", "\x1b[2J/."], r#"--hide "\u{1b}[2J/.""#),
    (&["--hide"], "--hide needs a value: --hide PATTERN"),
    (&["--hid", "x"], "did you mean --hide?"),
];

const EXEC: [Case; 12] = [
    (&["exec", "missing", "x"], r#"no sandbox "missing""#),
    (&["exec", "..", "x"], r#"no sandbox "..""#),
    (&["exec", "", "x"], r#"no sandbox """#),
    (&["exec", "-w", "rel", "box", "x"], r#"--workdir "rel" is not an absolute path"#),
    (&["exec", "-w", "", "box", "x"], r#"--workdir "" is not an absolute path"#),
    (&["exec", "-u", "", "box", "x"], r#"--user "" is not a user"#),
    (&["exec", "-u", "a:b:c", "box", "x"], r#"--user "a:b:c" is not a user"#),
    (&["exec", "-u", "root:", "box", "x"], r#"--user "root:" is not a user"#),
    (&["exec", "-e", "=", "box", "x"], "has no name"),
    (&["stop", "missing"], r#"no sandbox "missing""#),
    (&["rm", "missing"], r#"no sandbox "missing""#),
    (&["rm", "bxo"], r#"no sandbox "bxo"; did you mean box?"#),
];

/// A home with a sandbox, so that there is something to be left alone.
fn home() -> Home {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    fs::create_dir(home.path("proj/sub")).unwrap();
    fs::create_dir(home.path(".ssh")).unwrap();
    fs::write(home.path("file"), "").unwrap();
    fs::write(home.path("bad.env"), "A=1\n=x\n").unwrap();
    std::os::unix::fs::symlink("loop", home.path("loop")).unwrap();
    home
}

fn check(ran: &Ran, typed: &str, part: &str) {
    assert_eq!(ran.code, Some(125), "{typed}: {ran:?}");
    assert!(ran.stderr.contains(part), "{typed}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("coracle: ") && ran.stderr.ends_with('\n'), "{typed}: {}", ran.stderr);
    let line = ran.stderr.trim_end_matches('\n');
    assert!(!line.contains(char::is_control), "{typed}: {line:?}");
    assert!(line.len() < 600 && !line.contains("panicked"), "{typed}: {line}");
    assert!(ran.stdout.is_empty(), "{typed}");
}

#[test]
fn bad_command_lines() {
    let home = home();
    let before = home.snapshot();
    let mut cases: Vec<(Vec<&str>, &str)> = Vec::new();
    let flagged = |flag: &'static str, value: &'static str| vec!["run", flag, value, "shell"];
    cases.extend(USAGE.iter().chain(&AGENTS).chain(&EXEC).map(|(args, part)| (args.to_vec(), *part)));
    cases.extend(NAMES.map(|name| (flagged("--name", name), "is not a name; use letters a-z")));
    cases.extend(CPUS.map(|value| (flagged("--cpus", value), "is not a number of CPUs from 1 to 64")));
    cases.extend(MEMORY.map(|value| (flagged("--memory", value), "--memory: ")));
    cases.extend(DISK.map(|value| (flagged("--disk", value), "--disk: ")));
    cases.extend(IDLE.map(|value| (flagged("--idle-timeout", value), "is not a time; write it like 30")));
    cases.extend(HIDE[..9].iter().map(|(args, part)| ([&["run"], *args, &["shell"]].concat(), *part)));
    cases.extend(HIDE[9..].iter().map(|(args, part)| ([&["run"], *args].concat(), *part)));
    cases.extend(ENV.iter().map(|(args, part)| ([&["run"], *args, &["shell"]].concat(), *part)));
    cases.extend(WORKSPACES.iter().map(|(paths, part)| ([&["run", "shell"], *paths].concat(), *part)));
    assert!(cases.len() >= 100);
    for (args, part) in cases {
        let begin = Instant::now();
        let ran = home.run(&args);
        check(&ran, &format!("{args:?}"), part);
        assert!(begin.elapsed() < Duration::from_secs(5), "{args:?} took {:?}", begin.elapsed());
    }
    assert_eq!(home.snapshot(), before);
}

#[test]
fn bytes_that_are_no_text() {
    let home = home();
    let before = home.snapshot();
    let bad = || OsString::from_vec(b"\xff\xfe".to_vec());
    let cases: [(&[&str], &str); 6] = [
        (&[], r#"unknown command "\xff\xfe""#),
        (&["run"], r#"unknown agent "\xff\xfe""#),
        (&["run", "shell"], r#"workspace "\xff\xfe": does not exist"#),
        (&["run", "shell", "--name"], r#""\xff\xfe" is not a name"#),
        (&["run", "shell", "-m"], r#"--memory: "\xff\xfe" is not a size"#),
        (&["stop"], r#"no sandbox "\xff\xfe""#),
    ];
    for (args, part) in cases {
        let args: Vec<OsString> = args.iter().map(OsString::from).chain([bad()]).collect();
        check(&home.run(&args), &format!("{args:?}"), part);
    }
    let mut user: Vec<OsString> = ["exec", "-u"].map(OsString::from).to_vec();
    user.extend([bad(), "box".into(), "x".into()]);
    check(&home.run(&user), "-u", r#"--user "\xff\xfe" is not a user"#);
    assert_eq!(home.snapshot(), before);
}

#[test]
fn huge_arguments() {
    let home = home();
    let before = home.snapshot();
    // As long as Linux lets an argument be.
    let huge = "x".repeat((128 << 10) - 1);
    for args in
        [&["run"][..], &["run", "shell"], &["run", "shell", "--name"], &["run", "shell", "--cpus"], &["stop"]]
    {
        let ran = home.run(args.iter().copied().chain([huge.as_str()]));
        check(&ran, &format!("{args:?}"), "xxx");
    }
    assert_eq!(home.snapshot(), before);
}

fn changed(home: &Home, change: impl FnOnce(&mut Command) -> &mut Command) -> Ran {
    let mut command = home.command(["run", "shell"]);
    let _ = change(&mut command);
    Ran::of(command.spawn().unwrap())
}

#[test]
fn bad_environments() {
    let home = home();
    let before = home.snapshot();
    let ran = changed(&home, |it| it.env_remove("HOME").env_remove("XDG_STATE_HOME"));
    check(&ran, "no HOME", "neither HOME nor XDG_CONFIG_HOME is set");
    let ran = changed(&home, |it| it.env("HOME", "rel").env_remove("XDG_STATE_HOME"));
    check(&ran, "relative HOME", r#"HOME is "rel", which is not an absolute path"#);
    let ran = changed(&home, |it| it.env("XDG_STATE_HOME", "../x"));
    check(&ran, "relative XDG_STATE_HOME", r#"XDG_STATE_HOME is "../x""#);
    let ran = changed(&home, |it| it.env("CORACLE_SHARE", "x"));
    check(&ran, "relative CORACLE_SHARE", r#"CORACLE_SHARE is "x""#);
    let ran = changed(&home, |it| it.env("XDG_STATE_HOME", "/proc/nowhere"));
    check(
        &ran,
        "state that cannot be made",
        "create /proc/nowhere/coracle/sandboxes; set XDG_STATE_HOME to a folder that you may write to",
    );
    assert_eq!(home.snapshot(), before);
    let gone = home.path("gone");
    fs::create_dir(&gone).unwrap();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!(
        "rmdir {} && exec {} run shell",
        gone.display(),
        env!("CARGO_BIN_EXE_coracle")
    ));
    shell.current_dir(&gone).env_clear();
    shell.envs(home.command([""]).get_envs().filter_map(|(key, value)| Some((key, value?))));
    let piped = std::process::Stdio::piped;
    let ran = Ran::of(shell.stdout(piped()).stderr(piped()).spawn().unwrap());
    check(&ran, "cwd deleted", "the current folder no longer exists");
}

#[test]
fn damaged_installations() {
    type Damage = (&'static str, fn(&Home), &'static str);
    let damage: [Damage; 12] = [
        ("kernel missing", |home| fs::remove_file(home.path("share/vmlinux")).unwrap(), "kernel"),
        ("kernel empty", |home| fs::write(home.path("share/vmlinux"), "").unwrap(), "it is cut off"),
        (
            "kernel a bzImage",
            |home| fs::write(home.path("share/vmlinux"), [0x4d; 4096]).unwrap(),
            "it is not an ELF file",
        ),
        (
            "kernel a folder",
            |home| {
                fs::remove_file(home.path("share/vmlinux")).unwrap();
                fs::create_dir(home.path("share/vmlinux")).unwrap();
            },
            "it is not a file",
        ),
        ("init missing", |home| fs::remove_file(home.path("share/initramfs.cpio")).unwrap(), "initramfs"),
        (
            "init cut",
            |home| fs::write(home.path("share/initramfs.cpio"), "070701").unwrap(),
            "its end is missing",
        ),
        ("disk missing", |home| fs::remove_file(home.path("share/disk-20g.ext4")).unwrap(), "disk image"),
        (
            "disk wrong",
            |home| fs::write(home.path("share/disk-20g.ext4"), [0; 4096]).unwrap(),
            "it is not an ext4 image",
        ),
        (
            "template missing",
            |home| fs::remove_dir_all(home.path("share/templates")).unwrap(),
            "template.json: it is missing",
        ),
        (
            "template cut",
            |home| {
                fs::write(home.path(&format!("share/layers/{}.erofs", support::LAYER)), [0; 100]).unwrap();
            },
            "it is 100 bytes long, not 4096",
        ),
        (
            "template wrong",
            |home| {
                fs::write(home.path(&format!("share/layers/{}.erofs", support::LAYER)), [0; 4096]).unwrap();
            },
            "it is not an EROFS image",
        ),
        (
            "template.json wrong",
            |home| {
                fs::write(home.path("share/templates/shell/template.json"), "null").unwrap();
            },
            "is not what a template.json should be",
        ),
    ];
    for (name, damage, part) in damage {
        let home = home();
        damage(&home);
        let before = home.snapshot();
        let ran = home.run(["run", "--rm", "shell"]);
        check(&ran, name, part);
        assert!(ran.stderr.contains("Coracle is not installed completely"), "{name}: {}", ran.stderr);
        assert_eq!(home.snapshot(), before, "{name}");
        let doctor = home.run(["doctor"]);
        assert_eq!(doctor.code, Some(1), "{name}");
        assert!(doctor.stdout().contains(part), "{name}: {}", doctor.stdout());
    }
}

#[test]
fn what_an_existing_sandbox_is_not() {
    let home = home();
    let before = home.snapshot();
    let cases: [(&[&str], &str); 9] = [
        (&["--hide", ".env"], "sandbox box has other patterns of --hide; leave it out"),
        (
            &["--cpus", "2"],
            "sandbox box has --cpus 1, not 2; change that with coracle resize box, leave it out, or give",
        ),
        (&["-m", "1g"], "sandbox box has --memory 512m, not 1g"),
        (&["--disk", "30g"], "sandbox box has --disk 20g, not 30g"),
        (&["--idle-timeout", "0"], "sandbox box has --idle-timeout 30, not 0"),
        (&["--rm", "--name", "box"], "sandbox box exists, and --rm is for new ones"),
        (&["--name", "box"], "does not see"),
        (&["-w", "rel"], "--workdir"),
        (&["-m", "1g", "--name", "box"], "sandbox box has --memory 512m, not 1g"),
    ];
    for (flags, part) in cases {
        let paths: &[&str] = if part == "does not see" { &["shell", "../docs"] } else { &["shell"] };
        check(&home.run([&["run"], flags, paths].concat()), &format!("{flags:?}"), part);
    }
    check(&home.run(["run", "shell", ".", "../docs:ro"]), "another folder", "sandbox box does not see");
    assert_eq!(home.snapshot(), before);
}

#[test]
fn hidden_things_that_are_shown_all_the_same() {
    let home = home();
    let before = home.snapshot();
    for (pattern, part) in [
        ("sub", "shows what --hide hides in"),
        ("/sub/*.pem", "shows what --hide hides in"),
        (&*"x".repeat(5000), "is 5000 bytes long; at most 4096"),
    ] {
        check(&home.run(["run", "--hide", pattern, "shell", ".", "sub"]), pattern, part);
    }
    let many = (0..65).flat_map(|number| ["--hide".to_owned(), number.to_string()]);
    let args = ["run".to_owned()].into_iter().chain(many).chain(["shell".to_owned()]);
    check(&home.run(args), "many", "--hide: 65 patterns are too many; at most 64 are allowed");
    assert_eq!(home.snapshot(), before);
}

#[test]
fn a_workspace_that_may_not_be_read() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let home = home();
    fs::set_permissions(home.path("docs"), fs::Permissions::from_mode(0o600)).unwrap();
    check(&home.run(["run", "shell", "../docs"]), "no x", "you may not read it");
}
