//! The services that are known: where each is, and how it is told who asks.
//! It owns this table and nothing else; a secret for any other host says the same of itself (see `store`).

/// A service.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    pub hosts: &'static [Host],
    /// Kinds of its secrets; the first whose prefix fits counts, and the last fits all.
    pub kinds: &'static [Kind],
    /// Parameters of addresses that log somebody in, besides those that do at every service.
    pub query: &'static [&'static str],
}

/// One of a service's hosts, on port 443.
#[derive(Debug)]
pub struct Host {
    pub name: &'static str,
    /// Of the header, in place of the kind's.
    pub format: Option<Format>,
    /// Whether cookies log somebody in.
    pub cookies: bool,
}

/// How a secret becomes a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Bearer,
    /// RFC 7617 "The 'Basic' HTTP Authentication Scheme", with this user.
    Basic(&'static str),
}

#[derive(Debug)]
pub struct Kind {
    pub prefix: &'static str,
    pub header: &'static str,
    pub format: Format,
    /// Where a caller may have it.
    pub from: &'static [&'static str],
    /// What the guest has set, to the placeholder.
    pub guest: &'static [&'static str],
    /// Shaped like a secret of the kind, as some programs look at that; always the same, as some remember what they asked about.
    pub placeholder: &'static str,
}

const fn host(name: &'static str) -> Host {
    Host { name, format: None, cookies: false }
}

pub static SERVICES: [Service; 4] = [
    Service {
        name: "anthropic",
        hosts: &[host("api.anthropic.com")],
        kinds: &[
            Kind {
                prefix: "sk-ant-oat",
                header: "authorization",
                format: Format::Bearer,
                from: &["CLAUDE_CODE_OAUTH_TOKEN"],
                guest: &["CLAUDE_CODE_OAUTH_TOKEN"],
                placeholder: "sk-ant-oat01-coracle-placeholder",
            },
            Kind {
                prefix: "",
                header: "x-api-key",
                format: Format::Plain,
                from: &["ANTHROPIC_API_KEY"],
                guest: &["ANTHROPIC_API_KEY"],
                placeholder: "sk-ant-api03-coracle-placeholder",
            },
        ],
        query: &[],
    },
    Service {
        name: "openai",
        hosts: &[host("api.openai.com")],
        kinds: &[Kind {
            prefix: "",
            header: "authorization",
            format: Format::Bearer,
            from: &["OPENAI_API_KEY"],
            guest: &["OPENAI_API_KEY", "CODEX_API_KEY"],
            placeholder: "sk-coracle-placeholder",
        }],
        query: &[],
    },
    Service {
        name: "github",
        hosts: &[
            host("api.github.com"),
            host("uploads.github.com"),
            host("raw.githubusercontent.com"),
            host("api.githubcopilot.com"),
            host("api.individual.githubcopilot.com"),
            host("api.business.githubcopilot.com"),
            host("api.enterprise.githubcopilot.com"),
            // Git's own protocol knows a name and a password; the token is the password, of anybody.
            Host { name: "github.com", format: Some(Format::Basic("x-access-token")), cookies: true },
            Host { name: "gist.github.com", format: Some(Format::Basic("x-access-token")), cookies: true },
        ],
        kinds: &[Kind {
            prefix: "",
            header: "authorization",
            format: Format::Bearer,
            from: &["GH_TOKEN", "GITHUB_TOKEN"],
            guest: &["GH_TOKEN", "GITHUB_TOKEN"],
            placeholder: "gho_CoraclePlaceholder",
        }],
        query: &["token"],
    },
    Service {
        name: "google",
        hosts: &[host("generativelanguage.googleapis.com")],
        kinds: &[Kind {
            prefix: "",
            header: "x-goog-api-key",
            format: Format::Plain,
            from: &["GEMINI_API_KEY", "GOOGLE_API_KEY"],
            // One of them only: with both, Gemini CLI complains.
            guest: &["GEMINI_API_KEY"],
            placeholder: "AIzaSy-coracle-placeholder",
        }],
        query: &["key", "httpHeaders"],
    },
];

/// The service of that name.
pub fn find(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == name)
}

/// All variables that a caller may have a secret of a known service in.
pub fn variables() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().flat_map(Service::variables)
}

impl Service {
    /// How a secret is used; one that is not known yet is of the usual kind.
    pub fn kind(&self, secret: Option<&str>) -> &'static Kind {
        let usual = self.kinds.last().expect("every service has a kind");
        secret
            .and_then(|secret| self.kinds.iter().find(|kind| secret.starts_with(kind.prefix)))
            .unwrap_or(usual)
    }

    /// The variables that a caller may have a secret in, the most usual first.
    pub fn variables(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().rev().flat_map(|kind| kind.from).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_together() {
        for service in &SERVICES {
            assert_eq!(service.kinds.last().unwrap().prefix, "", "{}: the last kind fits all", service.name);
            assert!(std::ptr::eq(find(service.name).unwrap(), service));
            for host in service.hosts {
                assert!(crate::intercept::is_host(host.name) && host.name.to_lowercase() == host.name);
            }
            for kind in service.kinds {
                assert!(http::HeaderName::from_static(kind.header).as_str() == kind.header);
                assert!(kind.placeholder.starts_with(kind.prefix) && kind.placeholder.len() >= 20);
            }
        }
        assert!(find("Anthropic").is_none());
        let anthropic = find("anthropic").unwrap();
        assert_eq!(anthropic.kind(Some("sk-ant-oat01-x")).guest, ["CLAUDE_CODE_OAUTH_TOKEN"]);
        assert_eq!(anthropic.kind(Some("sk-ant-api03-x")).header, "x-api-key");
        assert_eq!(anthropic.kind(None).header, "x-api-key");
        assert_eq!(
            anthropic.variables().collect::<Vec<_>>(),
            ["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"]
        );
    }
}
