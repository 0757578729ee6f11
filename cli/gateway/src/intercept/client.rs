//! A guest's stream as interception reads it: what was read of it already comes first, and whether it is used is remembered.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub struct Client<S> {
    /// Read by who decided what becomes of the stream.
    head: Vec<u8>,
    stream: S,
    used: Arc<AtomicBool>,
}

/// Whether bytes have moved since it was asked last.
pub struct Use(Arc<AtomicBool>);

impl Use {
    pub fn since(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl<S> Client<S> {
    pub fn new(head: Vec<u8>, stream: S) -> (Self, Use) {
        let used = Arc::new(AtomicBool::new(true));
        (Self { head, stream, used: Arc::clone(&used) }, Use(used))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Client<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        } else {
            let count = self.head.len().min(buffer.remaining());
            buffer.put_slice(&self.head[..count]);
            self.head.drain(..count);
        }
        self.used.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Client<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.used.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
