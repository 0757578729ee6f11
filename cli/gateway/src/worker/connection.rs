//! One stream of the guest, from its first byte to its last. It owns the order: what it is for, whether that is allowed, the
//! connection, the name that TLS shows, and that it goes on only as long as policy allows it.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::{Answer, STREAM_LEN, Stream};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, interval, timeout};

use super::KEEPALIVE;
use super::counted::{Counted, Moved};
use super::gate::{Gate, NO_ADDRESS};
use super::questions;
use super::splice::{pump, write_all};
use crate::credentials::Injection;
use crate::intercept::{self, HELLO_MAX, Hello, client_hello};
use crate::policy::{Decision, Destination, HOST_NAMES, Host, Name, Policy, Reason, is_this_machine};

/// For a stream's head, which the guest sends at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// For one address of a host; then the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ADDRESSES_MAX: usize = 4;
/// From the first byte of a TLS greeting to its last.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// For a client that has had all of its answer to hang up.
const FAREWELL: Duration = Duration::from_secs(5);
/// A connection on which nothing moves for this long is cut.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// How often is counted what a connection has carried.
const COUNT: Duration = Duration::from_secs(5);

const OTHER_NAME: Reason = Reason::Other("TLS does not show the name that the connection was opened for");
const OTHER_TLS: Reason = Reason::Other("TLS shows what is no host's name");
const NO_TLS: Reason = Reason::Other("it has a secret, and the connection is not TLS");
const UNTRUSTED: Reason =
    Reason::Other("it has a secret, and its certificate is not one that this machine trusts");
const SLOW_TLS: Reason = Reason::Other("TLS was begun and not gone on with");

/// Whom a program believes, as the guest says: one that says something else only does without a secret.
#[derive(Clone, Copy)]
enum Trust {
    /// The sandbox's authority, too.
    Sandbox,
    /// Those of its container's image.
    Image,
}

/// A connection that may be.
struct Way {
    to: Destination,
    address: IpAddr,
    /// What TLS has shown, where that has to be allowed as well.
    shown: RefCell<Option<Destination>>,
    moved: Arc<Moved>,
}

/// Carries a stream until it has ended.
pub async fn carry(gate: &Gate, mut client: UnixStream) {
    let mut header = [0; STREAM_LEN];
    let Ok(Ok(_)) = timeout(OPEN_TIMEOUT, client.read_exact(&mut header)).await else { return };
    match Stream::decode(&header) {
        Ok(Stream::Dns) => {
            if client.write_all(&[Answer::Connected as u8]).await.is_ok() {
                // It ends when the guest has nothing more to ask, or asks nonsense.
                let _ = questions::serve(gate, client).await;
            }
        }
        Ok(Stream::Tcp(address)) => tcp(gate, client, address, Trust::Sandbox).await,
        Ok(Stream::Container(address)) => tcp(gate, client, address, Trust::Image).await,
        Ok(Stream::Agent) => {
            let agent = timeout(CONNECT_TIMEOUT, gate.agent().connect()).await;
            let answer = if let Ok(Ok(_)) = agent { Answer::Connected } else { Answer::Unreachable };
            let answered = client.write_all(&[answer as u8]).await;
            if let (Ok(Ok(agent)), Ok(())) = (agent, answered) {
                // It ends when either has nothing more to say, or says nonsense.
                let _ = gate.agent().serve(client, agent).await;
            }
        }
        Err(_) => {}
    }
}

