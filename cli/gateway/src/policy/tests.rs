//! Which destinations rules are about, who wins, and what no rule opens by accident.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;

fn list(text: &str) -> Vec<Rule> {
    text.split_whitespace()
        .map(|rule| rule.parse().unwrap_or_else(|error| panic!("{rule} {error}")))
        .collect()
}

/// A policy of these rules alone.
fn policy(allow: &str, deny: &str) -> Policy {
    let rules = Rules { preset: Some(Preset::Locked), allow: list(allow), deny: list(deny) };
    Policy::new(&Rules::default(), &rules)
}

fn to(text: &str) -> Destination {
    Destination::parse(text, 443).unwrap_or_else(|error| panic!("{text} {error}"))
}

// What is allowed, what is denied, what is to be reached, and whether it may be.
const PRECEDENCE: &[(&str, &str, &str, bool)] = &[
    ("", "", "example.com", false),
    ("example.com", "", "example.com", true),
    ("example.com", "", "EXAMPLE.com.", true),
    ("EXAMPLE.com.", "", "example.com", true),
    ("example.com", "", "example.com:80", true),
    ("example.com", "", "www.example.com", false),
    ("example.com", "", "evilexample.com", false),
    ("example.com", "", "example.com.evil", false),
    ("example.com", "", "example.co", false),
    ("example.com:443", "", "example.com", true),
    ("example.com:443", "", "example.com:80", false),
    ("*.example.com", "", "www.example.com", true),
    ("*.example.com", "", "a.b.example.com", false),
    ("*.example.com", "", "example.com", false),
    ("*.example.com", "", "evilexample.com", false),
    ("**.example.com", "", "www.example.com", true),
    ("**.example.com", "", "a.b.c.example.com", true),
    ("**.example.com", "", "example.com", false),
    ("**.example.com", "", "evilexample.com", false),
    ("**.example.com:22", "", "a.example.com:22", true),
    ("**.example.com:22", "", "a.example.com", false),
    ("**", "", "example.com", true),
    ("**", "", "example.com:1", true),
    ("**", "", "1.1.1.1", true),
    ("**", "", "[2606:4700::1111]:443", true),
    ("**:443", "", "example.com", true),
    ("**:443", "", "example.com:80", false),
    ("**", "", "10.0.0.1", false),
    ("**", "", "169.254.169.254", false),
    ("**", "", "host.coracle.internal:80", false),
    ("**", "", "host.docker.internal:80", false),
    ("**", "", "localhost:80", false),
    ("**", "", "a.localhost:80", false),
    ("**.internal", "", "host.coracle.internal:80", false),
    ("*.coracle.internal", "", "host.coracle.internal:80", false),
    ("localhost:80", "", "host.coracle.internal:80", true),
    ("localhost:80", "", "host.docker.internal:80", true),
    ("localhost:80", "", "host.coracle.internal:81", false),
    ("localhost:80", "", "localhost:80", false),
    ("localhost:80", "", "127.0.0.1:80", false),
    ("host.docker.internal:80", "", "host.coracle.internal:80", true),
    ("1.1.1.1", "", "1.1.1.1", true),
    ("1.1.1.1", "", "1.1.1.2", false),
    ("1.1.1.1", "", "[::ffff:1.1.1.1]:443", true),
    ("1.1.1.1:443", "", "1.1.1.1:80", false),
    ("1.1.0.0/16", "", "1.1.255.1", true),
    ("1.1.0.0/16:443", "", "1.1.255.1:80", false),
    ("0.0.0.0/0", "", "1.1.1.1", true),
    ("0.0.0.0/0", "", "10.0.0.1", false),
    ("0.0.0.0/0", "", "example.com", false),
    ("::/0", "", "[2606:4700::1111]:443", true),
    ("::/0", "", "1.1.1.1", false),
    ("10.0.0.0/8", "", "10.1.2.3", true),
    ("10.0.0.0/7", "", "10.1.2.3", false),
    ("10.1.2.3", "", "10.1.2.3", true),
    ("10.1.2.3:22", "", "10.1.2.3", false),
    ("169.254.0.0/16", "", "169.254.1.1", true),
    ("169.254.0.0/16", "", "169.254.169.254", false),
    ("169.254.169.254:80", "", "169.254.169.254:80", true),
    ("fc00::/7", "", "[fd12::1]:443", true),
    ("fc00::/7", "", "[fd00:ec2::254]:443", false),
    ("64:ff9b::/96", "", "[64:ff9b::7f00:1]:443", true),
    ("2000::/3", "", "[64:ff9b::7f00:1]:443", false),
    ("example.com", "example.com", "example.com", false),
    ("example.com", "example.com:80", "example.com", true),
    ("example.com", "example.com:443", "example.com", false),
    ("**", "example.com", "example.com", false),
    ("**", "example.com", "www.example.com", true),
    ("www.example.com", "**.example.com", "www.example.com", false),
    ("www.example.com", "*.example.com:443", "www.example.com", false),
    ("www.example.com", "**", "www.example.com", false),
    ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", false),
    ("10.0.0.0/8", "10.1.0.0/16", "10.2.2.3", true),
    ("10.0.0.0/8", "**", "10.2.2.3", false),
    ("10.0.0.0/8", "0.0.0.0/0", "10.2.2.3", false),
    ("localhost:80", "localhost:80", "host.coracle.internal:80", false),
    ("localhost:80", "**", "host.coracle.internal:80", false),
];

