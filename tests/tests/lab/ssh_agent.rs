//! The user's SSH agent in a sandbox: the keys that were named are listed and sign, and nothing else of it is there.

use anyhow::Result;
use tests::{Call, Home, Running, Test, Vm};

/// OpenSSH's agent, with two keys in it. It ends before its home, which is to be left clean.
struct Agent {
    process: Running,
    socket: String,
}

/// What a stream to the gateway that asks for the agent is answered, from the sandbox's root.
const ASK: &str = "import socket; s = socket.socket(socket.AF_VSOCK); s.connect((2, 1025)); s.send(bytes([4, 0, 0, 0, 0, 0, 0, 0])); \
                   print(s.recv(1)[0])";
/// The kind of the answer to a request to sign by a public key in a file: 14 is a signature, 5 a failure.
const SIGN: &str = r#"
import base64, os, socket, struct, sys
text = lambda it: struct.pack(">I", len(it)) + it
message = b"\x0d" + text(base64.b64decode(open(sys.argv[1]).read().split()[1])) + text(b"data") + bytes(4)
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["SSH_AUTH_SOCK"])
agent.sendall(text(message))
print(agent.recv(5)[4])
"#;
const UNREACHABLE: &str = "3\n";

impl Agent {
    fn start(home: &Home) -> Result<Self> {
        let socket = home.path().join("agent.sock").display().to_string();
        let agent = home.program("ssh-agent").args(["-D", "-a", &socket]).deadline(3600);
        let agent = Self { process: agent.spawn()?, socket };
        home.wait_for("the agent listens", || home.path().join("agent.sock").exists())?;
        for (name, kind) in [("work", "ed25519"), ("other", "ecdsa")] {
            let key = home.path().join(name).display().to_string();
            home.program("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", name, "-f", &key]).ok()?;
            agent.shown(home.program("ssh-add")).args(["-q", &key]).ok()?;
        }
        Ok(agent)
    }

    fn shown(&self, call: Call) -> Call {
        call.env("SSH_AUTH_SOCK", &self.socket)
    }
}

#[test]
fn the_named_key_signs_and_the_rest_of_the_agent_is_not_there() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let agent = Agent::start(&vm.home)?;
    let public = vm.home.read("work.pub")?;
    vm.home.write("proj/other.pub", vm.home.read("other.pub")?)?;
    vm.home.write("proj/signers", format!("me {public}"))?;
    let run = ["run", "-d", "--name", "vm", "--idle-timeout", "10m", "--cpus", "1", "-m", "512m"];
    let unknown = agent.shown(vm.home.coracle(run)).args(["--ssh-agent", "nobody", "shell", "."]).run()?;
    assert_eq!(unknown.code, 125, "{}", unknown.err());
    let says = "--ssh-agent: the SSH agent has no key nobody; it has:\n  SHA256:";
    assert!(unknown.err().contains(says), "{}", unknown.err());

    agent.shown(vm.home.coracle(run)).args(["--ssh-agent", "work", "shell", "."]).ok()?;
    assert_eq!(vm.exec("ssh-add -L")?, public);
    let sign = "ssh-add -L >work.pub; echo text >text; rm -f text.sig; ssh-keygen -q -Y sign -f work.pub -n file text 2>&1 &&
        ssh-keygen -Y verify -f signers -I me -n file -s text.sig <text | cut -d ' ' -f 1-6";
    assert_eq!(vm.exec(sign)?, "Good \"file\" signature for me with\n");
    // ssh-keygen looks at the list first; who asks without that is refused as well.
    for (key, answer) in [("work.pub", "14\n"), ("other.pub", "5\n")] {
        assert_eq!(vm.command(["python3", "-c", SIGN, key]).ok()?, answer, "{key}");
    }
    let changes = "ssh-keygen -q -t ed25519 -N '' -f ~/own; ssh-add ~/own; ssh-add -D; ssh-add -d work.pub; ssh-add -x </dev/null; true";
    vm.exec(changes)?;
    assert_eq!(vm.exec("ssh-add -L")?, public);
    let known = agent.shown(vm.home.program("ssh-add")).args(["-L"]).ok()?;
    assert_eq!(known, format!("{public}{}", vm.home.read("other.pub")?));

    // The agent ends, the sandbox goes on; started again without one, it is said.
    drop(agent.process);
    let gone = vm.command(["ssh-add", "-l"]).run()?;
    assert_ne!(gone.code, 0, "{}", gone.out());
    vm.home.coracle(["stop", "vm"]).ok()?;
    let again = vm.command(["true"]).without_env("SSH_AUTH_SOCK").run()?;
    let says = "coracle: the sandbox cannot use your SSH keys: SSH_AUTH_SOCK is not set";
    assert!(again.code == 0 && again.err().starts_with(says), "{}", again.err());
    Ok(())
}

#[test]
fn no_sandbox_has_it_unasked() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let agent = Agent::start(&vm.home)?;
    let run =
        ["run", "-d", "--name", "vm", "--idle-timeout", "10m", "--cpus", "1", "-m", "512m", "shell", "."];
    agent.shown(vm.home.coracle(run)).ok()?;
    assert_eq!(
        vm.exec("echo \"[$SSH_AUTH_SOCK]\"; ls /run/ssh-agent.sock 2>&1 | grep -c 'No such'")?,
        "[]\n1\n"
    );
    assert_eq!(vm.command(["sudo", "python3", "-c", ASK]).ok()?, UNREACHABLE);
    let given = ["run", "-d", "--name", "vm", "--ssh-agent", "work", "shell", "."];
    let late = agent.shown(vm.home.coracle(given)).run()?;
    assert!(
        late.err().contains("sandbox vm may use other keys of the SSH agent; leave it out"),
        "{}",
        late.err()
    );
    Ok(())
}
