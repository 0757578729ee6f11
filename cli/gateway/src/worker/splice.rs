//! Carries bytes between two sockets, both ways, until both have ended. It owns how much of them is in memory: nothing of a
//! connection that is idle, and little of one that the other side does not take.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpStream, UnixStream};
use tokio::task::consume_budget;

/// Read at once. One buffer serves all connections.
const CHUNK: usize = 64 << 10;
/// What all connections together may have read and not written yet, before each reads only a little.
const HELD_MAX: usize = 32 << 20;
const LITTLE: usize = 4 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A socket, of which both directions are used at once.
pub(super) trait Socket {
    async fn readable(&self) -> io::Result<()>;
    async fn writable(&self) -> io::Result<()>;
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// No more is written.
    fn end(&self) -> io::Result<()>;
}

macro_rules! socket {
    ($kind:ty) => {
        impl Socket for $kind {
            async fn readable(&self) -> io::Result<()> {
                <$kind>::readable(self).await
            }

            async fn writable(&self) -> io::Result<()> {
                <$kind>::writable(self).await
            }

            fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                <$kind>::try_read(self, buffer)
            }

            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                <$kind>::try_write(self, bytes)
            }

            fn end(&self) -> io::Result<()> {
                Ok(rustix::net::shutdown(self, rustix::net::Shutdown::Write)?)
            }
        }
    };
}

socket!(UnixStream);
socket!(TcpStream);

/// Bytes that the other side does not take yet.
struct Held(Vec<u8>);

impl Held {
    fn new(bytes: &[u8]) -> Self {
        HELD.set(HELD.get() + bytes.len());
        Self(bytes.to_vec())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.0.len());
    }
}

/// One direction, until it ends; its end is told to the other side.
pub(super) async fn pump(from: &impl Socket, to: &impl Socket, moved: &AtomicU64) -> io::Result<()> {
    loop {
        // A stream that is always ready leaves the others their turn.
        consume_budget().await;
        from.readable().await?;
        let size = if HELD.get() < HELD_MAX { CHUNK } else { LITTLE };
        let step = BUFFER.with_borrow_mut(|buffer| {
            let count = from.try_read(&mut buffer[..size])?;
            let written = match to.try_write(&buffer[..count]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            };
            moved.fetch_add(count as u64, Ordering::Relaxed);
            Ok::<_, io::Error>((count, (written < count).then(|| Held::new(&buffer[written..count]))))
        });
        match step {
            Ok((0, _)) => return to.end(),
            Ok((_, Some(held))) => write_all(to, &held.0).await?,
            Ok((_, None)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn write_all(to: &impl Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
