//! Sandboxes over time: what stays, what goes, what they are called, and who ends them.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tests::host::Process;
use tests::{Home, Terminal, Test, Vm};

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
const SMALL: [&str; 4] = ["--cpus", "1", "-m", "512m"];

/// The rows of `ls --json`.
fn rows(home: &Home) -> anyhow::Result<Vec<Value>> {
    let json: Value = serde_json::from_str(&home.coracle(["ls", "--json"]).ok()?)?;
    Ok(json.as_array().context("a list of sandboxes")?.clone())
}

fn status(home: &Home, name: &str) -> anyhow::Result<String> {
    let rows = rows(home)?;
    let row =
        rows.iter().find(|row| row["name"] == name).with_context(|| format!("{name} is not in {rows:?}"))?;
    Ok(row["status"].as_str().context("a status")?.to_owned())
}

#[test]
fn what_is_installed_stays_after_stop_until_rm() -> Test {
    let vm = Vm::boot()?;
    vm.exec("sudo sh -c 'echo \"echo installed\" > /usr/local/bin/tool; chmod +x /usr/local/bin/tool'; echo note > ~/note")?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    assert_eq!(status(&vm.home, "vm")?, "stopped");
    vm.start([""; 0])?;
    assert_eq!(vm.exec("tool; cat ~/note")?, "installed\nnote\n");
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    vm.home.is_clean()?;
    vm.start(SMALL)?;
    assert_eq!(vm.exec("ls ~/note /usr/local/bin/tool 2>/dev/null | wc -l")?, "0\n");
    Ok(())
}

#[test]
fn rm_keeps_a_running_sandbox_unless_forced() -> Test {
    let vm = Vm::boot()?;
    let done = vm.home.coracle(["rm", "vm"]).run()?;
    assert!(done.code != 0 && done.err().contains("-f"), "{} {}", done.code, done.err());
    assert_eq!(status(&vm.home, "vm")?, "running");
    vm.home.coracle(["stop", "vm"]).ok()?;
    vm.home.coracle(["rm", "vm"]).ok()?;
    vm.home.is_clean()
}

#[test]
fn default_names_tell_agent_and_folder_and_are_numbered() -> Test {
    let home = Home::new()?;
    std::fs::create_dir_all(home.path().join("other/proj"))?;
    for path in [".", "../other/proj", "."] {
        home.coracle(["run", "-d"]).args(SMALL).args(["shell", path]).ok()?;
    }
    let mut names: Vec<_> = home.coracle(["ls", "-q"]).ok()?.lines().map(str::to_owned).collect();
    names.sort();
    assert_eq!(names.len(), 2, "one for each folder: {names:?}");
    assert!(names[0] == "shell-proj" && names[1].starts_with("shell-proj-"), "{names:?}");
    Ok(())
}

#[test]
fn ls_shows_running_and_stopped_alike() -> Test {
    let vm = Vm::boot()?;
    let running = vm.home.coracle(["ls"]).ok()?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    let stopped = vm.home.coracle(["ls"]).ok()?;
    for column in ["NAME", "ID", "AGENT", "STATUS", "CREATED", "PORTS", "WORKSPACE"] {
        assert!(running.contains(column) && stopped.contains(column), "{running}");
    }
    assert!(running.contains("running") && stopped.contains("stopped"), "{running}{stopped}");
    assert_eq!(vm.home.coracle(["ls", "-q"]).ok()?, "vm\n");
    let workspace = vm.home.workspace().canonicalize()?.display().to_string();
    assert!(stopped.contains(&workspace) && rows(&vm.home)?[0].to_string().contains(&workspace));
    Ok(())
}

#[test]
fn an_id_or_its_beginning_is_as_good_as_the_name() -> Test {
    let vm = Vm::boot()?;
    let id = rows(&vm.home)?[0]["id"].as_str().context("an id")?.to_owned();
    for id in [&id[..], &id[..4]] {
        assert_eq!(vm.home.coracle(["exec", id, "hostname"]).ok()?, "vm\n");
    }
    let done = vm.home.coracle(["exec", "ffffffffffff", "true"]).run()?;
    assert!(done.code == 125 && done.err().contains("ffffffffffff"), "{}", done.err());
    vm.home.coracle(["stop", &id[..6]]).ok()?;
    vm.home.coracle(["rm", &id]).ok()?;
    vm.home.is_clean()
}

#[test]
fn exec_starts_a_sandbox_that_is_stopped() -> Test {
    let vm = Vm::boot()?;
    vm.exec("echo kept > ~/note")?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    assert_eq!(
        vm.exec("cat ~/note; pwd")?,
        format!("kept\n{}\n", vm.home.workspace().canonicalize()?.display())
    );
    assert_eq!(status(&vm.home, "vm")?, "running");
    Ok(())
}

