"""Measures four ways of a program to a server on the loopback of the machine it runs on, side by side: directly, from a namespace
by slirp4netns and by pasta, and from a sandbox by its gateway. Prints one JSON object: for each way MiB/s up and down, and
microseconds of one connection with one question and its answer.

Owns the server, the client and the ways. It is run in the lab by benches/network, as an ordinary user in namespaces of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

MIB = 1 << 20
PIECE = 256 << 10
SANDBOX = "bench-network"
# Where each way has the machine's loopback; pasta's is the template address's own router.
SLIRP_HOST, PASTA_HOST, SANDBOX_HOST = "10.0.2.2", "10.9.9.1", "host.coracle.internal"


def serve(client):
    """A letter and a number: U takes so many bytes and answers one, D gives so many, Q is answered at once."""
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        what, size = client.recv(16, socket.MSG_WAITALL).split()
        left = int(size)
        if what == b"D":
            client.sendall(bytes(left))
            return
        while left > 0:
            left -= len(client.recv(min(left, PIECE)) or sys.exit("a client hung up"))
        client.sendall(b".")


def listen():
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept():
        while True:
            threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def ask(host, port, what, size):
    with socket.create_connection((host, port), timeout=120) as server:
        server.sendall(b"%s %13d" % (what, size) + b"\n")
        piece, left = bytes(PIECE), size if what == b"U" else 0
        while left > 0:
            left -= server.send(piece[: min(left, PIECE)])
        wanted = size if what == b"D" else 1
        while wanted > 0:
            wanted -= len(server.recv(min(wanted, PIECE)) or sys.exit("the server hung up"))


def client(host, port, size, count):
    # A name is looked up once, as a program with a pool of connections does; the first connection starts what starts with it.
    host = socket.gethostbyname(host)
    ask(host, port, b"Q", 0)
    result = {}
    for name, what in [("up_mib_s", b"U"), ("down_mib_s", b"D")]:
        began = time.monotonic()
        ask(host, port, what, size)
        result[name] = round(size / MIB / (time.monotonic() - began), 1)
    began = time.monotonic()
    for _ in range(count):
        ask(host, port, b"Q", 0)
    result["connection_us"] = round((time.monotonic() - began) / count * 1e6, 1)
    print(json.dumps(result))


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def by_slirp(words):
    """In a namespace that slirp4netns serves."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    time.sleep(0.3)
    ready, told = os.pipe()
    command = ["slirp4netns", "--configure", "--mtu=65520", f"--ready-fd={told}", str(holder.pid), "tap0"]
    slirp = subprocess.Popen(command, pass_fds=[told], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.read(ready, 1)
    try:
        return run("nsenter", "-t", str(holder.pid), "-n", *words(SLIRP_HOST))
    finally:
        slirp.send_signal(signal.SIGTERM)
        holder.kill()


def by_pasta(words):
    # Without quitting root it would give up the rights to the namespace.
    return run("pasta", "--config-net", "--quiet", "--", *words(PASTA_HOST))


def by_sandbox(port, words):
    run("coracle", "run", "-d", "--name", SANDBOX, "--allow", f"localhost:{port}", "shell", ".")
    try:
        return run("coracle", "exec", SANDBOX, *words(SANDBOX_HOST))
    finally:
        run("coracle", "rm", "-f", SANDBOX)


def main(size, count):
    # pasta takes its addresses from an interface of the machine's, and the lab has none.
    for words in ["tuntap add out0 mode tap", "link set lo up", "link set out0 up", "address add 10.9.9.2/24 dev out0", "route add default via 10.9.9.1"]:
        run("ip", *words.split())
    port = listen()
    words = lambda host: ["python3", os.path.abspath(__file__), "client", host, str(port), str(size), str(count)]
    ways = {
        "direct": lambda: run(*words("127.0.0.1")),
        "slirp4netns": lambda: by_slirp(words),
        "pasta": lambda: by_pasta(words),
        "sandbox": lambda: by_sandbox(port, words),
    }
    print(json.dumps({name: json.loads(way()) for name, way in ways.items()}))


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main(*map(int, sys.argv[1:]))
