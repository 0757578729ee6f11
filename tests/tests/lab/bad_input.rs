//! Input that Coracle must refuse: with exit code 125, within a second, in one line that names what is wrong, and before
//! anything has changed. Tables of what is typed and what the message must say.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Call, Done, Home, Test, host};

const AT_ONCE: Duration = Duration::from_secs(1);

/// What is wrong with a refusal, if anything.
fn complaint(done: &Done, says: &str) -> Option<String> {
    let text = done.err();
    let wrong = if done.code != 125 {
        format!("exit code {}", done.code)
    } else if done.took > AT_ONCE {
        format!("it took {:?}", done.took)
    } else if text.lines().count() != 1 || text.contains("panicked") {
        "not one line".to_owned()
    } else if text.trim_end().contains(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)) {
        "control characters".to_owned()
    } else if !text.contains(says) {
        format!("{says:?} is not named")
    } else if !done.stdout.is_empty() {
        format!("output {:?}", done.out())
    } else {
        return None;
    };
    Some(format!("{wrong}: {text:?}"))
}

/// Runs every call and gives a line for each that was not refused well.
fn refused<'a>(home: &Home, cases: impl IntoIterator<Item = (Call, String, &'a str)>) -> Test {
    let before = host::snapshot(home.path());
    let mut complaints = Vec::new();
    for (call, what, says) in cases {
        complaints.extend(complaint(&call.run()?, says).map(|wrong| format!("{what}: {wrong}")));
        if host::snapshot(home.path()) != before {
            complaints.push(format!("{what}: the home has changed"));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

/// The same for plain arguments.
fn arguments_are_refused(home: &Home, cases: &[(&[&str], &str)]) -> Test {
    let shown = |args: &[&str]| format!("{args:?}").chars().take(200).collect();
    refused(home, cases.iter().map(|(args, says)| (home.coracle(*args), shown(args), *says)))
}

/// One flag of `run` with many values, each named in the message together with the flag.
fn values_are_refused(flag: &str, values: &[&str]) -> Test {
    let home = Home::new()?;
    refused(
        &home,
        values.iter().map(|value| {
            let typed = format!("{flag}={value}");
            (home.coracle(["run", &typed, "shell", ".", "--", "true"]), format!("{typed:.200}"), flag)
        }),
    )
}

#[test]
fn numbers_of_processors_that_are_none() -> Test {
    let values = [
        "",
        "0",
        "-1",
        "0.5",
        "1e9",
        "٣",
        "1_000",
        " 4 ",
        "4k",
        "+4",
        "65",
        "256",
        "18446744073709551616",
        "max",
    ];
    values_are_refused("--cpus", &values)
}

#[test]
fn sizes_of_memory_that_are_none() -> Test {
    let values = [
        "",
        "0",
        "1",
        "-1",
        "16m",
        "NaN",
        "inf",
        "0x200",
        "1e3",
        "1.0001g",
        "8EiB",
        "512 m",
        "900t",
        "18446744073709551616",
    ];
    values_are_refused("--memory", &values)
}

#[test]
fn sizes_of_disks_that_are_none() -> Test {
    values_are_refused("--disk", &["", "0", "1m", "-1", "1g1", "900t", "9223372036854775808m", "disk"])
}

#[test]
fn times_that_are_none() -> Test {
    values_are_refused("--idle-timeout", &["", "-1", "inf", "1.5h", "5 m", "99999999999999999999h", "1d"])
}

#[test]
fn names_that_break_the_rule() -> Test {
    let (long, longer) = ("x".repeat(64), "x".repeat(100_000));
    let values = [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "../x",
        "-a",
        "A",
        "a.b",
        "a_b",
        "é",
        "a b",
        "$(id)",
        "\u{1b}[31m",
        "\u{202e}a",
        "a\n",
        &long,
        &longer,
    ];
    values_are_refused("--name", &values)
}

#[test]
fn variables_and_directories_that_are_none() -> Test {
    let home = Home::new()?;
    home.write("bad-env", "A=1\n=2\n")?;
    home.write("long-env", vec![b'x'; (1 << 20) + 2])?;
    arguments_are_refused(
        &home,
        &[
            (&["run", "-e", "", "shell"], "-e"),
            (&["run", "-e", "=B", "shell"], "=B"),
            (&["run", "-e", "A B=1", "shell"], "A B=1"),
            (&["run", "--env-file", "no-such", "shell"], "no-such"),
            (&["run", "--env-file", ".", "shell"], "folder"),
            (&["run", "--env-file", "../bad-env", "shell"], "line 2"),
            (&["run", "--env-file", "../long-env", "shell"], "long-env"),
            (&["run", "--env-file", "/dev/zero", "shell"], "/dev/zero"),
            (&["run", "-w", "", "shell"], "--workdir"),
            (&["run", "-w", "relative", "shell"], "relative"),
            (&["run", "--timings=xml", "shell"], "xml"),
        ],
    )
}

#[test]
fn words_that_are_no_command_flag_or_agent() -> Test {
    let home = Home::new()?;
    let long = "x".repeat((1 << 17) - 1);
    arguments_are_refused(
        &home,
        &[
            (&["frobnicate"], "frobnicate"),
            (&["rnu", "shell"], "run"),
            (&[""], "\"\""),
            (&["--frobnicate"], "--frobnicate"),
            (&["help", "frobnicate"], "frobnicate"),
            (&["run"], "AGENT"),
            (&["run", ""], "agent"),
            (&["run", "-"], "\"-\""),
            (&["run", "claud"], "claud"),
            (&["run", "shell\u{1b}[2J"], "agent"),
            (&["run", &long], "agent"),
            (&["run", "--frobnicate", "shell"], "--frobnicate"),
            (&["run", "--cpu", "1", "shell"], "--cpus"),
            (&["run", "--cpus"], "--cpus"),
            (&["run", "--cpus", "1", "--cpus", "1", "shell"], "--cpus"),
            (&["run", "--rm=perhaps", "shell"], "perhaps"),
            (&["run", "-x", "shell"], "-x"),
            (&["ls", "--frobnicate"], "--frobnicate"),
            (&["ls", "surplus"], "surplus"),
            (&["version", "surplus"], "surplus"),
            (&["doctor", "surplus"], "surplus"),
        ],
    )
}

#[test]
fn sandboxes_that_are_not_there() -> Test {
    let home = Home::new()?;
    arguments_are_refused(
        &home,
        &[
            (&["exec"], "NAME"),
            (&["exec", "nosuch", "true"], "nosuch"),
            (&["exec", "nosuch"], "command"),
            (&["exec", "", "true"], "\"\""),
            (&["exec", "..", "true"], "\"..\""),
            (&["exec", "../../etc", "true"], "../../etc"),
            (&["exec", "-u", "a:b:c", "nosuch", "true"], "a:b:c"),
            (&["exec", "-u", "", "nosuch", "true"], "--user"),
            (&["exec", "-w", "relative", "nosuch", "true"], "relative"),
            (&["stop"], "name"),
            (&["stop", "nosuch"], "nosuch"),
            (&["rm"], "name"),
            (&["rm", "nosuch"], "nosuch"),
            (&["rm", "-f", ".."], "\"..\""),
            (&["rm", "-f", "/"], "\"/\""),
            (&["rm", "-f", ""], "\"\""),
            (&["rm", "-f", "\u{1b}]0;x\u{7}"], "name"),
        ],
    )
}

#[test]
fn workspaces_that_are_none() -> Test {
    let home = Home::new()?;
    home.write("file", "")?;
    symlink("loop", home.path().join("loop"))?;
    fs::create_dir(home.path().join("closed"))?;
    fs::set_permissions(home.path().join("closed"), fs::Permissions::from_mode(0o000))?;
    let _socket = UnixListener::bind(home.path().join("socket"))?;
    fs::create_dir_all(home.path().join("state/coracle/sandboxes"))?;
    let (long, longer) = ("x".repeat(256), "x/".repeat(2500));
    let root = rustix::process::getuid().is_root();
    let cases: &[(&[&str], &str)] = &[
        (&["run", "shell", ""], "workspace"),
        (&["run", "shell", "no-such"], "no-such"),
        (&["run", "shell", "../file"], "../file"),
        (&["run", "shell", "../file/x"], "../file/x"),
        (&["run", "shell", "/dev/null"], "/dev/null"),
        (&["run", "shell", "../socket"], "../socket"),
        (&["run", "shell", "../loop"], "../loop"),
        (&["run", "shell", "/"], "\"/\""),
        (&["run", "shell", "/proc"], "/proc"),
        (&["run", "shell", "/sys/kernel"], "/sys"),
        (&["run", "shell", "/dev"], "/dev"),
        (&["run", "shell", "/etc"], "/etc"),
        (&["run", "shell", "/usr"], "/usr"),
        (&["run", "shell", ".."], "state"),
        (&["run", "shell", "../state/coracle"], "state"),
        (&["run", "shell", "../state/coracle/sandboxes"], "state"),
        (&["run", "shell", &long], "xxx"),
        (&["run", "shell", &longer], "x/x"),
        (&["run", "shell", ".", "."], "twice"),
        (&["run", "shell", ".", ".:ro"], "twice"),
        (&["run", "shell", ".", "no\nsuch"], "no\\nsuch"),
        (&["run", "shell", "../closed"], "../closed"),
    ];
    arguments_are_refused(&home, if root { &cases[..cases.len() - 1] } else { cases })
}

#[test]
fn bytes_that_are_no_text() -> Test {
    let home = Home::new()?;
    let bad = OsStr::from_bytes(b"\xff\xfe\x1b");
    let joined = |flag: &str| OsString::from_vec([flag.as_bytes(), bad.as_bytes()].concat());
    let run = |arg: OsString| home.coracle([OsStr::new("run"), &arg, OsStr::new("shell")]);
    refused(
        &home,
        [
            (home.coracle([bad]), "command".into(), "\\xff"),
            (home.coracle([OsStr::new("run"), bad]), "agent".into(), "\\xff"),
            (home.coracle([OsStr::new("run"), OsStr::new("shell"), bad]), "workspace".into(), "\\xff"),
            (run(joined("--name=")), "name".into(), "\\xff"),
            (run(joined("--cpus=")), "cpus".into(), "\\xff"),
            (run(joined("--memory=")), "memory".into(), "\\xff"),
            (run(joined("--env-file=")), "env file".into(), "\\xff"),
            (run(joined("--")), "flag".into(), "\\xff"),
            (home.coracle([OsStr::new("exec"), bad, OsStr::new("true")]), "sandbox".into(), "\\xff"),
        ],
    )
}

#[test]
fn environments_that_cannot_work() -> Test {
    let home = Home::new()?;
    let run = || home.coracle(["run", "--rm", "shell", ".", "--", "true"]);
    fs::create_dir(home.path().join("fixed"))?;
    fs::set_permissions(home.path().join("fixed"), fs::Permissions::from_mode(0o555))?;
    let fixed = home.path().join("fixed");
    let mut cases = vec![
        (run().without_env("HOME").without_env("XDG_STATE_HOME"), "no HOME".into(), "HOME"),
        (run().env("HOME", "relative").without_env("XDG_STATE_HOME"), "relative HOME".into(), "relative"),
        (run().env("XDG_STATE_HOME", "state"), "relative state".into(), "XDG_STATE_HOME"),
        (run().env("XDG_STATE_HOME", "/dev/null"), "state in a file".into(), "/dev/null"),
        (run().env("CORACLE_SHARE", "share"), "relative share".into(), "CORACLE_SHARE"),
        (run().env("CORACLE_SHARE", "/no/such"), "no share".into(), "/no/such"),
    ];
    if !rustix::process::getuid().is_root() {
        cases.push((run().env("XDG_STATE_HOME", &fixed), "unwritable state".into(), "fixed"));
    }
    refused(&home, cases)
}

#[test]
fn a_directory_that_is_gone() -> Test {
    let home = Home::new()?;
    let script = "mkdir gone && cd gone && rmdir ../gone && exec coracle run --rm shell . -- true";
    let done = home.program("sh").args(["-c", script]).run()?;
    assert_eq!(complaint(&done, "no longer exists"), None);
    Ok(())
}

#[test]
fn output_that_cannot_be_written_is_an_error() -> Test {
    let home = Home::new()?;
    for args in [&["ls"][..], &["ls", "--json"], &["version"], &["help"]] {
        let mut call = home.coracle(args);
        call.command().stdout(fs::OpenOptions::new().write(true).open("/dev/full")?);
        let done = call.run()?;
        assert!(
            done.code == 125 && done.err().contains("No space"),
            "{args:?}: {} {}",
            done.code,
            done.err()
        );
    }
    Ok(())
}

#[test]
fn closed_standard_streams_are_survived() -> Test {
    let home = Home::new()?;
    for redirection in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let done = home.program("sh").args(["-c", &format!("coracle ls {redirection}; echo $?")]).run()?;
        let code = done.out();
        assert!(code.ends_with("0\n") || code.ends_with("125\n"), "{redirection}: {code}");
    }
    Ok(())
}

#[test]
fn help_is_for_everything() -> Test {
    let home = Home::new()?;
    for command in ["run", "exec", "ls", "stop", "rm", "doctor", "version"] {
        let help = home.coracle(["help", command]).ok()?;
        assert!(help.contains(&format!("coracle {command}")), "{help}");
        assert_eq!(home.coracle([command, "--help"]).ok()?, help);
    }
    assert!(home.coracle(["--help"]).ok()?.contains("exec"));
    let mut silent = home.coracle(["version"]);
    silent.command().stdin(Stdio::null());
    assert!(silent.ok()?.contains(env!("CARGO_PKG_VERSION")));
    Ok(())
}

/// A copy of what is installed, as links, to be damaged.
struct Installed(PathBuf);

impl Installed {
    fn new(home: &Home) -> Result<Self> {
        let program = home.program("sh").args(["-c", "readlink -f $(command -v coracle)"]).ok()?;
        let prefix = Path::new(program.trim_end()).ancestors().nth(2).context("a prefix")?.to_owned();
        let copy = Self(home.path().join("share"));
        for dir in ["", "agents", "layers", "templates", "templates/shell"] {
            fs::create_dir(copy.0.join(dir))?;
            for entry in fs::read_dir(prefix.join("share/coracle").join(dir))?
                .flatten()
                .filter(|it| !it.path().is_dir())
            {
                symlink(entry.path(), copy.0.join(dir).join(entry.file_name()))?;
            }
        }
        Ok(copy)
    }

    /// The template's layer, whose name is its hash.
    fn layer(&self) -> Result<String> {
        let entry = fs::read_dir(self.0.join("layers"))?.next().context("a layer")??;
        Ok(format!("layers/{}", entry.file_name().display()))
    }

    fn replace(&self, file: &str, with: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Result<()> {
        let path = self.0.join(file);
        // The start of it is enough to be recognised.
        let mut start = vec![0; 64 << 10];
        let length = std::io::Read::read(&mut fs::File::open(&path)?, &mut start)?;
        fs::remove_file(&path)?;
        if let Some(content) = with(&start[..length]) {
            fs::write(path, content)?;
        }
        Ok(())
    }
}

/// What is left of a file, given its start.
type Damage = fn(&[u8]) -> Option<Vec<u8>>;

#[test]
fn parts_that_are_missing_cut_off_or_wrong() -> Test {
    let layer = Installed::new(&Home::new()?)?.layer()?;
    let parts = ["vmlinux", "initramfs.cpio", "disk-20g.ext4", &layer, "templates/shell/template.json"];
    let damages: [(&str, Damage); 4] = [
        ("missing", |_| None),
        ("empty", |_| Some(Vec::new())),
        ("cut off", |start| Some(start[..start.len() / 2].to_vec())),
        ("text", |_| Some(b"#!/bin/sh\n".repeat(1000))),
    ];
    for part in parts {
        for (damage, with) in damages {
            let home = Home::new()?;
            let installed = Installed::new(&home)?;
            installed.replace(part, with)?;
            let run =
                home.coracle(["run", "--rm", "shell", ".", "--", "true"]).env("CORACLE_SHARE", &installed.0);
            refused(&home, [(run, format!("{part} {damage}"), part)])?;
        }
    }
    Ok(())
}

/// An ELF kernel of one page at 16 MiB: `hlt` for ever.
fn idle_kernel() -> Vec<u8> {
    const ADDRESS: u64 = 16 << 20;
    const HLT_FOR_EVER: [u8; 3] = [0xf4, 0xeb, 0xfd];
    let mut file = vec![0; 2 * 4096];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&ADDRESS.to_le_bytes());
    (file[32], file[54], file[56], file[64]) = (64, 56, 1, 1);
    for (at, value) in [(72, 4096), (80, ADDRESS), (88, ADDRESS), (96, 4096_u64), (104, 4096)] {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[4096..4099].copy_from_slice(&HLT_FOR_EVER);
    file
}

#[test]
fn a_guest_that_never_gets_ready_is_given_up() -> Test {
    let home = Home::new()?;
    let installed = Installed::new(&home)?;
    installed.replace("vmlinux", |_| Some(idle_kernel()))?;
    let run = home.coracle(["run", "--rm", "shell", ".", "--", "true"]).env("CORACLE_SHARE", &installed.0);
    let done = run.deadline(120).run()?;
    assert_eq!((done.code, done.err().lines().count()), (125, 1), "{}", done.err());
    assert!(done.err().contains("was not ready after 60 s"), "{}", done.err());
    home.wait_for("nothing is left", || home.left().is_empty())
}

#[test]
fn an_installation_of_links_works() -> Test {
    let home = Home::new()?;
    let installed = Installed::new(&home)?;
    let run = home.coracle(["run", "--rm", "--cpus", "1", "-m", "512m", "shell", ".", "--", "echo", "well"]);
    assert_eq!(run.env("CORACLE_SHARE", &installed.0).ok()?, "well\n");
    Ok(())
}
