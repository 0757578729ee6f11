//! Published ports: clients on this machine, brought to services of the sandbox by way of the VMM.
//! It owns how many there may be. Which ports there are, and their sockets, are the supervisor's: it tells of each change.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram as Channel;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::{Answer, Publish};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger, set_tcp_keepidle};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixDatagram, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::splice::pump;
use super::{ACCEPT_PAUSE, KEEPALIVE};
use crate::handover::receive;
use crate::ports::{Listener, Opening};

/// The socket in the sandbox's folder by which the VMM takes connections for published ports.
pub const SOCKET: &str = "ports.sock";
/// Clients at once of all ports, and of one, so that it leaves some to the others; more wait.
pub const CLIENTS_MAX: usize = 1024;
const CLIENTS_OF_ONE_MAX: usize = 512;
/// For the guest to be up, and a service in it to take the connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What all ports have in common.
struct Way {
    folder: OwnedFd,
    room: Arc<Semaphore>,
}

/// Serves the ports that it is told of by `channel`, as long as that is open.
pub async fn serve(folder: &Path, channel: OwnedFd) -> Result<()> {
    let channel = UnixDatagram::from_std(Channel::from(channel)).context("use the channel for ports")?;
    // By its descriptor: an address holds 108 bytes, which the folder's path may exceed.
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let folder = folder.context("open the sandbox's folder")?;
    let way = Rc::new(Way { folder, room: Arc::new(Semaphore::new(CLIENTS_MAX)) });
    let mut open: HashMap<Opening, JoinSet<()>> = HashMap::new();
    loop {
        let message = channel.async_io(Interest::READABLE, || receive(&channel)).await;
        let Some((openings, sockets)) = message.context("hear of ports")? else { return Ok(()) };
        let openings: Vec<Opening> = openings;
        // What is published no longer ends, with all of its connections.
        open.retain(|opening, _| openings.contains(opening));
        for (opening, socket) in openings.into_iter().zip(sockets) {
            open.entry(opening).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn_local(listen(Rc::clone(&way), Listener { opening, socket }));
                task
            });
        }
    }
}

async fn listen(way: Rc<Way>, Listener { opening, socket }: Listener) {
    let Ok(listener) = TcpListener::from_std(socket.into()) else { return };
    let own = Arc::new(Semaphore::new(CLIENTS_OF_ONE_MAX));
    let mut visits = JoinSet::new();
    loop {
        let (Ok(of_one), Ok(of_all)) =
            (Arc::clone(&own).acquire_owned().await, Arc::clone(&way.room).acquire_owned().await)
        else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let way = Rc::clone(&way);
                visits.spawn_local(async move {
                    way.visit(&client, opening.guest).await;
                    drop((of_one, of_all));
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
        while visits.try_join_next().is_some() {}
    }
}

impl Way {
    /// Carries what both sides say; a connection that does not end as both have it is reset.
    async fn visit(&self, client: &TcpStream, port: u16) {
        let carried = async {
            // Neither is worth a connection.
            let _ = client.set_nodelay(true);
            let _ = set_socket_keepalive(client, true).and_then(|()| set_tcp_keepidle(client, KEEPALIVE));
            let guest = timeout(ANSWER_TIMEOUT, self.open(port)).await??;
            let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
            tokio::try_join!(pump(client, &guest, &sent), pump(&guest, client, &received))
        };
        if carried.await.is_err() {
            let _ = set_socket_linger(client, Some(Duration::ZERO));
        }
    }

    async fn open(&self, port: u16) -> io::Result<UnixStream> {
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.folder.as_raw_fd());
        let mut guest = UnixStream::connect(path).await?;
        guest.write_all(&Publish { port }.encode()).await?;
        match Answer::decode(guest.read_u8().await?) {
            Ok(Answer::Connected) => Ok(guest),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