#[test]
fn an_idle_sandbox_stops_by_itself_but_not_during_a_session() -> Test {
    let home = Home::new()?;
    home.coracle(["run", "-d", "--name", "vm", "--idle-timeout", "1"])
        .args(SMALL)
        .args(["shell", "."])
        .ok()?;
    home.coracle(["exec", "vm", "sleep", "4"]).ok()?;
    home.wait_for("the sandbox stops", || status(&home, "vm").is_ok_and(|status| status == "stopped"))?;
    home.wait_for("its VMM ends", || home.processes().is_empty())?;
    assert_eq!(home.coracle(["exec", "vm", "echo", "again"]).ok()?, "again\n");
    Ok(())
}

#[test]
fn the_vm_outlives_the_terminal_that_started_it() -> Test {
    let home = Home::new()?;
    let mut terminal = Terminal::start(
        &home,
        ["coracle", "run", "--name", "vm", "--idle-timeout", "10m"].iter().chain(&SMALL).chain(&["shell"]),
    )?;
    terminal.send("echo up''-and-running\r")?;
    terminal.expect("up-and-running")?;
    let boot_id = home.coracle(["exec", "vm", "sh", "-c", BOOT_ID]).ok()?;
    drop(terminal);
    let is_cli = |process: &Process| process.command.starts_with("coracle run ");
    home.wait_for("the CLI ends", || !home.processes().iter().any(is_cli))?;
    assert_eq!(home.coracle(["exec", "vm", "sh", "-c", BOOT_ID]).ok()?, boot_id);
    home.wait_for("the shell is hung up", || {
        home.coracle(["exec", "vm", "sh", "-c", "! pgrep -x bash"]).ok().is_ok()
    })
}

#[test]
fn two_runs_of_one_name_at_once_are_one_vm() -> Test {
    let home = Home::new()?;
    let run = || {
        home.coracle(["run", "--name", "vm"])
            .args(SMALL)
            .args(["shell", ".", "--", "sh", "-c", BOOT_ID])
            .spawn()
    };
    let runs: Result<Vec<_>, _> = (0..4).map(|_| run()).collect();
    let ids: Result<Vec<_>, _> = runs?.into_iter().map(tests::Running::ok).collect();
    let ids = ids?;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(rows(&home)?.len(), 1);
    home.vmm()?;
    Ok(())
}

#[test]
fn rm_during_exec_ends_the_command_and_leaves_nothing() -> Test {
    let vm = Vm::boot()?;
    let mut session = vm.command(["sh", "-c", "echo ready; sleep 1000"]).spawn()?;
    session.until("ready")?;
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    let done = session.wait()?;
    assert_eq!((done.code, done.err()), (143, String::new()), "its own end, by SIGTERM");
    vm.home.is_clean()
}

#[test]
fn stop_and_rm_can_be_said_twice() -> Test {
    let vm = Vm::boot()?;
    for _ in 0..2 {
        vm.home.coracle(["stop", "vm"]).ok()?;
    }
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    vm.home.coracle(["rm", "-f", "vm"]).ok()?;
    let done = vm.home.coracle(["stop", "vm"]).run()?;
    assert!(done.code == 125 && done.err().contains("vm"), "{} {}", done.code, done.err());
    Ok(())
}

#[test]
fn stop_lets_programs_end_and_saves_their_files() -> Test {
    let vm = Vm::boot()?;
    let mut session = vm
        .command(["sh", "-c", "trap 'echo bye > ~/bye; exit' TERM; echo ready; while :; do sleep 0.1; done"])
        .spawn()?;
    session.until("ready")?;
    vm.home.coracle(["stop", "vm"]).ok()?;
    drop(session);
    assert_eq!(vm.exec("cat ~/bye")?, "bye\n");
    Ok(())
}

#[test]
fn rm_of_a_run_with_rm_is_no_race() -> Test {
    let home = Home::new()?;
    for pause in [0, 100, 300, 600, 1000] {
        let flags = ["run", "--rm", "--name", "vm"];
        let run = home.coracle(flags).args(SMALL).args(["shell", ".", "--", "sleep", "0.2"]).spawn()?;
        thread::sleep(Duration::from_millis(pause));
        home.coracle(["rm", "-f", "vm"]).run()?;
        let code = run.wait()?.code;
        assert!([0, 125, 143].contains(&code), "{code}");
        home.is_clean()?;
    }
    Ok(())
}