#[test]
fn precedence() {
    for &(allow, deny, target, allowed) in PRECEDENCE {
        let decision = policy(allow, deny).decide(&to(target));
        assert_eq!(decision.allowed, allowed, "allow {allow:?}, deny {deny:?}: {target}, {decision:?}");
        assert!(!decision.allowed || decision.rule.is_some(), "it names its rule");
    }
}

#[test]
fn an_address_of_this_machine_needs_a_rule_for_it_alone() {
    let own = "45.0.0.7".parse().unwrap();
    for (allow, target, allowed) in [
        ("**", "45.0.0.7:80", false),
        ("**", "a.example:80", false),
        ("45.0.0.0/24", "45.0.0.7:80", false),
        ("45.0.0.7:81", "45.0.0.7:80", false),
        ("45.0.0.7", "45.0.0.7:80", true),
        ("a.example 45.0.0.7:80", "a.example:80", true),
    ] {
        let decision = policy(allow, "").may_reach_own(&to(target), own);
        assert_eq!(decision.allowed, allowed, "{allow} {target}: {decision:?}");
    }
    // A private one has needed its rule before, which may be for its network.
    let private = "10.0.0.7".parse().unwrap();
    assert!(policy("10.0.0.0/8", "").may_reach_own(&to("10.0.0.7:80"), private).allowed);
}

#[test]
fn what_a_name_leads_to() {
    let cases = [
        ("a.example", "", "1.1.1.1", true),
        ("a.example", "", "10.0.0.1", false),
        ("a.example 10.0.0.1", "", "10.0.0.1", true),
        ("a.example 10.0.0.1:443", "", "10.0.0.1", true),
        ("a.example 10.0.0.1:80", "", "10.0.0.1", false),
        ("a.example 10.0.0.1", "10.0.0.0/8", "10.0.0.1", false),
        ("a.example", "1.1.1.0/24", "1.1.1.1", false),
        ("a.example", "1.1.1.0/24:80", "1.1.1.1", true),
        ("10.0.0.1", "", "10.0.0.1", false),
        ("a.example", "", "127.0.0.1", false),
        ("a.example 127.0.0.0/8:443", "", "127.0.0.1", true),
        ("a.example localhost:443", "", "127.0.0.1", false),
        ("a.example ::/0 0.0.0.0/0", "", "::1", false),
        ("a.example ::/0 0.0.0.0/0", "", "127.0.0.1", false),
        ("a.example", "", "::ffff:127.0.0.1", false),
        ("a.example", "", "::ffff:1.1.1.1", true),
        ("** 0.0.0.0/0 ::/0", "", "169.254.169.254", false),
        ("** 0.0.0.0/0 ::/0", "", "0.0.0.0", false),
        ("** 0.0.0.0/0 ::/0", "", "224.0.0.1", false),
        ("** 0.0.0.0/0 ::/0", "", "255.255.255.255", false),
        ("** 0.0.0.0/0 ::/0", "", "fe80::1", false),
        ("** 0.0.0.0/0 ::/0", "", "::", false),
        ("** 0.0.0.0/0 ::/0", "", "ff02::1", false),
    ];
    for (allow, deny, addr, allowed) in cases {
        let decision = policy(allow, deny).may_reach(&to("a.example"), addr.parse().unwrap());
        assert_eq!(decision.allowed, allowed, "allow {allow:?}, deny {deny:?}: {addr}, {decision:?}");
    }
    let open = policy("localhost:80 1.1.1.1", "");
    let reach = |target: &str, addr: &str| open.may_reach(&to(target), addr.parse().unwrap()).allowed;
    assert!(reach("host.coracle.internal:80", "127.0.0.1") && reach("host.coracle.internal:80", "::1"));
    assert!(!reach("host.coracle.internal:80", "1.1.1.1"), "this machine is nowhere else");
    assert!(!reach("host.coracle.internal:81", "127.0.0.1"));
    let closed = policy("localhost:80", "127.0.0.0/8");
    assert!(!closed.may_reach(&to("host.coracle.internal:80"), "127.0.0.1".parse().unwrap()).allowed);
    assert!(reach("1.1.1.1", "1.1.1.1") && !reach("1.1.1.1", "1.1.1.2"));
}

