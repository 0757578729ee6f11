//! `coracle policy`, and the rules of `run`: what is refused, what is written where, and what it comes to. No gateway runs here.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use expect_test::{expect, expect_file};
use gateway::log::Log;
use gateway::policy::{Destination, Files, NAME, Name, Policy};
use serde_json::Value;
use support::{Home, Ran, Watchdog};

fn global(home: &Home) -> PathBuf {
    home.path(".config/coracle").join(NAME)
}

fn good(home: &Home, args: &[&str]) -> String {
    let ran = home.run(args);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
    ran.stdout().to_owned()
}

fn refused(ran: &Ran, part: &str) {
    assert_eq!(ran.code, Some(125), "{ran:?}");
    let line = ran.stderr.strip_prefix("coracle: ").unwrap_or_else(|| panic!("{ran:?}"));
    assert!(line.contains(part) && line.ends_with('\n') && line.lines().count() == 1, "{part}: {line}");
}

#[test]
fn bad_rules_change_nothing() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let before = home.snapshot();
    let cases: [(&[&str], &str); 27] = [
        (&["policy"], "policy needs one of: allow, deny, rm, ls, check, log, preset"),
        (&["policy", "alow"], "did you mean allow?"),
        (&["policy", "allow"], "allow needs a rule, such as example.com"),
        (&["policy", "deny"], "deny needs a rule"),
        (&["policy", "rm"], "rm needs a rule"),
        (&["policy", "allow", ""], r#"the rule "" is empty"#),
        (&["policy", "allow", "a.b,,c.d"], r#"the rule "" is empty"#),
        (
            &["policy", "allow", "a.b", "*"],
            r#"the rule "*" is one label only, which no host has; write ** for every host"#,
        ),
        (&["policy", "allow", "https://a.b/"], r#"the rule "https://a.b/" is a URL; write its host alone"#),
        (&["policy", "allow", "a.b:0"], "a port that is not a number from 1 to 65535"),
        (&["policy", "allow", "0177.0.0.1"], "looks like a number"),
        (&["policy", "allow", "10.0.0.1/8"], "write 10.0.0.0/8"),
        (&["policy", "allow", "localhost"], "name the port"),
        (&["policy", "allow", "a\u{1b}[31m.b"], r#"the rule "a\u{1b}[31m.b" holds what"#),
        (&["policy", "deny", "224.0.0.1"], "is not the address of a host"),
        (&["policy", "rm", "a.b"], "no rule for all sandboxes is a.b; coracle policy ls lists them"),
        (&["policy", "rm", "pypi.org:443"], "what a preset allows is refused by coracle policy deny"),
        (&["policy", "rm", "--sandbox", "box", "a.b"], "sandbox box has no rule a.b"),
        (&["policy", "allow", "--sandbox", "bix", "a.b"], r#"no sandbox "bix"; did you mean box?"#),
        (&["policy", "check"], "check needs a host"),
        (&["policy", "check", "a b"], r#""a b" holds what"#),
        (&["policy", "ls", "--sandbox", "box", "box"], "give one"),
        (&["policy", "log", "nobody"], r#"no sandbox "nobody""#),
        (&["policy", "preset", "wide"], r#""wide" is not a preset; there are open, balanced and locked"#),
        (&["run", "--allow", "*", "shell"], r#"--allow: the rule "*" is one label only"#),
        (&["run", "--deny", "a.b,c d", "shell"], r#"--deny: the rule "c d" holds what"#),
        (&["run", "--allow", "", "shell"], r#"--allow: the rule "" is empty"#),
    ];
    for (args, part) in cases {
        refused(&home.run(args), part);
    }
    let mut rules: Vec<String> = (0..2001).map(|number| format!("x{number}.example")).collect();
    rules.splice(0..0, ["policy", "allow"].map(String::from));
    refused(&home.run(&rules), "a policy has 2000 rules at most");
    assert_eq!(home.snapshot(), before);
}

#[test]
fn rules_are_kept_listed_checked_and_taken_back() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    assert_eq!(home.run(["policy", "check", "pypi.org", "example.com:22"]).code, Some(1));
    assert!(!home.path(".config").exists(), "nothing is made by looking");

    good(&home, &["policy", "allow", "Example.com,*.example.org:443", "localhost:8080"]);
    good(&home, &["policy", "allow", "example.com"]);
    good(&home, &["policy", "allow", "network", "docker.example"]);
    good(&home, &["policy", "deny", "--sandbox", "box", "**.example.org"]);
    assert_eq!(fs::metadata(global(&home)).unwrap().permissions().mode() & 0o777, 0o600);
    expect![[r#"
        # Kept by coracle policy, which leaves no comments of yours when it changes this file.
        allow = [
            "example.com",
            "*.example.org:443",
            "localhost:8080",
            "docker.example",
        ]
    "#]]
    .assert_eq(&fs::read_to_string(global(&home)).unwrap());
    let count = gateway::policy::Preset::Balanced.rules().len().to_string();
    expect![[r#"
        VERDICT   RULE                OF
        deny      **.example.org      box
        allow     example.com         all
        allow     *.example.org:443   all
        allow     localhost:8080      all
        allow     docker.example      all
        allow     N rules             preset balanced
    "#]]
    .assert_eq(
        &good(&home, &["policy", "ls", "box"])
            .replace(&format!("{count} rules"), &format!("N rules{}", " ".repeat(count.len() - 1))),
    );
    let all: Value = serde_json::from_str(&good(&home, &["policy", "ls", "--all", "--json"])).unwrap();
    assert_eq!(all["preset"], "balanced");
    assert_eq!(
        all["rules"].as_array().unwrap().len().to_string(),
        (4 + count.parse::<usize>().unwrap()).to_string()
    );

    let check = |args: &[&str]| {
        let ran = home.run([&["policy", "check"], args].concat());
        (ran.code, ran.stdout().to_owned())
    };
    let (code, text) = check(&["a.example.org", "host.docker.internal:8080", "10.0.0.1", "--sandbox", "box"]);
    assert_eq!(code, Some(1));
    expect![[r#"
        Denied: a.example.org:443 (**.example.org, rule of this sandbox)
        Allowed: host.docker.internal:8080 (localhost:8080, rule for all sandboxes)
        Denied: 10.0.0.1:443 (10.0.0.1 is a private address, and no rule names it)
    "#]]
    .assert_eq(&text);
    assert_eq!(check(&["a.example.org"]).0, Some(0), "only box is denied that");
    let json: Value = serde_json::from_str(&check(&["pypi.org", "--json"]).1).unwrap();
    assert_eq!(json[0]["rule"], "pypi.org:443");
    assert_eq!(
        (&json[0]["allowed"], &json[0]["reason"]),
        (&Value::from(true), &Value::from("preset balanced"))
    );

    let ran = home.run(["policy", "deny", "example.com"]);
    assert_eq!((ran.code, check(&["example.com"]).0), (Some(0), Some(1)), "deny wins");
    let ran = home.run(["policy", "allow", "example.com"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("deny wins"), "{ran:?}");
    good(&home, &["policy", "rm", "example.com"]);
    assert_eq!(check(&["example.com"]).1, "Denied: example.com:443 (no rule allows it)\n");
}

#[test]
fn presets_are_chosen_and_shown() {
    let home = Home::new();
    home.sandbox("box", "0123456789ab");
    let allowed = |args: &[&str]| home.run([&["policy", "check"], args].concat()).code == Some(0);
    assert!(good(&home, &["policy", "preset"]).starts_with("# Preset balanced, the default"));
    assert!(allowed(&["pypi.org"]) && !allowed(&["example.com"]));
    good(&home, &["policy", "preset", "locked"]);
    assert!(!allowed(&["pypi.org"]));
    good(&home, &["policy", "preset", "--sandbox", "box", "allow-all"]);
    assert!(allowed(&["--sandbox", "box", "example.com"]) && !allowed(&["example.com"]));
    assert!(!allowed(&["--sandbox", "box", "192.168.0.1"]), "open is the open internet");
    assert!(good(&home, &["policy", "preset", "--sandbox", "box"]).starts_with("# Preset open"));
}

#[test]
fn commands_at_once_lose_nothing() {
    let home = Home::new();
    thread::scope(|scope| {
        for number in 0..12 {
            let home = &home;
            scope.spawn(move || good(home, &["policy", "allow", &format!("x{number}.example")]));
        }
    });
    let rules: Value = serde_json::from_str(&good(&home, &["policy", "ls", "--json"])).unwrap();
    assert_eq!(rules["rules"].as_array().unwrap().len(), 12);
}

#[test]
fn a_damaged_policy_is_named_and_left_alone() {
    let home = Home::new();
    fs::create_dir_all(global(&home).parent().unwrap()).unwrap();
    for text in ["allow = ['*']", "alow = []", "\u{1b}[31m", "allow = 7"] {
        fs::write(global(&home), text).unwrap();
        for args in [&["policy", "ls"][..], &["policy", "check", "pypi.org"], &["policy", "allow", "a.b"]] {
            refused(&home.run(args), "policy.toml cannot be used");
        }
        assert_eq!(fs::read_to_string(global(&home)).unwrap(), text);
        let ran = home.run(["doctor"]);
        let doctor = ran.stdout();
        assert!(doctor.contains("policy.toml cannot be used") && !doctor.contains('\u{1b}'), "{doctor}");
    }
    fs::write(global(&home), "preset = 'locked'\nallow = ['a.b']").unwrap();
    assert!(home.run(["doctor"]).stdout().contains("preset locked, 1 rules of your own"));
}

#[test]
fn a_sandbox_has_the_rules_that_run_gave_it() {
    let home = Home::new();
    let folder = home.sandbox("box", "0123456789ab");
    let ran = home.run(["run", "--name", "box", "--allow", "a.b,*.c.d", "--deny", "e.f", "shell"]);
    refused(
        &ran,
        r#"sandbox box has no rule --allow a.b; add it with coracle policy allow --sandbox box "a.b""#,
    );
    good(&home, &["policy", "allow", "--sandbox", "box", "a.b", "*.c.d"]);
    let ran = home.run(["run", "--name", "box", "--allow", "a.b,*.c.d", "--deny", "e.f", "shell"]);
    refused(&ran, "sandbox box has no rule --deny e.f; add it with coracle policy deny --sandbox box");
    let files = Files { global: global(&home), sandbox: Some(folder.join(NAME)) };
    assert!(Policy::load(&files).unwrap().decide_name(&Name::parse("x.c.d").unwrap()).allowed);
}

/// A log as a gateway writes it.
fn write_log(folder: &std::path::Path, hosts: &[&str]) {
    let files = Files { global: folder.join("none"), sandbox: None };
    let policy = Policy::load(&files).unwrap();
    let mut log = Log::open(folder);
    for host in hosts {
        let to = Destination::parse(host, 443).unwrap();
        log.record(&to, &policy.decide(&to));
        log.bytes(&to, 1024, 9 << 20);
    }
    log.flush().unwrap();
}

#[test]
fn the_log_says_what_was_reached_and_what_was_not() {
    let home = Home::new();
    let head = "SANDBOX   HOST   RULE   VERDICT   REASON   LAST   COUNT   BYTES\n";
    assert_eq!(good(&home, &["policy", "log"]), head);
    let folder = home.sandbox("box", "0123456789ab");
    home.sandbox("other", "0123456789ac");
    write_log(&folder, &["pypi.org", "evil.example", "169.254.169.254:80", "evil.example"]);
    let seconds = |text: String| {
        let ago = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ago.replace("1 second ago", "0 seconds ago")
    };
    let text = seconds(good(&home, &["policy", "log"]));
    for line in [
        "box pypi.org:443 pypi.org:443 allowed preset balanced 0 seconds ago 1 9.0 MiB",
        "box evil.example:443 - denied no rule allows it 0 seconds ago 2 0.0 KiB",
        "box 169.254.169.254:80 - denied 169.254.169.254 is a cloud's metadata service, and no rule names it 0 seconds",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json: Value =
        serde_json::from_str(&good(&home, &["policy", "log", "box", "--json", "--denied"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!((&json[1]["host"], &json[1]["count"]), (&Value::from("evil.example"), &Value::from(2)));
    assert_eq!(good(&home, &["policy", "log", "other"]), head);
}

#[test]
fn the_log_can_be_followed() {
    let home = Home::new();
    let folder = home.sandbox("box", "0123456789ab");
    write_log(&folder, &["pypi.org"]);
    let mut child = home.command(["policy", "log", "--follow", "--json"]).spawn().unwrap();
    let _watchdog = Watchdog::new(&child);
    let (send, receive) = mpsc::channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
    // It may not have looked yet; from its first look on, nothing is missed.
    let first = loop {
        write_log(&folder, &["evil.example"]);
        if let Ok(line) = receive.recv_timeout(Duration::from_millis(500)) {
            break line;
        }
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
    };
    let line: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&line["host"], &line["verdict"]), (&Value::from("evil.example"), &Value::from("denied")));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(receive);
    let _ = reader.join();
}

#[test]
fn help_teaches_the_rules() {
    let home = Home::new();
    expect_file!["help/policy.txt"].assert_eq(home.run(["help", "policy"]).stdout());
    assert_eq!(home.run(["policy", "--help"]).stdout, home.run(["help", "policy"]).stdout);
    for command in ["allow", "deny", "rm", "ls", "check", "log", "preset"] {
        assert_eq!(home.run(["policy", command, "--help"]).code, Some(0));
    }
}
