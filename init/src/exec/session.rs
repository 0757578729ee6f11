//! One command and its connections, from the fork to the exit code.
//! It owns the command's process, its terminal or pipes, and the order in which its end is told: output first, then the
//! exit code. It does not wait: the server calls it when something is ready.

use std::rc::Rc;
use std::time::{Duration, Instant};

use protocol::{Decoder, Exec, Message, Reply, Request, Stdio, WinSize};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::arrival::READ_LEN;
use super::launch::{FAILED, Streams, launch};
use super::pump::{Progress, Pump};
use crate::mark::Port;
use crate::sys::{self, Fork};

/// How long a command whose client is gone may take to clean up after its SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// What of a session can be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client has sent a request, or takes replies again.
    Control,
    /// The command has been executed, or could not be.
    Report,
    /// The command has ended.
    Command,
    /// There is input to move.
    Input,
    /// There is output to move.
    Output(usize),
}

/// A session's bulk connections, as its `Stdio` asks for them. All are non-blocking.
#[derive(Default)]
pub struct Sockets {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub tty: Option<OwnedFd>,
}

/// The connection that requests come from and replies go to.
pub struct Control {
    pub socket: OwnedFd,
    /// Begins with what came along with the first request.
    pub decoder: Decoder,
}

/// A command that runs, or has ended but still has something to tell.
pub struct Session {
    /// `None` when the client is gone.
    control: Option<Control>,
    /// Replies that the connection has not taken yet.
    unsent: Vec<u8>,
    command: Option<Command>,
    io: Io,
    /// The last reply, when it is known: sent once all output has been.
    result: Option<Reply>,
    /// When a command that ignores its SIGHUP is killed.
    kill_at: Option<Instant>,
}

/// A process that has not been waited for, so its number is nobody else's.
struct Command {
    pid: Pid,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    /// Closes at the execve; carries a reply if there is none.
    report: Option<OwnedFd>,
}

/// What moves between the command and its connections.
#[derive(Default)]
struct Io {
    terminal: Option<Rc<OwnedFd>>,
    input: Option<Pump>,
    outputs: [Option<Pump>; 2],
}

impl Session {
    /// Starts the command. If it cannot be, the session's only reply will say why.
    pub fn start(control: Control, exec: Exec, sockets: Sockets, port: Option<Port>) -> Self {
        let mut session = Self {
            control: Some(control),
            unsent: Vec::new(),
            command: None,
            io: Io::default(),
            result: None,
            kill_at: None,
        };
        match start(exec, sockets, port) {
            Ok((command, io)) => (session.command, session.io) = (Some(command), io),
            Err(errno) => {
                let message = format!("start the command: {errno}");
                session.result = Some(Reply::Failed { code: FAILED, message });
            }
        }
        // Requests may have come along with the first.
        session.ready(Part::Control);
        session
    }

    /// Calls `wait` with each thing that this session waits for.
    pub fn waits_for<'a>(&'a self, mut wait: impl FnMut(BorrowedFd<'a>, PollFlags, Part)) {
        if let Some(control) = &self.control {
            let out = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            wait(control.socket.as_fd(), PollFlags::IN | out, Part::Control);
        }
        if let Some(command) = &self.command {
            wait(command.pidfd.as_fd(), PollFlags::IN, Part::Command);
            if let Some(report) = &command.report {
                wait(report.as_fd(), PollFlags::IN, Part::Report);
            }
        }
        let outputs = self.io.outputs.iter().zip(0..).map(|(it, index)| (it, Part::Output(index)));
        for (pump, part) in outputs.chain([(&self.io.input, Part::Input)]) {
            if let Some((fd, flags)) = pump.as_ref().map(Pump::waits_for) {
                wait(fd, flags, part);
            }
        }
    }

    /// When `expire` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Nothing is left to do, or to tell.
    pub fn finished(&self) -> bool {
        self.command.is_none()
            && (self.control.is_none() || (self.result.is_none() && self.unsent.is_empty()))
    }

    /// Does what has become possible.
    pub fn ready(&mut self, part: Part) {
        match part {
            Part::Control => self.serve_control(),
            Part::Report => self.read_report(),
            Part::Command => self.reap(),
            Part::Input => run(&mut self.io.input),
            Part::Output(index) => run(&mut self.io.outputs[index]),
        }
        self.settle();
    }

