"""A registry on the loopback interface, as much of one as push and pull need (OCI Distribution 1.1, "Endpoints").

It keeps everything in memory, and checks that what it is given has the digest it is said to have.
"""

import hashlib
import http.server
import re
import sys

blobs, manifests, uploads = {}, {}, {}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_GET(self):
        if self.path == "/v2/":
            self.answer(200)
        elif (m := re.fullmatch(r"/v2/.+/blobs/(.+)", self.path)) and m[1] in blobs:
            self.answer(200, blobs[m[1]], Docker_Content_Digest=m[1])
        elif (m := re.fullmatch(r"/v2/.+/manifests/(.+)", self.path)) and m[1] in manifests:
            kind, digest, body = manifests[m[1]]
            self.answer(200, body, Content_Type=kind, Docker_Content_Digest=digest)
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_POST(self):
        number = str(len(uploads))
        uploads[number] = b""
        self.body()
        self.answer(202, Location=f"{self.path}{number}")

    def do_PATCH(self):
        number = self.path.rsplit("/", 1)[1]
        uploads[number] += self.body()
        self.answer(202, Location=self.path, Range=f"0-{len(uploads[number]) - 1}")

    def do_PUT(self):
        body = self.body()
        if m := re.fullmatch(r"/v2/.+/blobs/uploads/(\d+)\?.*digest=(sha256(?::|%3A)\w+).*", self.path):
            blob, digest = uploads.pop(m[1]) + body, m[2].replace("%3A", ":")
            uploads[m[1]] = b""
            if digest != digest_of(blob):
                return self.answer(400)
            blobs[digest] = blob
            return self.answer(201, Location=f"/v2/x/blobs/{digest}", Docker_Content_Digest=digest)
        digest = digest_of(body)
        for name in (self.path.rsplit("/", 1)[1], digest):
            manifests[name] = (self.headers["Content-Type"], digest, body)
        self.answer(201, Location=self.path, Docker_Content_Digest=digest)

    def log_message(self, *args):
        pass


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Registry)
print("ready", flush=True)
server.serve_forever()
