//! A share in a sandbox, tried by the suites of others and by a script that goes through what programs do with files. The
//! same runs on the server alone, natively and at greater length, in vmm/src/virtio/fs/tests; here the guest's kernel and
//! the device are part of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use tests::{Home, Test, Vm, rounds};

const EXPECTED: &str = include_str!("../../suites/pjdfstest.expected");
const SCRIPT: &str = include_str!("../../suites/posix.py");
/// A guest in the lab runs at a hundredth of a machine's speed.
const DEADLINE: (u32, u32) = (600, 14_400);
const FSX_OPERATIONS: (u32, u32) = (1_000, 1_000_000);
const FSX_SEEDS: (u32, u32) = (1, 4);

/// A sandbox with a suite of others and its settings in /tmp, and the folder `work` in its workspace.
fn boot_with_suite(name: &str, settings: &str) -> anyhow::Result<Vm> {
    let suites =
        std::env::var_os("CORACLE_SUITES").context("CORACLE_SUITES is not set; see tests/lab/runner")?;
    let vm = Vm::boot()?;
    fs::copy(PathBuf::from(suites).join(name), vm.home.workspace().join(name))?;
    vm.home.write("proj/suite.toml", settings)?;
    vm.exec(&format!("mv {name} suite.toml /tmp && mkdir work"))?;
    Ok(vm)
}

/// What pjdfstest fails in a sandbox that is started for it.
fn pjdfstest(as_user: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let vm = boot_with_suite("pjdfstest", include_str!("../../suites/pjdfstest.toml"))?;
    let suite = ["env", "NO_COLOR=1", "/tmp/pjdfstest", "-c", "/tmp/suite.toml", "-s", "/tmp", "-p", "work"];
    let done = vm.command(as_user.iter().chain(&suite)).deadline(rounds(DEADLINE).into()).run()?;
    ensure!(done.out().contains("\nSummary: "), "{}\n{}", done.out(), done.err());
    Ok(done.out().lines().filter_map(|line| Some(line.strip_suffix("FAILED")?.trim().to_owned())).collect())
}

#[test]
fn pjdfstest_fails_nothing_as_the_agent() -> Test {
    assert_eq!(pjdfstest(&[])?, BTreeSet::new());
    Ok(())
}

#[test]
fn pjdfstest_fails_as_root_what_no_user_of_the_host_may_do() -> Test {
    let reasons = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let expected = reasons.filter_map(|line| Some(line.split_once('\t')?.0.to_owned())).collect();
    let failed = pjdfstest(&["sudo"])?;
    let (new, gone) = (failed.difference(&expected), expected.difference(&failed));
    let (new, gone): (Vec<_>, Vec<_>) = (new.collect(), gone.collect());
    assert!(new.is_empty() && gone.is_empty(), "not expected: {new:#?}\nexpected, but passed: {gone:#?}");
    Ok(())
}

#[test]
fn fsx_finds_no_wrong_byte() -> Test {
    let vm = boot_with_suite("fsx", include_str!("../../suites/fsx.toml"))?;
    let operations = rounds(FSX_OPERATIONS).to_string();
    for seed in (1..=rounds(FSX_SEEDS)).map(|seed| seed.to_string()) {
        let suite =
            ["/tmp/fsx", "-S", &seed, "-N", &operations, "-f", "/tmp/suite.toml", "-P", "/tmp", "work/f"];
        vm.command(suite).deadline(rounds(DEADLINE).into()).ok()?;
        vm.exec("rm work/f")?;
    }
    Ok(())
}

#[test]
fn programs_find_in_a_workspace_what_a_disk_has() -> Test {
    let vm = Vm::boot()?;
    let guest = |what| vm.command(["python3", "-c", SCRIPT, what]).deadline(rounds(DEADLINE).into()).ok();
    guest("check")?;
    assert_eq!(guest("look")?, vm.home.program("python3").args(["-c", SCRIPT, "look"]).ok()?);
    Ok(())
}

/// The calls of the VMM that write `file` to its disk, in their order, while the guest runs `script`.
fn syncs(home: &Home, file: &str, script: impl FnOnce() -> Test) -> anyhow::Result<Vec<String>> {
    let (log, vmm) = (home.path().join("strace"), home.vmm()?.pid.as_raw_pid().to_string());
    let strace = home.program("strace").args(["-f", "-y", "-e", "trace=fsync,fdatasync", "-p", &vmm, "-o"]);
    let strace = strace.args([&log]).deadline(rounds(DEADLINE).into()).spawn()?;
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

#[test]
fn a_running_program_is_not_emptied_by_who_opens_it_to_truncate() -> Test {
    let vm = Vm::boot()?;
    let guest = |script: &str| vm.command(["python3", "-c", script]).ok();
    let program = || fs::read(vm.home.workspace().join("program"));
    let whole = guest(
        "import errno, os, shutil, subprocess
shutil.copy('/usr/bin/sleep', 'program')
running = subprocess.Popen(['./program', '1000'])
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    try:
        os.open('program', flags | os.O_TRUNC)
        print('opened', flags)
    except OSError as error:
        if error.errno != errno.ETXTBSY: raise
print(os.path.getsize('program'), running.poll())
running.kill()",
    )?;
    let size = fs::metadata(vm.home.workspace().join("program"))?.len();
    assert!(size > 0, "the host's file is empty");
    assert_eq!(whole, format!("{size} None\n"));
    assert!(program()? == vm.command(["cat", "/usr/bin/sleep"]).run()?.stdout, "other bytes");
    // Nobody runs it now.
    guest("import os; os.open('program', os.O_RDONLY | os.O_TRUNC)")?;
    assert_eq!(program()?, b"");
    Ok(())
}
