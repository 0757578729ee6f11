"""Serves this folder by HTTP at a port of its own, which it writes beside the folder."""
import http.server, sys
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as server:
    with open('../port', 'w') as f: f.write(str(server.server_address[1]))
    print('ready', flush=True)
    server.serve_forever()
