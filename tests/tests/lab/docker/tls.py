"""A host with TLS on the loopback interface, whose certificate and key are in a file; says what it was sent to log in with, but for the
secret itself: nobody is told that."""

import http.server
import ssl
import sys


class Host(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        given = str(self.headers["Authorization"])
        body = ("the secret\n" if given == f"Bearer {sys.argv[3]}" else f"{given}\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Host)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