    /// Kills a command that has not ended in time after its hang-up.
    pub fn expire(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.signal_group(libc::SIGKILL);
        }
    }

    /// The client is gone: nobody reads, nobody will type. What a modem's hang-up did to a login.
    pub fn hang_up(&mut self) {
        if let Some(group) = self.foreground() {
            let _ = sys::kill(-group, libc::SIGHUP);
        }
        self.signal_group(libc::SIGHUP);
        // A stopped process would never get to its SIGHUP.
        self.signal_group(libc::SIGCONT);
        self.control = None;
        self.io = Io::default();
        self.kill_at = self.command.as_ref().map(|_| Instant::now() + HANG_UP_GRACE);
    }

    /// The sandbox ends, and asks all processes to: shells on a terminal ignore that, but not that it is hung up.
    pub fn close_terminal(&mut self) {
        if self.io.terminal.is_some() {
            self.hang_up();
        }
    }

    fn serve_control(&mut self) {
        if self.flush().and_then(|()| self.receive()).is_err() {
            self.hang_up();
        }
    }

    /// An error is the end of the connection, in whatever way.
    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; READ_LEN];
        loop {
            while let Some(request) = self.next_request()? {
                match request {
                    Request::Resize(size) => self.resize(size),
                    Request::Signal(number) => self.signal(number.into()),
                    Request::Exec(_) | Request::GrowDisk(_) | Request::Shutdown => return Err(Errno::PROTO),
                }
            }
            let Some(control) = &mut self.control else { return Ok(()) };
            match rustix::io::read(&control.socket, &mut buffer) {
                Ok(0) => return Err(Errno::PIPE),
                Ok(count) => control.decoder.feed(&buffer[..count]),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn next_request(&mut self) -> Result<Option<Request>> {
        self.control.as_mut().map_or(Ok(None), |it| it.decoder.take().map_err(|_| Errno::PROTO))
    }

    fn resize(&self, size: WinSize) {
        if let Some(terminal) = &self.io.terminal {
            // A terminal takes any size.
            let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
        }
    }

    /// To whom Control-C would go, or to the whole group when there is no terminal.
    fn signal(&self, number: i32) {
        match self.foreground() {
            Some(group) => drop(sys::kill(-group, number)),
            None => self.signal_group(number),
        }
    }

    fn foreground(&self) -> Option<i32> {
        let terminal = self.io.terminal.as_ref()?;
        rustix::termios::tcgetpgrp(terminal).ok().map(Pid::as_raw_pid)
    }

    fn signal_group(&self, number: i32) {
        let Some(command) = &self.command else { return };
        let pid = command.pid.as_raw_pid();
        // It leads no group yet when it has only just been forked.
        if sys::kill(-pid, number).is_err() {
            let _ = sys::kill(pid, number);
        }
    }

    fn read_report(&mut self) {
        let Some(command) = &mut self.command else { return };
        let Some(report) = &command.report else { return };
        let mut decoder = Decoder::default();
        let mut buffer = [0; 2 * protocol::MESSAGE_LEN_MAX];
        // A report is written at once, so a blocking read to its end does not wait.
        while let Ok(count @ 1..) = rustix::io::read(report, &mut buffer) {
            decoder.feed(&buffer[..count]);
        }
        command.report = None;
        match decoder.take() {
            Ok(Some(failed @ Reply::Failed { .. })) => self.result = Some(failed),
            _ => self.send(&Reply::Started),
        }
    }

    fn reap(&mut self) {
        self.read_report();
        let Some(command) = &self.command else { return };
        let Ok(Some(status)) =
            rustix::process::waitid(WaitId::PidFd(command.pidfd.as_fd()), WaitIdOptions::EXITED)
        else {
            return;
        };
        let code = status.exit_status().or(status.terminating_signal().map(|it| it + 128)).unwrap_or(0);
        self.command = None;
        self.kill_at = None;
        self.io.terminal = None;
        self.io.input = None;
        for output in &mut self.io.outputs {
            output.iter_mut().for_each(Pump::drain);
            run(output);
        }
        self.result.get_or_insert(Reply::Exited { code: u8::try_from(code).unwrap_or(u8::MAX) });
    }

    /// Sends the result once nothing comes before it.
    fn settle(&mut self) {
        if self.command.is_none()
            && self.io.outputs.iter().all(Option::is_none)
            && let Some(result) = self.result.take()
        {
            self.send(&result);
        }
    }

    fn send(&mut self, reply: &Reply) {
        if self.control.is_some()
            && let Ok(frame) = reply.encode()
        {
            self.unsent.extend(frame);
            if self.flush().is_err() {
                self.hang_up();
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        while !self.unsent.is_empty() {
            match rustix::io::write(&control.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

fn run(pump: &mut Option<Pump>) {
    if pump.as_mut().is_some_and(|it| it.run() == Progress::Finished) {
        *pump = None;
    }
}

fn start(exec: Exec, sockets: Sockets, port: Option<Port>) -> Result<(Command, Io)> {
    let (streams, io) = match exec.stdio {
        Stdio::Tty(size) => terminal(size, sockets)?,
        Stdio::Pipes { .. } => pipes(sockets)?,
    };
    let (report, report_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Fork::Child => launch(exec, &streams, port, &report_end),
        Fork::Parent(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            Ok((Command { pid, pidfd, report: Some(report) }, io))
        }
    }
}

fn terminal(size: WinSize, sockets: Sockets) -> Result<(Streams, Io)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    rustix::pty::unlockpt(&master)?;
    // Opened here, not in the child: a terminal that nobody has open reads as hung up.
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&master, winsize(size))?;
    let master = Rc::new(master);
    let mut io = Io { terminal: Some(Rc::clone(&master)), ..Io::default() };
    if let Some(socket) = sockets.tty.map(Rc::new) {
        io.input = Some(Pump::new(Rc::clone(&socket), Rc::clone(&master)));
        io.outputs[0] = Some(Pump::new(master, socket));
    }
    Ok((Streams::Tty(slave), io))
}

fn pipes(sockets: Sockets) -> Result<(Streams, Io)> {
    let mut io = Io::default();
    let mut ends = [None, None, None];
    if let Some(socket) = sockets.stdin {
        let (read_end, write_end) = pipe()?;
        rustix::io::ioctl_fionbio(&write_end, true)?;
        io.input = Some(Pump::new(Rc::new(socket), Rc::new(write_end)));
        ends[0] = Some(read_end);
    }
    for (index, socket) in [sockets.stdout, sockets.stderr].into_iter().enumerate() {
        let Some(socket) = socket else { continue };
        let (read_end, write_end) = pipe()?;
        rustix::io::ioctl_fionbio(&read_end, true)?;
        io.outputs[index] = Some(Pump::new(Rc::new(read_end), Rc::new(socket)));
        ends[index + 1] = Some(write_end);
    }
    Ok((Streams::Pipes(ends), io))
}

/// The command's end must block: only ours is made not to.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

fn winsize(size: WinSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
