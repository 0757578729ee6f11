"""A service of the sandbox: KIND ADDRESS PORT. It says ready when it can be reached."""

import hashlib
import socket
import sys
import time

kind, address, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, int(port)), family=family, backlog=1 if kind == "deaf" else 128)
print("ready", flush=True)
while kind == "deaf":
    time.sleep(1)
open_ones = []
while True:
    client, _ = listener.accept()
    if kind == "full":
        # Kept open, and never read.
        open_ones.append(client)
        continue
    if kind == "name":
        client.sendall(address.encode())
    if kind == "whole":
        heard = bytearray()
        while chunk := client.recv(1 << 20):
            heard += chunk
        client.sendall(hashlib.sha256(heard).hexdigest().encode() + heard)
    if kind == "slow":
        # One byte for one, until the other side has had enough, or is cut off.
        try:
            while chunk := client.recv(1):
                client.sendall(chunk)
        except ConnectionError:
            pass
    client.close()
