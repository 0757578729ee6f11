//! The IPv4 addresses of this machine, as its kernel has them. It owns how they are found. Connections of the guest's are IPv4 only.

use std::fs;
use std::net::Ipv4Addr;

/// What this network namespace has; nothing where the kernel does not say.
pub fn addresses() -> Vec<Ipv4Addr> {
    parse(&fs::read_to_string("/proc/net/fib_trie").unwrap_or_default())
}

/// Linux net/ipv4/fib_trie.c, `fib_trie_seq_show`: a leaf is `|-- ADDRESS`, and below it are its prefixes with scope and type.
fn parse(trie: &str) -> Vec<Ipv4Addr> {
    let mut leaf = None;
    let mut found = Vec::new();
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.filter(|it| !found.contains(it)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_and_networks_are_not() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 127.0.0.0/8 2 0 2\n        \
            |-- 127.0.0.0\n           /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n     |-- 45.0.0.7\n        \
            /32 host LOCAL\n     |-- 45.0.0.255\n        /32 link BROADCAST\nLocal:\n     |-- 45.0.0.7\n        /32 host LOCAL\n";
        assert_eq!(parse(trie), [Ipv4Addr::LOCALHOST, Ipv4Addr::new(45, 0, 0, 7)]);
        assert!(parse("").is_empty() && parse("/32 host LOCAL\n|-- x\n/32 host LOCAL").is_empty());
        assert!(addresses().contains(&Ipv4Addr::LOCALHOST), "of this machine");
    }
}
