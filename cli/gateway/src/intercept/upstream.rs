//! The way to the true host: TLS with a certificate that this machine trusts.
//! It owns whom we believe to be a host. It opens no connection: it is handed one to the address that policy has allowed.

use std::io;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What this machine trusts, read when it is first needed.
#[derive(Debug, Default)]
pub struct Trust(OnceLock<Arc<ClientConfig>>);

pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

impl Trust {
    pub fn new(roots: RootCertStore) -> Self {
        let cell = OnceLock::new();
        // A provider of ours has the versions that are safe.
        let _ = client(roots).map(|config| cell.set(Arc::new(config)));
        Self(cell)
    }

    /// TLS over a connection, to the host of that name and nobody else, in one of these protocols.
    pub async fn connect(
        &self,
        stream: TcpStream,
        name: &str,
        protocols: Vec<Vec<u8>>,
    ) -> Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::clone(self.config()?.as_ref());
        config.alpn_protocols = protocols;
        let host = ServerName::try_from(name.to_owned()).context("that is not a host's name")?;
        TlsConnector::from(Arc::new(config))
            .connect(host, stream)
            .await
            .with_context(|| format!("TLS with {name}"))
    }

    fn config(&self) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.0.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        ensure!(
            !roots.is_empty(),
            "this machine trusts no certificate authority; install ca-certificates, or set SSL_CERT_FILE"
        );
        let config = Arc::new(client(roots)?);
        Ok(Arc::clone(self.0.get_or_init(|| config)))
    }
}

/// Whether an error is that a host shows a certificate that is not to be believed.
pub fn is_untrusted(error: &anyhow::Error) -> bool {
    let inner = error.chain().filter_map(|it| it.downcast_ref::<io::Error>()?.get_ref());
    inner.filter_map(|it| it.downcast_ref()).any(|it| matches!(it, rustls::Error::InvalidCertificate(_)))
}

fn client(roots: RootCertStore) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
