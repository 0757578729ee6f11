//! What decides over a guest's destinations: names and rules, whoever wrote them, and a policy's file.

use std::net::IpAddr;

use gateway::policy::{Destination, Host, Name, Policy, Preset, Rule, Rules, special};

/// A name is in its one form, no resolver's number, and is matched by the rule of the same text alone.
pub fn policy_name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(to) = Destination::parse(text, 443) else { return };
    let again = Destination::parse(&to.to_string(), 1).expect("it is written as it is read");
    assert_eq!(again, to);
    let open = Rules { preset: Some(Preset::Open), ..Rules::default() };
    let decision = Policy::new(&open, &Rules::default()).decide(&to);
    match &to.host {
        Host::Name(name) => {
            let text = name.as_str();
            assert!(text.bytes().all(|it| matches!(it, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')), "{text}");
            assert!(text.len() <= 253 && !text.ends_with('.') && text.parse::<IpAddr>().is_err(), "{text}");
            assert_eq!(Name::parse(text).as_ref(), Ok(name));
        }
        Host::Addr(addr) => assert_eq!(decision.allowed, special(*addr).is_none(), "{addr}"),
    }
}

/// A rule is written as it is read, and one without a port says more than one with it.
pub fn policy_rule(input: &[u8]) {
    let (cut, rest) = input.split_first().unwrap_or((&0, &[]));
    let (rule, host) = rest.split_at(usize::from(*cut).min(rest.len()));
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let Some(Ok(rule)) = text(rule).map(str::parse::<Rule>) else { return };
    assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule));
    let Some(Ok(to)) = text(host).map(|host| Destination::parse(host, 443)) else { return };
    assert!(!rule.matches(&to) || rule.matches_host(&to.host));
    let with = |allow: &[&Rule], deny: &[&Rule]| {
        let list = |rules: &[&Rule]| rules.iter().copied().cloned().collect();
        let own = Rules { preset: Some(Preset::Locked), allow: list(allow), deny: list(deny) };
        Policy::new(&own, &Rules::default())
    };
    let allowed = with(&[&rule], &[]).decide(&to).allowed;
    assert!(!allowed || rule.matches(&to), "what a rule allows, it is about");
    assert!(!with(&[&rule], &[&rule]).decide(&to).allowed, "deny wins");
    if let Host::Name(name) = &to.host {
        assert!(
            !allowed || with(&[&rule], &[]).decide_name(name).allowed,
            "what is reached can be asked for"
        );
    }
}

/// A file that is a policy is the same when it is written and read again.
pub fn policy_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(rules) = Rules::parse(text) else { return };
    assert_eq!(Rules::parse(&rules.text()).expect("it was written by us"), rules);
}

pub fn policy_name_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "www.example.com:22",
        "EXAMPLE.com.",
        "127.0.0.1",
        "[::ffff:10.0.0.1]:80",
        "0x7f.1",
        "xn--bcher-kva.example",
    ];
    seeds.map(|it| it.as_bytes().to_vec()).to_vec()
}

pub fn policy_rule_seeds() -> Vec<Vec<u8>> {
    let pairs = [
        ("**.example.com:22", "a.b.example.com:22"),
        ("*.b.c", "a.b.c"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("[2001:db8::/32]:443", "[2001:db8::1]:443"),
        ("localhost:443", "host.coracle.internal"),
        ("**", "1.1.1.1"),
    ];
    let seed = |(rule, host): (&str, &str)| [&[rule.len() as u8], rule.as_bytes(), host.as_bytes()].concat();
    pairs.map(seed).to_vec()
}

pub fn policy_file_seeds() -> Vec<Vec<u8>> {
    let files = [
        "preset = \"open\"\nallow = [\"a.b\", \"10.0.0.0/8:22\"]\ndeny = ['**']\n",
        "allow = []",
        "# none\r\n",
    ];
    files.map(|it| it.as_bytes().to_vec()).to_vec()
}
