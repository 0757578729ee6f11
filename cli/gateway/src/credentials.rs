//! Secrets, and which hosts get them.
//! It owns what a sandbox may use of them, which of several counts, and how one becomes a header. The guest never has one: it
//! has placeholders, which are the same for everybody. How a request gets its header is in `intercept`.

mod lent;
mod service;
mod source;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::intercept::body;
pub use lent::Lent;
pub use service::{Format, SERVICES, Service, find, variables};
pub use source::{SECRET_MAX, check};
pub use store::{Custom, Entry, FILE, Origin, Store};

use source::Source;

const HTTPS: u16 = 443;
/// Of a secret of the user's own kind.
pub const PLACEHOLDER: &str = "coracle-placeholder";

/// The secrets that count for one sandbox.
pub struct Secrets {
    injections: Vec<Arc<Injection>>,
    /// Variables of the guest, and their placeholders.
    guest: Vec<(String, &'static str)>,
    /// Dropped with them: from then on none of them is used.
    _lives: watch::Sender<()>,
}

/// What a request to a host is given.
pub struct Injection {
    /// Of the service, for the log.
    pub service: String,
    pub host: String,
    pub port: u16,
    pub header: HeaderName,
    pub(crate) cookies: bool,
    pub(crate) query: &'static [&'static str],
    /// Closed when the secret is no longer to be used.
    pub(crate) lives: watch::Receiver<()>,
    form: Form,
    source: Arc<Source>,
}

enum Form {
    Known { service: &'static Service, format: Option<Format> },
    Custom(String),
}

impl Secrets {
    /// Those of a sandbox, from what is in the folder of settings now.
    pub fn load(settings: &Path, sandbox: &str, lent: &[Lent]) -> Result<Self> {
        Self::new(&Store::load(settings)?, sandbox, lent)
    }

    /// Those of a sandbox: stored for it, before stored for all, before lent by who started it.
    pub fn new(store: &Store, sandbox: &str, lent: &[Lent]) -> Result<Self> {
        let stored = &store.secrets;
        let own = stored.iter().filter(|entry| entry.sandbox.as_deref() == Some(sandbox));
        let all = stored.iter().filter(|entry| entry.sandbox.is_none());
        let (_lives, lives) = watch::channel(());
        let mut secrets = Self { injections: Vec::new(), guest: Vec::new(), _lives };
        for entry in own.chain(all) {
            secrets.add(entry, &lives).with_context(|| format!("the secret {}", entry.service))?;
        }
        for lent in lent {
            let origin = Origin::Value(lent.secret.clone());
            let entry = Entry { service: lent.service.clone(), sandbox: None, origin, custom: None };
            secrets.add(&entry, &lives).with_context(|| format!("the secret {}", entry.service))?;
        }
        Ok(secrets)
    }

    /// What a request to that host gets. The name is as policy has it: lower case, with no dot at its end.
    pub fn for_host(&self, host: &str, port: u16) -> Option<&Arc<Injection>> {
        self.injections.iter().find(|injection| injection.host == host && injection.port == port)
    }

    /// Whose requests get one.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, u16)> {
        self.injections.iter().map(|it| (it.host.as_str(), it.port))
    }

    pub fn is_empty(&self) -> bool {
        self.injections.is_empty()
    }

    /// What every command in the guest has in its environment.
    pub fn guest(&self) -> &[(String, &'static str)] {
        &self.guest
    }

    fn add(&mut self, entry: &Entry, lives: &watch::Receiver<()>) -> Result<()> {
        let (source, known) = match &entry.origin {
            Origin::Value(secret) => (Source::Known(secret.clone()), Some(secret.as_str())),
            Origin::Command(line) => (Source::command(line.clone()), None),
        };
        let source = Arc::new(source);
        let add = |host: &str, port, header, form, cookies, query| Injection {
            service: entry.service.clone(),
            host: host.to_owned(),
            port,
            header,
            cookies,
            query,
            lives: lives.clone(),
            form,
            source: Arc::clone(&source),
        };
        if let Some(custom) = &entry.custom {
            let header: HeaderName = custom.header.parse().context("its header's name is none")?;
            for (host, port) in &custom.hosts {
                let form = Form::Custom(custom.format.clone());
                self.put(add(host, *port, header.clone(), form, true, &[]));
            }
            self.show(custom.variables.iter().map(String::as_str), PLACEHOLDER);
            return Ok(());
        }
        let service = find(&entry.service).context("it is for no service that this Coracle knows")?;
        let kind = service.kind(known);
        for host in service.hosts {
            let form = Form::Known { service, format: host.format };
            let header = HeaderName::from_static(kind.header);
            self.put(add(host.name, HTTPS, header, form, host.cookies, service.query));
        }
        self.show(kind.guest.iter().copied(), kind.placeholder);
        Ok(())
    }

    /// The first for a host counts.
    fn put(&mut self, injection: Injection) {
        if self.for_host(&injection.host, injection.port).is_none() {
            self.injections.push(Arc::new(injection));
        }
    }

    fn show<'a>(&mut self, variables: impl Iterator<Item = &'a str>, placeholder: &'static str) {
        for variable in variables {
            if self.guest.iter().all(|(known, _)| known != variable) {
                self.guest.push((variable.to_owned(), placeholder));
            }
        }
    }
}

impl Injection {
    /// The header's value, and what must not come back to the guest.
    pub(crate) async fn value(&self) -> Result<(HeaderValue, body::Secrets)> {
        let named = || format!("the credential for {}", self.service);
        let secret = self.source.secret().await.with_context(named)?;
        let text = match &self.form {
            Form::Custom(format) => format.replace("%s", &secret),
            Form::Known { service, format } => {
                format.unwrap_or(service.kind(Some(&secret)).format).apply(&secret)
            }
        };
        let mut value =
            HeaderValue::from_str(&text).ok().context("it is no header's value").with_context(named)?;
        value.set_sensitive(true);
        let form = text.rsplit(' ').next().unwrap_or_default().as_bytes().to_vec();
        Ok((value, body::Secrets::new([secret.into_bytes(), form])))
    }
}

impl Format {
    fn apply(self, secret: &str) -> String {
        match self {
            Self::Plain => secret.to_owned(),
            Self::Bearer => format!("Bearer {secret}"),
            Self::Basic(user) => format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))),
        }
    }
}

/// Neither is ever printed.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Injection({}, {}:{})", self.service, self.host, self.port)
    }
}
