//! Where Coracle's files are: state, templates, settings, and what is installed beside the binary.
//! It owns the environment variables that say so. It creates nothing. The password data base is never asked: a static
//! glibc would load the build machine's NSS modules for it.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::text::quoted;

/// Of all sandboxes.
pub fn state() -> Result<PathBuf> {
    xdg("XDG_STATE_HOME", ".local/state")
}

/// Templates that were made or fetched by the user.
pub fn data() -> Result<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// What can be fetched again. It is believed by its names, so no sandbox may write there.
pub fn cache() -> Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Policy and secrets.
pub fn settings() -> Result<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config")
}

/// The folders that no sandbox may see.
pub fn private() -> Result<Vec<PathBuf>> {
    Ok(vec![state()?, data()?, settings()?, cache()?])
}

/// The folders where the user's programs keep what opens other machines and accounts.
pub fn keys() -> Result<Vec<PathBuf>> {
    const KEYS: [&str; 6] = [".ssh", ".gnupg", ".aws", ".kube", ".docker", ".password-store"];
    let home = variable("HOME")?;
    Ok(home.into_iter().flat_map(|home| KEYS.map(|name| home.join(name))).collect())
}

/// The socket of the user's SSH agent. One that is no absolute path is none, as the gateway works elsewhere.
pub fn ssh_agent() -> Option<PathBuf> {
    env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Kernel, init, disks and templates as installed.
pub fn share() -> Result<PathBuf> {
    if let Some(share) = variable("CORACLE_SHARE")? {
        return Ok(share);
    }
    let program = env::current_exe().context("find this program's own file")?;
    let prefix = program.parent().and_then(|bin| bin.parent());
    Ok(prefix.context("find the folder that this program is installed in")?.join("share/coracle"))
}

/// XDG Base Directory Specification 0.8, "Environment variables".
fn xdg(name: &str, default: &str) -> Result<PathBuf> {
    let base = match variable(name)? {
        Some(base) => base,
        None => match variable("HOME")? {
            Some(home) => home.join(default),
            None => bail!("neither HOME nor {name} is set; set HOME to your home folder"),
        },
    };
    Ok(base.join("coracle"))
}

/// An absolute path from the environment; unset and empty are the same.
fn variable(name: &str) -> Result<Option<PathBuf>> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let path = PathBuf::from(value);
    ensure!(
        path.is_absolute(),
        "{name} is {}, which is not an absolute path; correct or unset it",
        quoted(&path)
    );
    Ok(Some(path))
}
