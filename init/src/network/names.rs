//! Questions for names, which programs ask by datagrams, on their way through one stream to the gateway and back.
//! It owns which answer is whose: in the stream each question has an id of ours. It reads no more of a message than that.
//! Source: RFC 1035, 4.1.1 "Header section format", and RFC 7766.

use protocol::{Answer, Stream};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, recv, recvfrom, sendto};

use super::link::{connecting, write};

/// Questions that wait for their answers; the oldest is forgotten for one more. A power of two.
const PENDING_MAX: u16 = 1024;
const HEADER_LEN: usize = 12;
/// RFC 1035, 4.2.1 "UDP usage"; with room for the options of later ones. Longer questions are nobody's.
const QUESTION_MAX: usize = 1024;
/// Bytes that wait for the gateway to take them. Questions for which there is no room are lost, as datagrams are.
const OUT_MAX: usize = 64 << 10;
const LENGTH_LEN: usize = 2;
/// Datagrams taken before others have their turn.
const TURNS: usize = 64;
/// Third and fourth byte of an answer that the server has failed (RCODE 2).
const FAILED: [u8; 2] = [0x80, 0x82];

/// See the module.
pub struct Names<'a> {
    socket: &'a OwnedFd,
    pending: Vec<Option<Pending>>,
    next: u16,
    stream: Option<Wire>,
}

struct Pending {
    from: SocketAddrAny,
    question: Vec<u8>,
    id: u16,
}

/// The stream, from its first question on.
struct Wire {
    socket: OwnedFd,
    out: Vec<u8>,
    read: Vec<u8>,
    answered: bool,
}

impl<'a> Names<'a> {
    pub fn new(socket: &'a OwnedFd) -> Self {
        Self { socket, pending: (0..PENDING_MAX).map(|_| None).collect(), next: 0, stream: None }
    }

    /// The stream's socket, and whether it has to take more.
    pub fn wire(&self) -> Option<(&OwnedFd, bool)> {
        self.stream.as_ref().map(|it| (&it.socket, !it.out.is_empty()))
    }

    /// Takes what was asked. True when that has made a stream.
    pub fn asked(&mut self, connect: impl Fn() -> rustix::io::Result<OwnedFd>) -> bool {
        let had_stream = self.stream.is_some();
        let mut question = [0; QUESTION_MAX + 1];
        for _ in 0..TURNS {
            match recvfrom(self.socket, &mut question[..], RecvFlags::empty()) {
                Ok((length @ HEADER_LEN..=QUESTION_MAX, _, Some(from))) => {
                    if self.stream.is_none() {
                        self.stream = connect().ok().map(Wire::new);
                    }
                    self.forward(&question[..length], from);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.stream.is_some() && !had_stream
    }

    fn forward(&mut self, question: &[u8], from: SocketAddrAny) {
        let id = u16::from_be_bytes([question[0], question[1]]);
        let pending = Pending { from, question: question.to_vec(), id };
        let Some(wire) = &mut self.stream else { return pending.fail(self.socket) };
        let ours = self.next;
        self.next = self.next.wrapping_add(1);
        if wire.ask(ours, &question[2..]) {
            let slot = usize::from(ours % PENDING_MAX);
            self.pending[slot] = Some(pending);
        }
    }

    /// The stream has answers, takes more, or is no more. False when it is gone.
    pub fn progress(&mut self) -> bool {
        let Some(wire) = &mut self.stream else { return false };
        let alive = wire.progress();
        while let Some((ours, answer)) = wire.answer() {
            let slot = &mut self.pending[usize::from(ours % PENDING_MAX)];
            // An answer that comes when its question has been forgotten has another one's place.
            let recent = self.next.wrapping_sub(ours) <= PENDING_MAX;
            if let Some(asked) = slot.take_if(|_| recent) {
                let datagram = [&asked.id.to_be_bytes()[..], &answer].concat();
                let _ = sendto(self.socket, &datagram, SendFlags::empty(), &asked.from);
            }
        }
        if !alive {
            self.stream = None;
            for asked in self.pending.iter_mut().filter_map(Option::take) {
                asked.fail(self.socket);
            }
        }
        alive
    }
}

impl Pending {
    /// Who asks another server, or again, need not wait for long first.
    fn fail(mut self, socket: &OwnedFd) {
        let asked = self.question[2] & 0x79;
        self.question[2..4].copy_from_slice(&[FAILED[0] | asked, FAILED[1]]);
        let _ = sendto(socket, &self.question, SendFlags::empty(), &self.from);
    }
}

impl Wire {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, out: Stream::Dns.encode().to_vec(), read: Vec::new(), answered: false }
    }

    /// False when there is no room for the question.
    fn ask(&mut self, id: u16, rest: &[u8]) -> bool {
        let Ok(length) = u16::try_from(rest.len() + 2) else { return false };
        if self.out.len() + LENGTH_LEN + usize::from(length) > OUT_MAX {
            return false;
        }
        self.out.extend(length.to_be_bytes());
        self.out.extend(id.to_be_bytes());
        self.out.extend(rest);
        true
    }

    /// False when it is no more; what it has said before is there to be read.
    fn progress(&mut self) -> bool {
        let mut alive = true;
        if !self.out.is_empty() {
            match write(self.socket.as_fd(), &self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(_) => alive = false,
            }
        }
        let mut chunk = [0; 4096];
        for _ in 0..TURNS {
            match recv(&self.socket, &mut chunk[..], RecvFlags::empty()) {
                Ok((count @ 1.., _)) => self.read.extend_from_slice(&chunk[..count]),
                Err(Errno::NOTCONN) => match connecting(self.socket.as_fd()) {
                    Ok(()) => break,
                    Err(_) => return false,
                },
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                _ => return false,
            }
            if !self.answered {
                if Answer::decode(self.read.remove(0)) != Ok(Answer::Connected) {
                    return false;
                }
                self.answered = true;
            }
        }
        alive
    }

    /// The next answer that is there: its id, and what follows it.
    fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        loop {
            let (length, rest) = self.read.split_first_chunk::<LENGTH_LEN>()?;
            let message = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
            let found =
                message.split_first_chunk().map(|(id, rest)| (u16::from_be_bytes(*id), rest.to_vec()));
            let taken = LENGTH_LEN + message.len();
            self.read.drain(..taken);
            if found.is_some() {
                return found;
            }
        }
    }
}
