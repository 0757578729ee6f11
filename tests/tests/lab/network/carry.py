"""What ordinary programs do with connections, many and odd ones: run in the guest, it says what came of it. Owns the client's side."""

import os
import resource
import socket
import sys
import time

HOST, ECHO, TOTAL, STALL, FLOOD = "allowed.test", 7, 70, 71, 72
MANY = 2000


def connect(port):
    it = socket.create_connection((HOST, port), 60)
    it.settimeout(60)
    return it


def exact(it, count):
    got = b""
    while len(got) < count:
        more = it.recv(count - len(got))
        assert more, "%d of %d bytes, %r" % (len(got), count, it.getsockname())
        got += more
    return got


def echo(it, data):
    it.sendall(data)
    assert exact(it, len(data)) == data


def say(*words):
    print(*words, flush=True)


def hold():
    """Keeps a connection until it is cut."""
    it = connect(ECHO)
    echo(it, b"before")
    say("open")
    it.settimeout(None)
    try:
        say("ended", it.recv(1))
    except ConnectionResetError:
        say("cut")


def half():
    """All of it is read by the host before it says how much it was."""
    with connect(TOTAL) as it:
        it.sendall(bytes(1 << 20))
        it.shutdown(socket.SHUT_WR)
        answer = b""
        while more := it.recv(100):
            answer += more
    say(answer.decode())


def idle(seconds):
    """Two: one that has said something, and one that says nothing for all that time."""
    with connect(ECHO) as one, connect(ECHO) as other:
        echo(one, b"before")
        time.sleep(int(seconds))
        echo(one, b"after")
        echo(other, b"at last")
    say("fine")


def many():
    """As many at once, with bytes through all of them, twice; until there is a file `done`."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY + 64, MANY + 64))
    all_of_them = [connect(ECHO) for _ in range(MANY)]
    for round_number in range(2):
        for number, it in enumerate(all_of_them):
            it.sendall(b"%d/%d" % (round_number, number))
        for number, it in enumerate(all_of_them):
            expected = b"%d/%d" % (round_number, number)
            try:
                assert exact(it, len(expected)) == expected
            except (OSError, AssertionError) as error:
                sys.exit("connection %d, round %d: %r" % (number, round_number, error))
    say("all", len(all_of_them))
    wait_for_end()


def bad():
    """Connections that are begun and not gone on with, that nobody takes from, and that are filled and not read."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    held = []
    for _ in range(200):
        it = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        it.connect((2, 1025))
        it.send(b"\1\0")
        held.append(it)
    for _ in range(100):
        it = connect(443)
        it.send(b"\x16")
        held.append(it)
    for _ in range(40):
        it = connect(STALL)
        it.setblocking(False)
        pushed = 0
        try:
            while pushed < 4 << 20:
                pushed += it.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        held.append(it)
    for _ in range(40):
        held.append(connect(FLOOD))
    say("stuck", len(held))
    wait_for_end()


def wait_for_end():
    while not os.path.exists("done"):
        time.sleep(0.2)


def quick():
    """One among all those."""
    start = time.monotonic()
    with connect(ECHO) as it:
        echo(it, b"x" * 1000)
    say("quick" if time.monotonic() - start < 5 else "slow")


globals()[sys.argv[1]](*sys.argv[2:])
