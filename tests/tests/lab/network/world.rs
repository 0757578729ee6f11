//! A sandbox, and an outside where every address is answered and every packet is noted: a network namespace that it makes itself.
//! It owns what may be seen there, and how the probes are run. What a test does to the gateway is the test's.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::{Call, Done, Home, Running, Test, Vm};

const OUTSIDE: &str = include_str!("outside.py");
const PROBES: &str = include_str!("probes.py");
const SMALL: [&str; 4] = ["--cpus", "1", "-m", "512m"];
/// For whatever must be at once, in a guest that runs at a hundredth of its speed.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A sandbox, and all that it could reach.
pub struct World {
    pub vm: Vm,
    _outside: Running,
    folder: TempDir,
    seen: Cell<usize>,
    marks: Cell<u32>,
}

impl World {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let unshare = ["--user", "--map-current-user", "--net", "--keep-caps", "python3", "-c", OUTSIDE];
        let outside = Call::new("unshare", folder.path()).args(unshare).args([folder.path().join("log")]);
        let mut outside = outside.deadline(3600).spawn()?;
        outside.until("ready")?;
        let vm = Vm { home: Home::in_network_of(outside.pid())?, name: "vm".into() };
        Ok(Self { vm, _outside: outside, folder, seen: Cell::default(), marks: Cell::default() })
    }

    /// One whose sandbox runs, with these flags of `coracle run`.
    pub fn with(flags: &[&str]) -> Result<Self> {
        let world = Self::new()?;
        world.vm.start(SMALL.iter().chain(flags))?;
        Ok(world)
    }

    /// What has arrived outside since this was last asked.
    pub fn heard(&self) -> Result<Vec<String>> {
        self.marks.set(self.marks.get() + 1);
        let mark = format!("mark{}", self.marks.get());
        let say = format!("echo -n {mark} >/dev/udp/127.0.0.9/9999");
        self.vm.home.program("bash").args(["-c", &say]).ok()?;
        let end = format!("end {mark}");
        let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        self.vm.home.wait_for("the packet that ends what was heard", || log().lines().any(|it| it == end))?;
        let log = log();
        let lines = log.lines().skip(self.seen.get()).filter(|it| !it.starts_with("end "));
        let heard = lines.map(str::to_owned).collect();
        self.seen.set(log.lines().count());
        Ok(heard)
    }

    /// A program in the sandbox that reads its text from its input.
    pub fn python(&self, user: &str, script: &str, args: &[&str]) -> Call {
        let exec = ["exec", "-i", "-u", user, "vm", "python3", "-"];
        self.vm.home.coracle(exec).args(args).input(script).deadline(300)
    }

    /// Makes sure that what is allowed works, and that the outside sees it: else what it does not see would say nothing.
    pub fn is_connected(&self) -> Test {
        let get =
            "curl -sS --fail-early --max-time 60 http://host.coracle.internal:8099/y http://allowed.test/x";
        let done = self.vm.command(["sh", "-c", get]).run()?;
        let heard = self.heard()?;
        let log = self.vm.home.coracle(["policy", "log"]).ok()?;
        assert_eq!(done.out(), "GET /y HTTP/1.1GET /x HTTP/1.1", "{}{log}{heard:#?}", done.err());
        for line in ["tcp 93.184.216.34:80", "data 93.184.216.34:80 'GET /x HTTP/1.1'", "tcp 127.0.0.1:8099"]
        {
            assert!(heard.iter().any(|it| it == line), "{line} is not in {heard:?}");
        }
        Ok(())
    }

    /// Runs a group of probes: all fail, at once, and the outside hears nothing but the beginnings of what is allowed. Returns what
    /// it has heard.
    pub fn probe(&self, group: &str) -> Result<Vec<String>> {
        self.heard()?;
        let user = if group == "user" { "agent" } else { "root" };
        self.judge(group, &self.python(user, PROBES, &[group]).run()?)
    }

    /// A session that runs the probes of a user when there is a file `go` in the workspace.
    pub fn probe_later(&self) -> Result<Running> {
        self.vm.home.write("proj/probes.py", PROBES)?;
        let script = "echo waiting; until [ -e go ]; do sleep 0.2; done; python3 probes.py user";
        let mut session = self.vm.command(["sh", "-c", script]).deadline(300).spawn()?;
        session.until("waiting")?;
        Ok(session)
    }

    /// What the probes have printed, and the outside has heard.
    pub fn judge(&self, group: &str, done: &Done) -> Result<Vec<String>> {
        ensure!(done.code == 0, "the probes ended with {}: {}{}", done.code, done.out(), done.err());
        let out = done.out();
        let mut wrong = Vec::new();
        for line in out.lines() {
            let [_, outcome, ms] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
            let late = outcome == "timeout" || Duration::from_millis(ms.parse()?) > AT_ONCE;
            if outcome.starts_with("REACHED") || late && group != "broken" {
                wrong.push(line);
            }
        }
        let heard = self.heard()?;
        ensure!(wrong.is_empty(), "{group}: {wrong:#?}\nof {out}");
        let unexpected: Vec<_> = heard.iter().filter(|it| !is_expected(it)).collect();
        ensure!(unexpected.is_empty(), "{group}: heard {unexpected:#?}\nin {out}");
        eprintln!(
            "{group}: {} probes have failed, and {} lines were heard",
            out.lines().count(),
            heard.len()
        );
        Ok(heard)
    }

    /// The gateway's worker, or the process that keeps it.
    pub fn gateway(&self, worker: bool) -> Option<Pid> {
        let of_kind = |it: &str| it.contains(" gateway ") && it.contains(" --worker ") == worker;
        self.vm.home.processes().into_iter().find(|it| of_kind(&it.command)).map(|it| it.pid)
    }

    /// Kills one of them, and waits until it is gone.
    pub fn kill_gateway(&self, worker: bool) -> Result<()> {
        let pid = self.gateway(worker).context("a gateway's process")?;
        kill_process(pid, Signal::KILL)?;
        self.vm.home.wait_for("a process that was killed ends", || self.gateway(worker) != Some(pid))
    }
}

/// Connections to an allowed host that were cut before a byte of the guest's went there, and questions for allowed names.
fn is_expected(heard: &str) -> bool {
    let begun =
        ["tcp 93.184.216.34:443", "tcp 93.184.216.34:80", "data 93.184.216.34:80 'GET /redirect HTTP/1.1'"];
    let asked = ["allowed", "loop", "zero", "meta", "private", "shared", "many"];
    begun.contains(&heard) || asked.iter().any(|it| heard == format!("dns {it}.test 1"))
}