#[test]
fn names_that_may_be_asked_for() {
    let cases = [
        ("", "", false),
        ("a.example", "", true),
        ("a.example:22", "", true),
        ("a.example", "a.example:443", true),
        ("a.example:443", "a.example:443", false),
        ("a.example:443 a.example:22", "a.example:443", true),
        ("a.example:443 a.example", "a.example:443", true),
        ("a.example:443", "**.example", false),
        ("b.example", "", false),
        ("10.0.0.0/8", "", false),
    ];
    for (allow, deny, allowed) in cases {
        let decision = policy(allow, deny).decide_name(&Name::parse("a.example").unwrap());
        assert_eq!(decision.allowed, allowed, "allow {allow:?}, deny {deny:?}: {decision:?}");
    }
    assert!(!policy("**", "").decide_name(&Name::parse("localhost").unwrap()).allowed);
    assert!(policy("localhost:1", "").decide_name(&Name::parse("host.coracle.internal").unwrap()).allowed);
}

#[test]
fn addresses_and_their_ranges() {
    let public = [
        "1.1.1.1",
        "8.8.8.8",
        "172.32.0.1",
        "100.128.0.1",
        "198.20.0.1",
        "223.255.255.255",
        "2606:4700::1",
        "2001:4860::1",
    ];
    for addr in public {
        assert_eq!(special(addr.parse().unwrap()), None, "{addr}");
    }
    let cases = [
        ("0.0.0.0", Kind::NoHost),
        ("0.1.2.3", Kind::NoHost),
        ("10.255.255.255", Kind::Private),
        ("100.64.0.1", Kind::Shared),
        ("100.100.100.200", Kind::Metadata),
        ("127.255.255.255", Kind::Loopback),
        ("168.63.129.16", Kind::Metadata),
        ("169.254.1.1", Kind::LinkLocal),
        ("169.254.169.254", Kind::Metadata),
        ("172.31.255.255", Kind::Private),
        ("192.0.0.192", Kind::Metadata),
        ("192.0.2.1", Kind::Reserved),
        ("192.168.0.1", Kind::Private),
        ("198.19.255.255", Kind::Reserved),
        ("203.0.113.1", Kind::Reserved),
        ("224.0.0.251", Kind::NoHost),
        ("239.255.255.255", Kind::NoHost),
        ("240.0.0.1", Kind::Reserved),
        ("255.255.255.255", Kind::NoHost),
        ("::", Kind::NoHost),
        ("::1", Kind::Loopback),
        ("::7f00:1", Kind::Translated),
        ("64:ff9b::a9fe:a9fe", Kind::Translated),
        ("64:ff9b:1::1", Kind::Translated),
        ("100::1", Kind::Reserved),
        ("2001::1", Kind::Translated),
        ("2001:20::1", Kind::Reserved),
        ("2001:db8::1", Kind::Reserved),
        ("2002:7f00:1::", Kind::Translated),
        ("3fff::1", Kind::Reserved),
        ("4000::1", Kind::Reserved),
        ("9000::1", Kind::Reserved),
        ("fc00::1", Kind::Private),
        ("fd00:ec2::254", Kind::Metadata),
        ("fe80::1", Kind::LinkLocal),
        ("fec0::1", Kind::Private),
        ("ff02::1", Kind::NoHost),
    ];
    for (addr, kind) in cases {
        assert_eq!(special(addr.parse().unwrap()).map(|it| it.kind), Some(kind), "{addr}");
    }
}