async fn tcp(gate: &Gate, mut client: UnixStream, address: SocketAddrV4, trust: Trust) {
    let mut changes = gate.changes();
    let reached = reach(gate, address).await;
    let answer = *reached.as_ref().err().unwrap_or(&Answer::Connected);
    let answered = client.write_all(&[answer as u8]).await;
    let (Ok((way, host)), Ok(())) = (reached, answered) else { return };
    let injection = match trust {
        Trust::Sandbox => gate.injection(&way.to),
        Trust::Image => None,
    };
    let mut work = pin!(converse(gate, &way, client, host, injection));
    let (mut tick, mut seen, mut moved) = (interval(COUNT), (0, 0), Instant::now());
    loop {
        tokio::select! {
            denied = &mut work => {
                if let Err(denied) = denied {
                    gate.record(&way.to, &denied);
                }
                break;
            }
            Ok(()) = changes.changed() => {
                let denied = way.decide(gate, &changes.borrow_and_update());
                if let Some(denied) = denied {
                    gate.record(&way.to, &denied);
                    break;
                }
            }
            _ = tick.tick() => {
                if way.count(gate, &mut seen) {
                    moved = Instant::now();
                } else if moved.elapsed() > IDLE {
                    break;
                }
            }
        }
    }
    way.count(gate, &mut seen);
}

/// Decides, resolves and connects; the error is what the guest is told.
async fn reach(gate: &Gate, address: SocketAddrV4) -> Result<(Way, TcpStream), Answer> {
    let (to, allowed) = match gate.destination(*address.ip(), address.port()) {
        Ok(to) => {
            let allowed = gate.addresses(&to).await;
            (to, allowed)
        }
        Err((to, denied)) => (to, Err(denied)),
    };
    let decision = allowed.as_ref().map_or_else(Clone::clone, |(_, decision)| decision.clone());
    gate.record(&to, &decision);
    let (addresses, _) = allowed.map_err(|denied| match denied.reason == NO_ADDRESS {
        true => Answer::Unreachable,
        false => Answer::Refused,
    })?;
    let mut answer = Answer::Unreachable;
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, to.port))).await {
            Ok(Ok(host)) => {
                // Neither is worth a connection.
                let _ = host.set_nodelay(true);
                let _ = set_socket_keepalive(&host, true).and_then(|()| set_tcp_keepidle(&host, KEEPALIVE));
                let (shown, moved) = Default::default();
                return Ok((Way { to, address, shown, moved }, host));
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => answer = Answer::Refused,
            _ => {}
        }
    }
    Err(answer)
}

/// Carries what both sides say. The error is that it was cut for what it is.
async fn converse(
    gate: &Gate,
    way: &Way,
    client: UnixStream,
    host: TcpStream,
    injection: Option<Arc<Injection>>,
) -> Result<(), Decision> {
    if let (Some(injection), Some(authority)) = (injection, &gate.authority) {
        let (head, hello) = match greeting(&client).await {
            Ok(greeting) => greeting,
            Err(denied) => return denied.map_or(Ok(()), Err),
        };
        if hello == Hello::NotTls {
            return if head.is_empty() { Ok(()) } else { Err(Decision::denied(NO_TLS)) };
        }
        way.check(&hello, &gate.policy())?;
        way.moved.sent.store(head.len() as u64, Ordering::Relaxed);
        let Ok(same) = client.as_fd().try_clone_to_owned() else { return Ok(()) };
        let client = Counted { stream: client, moved: Arc::clone(&way.moved) };
        let served = intercept::serve(client, head, injection, authority, async || Ok(host)).await;
        let untrusted = served.as_ref().is_err_and(intercept::is_untrusted);
        // Of a host that is not believed, the client was told.
        if served.is_ok() || untrusted {
            let _ = timeout(FAREWELL, farewell(same)).await;
        }
        // What its client and its host do wrong besides is theirs.
        return if untrusted { Err(Decision::denied(UNTRUSTED)) } else { Ok(()) };
    }
    let outward = async {
        let (head, hello) = greeting(&client).await?;
        way.check(&hello, &gate.policy()).map_err(Some)?;
        way.moved.sent.store(head.len() as u64, Ordering::Relaxed);
        write_all(&host, &head).await.map_err(|_| None)?;
        drop(head);
        pump(&client, &host, &way.moved.sent).await.map_err(|_| None)
    };
    let inward = async { pump(&host, &client, &way.moved.received).await.map_err(|_| None) };
    match tokio::try_join!(outward, inward) {
        Err(Some(denied)) => Err(denied),
        // Ended, or broken off by either side.
        _ => Ok(()),
    }
}

