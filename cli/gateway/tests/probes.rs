//! Ways out of a sandbox that others have left open, tried on the decision alone: under the widest policy where that must not help,
//! under a narrow one where the trick is to seem what is allowed. Each must be refused.

use std::net::IpAddr;

use gateway::policy::{Destination, Host, Name, Policy, Preset, Rules};

fn policy(preset: Preset, allow: &[&str]) -> Policy {
    let allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
    Policy::new(&Rules { preset: Some(preset), allow, ..Rules::default() }, &Rules::default())
}

/// What a guest can ask for: not even understood, or understood and denied.
fn refused(policy: &Policy, host: &str, port: u16) -> bool {
    let Ok(host) = Host::parse(host) else { return true };
    if let Host::Name(name) = &host
        && is_resolved(policy, name)
    {
        return false;
    }
    !policy.decide(&Destination::new(host, port)).allowed
}

fn is_resolved(policy: &Policy, name: &Name) -> bool {
    policy.decide_name(name).allowed
}

/// Spellings of loopback, private and metadata addresses, and names of this machine.
const INSIDE: [&str; 56] = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "2130706433.",
    "017700000001",
    "0x7f000001",
    "0X7F000001",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f.1",
    "127.0.0.0x1",
    "127.000.000.001",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1\n",
    "127.0.0.1\0",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "0",
    "0.0.0.0",
    "0x",
    "a.0x",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "LocalHost.",
    "a.localhost",
    "a.b.localhost.",
    "host.coracle.internal",
    "HOST.coracle.internal.",
    "host.docker.internal",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "10.0.0.1",
    "172.31.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "198.18.0.1",
    "224.0.0.251",
    "255.255.255.255",
    "240.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::FFFF:a9fe:a9fe",
    "0:0:0:0:0:ffff:10.0.0.1",
    "[::1]",
    "::1%lo",
];

const INSIDE_V6: [&str; 26] = [
    "::",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::10.0.0.1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "2002:c0a8:101::1",
    "2001:0:7f00:1::",
    "2001::1",
    "2001:10::1",
    "2001:db8::1",
    "100::1",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    "ff02::fb",
    "ff0e::1",
];

/// What seems to be example.com, or below example.org, and is not.
const LOOKALIKES: [&str; 42] = [
    "evilexample.com",
    "example.com.evil",
    "example.comx",
    "example.co",
    "xample.com",
    "www.example.com",
    "example.com..",
    ".example.com",
    "example..com",
    "example.com\0",
    "evil.net\0.example.org",
    "evil.net\0example.com",
    "example.com\r\n",
    "example.com\nevil.net",
    "example.com\tevil.net",
    "example.com evil.net",
    " example.com",
    "example.com ",
    "evil.net#.example.org",
    "evil.net?.example.org",
    "evil.net/.example.org",
    "evil.net\\.example.org",
    "evil.net%2f.example.org",
    "evil.net%00.example.org",
    "example%2ecom",
    "example.com@evil.net",
    "user:password@example.com",
    "evil.net:443.example.org",
    "example.com:443@evil.net",
    "http://example.com",
    "//example.com",
    "examp1e.com",
    "exаmple.com",
    "xn--exmple-4nf.com",
    "ｅｘａｍｐｌｅ.com",
    "example。com",
    "example\u{ad}.com",
    "example\u{200b}.com",
    "*.example.org",
    "**.example.org",
    "example.org",
    "-.example.org",
];

#[test]
fn nothing_inside_is_reached_by_any_spelling() {
    let open = policy(Preset::Open, &["0.0.0.0/0", "::/0", "**", "169.254.0.0/16", "example.com"]);
    // 169.254.0.0/16 is allowed, and opens no metadata service; nothing here is another of its addresses.
    for host in INSIDE.iter().chain(&INSIDE_V6) {
        for port in [0, 22, 53, 80, 443, 853, 2375, 65535] {
            assert!(refused(&open, host, port), "{host:?}:{port}");
        }
    }
}

#[test]
fn nothing_inside_is_reached_by_a_name_that_leads_there() {
    let open = policy(Preset::Open, &["0.0.0.0/0", "::/0", "example.com", "localhost:8080"]);
    let addresses = INSIDE.iter().chain(&INSIDE_V6).filter_map(|it| it.parse::<IpAddr>().ok());
    let addresses: Vec<_> = addresses.collect();
    assert!(addresses.len() >= 40);
    for addr in addresses {
        for port in [80, 443, 8080] {
            let to = Destination::new(Host::parse("example.com").unwrap(), port);
            assert!(open.decide(&to).allowed, "the name is allowed");
            assert!(!open.may_reach(&to, addr).allowed, "example.com:{port} at {addr}");
        }
        // What was checked is what is connected to.
        let public = Destination::new(Host::parse("8.8.8.8").unwrap(), 443);
        assert!(!open.may_reach(&public, addr).allowed, "8.8.8.8 at {addr}");
    }
}

#[test]
fn nothing_passes_for_what_is_allowed() {
    let narrow = policy(Preset::Locked, &["example.com", "*.example.org"]);
    assert!(
        !refused(&narrow, "EXAMPLE.COM.", 443) && !refused(&narrow, "a.example.org", 443),
        "these are allowed"
    );
    for host in LOOKALIKES {
        assert!(refused(&narrow, host, 443), "{host:?}");
    }
    let long = format!("{}.example.org", "a".repeat(64));
    let longer = format!("{}example.org", "a.".repeat(121));
    for host in [long, longer, format!("{}\0.example.org", "a".repeat(300))] {
        assert!(refused(&narrow, &host, 443), "{host:?}");
    }
    // Data in labels: no depth that a rule did not ask for, so no label but one is free.
    assert!(refused(&narrow, "c2VjcmV0.c2VjcmV0.example.org", 53));
}

#[test]
fn no_list_means_nothing() {
    for empty in [policy(Preset::Locked, &[]), Policy::default(), Policy::closed(&anyhow::anyhow!("damaged"))]
    {
        for host in
            ["example.com", "github.com", "8.8.8.8", "1.1.1.1", "2606:4700::1111", "host.coracle.internal"]
        {
            assert!(refused(&empty, host, 443), "{host}");
        }
    }
}

#[test]
fn balanced_has_no_resolver_and_no_bucket() {
    let balanced = policy(Preset::Balanced, &[]);
    let hosts = [
        "1.1.1.1",
        "8.8.8.8",
        "9.9.9.9",
        "dns.google",
        "cloudflare-dns.com",
        "one.one.one.one",
        "gist.github.com",
        "gist.githubusercontent.com",
        "pages.github.io",
        "pastebin.com",
        "transfer.sh",
        "webhook.site",
        "evil.ngrok.io",
        "evil.s3.amazonaws.com",
        "evil.cloudfront.net",
        "storage.googleapis.com",
        "evil.blob.core.windows.net",
        "evil.r2.cloudflarestorage.com",
        "metadata.google.internal",
        "www.googleapis.com",
    ];
    for host in hosts {
        for port in [22, 53, 80, 443, 853] {
            assert!(refused(&balanced, host, port), "{host}:{port}");
        }
    }
}
