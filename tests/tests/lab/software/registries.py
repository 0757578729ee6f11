"""What programs install from, on the loopback interface: a Debian archive by HTTP; by TLS, npm, PyPI and crates.io with a package
`tiny` each, Git repositories, a stream of events and a websocket. argv: both ports, the file with certificate and key, and
the folder of the repositories.

Formats: Debian "RepositoryFormat" (flat), npm's packument, PEP 503, Cargo's sparse index, `git http-backend`, RFC 6455.
"""

import base64
import hashlib
import http.server
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
import zipfile

PLAIN, TLS, PEM, REPOSITORIES = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
BASE = f"https://host.coracle.internal:{TLS}"


def archive(files, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, (text, bits) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), bits
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def debian():
    control = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a test's\n"
    members = [("debian-binary", b"2.0\n"), ("control.tar.gz", archive({"./control": (control, 0o644)})),
               ("data.tar.gz", archive({"./usr/bin/tiny-apt": ("#!/bin/sh\necho by apt\n", 0o755)}))]
    deb = b"!<arch>\n"
    for name, data in members:
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    packages = f"{control}Filename: ./tiny.deb\nSize: {len(deb)}\nSHA256: {sha256(deb)}\n".encode()
    release = f"Suite: test\nSHA256:\n {sha256(packages)} {len(packages)} Packages\n".encode()
    return {"/debian/tiny.deb": deb, "/debian/Packages": packages, "/debian/Release": release}


def npm():
    manifest = {"name": "tiny", "version": "1.0.0", "bin": {"tiny-npm": "tiny.js"}}
    data = archive({"package/package.json": (json.dumps(manifest), 0o644),
                    "package/tiny.js": ("#!/usr/bin/env node\nconsole.log('by npm')\n", 0o755)})
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    manifest["dist"] = {"tarball": f"{BASE}/npm/tiny/-/tiny-1.0.0.tgz", "integrity": integrity}
    packument = {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": manifest}}
    return {"/npm/tiny": json.dumps(packument).encode(), "/npm/tiny/-/tiny-1.0.0.tgz": data}


def pypi():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        wheel.writestr("tiny.py", "print('by pip')\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    name = "tiny-1.0-py3-none-any.whl"
    link = f'<!DOCTYPE html><a href="{BASE}/files/{name}#sha256={sha256(out.getvalue())}">{name}</a>'
    return {"/simple/tiny/": link.encode(), f"/files/{name}": out.getvalue()}


def crates():
    manifest = '[package]\nname = "tiny"\nversion = "1.0.0"\nedition = "2021"\n'
    crate = archive({"tiny-1.0.0/Cargo.toml": (manifest, 0o644),
                     "tiny-1.0.0/src/lib.rs": ('pub const TEXT: &str = "by cargo";\n', 0o644)})
    line = {"name": "tiny", "vers": "1.0.0", "deps": [], "cksum": sha256(crate), "features": {}, "yanked": False}
    return {"/index/config.json": json.dumps({"dl": f"{BASE}/crates"}).encode(),
            "/index/ti/ny/tiny": json.dumps(line).encode(), "/crates/tiny/1.0.0/download": crate}


FILES = {**debian(), **npm(), **pypi(), **crates()}
seen = threading.Event()


class Host(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code, body=b"", kind="application/octet-stream"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0].replace("/./", "/")
        if path.startswith("/git/"):
            self.git()
        elif path == "/events":
            self.events()
        elif path == "/echo":
            self.echo()
        elif path == "/seen":
            seen.set()
            self.answer(200)
        elif path in FILES:
            self.answer(200, FILES[path], "text/html" if path.startswith("/simple") else "application/octet-stream")
        else:
            self.answer(404)

    do_HEAD = do_GET

    def events(self):
        """The second event comes only when somebody says that he has seen the first."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: one\n\n")
        self.wfile.flush()
        self.wfile.write(b"data: two\n\n" if seen.wait(60) else b"data: nobody\n\n")
        self.close_connection = True

    def echo(self):
        """A websocket that says each short message back, until it is closed."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        while True:
            first, second = self.rfile.read(2)
            mask, data = self.rfile.read(4), self.rfile.read(second & 0x7F)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
            self.wfile.write(bytes([first, len(data)]) + data)
            if first & 0xF == 8:
                self.close_connection = True
                return

    def git(self):
        path, _, query = self.path.removeprefix("/git").partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        env = {"GIT_PROJECT_ROOT": REPOSITORIES, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
               "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "CONTENT_LENGTH": str(len(body)),
               "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "PATH": os.environ["PATH"]}
        done = subprocess.run(["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=env)
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.answer(int(fields.get("Status", "200").split()[0]), rest, fields["Content-Type"])

    do_POST = git

    def log_message(self, *args):
        pass


plain = http.server.ThreadingHTTPServer(("127.0.0.1", PLAIN), Host)
threading.Thread(target=plain.serve_forever, daemon=True).start()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(PEM)
tls = http.server.ThreadingHTTPServer(("127.0.0.1", TLS), Host)
# Each greeting in the thread of its connection.
tls.socket = context.wrap_socket(tls.socket, server_side=True, do_handshake_on_connect=False)
print("ready", flush=True)
tls.serve_forever()
