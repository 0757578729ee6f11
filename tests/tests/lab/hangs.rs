//! A file system of the host that never answers: what is shared of it hangs in the sandbox, and nothing else does.

use std::fs;

use tests::{Home, Test, Vm};

/// Mounts a file system on the folder that is its argument, as an ordinary user does. Its root is there and empty; whoever looks
/// the name `file` up waits for ever.
const HANGING: &str = r#"
import os, socket, struct, subprocess, sys
ours, theirs = socket.socketpair()
subprocess.run(["fusermount3", "-o", "fsname=hangs", sys.argv[1]], check=True, pass_fds=[theirs.fileno()],
               env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())})
fuse = socket.recv_fds(ours, 1, 1)[1][0]
LOOKUP, GETATTR, STATFS, INIT, ENOENT, ENOSYS = 1, 3, 17, 26, 2, 38
attr = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, os.getuid(), os.getgid(), 0, 4096, 0)
answers = {GETATTR: bytes(16) + attr, STATFS: bytes(80), INIT: struct.pack("<4I2H2I", 7, 31, 0, 0, 16, 12, 4096, 1) + bytes(36)}
print("mounted", flush=True)
while request := os.read(fuse, 1 << 20):
    opcode, unique = struct.unpack("<4xIQ", request[:16])
    if opcode == LOOKUP and request[40:] == b"file\0":
        print("asked", flush=True)
        continue
    error = 0 if opcode in answers else ENOENT if opcode == LOOKUP else ENOSYS
    body = answers.get(opcode, b"")
    os.write(fuse, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
"#;

#[test]
fn a_folder_that_hangs_holds_up_nothing_but_itself() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let folder = vm.home.path().join("hangs");
    fs::create_dir(&folder)?;
    let mut hanging =
        vm.home.program("python3").args(["-c", HANGING]).args([&folder]).deadline(600).spawn()?;
    hanging.until("mounted")?;
    let run = [
        "run",
        "-d",
        "--name",
        "vm",
        "--cpus",
        "1",
        "-m",
        "512m",
        "--idle-timeout",
        "10m",
        "shell",
        ".",
        "../hangs",
    ];
    vm.home.coracle(run).ok()?;
    let _waits = vm.command(["cat", "../hangs/file"]).deadline(600).spawn()?;
    hanging.until("asked")?;

    assert_eq!(vm.exec("echo works > here && cat here")?, "works\n");
    assert!(vm.home.coracle(["ls"]).ok()?.contains("running"));
    vm.home.coracle(["stop", "vm"]).ok()?;
    assert!(
        vm.home.coracle(["ls"]).ok()?.contains("stopped"),
        "its lock is free, though a thread of its VMM hangs"
    );
    assert_eq!(vm.exec("cat here")?, "works\n", "it can be started again");
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    assert_eq!(vm.home.coracle(["ls", "-q"]).ok()?, "");
    drop(hanging);
    vm.home.program("fusermount3").args(["-u", "-z"]).args([&folder]).ok()?;
    Ok(())
}
