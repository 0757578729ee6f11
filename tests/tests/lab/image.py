"""Makes an archive of `docker save` with a shell of this host and little else in it. argv: what is special about it, and the file."""
import hashlib, io, json, os, sys, tarfile
kind, out = sys.argv[1:]
def layer(*entries):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content or b""))
    return archive.getvalue()
def program(path):
    with open(os.path.realpath(path), "rb") as f:
        return path.lstrip("/"), f.read()
programs = [program(it) for it in ["/bin/sh", "/bin/cat", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]]
layers = [layer(*programs, ("srv", None), ("srv/old", b"old"), ("srv/kept", b"kept\n"), ("opaque/a", b"a"))]
layers.append(layer(("srv/.wh.old", b""), ("srv/new", b"new\n"), ("opaque/.wh..wh..opq", b""), ("opaque/b", b"b")))
if kind == "many":
    layers += [layer((f"srv/{n}", b"%d\n" % n)) for n in range(20)]
if kind == "cut":
    layers[0] = layers[0][:100_000]
if kind == "outside":
    layers.append(layer(("../../../../../../srv/outside", b"x"), ("/srv/absolute", b"x")))
command = "echo $GREETING; pwd; echo *; cat kept new; echo ../opaque/*; while read k v; do case $k in Uid:|Gid:) echo $k $v;; esac; done </proc/self/status"
config = {"architecture": "amd64", "os": "linux",
          "config": {"Env": ["GREETING=hello"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": [command], "WorkingDir": "/srv", "User": "7:8"},
          "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(it).hexdigest() for it in layers]}}
files = {"config.json": json.dumps(config).encode()}
files |= {f"{n}/layer.tar": data for n, data in enumerate(layers)}
files["manifest.json"] = json.dumps([{"Config": "config.json", "RepoTags": ["test/show:1"],
                                      "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}]).encode()
with tarfile.open(out, "w") as tar:
    for name, data in files.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
