"""The way out of the lab: four byte streams between this terminal and the lab host, and how a run ends.

  terminal  the lab host's console, for --tty: keys in, screen out
  control   from the lab "exit CODE", to it "ROWS COLUMNS" at each change of the window
  out, err  the command's output, any bytes; each ends with the run's end mark, so that nothing is lost or cut

Each is a virtio-serial port on one end of a socket pair, with QEMU at the other. Owns QEMU's process: it dies with us.
"""

import ctypes
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty

TIMED_OUT = 124
LAB_FAILED = 125
CHUNK = 1 << 16
# After the exit code, the rest of the output is on its way already.
DRAIN_SECONDS = 2
# Nobody writes this by accident. It is no secret and never changes: a shell reads 1 and a in different time, and then no
# two runs in virtual time were alike.
END_MARK = hashlib.sha256(b"the end of a lab run's output").hexdigest()[:32]
PR_SET_PDEATHSIG = 1
# What KVM says of each start: the guest asks for a performance counter that emulated hardware has not.
KVM_NOISE = "Unhandled WRMSR"
LOG_TAIL_LINES = 30


def window_size():
    """The terminal's, or the usual one where it does not know (0 rows), as over some serial lines."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size if size.lines and size.columns else os.terminal_size((80, 24))


class Stream:
    def __init__(self):
        self.socket, self._far = socket.socketpair()
        self.inside = self._far.fileno()

    def hand_over(self):
        self._far.close()


class Streams:
    def __init__(self):
        self.terminal, self.control, self.out, self.err = (Stream() for _ in range(4))

    def all(self):
        return self.terminal, self.control, self.out, self.err


class Output:
    """Copies a stream to a file descriptor up to the end mark, holding back only what may be the mark's beginning."""

    def __init__(self, fd, mark):
        self.fd, self.mark, self.held, self.ended = fd, mark.encode(), b"", False

    def feed(self, data):
        data = self.held + data
        text, mark, _ = data.partition(self.mark)
        self.ended = bool(mark)
        keep = 0 if mark else next(n for n in range(len(self.mark) - 1, -1, -1) if text.endswith(self.mark[:n]))
        self.held = text[len(text) - keep:]
        self.write(text[:len(text) - keep])

    def write(self, data):
        while data and self.fd is not None:
            try:
                data = data[os.write(self.fd, data):]
            except BrokenPipeError:
                self.fd = None  # our reader left; the command may go on


def start(command, streams):
    def die_with_parent():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            pass_fds=[stream.inside for stream in streams.all()], preexec_fn=die_with_parent,
                            start_new_session=True)
    for stream in streams.all():
        stream.hand_over()
    return qemu


class Run:
    def __init__(self, streams, deadline):
        self.streams, self.deadline = streams, deadline
        self.outputs = {streams.out.socket: Output(1, END_MARK), streams.err.socket: Output(2, END_MARK),
                        streams.terminal.socket: Output(1, END_MARK)}
        self.control, self.code = b"", None
        self.keyboard = None

    def finished(self):
        ended = [self.outputs[stream.socket].ended for stream in (self.streams.out, self.streams.err)]
        return self.code is not None and all(ended)

    def take(self, ready):
        """Handles one readable end; False when QEMU is gone."""
        if ready == self.keyboard:
            self.streams.terminal.socket.sendall(os.read(ready, CHUNK))
            return True
        try:
            data = ready.recv(CHUNK)
        except ConnectionResetError:
            data = b""
        if ready in self.outputs:
            self.outputs[ready].feed(data)
        else:
            self.control += data
            word, _, code = self.control.rpartition(b"\n")[0].partition(b" ")
            if word == b"exit" and self.code is None:
                self.code = int(code)
                self.deadline = min(self.deadline, time.monotonic() + DRAIN_SECONDS)
        return bool(data)

    def loop(self):
        sources = [stream.socket for stream in self.streams.all()] + ([self.keyboard] if self.keyboard is not None else [])
        while sources and not self.finished():
            left = self.deadline - time.monotonic()
            readable = select.select(sources, [], [], max(left, 0))[0]
            if not readable:
                return
            sources = [source for source in sources if source not in readable or self.take(source)]

    def send_window_size(self, *_):
        size = window_size()
        self.streams.control.socket.sendall(f"{size.lines} {size.columns}\n".encode())


def interact(run):
    """The loop with this terminal in raw mode: every key, also ^C, belongs to the lab."""
    run.keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(run.keyboard)
    signal.signal(signal.SIGWINCH, run.send_window_size)
    try:
        tty.setraw(run.keyboard, termios.TCSADRAIN)  # what was typed ahead is kept
        run.loop()
    finally:
        termios.tcsetattr(run.keyboard, termios.TCSADRAIN, before)


def report(problem, qemu, log):
    print(f"lab: {problem}", file=sys.stderr)
    sys.stderr.write(qemu.stdout.read().decode(errors="replace"))
    if log.exists():
        lines = [line for line in log.read_bytes().decode(errors="replace").splitlines() if KVM_NOISE not in line]
        sys.stderr.write("".join(f"lab kernel: {line}\n" for line in lines[-LOG_TAIL_LINES:]))


def run(command, streams, timeout, log, terminal=False):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    session = Run(streams, time.monotonic() + timeout)
    qemu = start(command, streams)
    try:
        interact(session) if terminal else session.loop()
    finally:
        timed_out = time.monotonic() >= session.deadline
        qemu.kill()
        qemu.wait()
    if session.code is not None:
        return session.code
    report(f"no answer after {timeout:g} s" if timed_out else "the lab host ended without an exit code", qemu, log)
    return TIMED_OUT if timed_out else LAB_FAILED