#[test]
fn bad_rules_are_refused_with_a_remedy() {
    let cases = [
        ("", "is empty"),
        (" ", "holds what a host's name cannot"),
        ("*", "write ** for every host"),
        ("*.", "is empty"),
        ("**.", "is empty"),
        ("*.*.com", "holds what"),
        ("a*.com", "it can only be the first part"),
        ("***", "it can only be the first part"),
        ("a.**.com", "it can only be the first part"),
        (".example.com", "write *.NAME"),
        ("a..b", "empty part"),
        ("-a.example", "begins or ends with a hyphen"),
        ("example.com..", "empty part"),
        ("example.com:0", "not a number from 1 to 65535"),
        ("example.com:65536", "not a number from 1 to 65535"),
        ("example.com:443-80", "not a number from 1 to 65535"),
        ("example.com:*", "not a number from 1 to 65535"),
        ("example.com:", "not a number from 1 to 65535"),
        ("example.com:+1", "not a number from 1 to 65535"),
        ("example.com:0443", "not a number from 1 to 65535"),
        ("https://example.com/x", "is a URL; write its host alone"),
        ("example.com/x", "has a path"),
        ("me@example.com", "holds what"),
        ("exämple.com", "xn--"),
        ("example.com\n", "holds what"),
        ("example\0.com", "holds what"),
        ("example%2ecom", "holds what"),
        ("under_score.com", "holds what"),
        ("2130706433", "looks like a number"),
        ("0177.0.0.1", "looks like a number"),
        ("127.1", "looks like a number"),
        ("0x7f.0.0.1", "looks like a number"),
        ("a.0x7f", "looks like a number"),
        ("10.0.0.0/33", "wrong number of bits"),
        ("10.0.0.0/08", "wrong number of bits"),
        ("10.0.0.0/", "wrong number of bits"),
        ("10.0.0.0/-1", "wrong number of bits"),
        ("::/129", "wrong number of bits"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("::ffff:10.0.0.1", "write it as an IPv4 address"),
        ("fe80::1%eth0", "holds what"),
        ("[10.0.0.1]:80", "brackets around what is not an IPv6"),
        ("[::1", "no closing bracket"),
        ("[::1]80", "behind its bracket"),
        ("localhost", "name the port"),
        ("host.coracle.internal", "name the port"),
        ("0.0.0.0", "not the address of a host"),
        ("224.0.0.0/4", "not the address of a host"),
        ("ff02::1", "not the address of a host"),
    ];
    for (rule, words) in cases {
        match rule.parse::<Rule>() {
            Ok(parsed) => panic!("{rule:?} is {parsed}"),
            Err(error) => assert!(error.contains(words), "{rule:?} {error}"),
        }
    }
    assert!("x".repeat(301).parse::<Rule>().is_err());
    assert!("a.".repeat(127).parse::<Rule>().is_ok(), "253 characters and the final dot");
    assert!(format!("{}ab", "a.".repeat(126)).parse::<Rule>().is_err(), "254 characters");
}

#[test]
fn rules_are_written_as_they_are_read() {
    for rule in [
        "**",
        "**:443",
        "a.b",
        "a.b:1",
        "*.b",
        "**.b:65535",
        "1.2.3.4",
        "1.2.3.4:5",
        "1.2.3.0/24",
        "1.2.3.0/24:5",
    ] {
        assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
    }
    for rule in
        ["localhost:80", "2001:db8::1", "[2001:db8::1]:443", "2001:db8::/32", "[2001:db8::/32]:443", "::/0"]
    {
        assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
    }
    assert_eq!(parse_list("A.b,c.D:1").unwrap(), list("a.b c.d:1"));
    assert_eq!(parse_list("a.b,,c").unwrap_err(), ("", "is empty; write a host such as example.com".into()));
}

#[test]
fn presets() {
    for preset in Preset::ALL {
        let lines = preset.text().lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let lines: Vec<_> = lines.collect();
        let rules: Vec<_> = preset.rules().iter().map(Rule::to_string).collect();
        assert_eq!(rules, lines, "each line is a rule in its one form");
        let mut once = rules.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), rules.len(), "{} has none twice", preset.name());
        assert_eq!(Preset::parse(preset.name()), Some(preset));
    }
    let balanced = Policy::new(&Rules::default(), &Rules::default());
    for host in [
        "api.anthropic.com",
        "registry.npmjs.org",
        "pypi.org",
        "github.com:22",
        "deb.debian.org:80",
        "auth.docker.io",
    ] {
        assert!(balanced.decide(&to(host)).allowed, "{host}");
    }
    for host in [
        "example.com",
        "registry.npmjs.org:80",
        "gist.github.com",
        "evil.cloudfront.net",
        "1.1.1.1",
        "10.0.0.1",
    ] {
        assert!(!balanced.decide(&to(host)).allowed, "{host}");
    }
    let wide = Preset::Balanced.rules().iter().map(Rule::to_string).find(|rule| {
        rule.starts_with('*') && rule.split(':').next().unwrap_or_default().split('.').count() < 3
    });
    assert_eq!(wide, None, "no wildcard below a top level domain");
}

