//! The process that carries a sandbox's connections: it takes streams from the guest, decides, connects and splices.
//! It owns the limits on all of them together. It is one thread, and holds nothing that another process needs: killed, it is
//! started again, and what it carried is cut.

mod connection;
mod counted;
mod gate;
pub mod publish;
mod questions;
mod splice;

use std::ffi::OsString;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::agent::Agent;
use crate::credentials::Lent;
use gate::Gate;

/// Streams at once, DNS's among them; more wait in the socket.
const CONNECTIONS_MAX: usize = 4096;
/// Each connection has a descriptor on both sides; the rest are a few of our own, and resolvers' pipes.
const DESCRIPTORS: u64 = 2 * (CONNECTIONS_MAX + publish::CLIENTS_MAX) as u64 + 512;
/// Of this process in all: many times what the limits on buffers add up to.
const MEMORY_MAX: u64 = 1 << 30;
/// Who is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// After an error that is not a connection's, such as no descriptor being left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whose gateway it is.
#[derive(Debug, Default)]
pub struct Place {
    /// The sandbox's folder and name.
    pub folder: PathBuf,
    pub sandbox: String,
    /// The folder of the user's settings.
    pub settings: PathBuf,
    /// What the environment of who started the sandbox lends to it.
    pub lent: Vec<Lent>,
    /// The SSH agent of who started it, and the keys that it may use.
    pub agent: Agent,
    /// Where the resolver's program is looked for, if not where all programs are.
    pub path: Option<OsString>,
    /// Where the supervisor tells of published ports.
    pub ports: Option<OwnedFd>,
}

/// Carries what comes by a listening socket until SIGTERM.
pub fn run(listener: UnixListener, place: Place) -> Result<()> {
    limit().context("limit the gateway")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the gateway's event loop")?;
    LocalSet::new().block_on(&runtime, serve(listener, place))
}

/// The same, in a loop of the caller's.
pub async fn serve(listener: UnixListener, mut place: Place) -> Result<()> {
    listener.set_nonblocking(true).context("prepare the gateway's socket")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("use the gateway's socket")?;
    let ports = place.ports.take();
    let folder = place.folder.clone();
    let publish = async {
        match ports {
            Some(channel) => publish::serve(&folder, channel).await,
            None => pending().await,
        }
    };
    let gate = Rc::new(Gate::open(place)?);
    let mut ended = signal(SignalKind::terminate()).context("wait for signals")?;
    let result = tokio::select! {
        result = gate.watch() => result,
        result = publish => result,
        () = accept(&listener, &gate) => Ok(()),
        () = gate.write_log() => Ok(()),
        _ = ended.recv() => Ok(()),
    };
    gate.flush();
    result
}

async fn accept(listener: &tokio::net::UnixListener, gate: &Rc<Gate>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = Rc::clone(gate);
                spawn_local(async move {
                    connection::carry(&gate, stream).await;
                    drop(permit);
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// What it may take, besides what `supervisor::confine` has it give up.
fn limit() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let known = getrlimit(Resource::Nofile);
    let most = known.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if known.current.is_some_and(|current| current < most) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: known.maximum })
            .context("raise the number of descriptors")?;
    }
    let memory = Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) };
    setrlimit(Resource::Data, memory).context("limit memory")
}
