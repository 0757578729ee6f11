//! Processes of the host that are killed or frozen at a bad moment: the next command works and nothing is left.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tests::random::Random;
use tests::{Home, Running, Test, Vm};

const ROUNDS: u32 = 20;
/// About as long as a start and a `true` take in the lab, in milliseconds.
const START_MS: u64 = 2500;
const SMALL: [&str; 4] = ["--cpus", "1", "-m", "512m"];

/// A command that starts a sandbox, to be killed while it does.
fn start(home: &Home, flags: &[&str]) -> anyhow::Result<Running> {
    let run = home.coracle(["run", "--name", "vm", "--idle-timeout", "1"]).args(SMALL).args(flags);
    run.args(["shell", ".", "--", "true"]).spawn()
}

fn kill_vmms(home: &Home) {
    for process in home.processes().into_iter().filter(tests::host::Process::is_vmm) {
        // It may have ended a moment ago.
        let _ = kill_process(process.pid, Signal::KILL);
    }
}

#[test]
fn a_vmm_killed_at_any_moment_leaves_a_sandbox_that_starts() -> Test {
    let mut random = Random::seeded_by_time();
    let home = Home::new()?;
    for round in 0..ROUNDS {
        let run = start(&home, &[])?;
        thread::sleep(Duration::from_millis(random.below(START_MS)));
        kill_vmms(&home);
        let done = run.wait()?;
        assert!(done.took < Duration::from_secs(20), "round {round}: no hang");
        assert!(
            done.code == 0 || done.err().lines().count() == 1,
            "round {round}: {} {}",
            done.code,
            done.err()
        );
        home.coracle(["ls"]).deadline(5).ok()?;
    }
    assert_eq!(home.coracle(["exec", "vm", "echo", "well"]).ok()?, "well\n");
    Ok(())
}

#[test]
fn a_vmm_killed_at_any_moment_of_a_run_with_rm_leaves_nothing() -> Test {
    let mut random = Random::seeded_by_time();
    let home = Home::new()?;
    for _ in 0..ROUNDS / 2 {
        let run = start(&home, &["--rm"])?;
        thread::sleep(Duration::from_millis(random.below(START_MS)));
        kill_vmms(&home);
        run.wait()?;
        // A process that was killed holds its lock until the kernel has taken it apart: that may be the next `ls` but one.
        home.wait_for("ls cleans up", || {
            home.coracle(["ls"]).deadline(5).ok().is_ok() && home.left().is_empty()
        })?;
    }
    Ok(())
}

#[test]
fn a_cli_killed_at_any_moment_leaves_nothing_that_needs_cleaning() -> Test {
    let mut random = Random::seeded_by_time();
    let home = Home::new()?;
    for round in 0..ROUNDS {
        let flags: &[&str] = if round % 2 == 0 { &["--rm"] } else { &[] };
        let run = start(&home, flags)?;
        thread::sleep(Duration::from_millis(random.below(START_MS)));
        // Fails when it has ended, which is as well.
        let _ = run.signal(Signal::KILL);
        run.wait()?;
        if round % 2 == 0 {
            home.wait_for("the sandbox of --rm goes", || {
                home.coracle(["ls", "-q"]).ok().is_ok_and(|names| names.is_empty()) && home.left().is_empty()
            })?;
        } else {
            home.coracle(["run", "--name", "vm"]).args(["shell", ".", "--", "true"]).ok()?;
            home.coracle(["rm", "-f", "vm"]).ok()?;
        }
    }
    Ok(())
}

#[test]
fn a_killed_session_is_hung_up_in_the_sandbox() -> Test {
    let vm = Vm::boot()?;
    let mut session = vm.command(["sh", "-c", "echo ready; sleep 1234"]).spawn()?;
    session.until("ready")?;
    session.signal(Signal::KILL)?;
    session.wait()?;
    vm.home.wait_for("the command ends", || vm.exec("! pgrep -f 'sleep 123[4]'").is_ok())
}

#[test]
fn sigterm_to_the_cli_ends_the_command_and_is_its_exit_code() -> Test {
    let vm = Vm::boot()?;
    let mut session = vm
        .command(["sh", "-c", "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.1; done"])
        .spawn()?;
    session.until("ready")?;
    session.signal(Signal::TERM)?;
    let done = session.wait()?;
    assert!(
        done.out().ends_with("got it\n") && [7, 143, -15].contains(&done.code),
        "{} {}",
        done.code,
        done.out()
    );
    Ok(())
}

#[test]
fn an_fsynced_file_on_the_sandboxs_disk_survives_the_vmms_death() -> Test {
    let vm = Vm::boot()?;
    for round in 0..3 {
        let write = "dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync sum .";
        vm.exec(&format!("mkdir -p ~/{round} && cd ~/{round} && {write}"))?;
        kill_vmms(&vm.home);
        vm.home.wait_for("the VMM is gone", || vm.home.vmm().is_err())?;
        vm.exec(&format!("cd ~/{round} && sha256sum -c sum"))?;
    }
    let errors = vm.exec("sudo dmesg | grep -ci 'ext4.*error'; true")?;
    assert_eq!(errors, "0\n", "the file system is whole");
    Ok(())
}

#[test]
fn a_frozen_vmm_harms_no_other_command() -> Test {
    let vm = Vm::boot()?;
    kill_process(vm.home.vmm()?.pid, Signal::STOP)?;
    for args in [&["ls"][..], &["ls", "--json"], &["version"]] {
        let done = vm.home.coracle(args).deadline(5).run()?;
        assert!(done.code == 0 && done.took < Duration::from_secs(1), "{args:?}: {:?}", done.took);
    }
    let start = Instant::now();
    vm.home.coracle(["rm", "-f", "vm"]).deadline(30).ok()?;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    vm.home.is_clean()
}

#[test]
fn a_stale_socket_or_lock_file_does_not_look_like_a_running_sandbox() -> Test {
    let vm = Vm::boot()?;
    let dir = vm.home.sandboxes().join("vm");
    kill_vmms(&vm.home);
    vm.home.wait_for("the VMM is gone", || vm.home.vmm().is_err())?;
    std::fs::write(dir.join("lock"), format!("{}\n", std::process::id()))?;
    assert!(vm.home.coracle(["ls"]).ok()?.contains("stopped"), "a lock nobody holds is no lock");
    vm.exec("true").map(drop)
}

#[test]
fn a_damaged_configuration_is_named_and_harms_no_other_sandbox() -> Test {
    let vm = Vm::boot()?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    for damage in ["", "null", "{", "[]", "{}", "\u{0}\u{0}\u{0}\u{0}"] {
        let other = vm.home.sandboxes().join("damaged");
        std::fs::create_dir_all(&other)?;
        std::fs::write(other.join("config.json"), damage)?;
        assert!(vm.home.coracle(["ls"]).ok()?.contains("vm"), "{damage:?}");
        let done = vm.home.coracle(["exec", "damaged", "true"]).run()?;
        assert!(done.code == 125 && done.err().contains("damaged"), "{damage:?}: {}", done.err());
        vm.home.coracle(["rm", "-f", "damaged"]).ok()?;
        assert!(!other.exists(), "{damage:?}");
    }
    vm.exec("true").map(drop)
}
