"""All that a sandbox could reach: in a network namespace where every address is this machine, it serves and notes what arrives.

outside.py LOG: writes a line to LOG for each packet that begins something (tcp, udp, icmp, proto), for each question for a name (dns), and for
the first bytes that a connection brings (data). Owns the world that the test has; what may be in the log is the test's to say.
"""

import asyncio
import resource
import socket
import struct
import subprocess
import sys

DNS_PORT, END_PORT = 53, 9999
# What the host's resolver would say. A name of the second table says something else each time.
ADDRESSES = {
    "allowed.test": "93.184.216.34",
    "other.test": "93.184.216.35",
    "evil.test": "93.184.216.66",
    "loop.test": "127.0.0.1",
    "zero.test": "0.0.0.0",
    "meta.test": "169.254.169.254",
    "private.test": "10.0.0.5",
    "shared.test": "100.64.0.5",
    "many.test": "224.0.0.1",
}
REBINDS = {"rebind.test": ["93.184.216.36", "127.0.0.1", "169.254.169.254", "10.0.0.5"]}
IGNORED_ICMP = {3}  # "unreachable" is an answer of the kernel's to something that is in the log already

log = open(sys.argv[1], "w", buffering=1)


def note(*words):
    print(*words, file=log)


def sniff(sniffer):
    packet, (_, protocol, kind, _, _) = sniffer.recvfrom(65535)
    if kind == socket.PACKET_OUTGOING:
        return
    if protocol == 0x0800 and len(packet) >= 20:
        number, rest, to = packet[9], packet[(packet[0] & 15) * 4:], socket.inet_ntop(socket.AF_INET, packet[16:20])
    elif protocol == 0x86DD and len(packet) >= 40:
        number, rest, to = packet[6], packet[40:], "[%s]" % socket.inet_ntop(socket.AF_INET6, packet[24:40])
    else:
        return note("ethertype", hex(protocol))
    if number == socket.IPPROTO_TCP and len(rest) >= 20:
        if rest[13] & 0x12 == 0x02:  # SYN without ACK
            note("tcp", "%s:%d" % (to, struct.unpack("!H", rest[2:4])[0]))
    elif number == socket.IPPROTO_UDP and len(rest) >= 8:
        source, port = struct.unpack("!HH", rest[:4])
        if port == END_PORT:
            note("end", rest[8:].decode())
        elif to != "127.0.0.1" or DNS_PORT not in (source, port):  # the resolver's, which Names notes
            note("udp", "%s:%d" % (to, port))
    elif number == socket.IPPROTO_ICMP and rest:
        if rest[0] not in IGNORED_ICMP:
            note("icmp", to, rest[0])
    else:
        note("proto", number, to)


class Names(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, message, sender):
        labels, at = [], 12
        while message[at]:
            labels.append(message[at + 1:at + 1 + message[at]].decode("latin-1").lower())
            at += message[at] + 1
        name, (kind,) = ".".join(labels), struct.unpack("!H", message[at + 1:at + 3])
        note("dns", name, kind)
        address = ADDRESSES.get(name) or next(iter(REBINDS.get(name, [])), None)
        if len(REBINDS.get(name, [])) > 1:
            REBINDS[name].pop(0)
        answer = b""
        if address and kind == 1:
            answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04" + socket.inet_aton(address)
        flags = 0x8180 if name in ADDRESSES or name in REBINDS else 0x8183
        header = message[:2] + struct.pack("!HHHHH", flags, 1, bool(answer), 0, 0)
        self.transport.sendto(header + message[12:at + 5] + answer, sender)


def where(writer):
    address, port = writer.get_extra_info("sockname")[:2]
    return "%s:%d" % (address.removeprefix("::ffff:"), port)


async def echo(reader, writer):
    data = await reader.read(65536)
    if data:
        note("data", where(writer), repr(data[:24]))
    while data:
        writer.write(data)
        await writer.drain()
        data = await reader.read(65536)


async def http(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line = head.split("\r\n")[0]
    note("data", where(writer), repr(line))
    if " /redirect" in line:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n")
    else:
        body = line.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def total(reader, writer):
    """Reads to the end, then says how much there was, slowly."""
    count = len(await reader.read(-1))
    for byte in str(count).encode():
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def stall(reader, writer):
    """Takes nothing and says nothing."""
    writer.transport.pause_reading()
    await asyncio.sleep(3600)


async def flood(reader, writer):
    """Says more than anybody reads."""
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


def served(serve):
    async def whole(reader, writer):
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
    return whole


async def main():
    # With an address that is not loopback's, or the resolver would not ask for any.
    for command in ["link set lo up", "addr add 10.0.2.15/24 dev lo", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"]:
        subprocess.run(["ip", *command.split()], check=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    loop.add_reader(sniffer, sniff, sniffer)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", DNS_PORT))
    await loop.create_datagram_endpoint(Names, sock=names)
    for port, serve in {7: echo, 22: echo, 25: echo, 80: http, 443: echo, 8099: http, 8098: http, 70: total, 71: stall, 72: flood}.items():
        server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        await asyncio.start_server(served(serve), sock=server)
    print("ready", flush=True)
    await asyncio.sleep(1e6)


asyncio.run(main())
