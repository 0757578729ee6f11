"""What has no way out of here ends at once, with an error that says so; prints nothing then."""

import errno
import socket
import time

LONG = 4
ECHO = b"\x08\x00\xf7\xff\x00\x00\x00\x00"


def udp(to):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(LONG)
    s.connect(to)
    s.send(b"anybody?")
    s.recv(1)


def ping(to):
    """A raw socket is no client: it hears what it is told of the refusal (RFC 792, type 3; RFC 1812, code 13)."""
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.settimeout(LONG)
    s.sendto(ECHO, to)
    heard = s.recv(100)[20:22]
    raise OSError(errno.EHOSTUNREACH if heard == b"\x03\x0d" else 0, f"heard {heard}")


def tcp(to):
    s = socket.create_connection(to, LONG)
    s.send(b"GET / HTTP/1.0\r\n\r\n")
    s.recv(1)


for what, to in [(udp, ("8.8.8.8", 443)), (udp, ("192.0.2.1", 443)), (ping, ("8.8.8.8", 0)), (tcp, ("2001:db8::1", 443)),
                 (tcp, ("1.1.1.1", 443)), (tcp, ("169.254.169.254", 80)), (tcp, ("198.18.0.2", 1))]:
    began = time.time()
    try:
        what(to)
        print(what.__name__, to, "has an answer")
    except TimeoutError:
        print(what.__name__, to, "is lost")
    except OSError as error:
        took = time.time() - began
        if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH) or took > LONG / 2:
            print(what.__name__, to, error, took)
