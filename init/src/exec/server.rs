//! The exec server: one poll loop over everything that can happen.
//! It owns the listener, the limits on who is served at once, and the end of the sandbox. It knows no command: sessions
//! do.

use std::time::{Duration, Instant};

use protocol::{Role, Stdio, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::arrival::{Arrival, Outcome};
use super::session::{Control, Part, Session, Sockets};
use crate::docker::Docker;
use crate::housekeeping::Housekeeping;
use crate::mark::Port;
use crate::network::{Network, Which};
use crate::reap::Container;
use crate::sys;

/// Commands at once. Each takes up to nine file descriptors.
const SESSIONS_MAX: usize = 256;
/// Connections at once that have no session yet; more are closed at once.
const ARRIVALS_MAX: usize = 256;
/// Connections accepted in one go before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long the listener is left alone when the kernel has no memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long Docker's daemon and its containers may take to end, before the others are asked to.
const DOCKER_GRACE: Duration = Duration::from_secs(2);
/// How long the container's processes may take to end after SIGTERM; the VMM's own patience is longer.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// How long processes may take to end after SIGKILL, before the file systems are closed under them.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Something the loop waits for.
#[derive(Clone, Copy, Debug)]
enum Wake {
    Listener,
    Container,
    Housekeeping,
    Docker,
    Network(Which),
    Arrival(usize),
    Session(usize, Part),
}

/// Serves connections until it is told to end the sandbox.
pub struct Server {
    listener: OwnedFd,
    accepts_at: Option<Instant>,
    arrivals: Vec<Arrival>,
    sessions: Vec<Session>,
    /// `None` in tests, which have none.
    container: Option<Container>,
    /// For the mark that the first command sets.
    port: Option<Port>,
    housekeeping: Housekeeping,
    docker: Docker,
    network: Network,
    ending: Option<Ending>,
}

/// How far the end of the sandbox is.
enum Ending {
    /// Docker has been asked to end, first and until then: it could not end its containers if its own helpers were asked
    /// with it.
    Docker(Instant),
    /// Processes have been asked to end, until then.
    Asked(Instant),
    /// They have been killed, and are given up then.
    Killed(Instant),
}

impl Server {
    /// `listener` must be non-blocking.
    pub fn new(
        listener: OwnedFd,
        container: Option<Container>,
        port: Option<Port>,
        housekeeping: Housekeeping,
        docker: Docker,
        network: Network,
    ) -> Self {
        Self {
            listener,
            accepts_at: None,
            arrivals: Vec::new(),
            sessions: Vec::new(),
            container,
            port,
            housekeeping,
            docker,
            network,
            ending: None,
        }
    }

    /// Returns when the container's processes have ended: at somebody's request, or because its first one did.
    pub fn run(mut self) {
        sys::ignore_sigpipe();
        while !self.ended() {
            for wake in self.wait() {
                self.dispatch(wake);
            }
            self.join();
            self.expire(Instant::now());
            let sessions = self.sessions.len();
            self.sessions.retain(|it| !it.finished());
            if self.sessions.len() < sessions {
                self.ask_again();
            }
        }
    }

    fn ended(&self) -> bool {
        match &self.container {
            Some(container) => container.ended(),
            None => self.ending.is_some(),
        }
    }

    /// Sleeps until something is ready, and returns what. Deadlines count as nothing.
    fn wait(&self) -> Vec<Wake> {
        let mut fds = Vec::new();
        let mut wakes = Vec::new();
        self.waits_for(|fd, flags, wake| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            wakes.push(wake);
        });
        let left = self.deadline().map(|it| it.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|it| Timespec::try_from(it).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(1..) => {}
            // Only a signal can interrupt it: none has a handler here.
            _ => return Vec::new(),
        }
        fds.iter().zip(wakes).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, wake)| wake).collect()
    }

    fn waits_for<'a>(&'a self, mut wait: impl FnMut(BorrowedFd<'a>, PollFlags, Wake)) {
        if self.accepts_at.is_none() {
            wait(self.listener.as_fd(), PollFlags::IN, Wake::Listener);
        }
        if let Some(container) = &self.container {
            wait(container.pidfd(), PollFlags::IN, Wake::Container);
        }
        if let Some(pidfd) = self.housekeeping.pidfd() {
            wait(pidfd, PollFlags::IN, Wake::Housekeeping);
        }
        if let Some(fd) = self.docker.waits_for() {
            wait(fd, PollFlags::IN, Wake::Docker);
        }
        for (fd, service) in self.network.waits_for() {
            wait(fd, PollFlags::IN, Wake::Network(service));
        }
        for (index, arrival) in self.arrivals.iter().enumerate().filter(|(_, it)| it.reads()) {
            wait(arrival.socket.as_fd(), PollFlags::IN, Wake::Arrival(index));
        }
        for (index, session) in self.sessions.iter().enumerate() {
            session.waits_for(|fd, flags, part| wait(fd, flags, Wake::Session(index, part)));
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().map(|it| match it {
            Ending::Docker(at) | Ending::Asked(at) | Ending::Killed(at) => *at,
        });
        let arrivals = self.arrivals.iter().map(|it| it.deadline);
        let sessions = self.sessions.iter().filter_map(Session::deadline);
        let ours = [self.accepts_at, self.housekeeping.deadline(), ending].into_iter().flatten();
        arrivals.chain(sessions).chain(ours).min()
    }

    /// Indices hold for the whole turn: until its end, arrivals and sessions are only added.
    fn dispatch(&mut self, wake: Wake) {
        match wake {
            Wake::Listener => self.accept(),
            Wake::Container => self.container.iter_mut().for_each(Container::reap),
            Wake::Housekeeping => {
                self.housekeeping.reap();
                self.ask_again();
            }
            Wake::Docker => self.docker.ready(),
            Wake::Network(service) => self.network.ready(service),
            Wake::Arrival(index) => self.receive(index),
            Wake::Session(index, part) => self.sessions[index].ready(part),
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        for _ in 0..ACCEPTS_PER_TURN {
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) if self.arrivals.len() < ARRIVALS_MAX => {
                    self.arrivals.push(Arrival::new(socket, Instant::now()));
                    // Its first bytes have often come along.
                    self.receive(self.arrivals.len() - 1);
                }
                Ok(_) | Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.accepts_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn receive(&mut self, index: usize) {
        let arrival = &mut self.arrivals[index];
        match arrival.receive() {
            Outcome::Keep => {}
            // Expires at the end of the turn.
            Outcome::Drop => arrival.deadline = Instant::now(),
            Outcome::GrowDisk(bytes) => {
                arrival.deadline = Instant::now();
                self.housekeeping.grow_disk(bytes, &arrival.socket);
            }
            Outcome::Shutdown => {
                arrival.deadline = Instant::now();
                self.shut_down();
            }
        }
    }

    /// Starts every session whose connections have all arrived.
    fn join(&mut self) {
        while let Some(token) = self.complete_session() {
            let Some((control, exec, sockets)) = self.take_session(token) else { return };
            let session = Session::start(control, exec, sockets, self.port.take());
            self.sessions.push(session);
            self.housekeeping.schedule();
        }
    }

    fn complete_session(&self) -> Option<Token> {
        if self.sessions.len() >= SESSIONS_MAX || self.ending.is_some() {
            return None;
        }
        self.arrivals.iter().find_map(|it| {
            let (exec, token) = (it.exec.as_ref()?, it.hello?.token);
            let arrived = |role| self.position(token, role).is_some();
            roles(exec.stdio).all(arrived).then_some(token)
        })
    }

    fn take_session(&mut self, token: Token) -> Option<(Control, protocol::Exec, Sockets)> {
        let control = self.arrivals.swap_remove(self.position(token, Role::Control)?);
        let exec = control.exec?;
        let mut sockets = Sockets::default();
        for role in roles(exec.stdio) {
            let socket = self.position(token, role).map(|index| self.arrivals.swap_remove(index).socket);
            match role {
                Role::Stdin => sockets.stdin = socket,
                Role::Stdout => sockets.stdout = socket,
                Role::Stderr => sockets.stderr = socket,
                Role::Tty => sockets.tty = socket,
                Role::Control => {}
            }
        }
        Some((Control { socket: control.socket, decoder: control.decoder }, exec, sockets))
    }

    /// The arrival of a session that plays a role in it. A control connection counts once it has said what to run.
    fn position(&self, token: Token, role: Role) -> Option<usize> {
        self.arrivals.iter().position(|it| {
            it.hello.is_some_and(|hello| hello.token == token && hello.role == role)
                && (role != Role::Control || it.exec.is_some())
        })
    }

    fn shut_down(&mut self) {
        if self.ending.is_none() {
            self.docker.stop();
            self.ending = Some(Ending::Docker(Instant::now() + DOCKER_GRACE));
        }
    }

    fn shut_down_container(&mut self, now: Instant) {
        self.ending = Some(Ending::Asked(now + SHUTDOWN_GRACE));
        self.ask_to_end();
        self.sessions.iter_mut().for_each(Session::close_terminal);
    }

    /// When a process in the container has ended that its first one does not hear of, as it was our child: a session's command,
    /// or the housekeeping.
    fn ask_again(&self) {
        if matches!(self.ending, Some(Ending::Asked(_))) {
            self.ask_to_end();
        }
    }

    /// The container's first process asks the others, and ends when it is alone.
    fn ask_to_end(&self) {
        if let Some(container) = &self.container {
            container.signal(libc::SIGTERM);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.arrivals.retain(|it| it.deadline > now);
        self.sessions.iter_mut().for_each(|it| it.expire(now));
        self.accepts_at = self.accepts_at.filter(|&at| at > now);
        self.housekeeping.expire(now);
        if let Some(Ending::Docker(at)) = self.ending
            && (at <= now || !self.docker.runs())
        {
            self.shut_down_container(now);
        }
        let Some(container) = &mut self.container else { return };
        match self.ending {
            Some(Ending::Asked(at)) if at <= now => {
                container.signal(libc::SIGKILL);
                self.ending = Some(Ending::Killed(now + KILL_GRACE));
            }
            Some(Ending::Killed(at)) if at <= now => container.give_up(),
            _ => {}
        }
    }
}

/// The bulk connections that a session needs.
fn roles(stdio: Stdio) -> impl Iterator<Item = Role> {
    let needed = match stdio {
        Stdio::Tty(_) => [None, None, None, Some(Role::Tty)],
        Stdio::Pipes { stdin, stdout, stderr } => [
            stdin.then_some(Role::Stdin),
            stdout.then_some(Role::Stdout),
            stderr.then_some(Role::Stderr),
            None,
        ],
    };
    needed.into_iter().flatten()
}
