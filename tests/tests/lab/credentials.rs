//! Credentials: what a sandbox is given in their place, whom it believes, and that the secret itself is nowhere near it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::host::Process;
use tests::{Home, Test, Vm};

pub const CANARY: &str = "sk-ant-api03-canary-5f1d3b9c7a2e4d6f8091";
pub const PLACEHOLDER: &str = "sk-ant-api03-coracle-placeholder";
const AUTHORITY: &str = "/usr/local/share/ca-certificates/coracle.crt";

/// Looks for words in what a process was given and in all of its memory, and in files; prints where each was found.
const SCAN: &str = include_str!("scan.py");

/// Whether OpenSSL believes the authority by its folder and by its list, Python by what it does without being told, and Node.js.
const BELIEVES: &str = r#"
openssl verify -CApath /etc/ssl/certs $1 && openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt $1 || exit
names='[c["subject"][-1][-1][1] for c in ssl.create_default_context().get_ca_certs()]'
for run in 'python3 -c' 'env -i /usr/bin/python3 -c' 'sudo python3 -c'; do
    $run "import ssl; print($names.count('Coracle sandbox'))"
done
node -e 'console.log(require("fs").readFileSync(process.env.NODE_EXTRA_CA_CERTS, "utf8").split("BEGIN").length - 1)'
"#;

/// Where a word is: in these processes, and in all the files below a folder.
pub fn places(home: &Home, processes: &[Process], folder: &Path, words: &[&str]) -> Result<Vec<String>> {
    let pids = processes.iter().map(|it| it.pid.as_raw_pid().to_string()).collect::<Vec<_>>().join(",");
    let scan = home.program("python3").args(["-c", SCAN, &pids]).args([folder]).args(words);
    Ok(scan.deadline(300).ok()?.lines().map(str::to_owned).collect())
}

/// The placeholder is what a scan finds, so it would find the secret; in the gateway, where that is, nobody may look.
fn is_nowhere(home: &Home, secret: &str) -> Test {
    let (gateway, others): (Vec<_>, Vec<_>) = home.processes().into_iter().partition(is_gateway);
    ensure!(!gateway.is_empty(), "it has a gateway");
    for process in gateway {
        let folder = Path::new("/proc").join(process.pid.as_raw_pid().to_string());
        for secret in ["environ", "mem", "maps", "fd", "auxv"] {
            let read = fs::read(folder.join(secret)).map(drop);
            let denied = read.map_err(|error| error.kind());
            assert_eq!(denied, Err(ErrorKind::PermissionDenied), "{secret} of {}", process.command);
        }
        let limits = fs::read_to_string(folder.join("limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
        assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
        assert!(!process.command.contains(secret));
    }
    let found = places(home, &others, &home.sandboxes(), &[PLACEHOLDER, secret])?;
    assert!(found.iter().any(|it| it.starts_with(PLACEHOLDER)), "{found:?}");
    assert!(!found.iter().any(|it| it.starts_with(secret)), "{found:?}");
    Ok(())
}

pub fn is_gateway(process: &Process) -> bool {
    process.command.split(' ').nth(1) == Some("gateway")
}

#[test]
fn a_sandbox_has_placeholders_and_believes_its_gateway() -> Test {
    let home = Home::new()?;
    home.coracle(["secret", "set", "anthropic"]).input(CANARY).ok()?;
    let vm = Vm { home, name: "vm".into() };
    for start in 0..2 {
        vm.start(["--cpus", "1", "-m", "512m"])?;
        let believed = vm.command(["bash", "-c", BELIEVES, "bash", AUTHORITY]).ok()?;
        assert_eq!(believed, format!("{AUTHORITY}: OK\n{AUTHORITY}: OK\n1\n1\n1\n1\n"), "start {start}");
        assert_eq!(vm.exec("echo $ANTHROPIC_API_KEY")?, format!("{PLACEHOLDER}\n"));
        if start == 0 {
            vm.home.coracle(["stop", "vm"]).ok()?;
        }
    }
    is_nowhere(&vm.home, CANARY)?;

    // Without a secret nothing new is given, and what is believed stays: its key is the host's.
    vm.home.coracle(["secret", "rm", "anthropic"]).ok()?;
    assert_eq!(vm.exec("echo $ANTHROPIC_API_KEY")?, "\n");
    let key = fs::metadata(vm.home.sandboxes().join("vm/authority.key")).context("the key")?;
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    Ok(())
}

#[test]
fn what_is_lent_is_in_no_file_and_in_no_process_of_the_sandbox() -> Test {
    let vm = Vm { home: Home::new()?, name: "vm".into() };
    vm.home.write(".config/coracle/agents/lent.toml", "about = 'uses one'\ncredentials = ['anthropic']\n")?;
    let run =
        ["run", "-d", "--name", "vm", "--idle-timeout", "10m", "--cpus", "1", "-m", "512m", "lent", "."];
    let show = || vm.home.coracle(["exec", "vm", "sh", "-c", "echo $ANTHROPIC_API_KEY"]);
    vm.home.coracle(run).env("ANTHROPIC_API_KEY", CANARY).ok()?;
    assert_eq!(show().env("ANTHROPIC_API_KEY", CANARY).ok()?, format!("{PLACEHOLDER}\n"));
    // With a worker as well, which the first question for a name starts.
    vm.exec("getent hosts github.com")?;
    assert_eq!(vm.home.processes().iter().filter(|it| is_gateway(it)).count(), 2);
    is_nowhere(&vm.home, CANARY)?;
    // Started anew by somebody who does not have it, the sandbox has nothing of it.
    vm.home.coracle(["stop", "vm"]).ok()?;
    assert_eq!(show().ok()?, "\n");
    Ok(())
}

#[test]
fn without_a_secret_nothing_is_made() -> Test {
    let vm = Vm::boot()?;
    assert_eq!(vm.exec("env | grep -c -e PLACEHOLDER -e CERT -e CA_ || true")?, "0\n");
    assert_eq!(vm.exec(&format!("ls {AUTHORITY} 2>/dev/null || echo none"))?, "none\n");
    assert!(!vm.home.sandboxes().join("vm/authority.key").exists());
    Ok(())
}
