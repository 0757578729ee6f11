//! What the container's programs trust besides what its image has them trust: the sandbox's own certificate authority.
//! It owns where they look for that. It is best effort: what it cannot do costs the trust, not the start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::Access;

/// Where update-ca-certificates looks, so that it stays trusted when that is run.
const OWN: &str = "usr/local/share/ca-certificates/coracle.crt";
/// Where Fedora's update-ca-trust does.
const ANCHORS: &str = "etc/pki/ca-trust/source/anchors";
/// All that is trusted in one file: of Debian, Alpine and their kin; of Fedora's; of SUSE's.
const BUNDLES: [&str; 3] =
    ["etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem"];
/// A folder of them, for OpenSSL, which looks for a hash of the name; that is the same in all sandboxes.
const FOLDER: &str = "etc/ssl/certs";
const LINKS: [&str; 2] = ["coracle.pem", "1007041a.0"];
/// For programs that bring their own list along; these add to it.
const ADDED: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// These replace it, so they are given the whole list.
const REPLACED: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
];

/// Has the programs below `root` trust a certificate. At all but the first start there is nothing to do.
pub fn install(root: &Path, certificate: &[u8]) {
    let own = root.join(OWN);
    complain(OWN, write(&own, certificate));
    let anchors = root.join(ANCHORS);
    if anchors.is_dir() {
        complain(ANCHORS, write(&anchors.join("coracle.crt"), certificate));
    }
    for bundle in BUNDLES {
        complain(bundle, append(&root.join(bundle), certificate));
    }
    let folder = root.join(FOLDER);
    if folder.is_dir() {
        for link in LINKS {
            match symlink(Path::new("/").join(OWN), folder.join(link)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => complain(link, Err(error)),
                _ => {}
            }
        }
    }
}

/// `env` with what says so to programs that ask nobody else, where it is missing.
pub fn complete(mut env: Vec<Vec<u8>>, root: &Path) -> Vec<Vec<u8>> {
    if !is_there(&root.join(OWN)) {
        return env;
    }
    let bundle = BUNDLES.into_iter().find(|bundle| is_there(&root.join(bundle)));
    let added = ADDED.into_iter().map(|name| (name, OWN));
    let replaced = REPLACED.into_iter().filter_map(|name| Some((name, bundle?)));
    for (name, path) in added.chain(replaced) {
        let is_set = |it: &Vec<u8>| it.strip_prefix(name.as_bytes()).is_some_and(|it| it.starts_with(b"="));
        if !env.iter().any(is_set) {
            env.push(format!("{name}=/{path}").into_bytes());
        }
    }
    env
}

fn is_there(path: &Path) -> bool {
    rustix::fs::access(path, Access::EXISTS).is_ok()
}

/// Unless it is there.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|is| is == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}

/// Unless it ends with that, or is not there: who has no list is given none, as it would be one without the others.
fn append(path: &Path, certificate: &[u8]) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let length = file.metadata()?.len();
    let mut end = vec![0; certificate.len()];
    let at = length.checked_sub(certificate.len() as u64);
    if at.is_some_and(|at| file.read_exact_at(&mut end, at).is_ok()) && end == certificate {
        return Ok(());
    }
    // At once, and after a line of its own: a list that ends without one would hide the first line.
    OpenOptions::new().append(true).open(path)?.write_all(&[b"\n", certificate].concat())
}

fn complain(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        crate::log(format_args!("trust the sandbox's certificate, {what}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";

    #[test]
    fn what_is_there_is_added_to_once() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join(BUNDLES[0]);
        fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        fs::write(&bundle, "theirs").unwrap();
        for _ in 0..3 {
            install(root.path(), CERTIFICATE);
        }
        assert_eq!(fs::read(root.path().join(OWN)).unwrap(), CERTIFICATE);
        assert_eq!(fs::read(&bundle).unwrap(), [b"theirs\n", CERTIFICATE].concat());
        let link = root.path().join(FOLDER).join(LINKS[1]);
        assert_eq!(fs::read_link(link).unwrap(), Path::new("/").join(OWN));
        assert!(!root.path().join(BUNDLES[1]).exists() && !root.path().join(ANCHORS).exists());
        // Another sandbox's, in a template that was saved from it.
        install(root.path(), b"new");
        assert_eq!(fs::read(root.path().join(OWN)).unwrap(), b"new");
    }

    #[test]
    fn variables_are_set_where_they_are_missing_and_make_sense() {
        let root = tempfile::tempdir().unwrap();
        assert!(complete(Vec::new(), root.path()).is_empty());
        install(root.path(), CERTIFICATE);
        let text =
            |env: Vec<Vec<u8>>| env.into_iter().map(|it| String::from_utf8(it).unwrap()).collect::<Vec<_>>();
        let env = text(complete(vec![b"DENO_CERT=/mine".to_vec()], root.path()));
        assert_eq!(
            env,
            ["DENO_CERT=/mine", "NODE_EXTRA_CA_CERTS=/usr/local/share/ca-certificates/coracle.crt"]
        );
        fs::create_dir_all(root.path().join("etc/pki/tls/certs")).unwrap();
        fs::write(root.path().join(BUNDLES[1]), "theirs").unwrap();
        let env = text(complete(vec![b"SSL_CERT_FILES=1".to_vec()], root.path()));
        assert!(env.contains(&"SSL_CERT_FILE=/etc/pki/tls/certs/ca-bundle.crt".to_owned()), "{env:?}");
        assert_eq!(env.len(), 1 + ADDED.len() + REPLACED.len());
    }
}