/// Ends a stream one way, and waits for the other: both at once is how one is cut.
async fn farewell(stream: OwnedFd) -> io::Result<u64> {
    let mut stream = UnixStream::from_std(stream.into())?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
}

/// What the client sends first: all of a TLS greeting, or the beginning of something else; for that it may take its time. The error
/// is why it was cut, if not by the client.
async fn greeting(client: &UnixStream) -> Result<(Vec<u8>, Hello), Option<Decision>> {
    let mut head = Vec::new();
    if read_more(client, &mut head).await.map_err(|_| None)? == 0 {
        return Ok((head, Hello::NotTls));
    }
    let rest = async {
        loop {
            match client_hello(&head) {
                Hello::Incomplete if head.len() < HELLO_MAX => {}
                Hello::Incomplete => return Ok(Hello::Sni(None)),
                hello => return Ok(hello),
            }
            if read_more(client, &mut head).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
    };
    match timeout(HELLO_TIMEOUT, rest).await {
        Ok(Ok(hello)) => Ok((head, hello)),
        Ok(Err(_)) => Err(None),
        Err(_) => Err(Some(Decision::denied(SLOW_TLS))),
    }
}

/// Waits for some bytes of a greeting; 0 is their end.
async fn read_more(client: &UnixStream, head: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        // It may be called readable when it is not any more.
        client.readable().await?;
        let mut chunk = [0; 4096];
        let room = chunk.len().min(HELLO_MAX - head.len());
        match client.try_read(&mut chunk[..room]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => {
                head.extend_from_slice(&chunk[..*read.as_ref().unwrap_or(&0)]);
                return read;
            }
        }
    }
}

impl Way {
    /// TLS to a name shows that name; TLS to an address shows none, or one that is allowed as well.
    fn check(&self, hello: &Hello, policy: &Policy) -> Result<(), Decision> {
        let Hello::Sni(shown) = hello else { return Ok(()) };
        match (&self.to.host, shown) {
            (Host::Name(name), Some(shown)) if name.as_str() == shown => Ok(()),
            // All of them have one address, which tells none of them.
            (Host::Name(name), Some(shown))
                if is_this_machine(name) && HOST_NAMES.contains(&shown.as_str()) =>
            {
                Ok(())
            }
            (Host::Name(_), _) => Err(Decision::denied(OTHER_NAME)),
            (Host::Addr(_), None) => Ok(()),
            (Host::Addr(_), Some(shown)) => {
                let name = Name::parse(shown).map_err(|_| Decision::denied(OTHER_TLS))?;
                let shown = Destination::new(Host::Name(name), self.to.port);
                let decision = policy.decide(&shown);
                self.shown.replace(Some(shown));
                if decision.allowed { Ok(()) } else { Err(decision) }
            }
        }
    }

    /// What a policy has against it.
    fn decide(&self, gate: &Gate, policy: &Policy) -> Option<Decision> {
        let shown = self.shown.borrow();
        let decisions = [
            Some(gate.may_reach(policy, &self.to, self.address)),
            shown.as_ref().map(|it| policy.decide(it)),
        ];
        decisions.into_iter().flatten().find(|decision| !decision.allowed)
    }

    /// Tells the log what has moved since; false when nothing has.
    fn count(&self, gate: &Gate, seen: &mut (u64, u64)) -> bool {
        let now = (self.moved.sent.load(Ordering::Relaxed), self.moved.received.load(Ordering::Relaxed));
        let moved = now != *seen;
        if moved {
            gate.log.borrow_mut().bytes(&self.to, now.0 - seen.0, now.1 - seen.1);
            *seen = now;
        }
        moved
    }
}
