//! Whom a sandbox believes on the hosts that have a secret: a certificate authority of its own.
//! It owns the key, which stays in the sandbox's folder on the host, and the certificates of hosts that it signs. It does not
//! know which hosts those are.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::upstream;

/// The key, PKCS #8.
const KEY: &str = "authority.key";
/// The certificate for the guest. It is written last: where it is, the key is.
pub const CERTIFICATE: &str = "authority.pem";
/// The same for all sandboxes: the guest finds the certificate by a hash of it.
const NAME: &str = "Coracle sandbox";
const LEAF: &str = "Coracle gateway";
/// Hosts whose certificates are kept; beyond them all are made anew.
const HOSTS_MAX: usize = 64;
/// How long a host's certificate is used, and for how long it is valid: a sandbox's clock may be off by some days.
const USED: Duration = Duration::from_secs(24 * 3600);
const VALID_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);
const VALID_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// One sandbox's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// One for all hosts: who has the gateway's memory has them all.
    leaf: KeyPair,
    hosts: Mutex<HashMap<String, (Instant, Arc<ServerConfig>)>>,
    pub(super) upstream: upstream::Trust,
}

/// The certificate of the authority in a sandbox's folder, as PEM, made if it is not there.
pub fn ensure(folder: &Path) -> Result<String> {
    match certificate(folder)? {
        Some(pem) if folder.join(KEY).exists() => return Ok(pem),
        _ => {}
    }
    let key = KeyPair::generate().context("make the sandbox's key")?;
    let certificate = params()?.self_signed(&key).context("sign the sandbox's certificate")?;
    let pem = pem(certificate.der());
    write(folder, KEY, &key.serialize_der())?;
    write(folder, CERTIFICATE, pem.as_bytes())?;
    Ok(pem)
}

/// What the guest is to trust; `None` for a sandbox that has no authority.
pub fn certificate(folder: &Path) -> Result<Option<String>> {
    match fs::read_to_string(folder.join(CERTIFICATE)) {
        Ok(pem) => Ok(Some(pem)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read the sandbox's certificate"),
    }
}

impl Authority {
    /// The one in a sandbox's folder; `None` when it has none, and the guest trusts nobody but the world's.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        if !folder.join(CERTIFICATE).exists() {
            return Ok(None);
        }
        let key = fs::read(folder.join(KEY)).context("read the sandbox's key")?;
        let key = KeyPair::try_from(key).context("the sandbox's key is damaged")?;
        Self::new(key).map(Some)
    }

    fn new(key: KeyPair) -> Result<Self> {
        Ok(Self {
            issuer: Issuer::new(params()?, key),
            leaf: KeyPair::generate().context("make a key")?,
            hosts: Mutex::default(),
            upstream: upstream::Trust::default(),
        })
    }

    /// Trusts these on the way to the hosts, in place of what this machine trusts.
    #[must_use]
    pub fn with_roots(mut self, roots: rustls::RootCertStore) -> Self {
        self.upstream = upstream::Trust::new(roots);
        self
    }

    /// How the host of that name is played.
    pub(super) fn host(&self, name: &str) -> Result<Arc<ServerConfig>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = hosts.get(name)
            && made.elapsed() < USED
        {
            return Ok(Arc::clone(config));
        }
        if hosts.len() >= HOSTS_MAX {
            hosts.clear();
        }
        let config = Arc::new(self.sign(name).with_context(|| format!("make a certificate for {name}"))?);
        hosts.insert(name.to_owned(), (Instant::now(), Arc::clone(&config)));
        Ok(config)
    }

    fn sign(&self, name: &str) -> Result<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        // Without any name, strict clients would have another extension marked as critical.
        params.distinguished_name = subject(LEAF);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(VALID_BEFORE);
        params.not_after = date_time_ymd(1970, 1, 1) + now + VALID_AFTER;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(self.leaf.serialize_der());
        let config = ServerConfig::builder_with_provider(upstream::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key.into())?;
        Ok(config)
    }
}

/// Neither key is ever printed.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// Of the authority's own certificate; all but the key is the same for all, so that the key alone has to be kept.
fn params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = subject(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    Ok(params)
}

fn subject(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// RFC 7468, 5.1 "Encoding" of certificates.
fn pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Whole or not at all, and for this user only.
fn write(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let new = folder.join(format!("{name}.new"));
    let written = || -> std::io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, folder.join(name))
    };
    written().with_context(|| format!("write {name} into the sandbox's folder"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_sandbox_keeps_its_authority() {
        let folder = tempfile::tempdir().unwrap();
        assert!(certificate(folder.path()).unwrap().is_none());
        assert!(Authority::load(folder.path()).unwrap().is_none());
        let pem = ensure(folder.path()).unwrap();
        assert_eq!(ensure(folder.path()).unwrap(), pem);
        assert_eq!(certificate(folder.path()).unwrap().as_deref(), Some(&pem[..]));
        let mode = fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Authority::load(folder.path()).unwrap().is_some());
        // One without its key is nobody's.
        fs::remove_file(folder.path().join(KEY)).unwrap();
        assert!(Authority::load(folder.path()).is_err());
        assert_ne!(ensure(folder.path()).unwrap(), pem);
    }

    #[test]
    fn certificates_are_cached_and_bounded() {
        let authority = Authority::new(KeyPair::generate().unwrap()).unwrap();
        let first = authority.host("a.example").unwrap();
        assert!(Arc::ptr_eq(&first, &authority.host("a.example").unwrap()));
        for number in 0..2 * HOSTS_MAX {
            authority.host(&format!("h{number}.example")).unwrap();
            assert!(authority.hosts.lock().unwrap().len() <= HOSTS_MAX);
        }
        assert_eq!(format!("{authority:?}"), "Authority");
    }
}
