"""Makes a package of the npm registry, below npm/, and the file of an agent that wants it. argv: its version."""
import base64, hashlib, io, os, sys, tarfile
version = sys.argv[1]
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w:gz") as tar:
    script = f"#!/bin/sh\necho tiny {version} \"$@\"; cat ~/.tiny.json\n".encode()
    entry = tarfile.TarInfo("package/bin/tiny.sh")
    entry.size = len(script)
    tar.addfile(entry, io.BytesIO(script))
data = archive.getvalue()
os.makedirs("npm/@test/tiny/-", exist_ok=True)
with open(f"npm/@test/tiny/-/tiny-{version}.tgz", "wb") as f:
    f.write(data)
integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
os.makedirs(".config/coracle/agents", exist_ok=True)
with open(".config/coracle/agents/tiny.toml", "w") as f:
    f.write(f"""
about = "a test's"
command = ["tiny"]
args = ["--yes"]
env = ["TINY=1"]
[[npm]]
name = "@test/tiny"
version = "{version}"
integrity = "{integrity}"
size = {len(data)}
unpacked = {len(script)}
bin = {{ tiny = "bin/tiny.sh" }}
[[file]]
path = "/home/agent/.tiny.json"
text = "seen\\n"
""")
