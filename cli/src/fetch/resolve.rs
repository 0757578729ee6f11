//! Names to addresses, by asking the host's own resolver through `getent ahosts`. This program cannot call it itself: a
//! static glibc would load the build machine's NSS modules. A resolver of our own over /etc/resolv.conf would know
//! neither those (mDNS, VPNs, systemd-resolved, a directory's hosts) nor the order that nsswitch.conf wants; and every
//! libc that there is comes with getent, musl's as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway::resolve::parse;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::transport::NextTimeout;

use super::client::is_loopback_host;
use crate::program;
use crate::text::quoted;

/// Two servers that do not answer, each asked twice for 5 s, as resolv.conf(5) has it by default.
const TIMEOUT: Duration = Duration::from_secs(21);
const ANSWER_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct Resolver;

impl ureq::unversioned::resolver::Resolver for Resolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses = addresses(host).map_err(|error| ureq::Error::Other(error.into()))?;
        let mut resolved = self.empty();
        for address in addresses {
            resolved.push(SocketAddr::new(address, port));
        }
        Ok(resolved)
    }
}

/// The addresses of a host as it stands in a URL, the best one first. `localhost` is this machine whatever others say.
fn addresses(host: &str) -> Result<Vec<IpAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    if is_loopback_host(host) {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    ensure!(
        host.bytes().all(is_name) && !host.starts_with('-'),
        "{} is not the name of a host",
        quoted(host)
    );
    let (status, answer) =
        program::ask(Command::new("getent").args(["ahosts", host]), b"", ANSWER_MAX, TIMEOUT).with_context(
            || format!("ask for the address of {host} by getent, a program of the C library"),
        )?;
    let addresses = parse(&String::from_utf8_lossy(&answer));
    ensure!(
        status.success() && !addresses.is_empty(),
        "the address of {host} is not known; check the name and the network (getent ahosts {host})"
    );
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_libcs_are_understood() {
        let glibc = "2001:db8::1     STREAM example.org\n2001:db8::1     DGRAM  \n192.0.2.1       STREAM \nfe80::1%eth0 STREAM\n";
        assert_eq!(parse(glibc), ["2001:db8::1", "192.0.2.1"].map(|it| it.parse::<IpAddr>().unwrap()));
        let musl = "192.0.2.1           example.org\n";
        assert_eq!(parse(musl), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(parse("\n\n\u{0} x\n").is_empty());
    }

    #[test]
    fn what_needs_no_question_is_not_asked() {
        assert_eq!(addresses("[::1]").unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
        assert_eq!(addresses("192.0.2.7").unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses("LocalHost").unwrap().len(), 2);
        for bad in ["", "-h", "a b", "$(id)", "x.invalid"] {
            assert!(addresses(bad).is_err(), "{bad:?}");
        }
    }
}
