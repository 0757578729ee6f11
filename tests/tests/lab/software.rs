//! Ordinary programs in a sandbox, which nobody has told of its gateway: they install, clone and stream from hosts as they would
//! anywhere. The hosts are real servers of the lab's loopback, which a rule of the policy opens.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tests::{Home, Running, Test, Vm};

/// For a program that computes much, in a guest that runs at a hundredth of its speed.
const PATIENCE_S: u64 = 240;
const REGISTRIES: &str = include_str!("software/registries.py");
const STREAMS: &str = include_str!("software/streams.js");

/// A certificate for the host and keys for SSH, and a system that trusts the one and has the other.
const KEYS: &str = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=host -addext \
    basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:host.coracle.internal -keyout key.pem -out cert.pem 2>/dev/null
    cat cert.pem key.pem >host.pem; cat cert.pem | sudo tee -a /etc/ssl/certs/ca-certificates.crt >/dev/null
    ssh-keygen -q -t ed25519 -N '' -f host_key; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519; cp ~/.ssh/*.pub .";

const REPOSITORY: &str = "git init -q work && cd work && echo cloned >file && git add file && git -c user.name=a -c user.email=a@b \
    commit -q -m one && cd .. && git clone -q --bare work repositories/tiny.git";

/// What each program is asked to do, by hosts H (HTTP), S (HTTPS) and G (SSH), and what it prints then.
const PROGRAMS: [(&str, &str); 7] = [
    (
        "sudo rm -r /etc/apt/sources.list.d; echo deb [trusted=yes] H/debian ./ | sudo tee /etc/apt/sources.list >/dev/null; sudo \
            apt-get -q=2 update && sudo apt-get -q=2 install tiny >/dev/null 2>&1; tiny-apt",
        "by apt",
    ),
    (
        "export NODE_EXTRA_CA_CERTS=$PWD/cert.pem; mkdir npm; cd npm; echo registry=S/npm/ >.npmrc; npm install --silent tiny >/dev/null && \
            npm ci --silent >/dev/null && node_modules/.bin/tiny-npm",
        "by npm",
    ),
    (
        "export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl); python3 -m pip install -q --index-url S/simple --target pip tiny \
            && PYTHONPATH=pip python3 -c 'import tiny'",
        "by pip",
    ),
    (
        "uv -q pip install --native-tls --index-url S/simple --target uv tiny && PYTHONPATH=uv python3 -c 'import tiny'",
        "by pip",
    ),
    // vendor is what needs no compiler.
    (
        "mkdir -p crate/src crate/.cargo; cd crate; touch src/lib.rs; echo '[registries.test]\nindex = \"sparse+S/index/\"' >.cargo/config.toml
        echo '[package]\nname = \"p\"\nedition = \"2021\"\n[dependencies]\ntiny = { version = \"1\", registry = \"test\" }' >Cargo.toml
        ../cargo -q vendor >/dev/null && grep -o 'by cargo' vendor/tiny/src/lib.rs",
        "by cargo",
    ),
    ("git clone -q S/git/tiny.git https && cat https/file", "cloned"),
    (
        "GIT_SSH_COMMAND='ssh -o StrictHostKeyChecking=no' git clone -q G ssh 2>/dev/null && cat ssh/file",
        "cloned",
    ),
];

fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A server for SSH that knows one key, as an ordinary user runs it.
fn sshd(home: &Home, port: u16) -> Result<Running> {
    let file = |name| home.workspace().join(name).display().to_string();
    let options = [
        "ListenAddress=127.0.0.1".to_owned(),
        "StrictModes=no".to_owned(),
        "UsePAM=no".to_owned(),
        "PidFile=none".to_owned(),
        format!("HostKey={}", file("host_key")),
        format!("AuthorizedKeysFile={}", file("id_ed25519.pub")),
    ];
    let options = options.iter().flat_map(|it| ["-o", it]);
    let sshd = home.program("/usr/sbin/sshd").args(["-D", "-e", "-f", "/dev/null", "-p", &port.to_string()]);
    sshd.args(options).deadline(4 * PATIENCE_S).spawn()
}

#[test]
fn ordinary_programs_work_unchanged() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    let ports = [port()?, port()?, port()?];
    let allow = ports.map(|port| format!("--allow=localhost:{port}"));
    vm.start(["--cpus", "1", "-m", "1g"].into_iter().chain(allow.iter().map(String::as_str)))?;
    vm.command(["bash", "-ec", KEYS]).deadline(PATIENCE_S).ok()?;
    let suites =
        std::env::var_os("CORACLE_SUITES").context("CORACLE_SUITES is not set; see tests/lab/runner")?;
    fs::copy(PathBuf::from(suites).join("cargo"), vm.home.workspace().join("cargo"))?;
    vm.home.write("repositories/.keep", "")?;
    vm.home.program("sh").args(["-ec", REPOSITORY]).cwd(vm.home.path()).ok()?;

    let [plain, tls, ssh] = ports;
    let repositories = vm.home.path().join("repositories").display().to_string();
    let serve = vm.home.program("python3").args(["-c", REGISTRIES, &plain.to_string(), &tls.to_string()]);
    let mut served = serve.args(["host.pem", &repositories]).deadline(4 * PATIENCE_S).spawn()?;
    served.until("ready")?;
    let sshd = sshd(&vm.home, ssh)?;

    let user = vm.home.program("id").args(["-un"]).ok()?;
    let url = |scheme: &str, port| format!("{scheme}host.coracle.internal:{port}");
    let clone = format!("{}{repositories}/tiny.git", url(&format!("ssh://{}@", user.trim()), ssh));
    for (script, printed) in PROGRAMS {
        let script = script.replace("H/", &format!("{}/", url("http://", plain)));
        let script =
            script.replace("S/", &format!("{}/", url("https://", tls))).replace(" G ", &format!(" {clone} "));
        let done = vm.command(["sh", "-c", &script]).deadline(PATIENCE_S).ok();
        assert_eq!(done.with_context(|| script.clone())?.trim_end(), printed, "{script}");
    }
    let node = "NODE_EXTRA_CA_CERTS=cert.pem exec node --experimental-websocket -e \"$0\" $1";
    let streams = vm.command(["sh", "-c", node, STREAMS, &url("https://", tls)]).deadline(PATIENCE_S).ok()?;
    assert_eq!(streams, "event one\nevent two\nsaid hello\nsaid again\nclosed\n");
    drop((served, sshd));
    Ok(())
}
