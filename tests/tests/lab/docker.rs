//! The private Docker: what starts it, what works in it, what stays of it, and who cannot break it.

use anyhow::Result;
use tests::{Call, Test, Vm};

/// For whatever waits for the daemon to start, in a guest that runs at a hundredth of its speed.
const PATIENCE_S: u64 = 240;
const IMAGE: &str = include_str!("docker/image.py");
const REGISTRY: &str = include_str!("docker/registry.py");
const VERSION: &str = "docker version --format '{{.Server.Os}}'";

fn boot() -> Result<Vm> {
    let vm = Vm::boot_with(["--cpus", "1", "-m", "1g"])?;
    vm.home.write("proj/image.py", IMAGE)?;
    vm.home.write("proj/registry.py", REGISTRY)?;
    Ok(vm)
}

/// A line of shell, whose first word may have to wait for the daemon.
fn slow(vm: &Vm, script: &str) -> Call {
    vm.command(["sh", "-c", script]).deadline(PATIENCE_S)
}

#[test]
fn docker_starts_with_its_first_use_and_keeps_what_it_has() -> Test {
    let vm = boot()?;
    let before = "stat -c '%U %G %a' /run/docker.sock; pgrep -c 'docker|containerd'; grep -c docker /proc/mounts; true";
    assert_eq!(vm.exec(before)?, "root docker 660\n0\n0\n");
    assert_eq!(slow(&vm, VERSION).ok()?, "linux\n");
    vm.exec("grep -q ' /var/lib/docker ext4 ' /proc/mounts && grep -q 'API listen' /var/log/docker.log")?;

    assert!(slow(&vm, "python3 image.py | docker load").ok()?.contains("tiny:1"));
    let done = slow(&vm, "docker run --rm tiny:1 sh -c 'echo out; echo err >&2; exit 7'").run()?;
    assert_eq!((done.code, done.out(), done.err()), (7, "out\n".into(), "err\n".into()));

    // The workspace, at its own path, both ways; and an end that is told.
    vm.home.write("proj/note", "from the host\n")?;
    let script = "trap 'echo ended > end; exit' TERM; cat note; echo from the container > reply; while :; do sleep 1; done";
    let run = r#"docker run -d --name box -v "$PWD:$PWD" -w "$PWD" tiny:1 sh -c "$0" >id && until [ -s reply ]; do sleep 1; done"#;
    vm.command(["sh", "-c", run, script]).deadline(PATIENCE_S).ok()?;
    assert_eq!(vm.home.read("proj/reply")?, "from the container\n");
    vm.home.coracle(["stop", "vm"]).ok()?;
    assert_eq!(vm.home.read("proj/end")?, "ended\n");

    assert_eq!(vm.exec("pgrep -c 'docker|containerd'; true")?, "0\n");
    let again = "docker logs box; docker inspect -f '{{.State.Status}}' box; docker run --rm tiny:1 sh -c 'echo again'";
    assert_eq!(slow(&vm, again).ok()?, "from the host\nexited\nagain\n");
    Ok(())
}

#[test]
fn images_are_built_pushed_pulled_and_composed() -> Test {
    let vm = boot()?;
    vm.home.write(
        "proj/Dockerfile",
        "FROM scratch\nADD files.tar /\nENV PATH=/bin\nRUN echo built >/made\nCMD [\"sh\", \"-c\", \"cat /made\"]\n",
    )?;
    vm.home.write(
        "proj/compose.yaml",
        "services:\n  one:\n    image: localhost:5000/built:1\n    command: [sh, -c, \"echo composed; exit 3\"]\n",
    )?;
    let mut registry = vm.command(["python3", "registry.py", "5000"]).deadline(4 * PATIENCE_S).spawn()?;
    registry.until("ready")?;

    let build = "python3 image.py files >files.tar; docker build -q -t localhost:5000/built:1 . && docker run --rm localhost:5000/built:1";
    let built = slow(&vm, build).ok()?;
    assert!(built.starts_with("sha256:") && built.ends_with("\nbuilt\n"), "{built}");

    let pull = "docker push -q localhost:5000/built:1 && docker image rm localhost:5000/built:1 >/dev/null && ! docker image inspect \
        localhost:5000/built:1 >/dev/null 2>&1 && docker pull -q localhost:5000/built:1";
    assert_eq!(slow(&vm, pull).ok()?, "localhost:5000/built:1\nlocalhost:5000/built:1\n");

    let done = slow(&vm, "docker compose up --exit-code-from one").run()?;
    assert!(done.code == 3 && done.out().contains("composed"), "{} {} {}", done.code, done.out(), done.err());
    drop(registry);
    Ok(())
}

#[test]
fn a_daemon_that_fails_or_is_killed_and_a_crowd_are_no_harm() -> Test {
    let vm = boot()?;
    // Who waits for a daemon that cannot start is told, and the reason is in the log.
    vm.exec("echo '{' | sudo tee /etc/docker/daemon.json")?;
    let done = slow(&vm, VERSION).run()?;
    assert!(done.code != 0 && !done.err().is_empty(), "{} {}", done.code, done.out());
    vm.exec("grep -q daemon.json /var/log/docker.log && sudo rm /etc/docker/daemon.json")?;

    let silent = "import socket, time; s = socket.socket(socket.AF_UNIX); s.connect('/run/docker.sock'); print('in', flush=True); time.sleep(9999)";
    let mut silent = vm.command(["python3", "-c", silent]).deadline(4 * PATIENCE_S).spawn()?;
    silent.until("in")?;
    let crowd = slow(&vm, &format!("for i in $(seq 20); do {VERSION} & done; wait")).ok()?;
    assert_eq!(crowd.matches("linux").count(), 20, "{crowd}");
    assert_eq!(vm.exec("pgrep -cx dockerd")?, "1\n");

    vm.exec("sudo pkill -KILL -x dockerd")?;
    assert_eq!(slow(&vm, VERSION).ok()?, "linux\n");
    drop(silent);
    Ok(())
}

#[test]
fn no_docker_is_no_socket_and_stays_so() -> Test {
    let small = ["--cpus", "1", "-m", "512m"];
    let vm = Vm::boot_with(small.iter().chain(&["--no-docker"]))?;
    vm.exec("test ! -e /run/docker.sock && ! docker version")?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    vm.exec("test ! -e /run/docker.sock")?;
    vm.start(small)?;
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    vm.start(small)?;
    let done = vm.home.coracle(["run", "--name", "vm", "--no-docker", "shell", "."]).run()?;
    assert!(done.code == 125 && done.err().contains("has Docker"), "{} {}", done.code, done.err());
    Ok(())
}