#[test]
fn a_file_that_is_wrong_closes_everything() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files { global: folder.path().join(NAME), sandbox: None };
    assert!(Policy::load(&files).unwrap().decide(&to("pypi.org")).allowed, "no file: balanced");
    let texts = [
        "x",
        "allow = 1",
        "allow = ['*']",
        "other = 1",
        "preset = 'wide'",
        "[allow]\na = 1",
        "allow = ['a.b'",
        "\0",
    ];
    for text in texts {
        fs::write(&files.global, text).unwrap();
        let error = Policy::load(&files).unwrap_err();
        let decision = Policy::closed(&error).decide(&to("pypi.org"));
        assert!(
            !decision.allowed && decision.reason.to_string().contains("policy.toml"),
            "{text:?} {decision:?}"
        );
    }
    fs::write(&files.global, "").unwrap();
    assert!(Policy::load(&files).unwrap().decide(&to("pypi.org")).allowed);
    fs::set_permissions(&files.global, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(format!("{:#}", Policy::load(&files).unwrap_err()).contains("chmod go-w"));
    fs::remove_file(&files.global).unwrap();
    std::os::unix::fs::symlink("/dev/null", &files.global).unwrap();
    assert!(format!("{:#}", Policy::load(&files).unwrap_err()).contains("symbolic link"));
    fs::remove_file(&files.global).unwrap();
    fs::create_dir(&files.global).unwrap();
    assert!(Policy::load(&files).is_err());
}

#[test]
fn edits_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/coracle").join(NAME);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let path = &path;
            scope.spawn(move || {
                for number in 0..10 {
                    let rules = list(&format!("x{thread}-{number}.example"));
                    edit(path, |all| Ok(Rules::add(&mut all.allow, &rules))).unwrap();
                }
            });
        }
    });
    let rules = Rules::read(&path).unwrap().unwrap();
    assert_eq!(rules.allow.len(), 80);
    assert_eq!(Rules::parse(&rules.text()).unwrap(), rules);
    assert!(!edit(&path, |all| Ok(Rules::add(&mut all.allow, &list("x0-0.example")))).unwrap());
}

#[test]
fn changes_are_heard() {
    let folder = tempfile::tempdir().unwrap();
    let files =
        Files { global: folder.path().join("not/yet").join(NAME), sandbox: Some(folder.path().join(NAME)) };
    let mut watch = files.watch().unwrap();
    assert!(!watch.changed());
    let allow = |path: &std::path::Path, rule: &str| {
        edit(path, |all| Ok(Rules::add(&mut all.allow, &list(rule)))).unwrap();
    };
    let heard = |watch: &mut Watch| {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let deadline = Instant::now() + Duration::from_secs(10);
        while !watch.changed() {
            assert!(Instant::now() < deadline, "nothing is heard");
            let second = Timespec { tv_sec: 10, tv_nsec: 0 };
            poll(&mut [PollFd::new(&*watch, PollFlags::IN)], Some(&second)).unwrap();
        }
    };
    for path in [files.sandbox.clone().unwrap(), files.global.clone()] {
        for rule in ["a.example", "b.example"] {
            allow(&path, rule);
            heard(&mut watch);
            assert!(Policy::load(&files).unwrap().decide(&to(rule)).allowed);
        }
    }
    fs::remove_dir_all(folder.path().join("not")).unwrap();
    heard(&mut watch);
    allow(&files.global, "c.example");
    heard(&mut watch);
}
