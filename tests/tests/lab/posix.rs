//! A share in a sandbox, tried by fsx and by a script that goes through what programs do with files. The same runs on the
//! server alone, natively and at greater length, in vmm/src/virtio/fs/tests; here the guest's kernel and the device are
//! part of it.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use tests::{Home, Test, Vm};

const SCRIPT: &str = include_str!("../../suites/posix.py");
/// A guest in the lab runs at a hundredth of a machine's speed.
const DEADLINE: u64 = 600;
const FSX_OPERATIONS: &str = "1000";

#[test]
fn fsx_finds_no_wrong_byte() -> Test {
    let suites =
        std::env::var_os("CORACLE_SUITES").context("CORACLE_SUITES is not set; see tests/lab/runner")?;
    let vm = Vm::boot()?;
    fs::copy(PathBuf::from(suites).join("fsx"), vm.home.workspace().join("fsx"))?;
    vm.home.write("proj/fsx.toml", include_str!("../../suites/fsx.toml"))?;
    let suite = ["./fsx", "-S", "1", "-N", FSX_OPERATIONS, "-f", "fsx.toml", "-P", "/tmp", "f"];
    vm.command(suite).deadline(DEADLINE).ok()?;
    Ok(())
}

#[test]
fn programs_find_in_a_workspace_what_a_disk_has() -> Test {
    let vm = Vm::boot()?;
    let guest = |what| vm.command(["python3", "-c", SCRIPT, what]).deadline(DEADLINE).ok();
    guest("check")?;
    assert_eq!(guest("look")?, vm.home.program("python3").args(["-c", SCRIPT, "look"]).ok()?);
    Ok(())
}

/// The calls of the VMM that write `file` to its disk, in their order, while the guest runs `script`.
fn syncs(home: &Home, file: &str, script: impl FnOnce() -> Test) -> anyhow::Result<Vec<String>> {
    let (log, vmm) = (home.path().join("strace"), home.vmm()?.pid.as_raw_pid().to_string());
    let strace = home.program("strace").args(["-f", "-y", "-e", "trace=fsync,fdatasync", "-p", &vmm, "-o"]);
    let strace = strace.args([&log]).deadline(DEADLINE).spawn()?;
    let traced =
        || fs::read_to_string(format!("/proc/{vmm}/status")).is_ok_and(|it| !it.contains("TracerPid:\t0\n"));
    home.wait_for("strace is attached", traced)?;
    script()?;
    strace.signal(rustix::process::Signal::INT)?;
    strace.wait()?;
    let log = fs::read_to_string(log)?;
    let calls = log.lines().filter(|line| line.contains(file) && !line.contains("resumed"));
    let names = calls.filter_map(|line| line.split_once('(')?.0.split_whitespace().last().map(str::to_owned));
    Ok(names.collect())
}

#[test]
fn what_the_guest_syncs_is_synced_on_the_host() -> Test {
    let vm = Vm::boot()?;
    let script = "import os; f = os.open('synced', os.O_RDWR | os.O_CREAT); os.write(f, b'x'); os.fsync(f)
os.write(f, b'y'); os.fdatasync(f); os.fsync(f)";
    let calls = syncs(&vm.home, "proj/synced", || vm.command(["python3", "-c", script]).ok().map(drop))?;
    assert_eq!(calls, ["fsync", "fdatasync", "fsync"]);
    Ok(())
}
