//! Many in a row: what one start or command leaves behind shows after a hundred.

use std::fs;

use tests::{Home, Test, Vm};

const STARTS: usize = 200;
const COMMANDS: usize = 100;

/// What could be left on the host, and must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Residue {
    processes: Vec<String>,
    files: Vec<String>,
    mounts: usize,
    shared_memory: usize,
    temporary: usize,
    locks: usize,
}

impl Residue {
    fn of(home: &Home) -> anyhow::Result<Self> {
        let lines = |path: &str| fs::read_to_string(path).map(|text| text.lines().count());
        let ours = format!("{}", home.path().display());
        let temporary =
            fs::read_dir("/tmp")?.flatten().filter(|it| it.file_name().to_string_lossy().contains("coracle"));
        Ok(Self {
            processes: home.processes().into_iter().map(|process| process.command).collect(),
            files: tests::host::snapshot(&home.path().join("state"))
                .into_iter()
                .map(|line| path_of(&line))
                .collect(),
            mounts: lines("/proc/mounts")?,
            shared_memory: tests::host::count("/dev/shm")?,
            temporary: temporary.count(),
            locks: fs::read_to_string("/proc/locks")?.lines().filter(|line| line.contains(&ours)).count(),
        })
    }
}

fn path_of(line: &str) -> String {
    line.split(" inode").next().unwrap_or_default().to_owned()
}

#[test]
fn two_hundred_starts_leave_nothing() -> Test {
    let home = Home::new()?;
    let start = || -> Test {
        let run = home.coracle(["run", "--rm", "--cpus", "1", "-m", "512m", "shell", ".", "--", "true"]);
        run.ok().map(drop)
    };
    start()?;
    home.is_clean()?;
    let before = Residue::of(&home)?;
    for _ in 0..STARTS {
        start()?;
    }
    home.is_clean()?;
    assert_eq!(Residue::of(&home)?, before);
    Ok(())
}

#[test]
fn a_hundred_commands_leave_the_vmm_and_the_guest_as_they_were() -> Test {
    let vm = Vm::boot()?;
    let count = |what: &str| -> anyhow::Result<usize> {
        tests::host::count(format!("/proc/{}/{what}", vm.home.vmm()?.pid.as_raw_nonzero()))
    };
    let guest = || vm.exec("ps -e --no-headers | wc -l; ls /dev/pts | wc -l; wc -l < /proc/mounts");
    let run = || vm.command_reading(b"x", ["sh", "-c", "cat; sleep 1000 & exit 3"]).run();
    run()?;
    let before = (count("fd")?, count("task")?, guest()?);
    for _ in 0..COMMANDS {
        assert_eq!(run()?.code, 3);
    }
    vm.exec("pkill sleep; true")?;
    vm.home.wait_for("descriptors are closed again", || count("fd").is_ok_and(|fds| fds <= before.0))?;
    let after = (count("fd")?, count("task")?, guest()?);
    assert!(after.1 <= before.1, "threads: {before:?} {after:?}");
    Ok(())
}
