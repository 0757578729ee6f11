//! What a person at a real terminal relies on. Text to wait for is typed in two halves, so that its echo is not taken
//! for its output.

use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tests::{Home, Terminal, Test, Vm};

/// A shell in a running sandbox, ready for typing.
fn shell(vm: &Vm) -> anyhow::Result<Terminal<'_>> {
    let mut terminal = Terminal::start(&vm.home, ["coracle", "exec", "-it", "vm", "bash", "--norc"])?;
    terminal.send("PS1=pro''mpt:\r")?;
    terminal.expect("prompt:")?;
    Ok(terminal)
}

#[test]
fn an_interactive_shell_echoes_runs_and_ends_with_its_code() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = shell(&vm)?;
    terminal.send("echo $((6*7)) && tty && id -un\r")?;
    terminal.expect("echo $((6*7))")?;
    terminal.expect("42\r\n/dev/pts/")?;
    terminal.expect("agent\r\n")?;
    terminal.send("exit 5\r")?;
    assert_eq!(terminal.wait()?, 5);
    Ok(())
}

#[test]
fn run_opens_the_agents_shell() -> Test {
    let home = Home::new()?;
    let mut terminal =
        Terminal::start(&home, ["coracle", "run", "--rm", "--cpus", "1", "-m", "512m", "shell"])?;
    terminal.send("pwd; echo $TERM do''ne\r")?;
    terminal.expect(&home.workspace().canonicalize()?.display().to_string())?;
    terminal.expect("xterm done")?;
    // Typed before the prompt, it is no end of input but a NUL byte.
    terminal.expect("$ ")?;
    terminal.send("\u{4}")?;
    assert_eq!(terminal.wait()?, 0, "^D ends a shell");
    home.is_clean()
}

#[test]
fn the_size_is_known_at_start_and_follows_the_window() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = shell(&vm)?;
    terminal.send("stty size\r")?;
    terminal.expect("24 80")?;
    for (rows, columns) in [(50, 132), (1, 1), (3, 400)] {
        terminal.resize(rows, columns)?;
        terminal.send("while [ \"$(stty size)\" != \"")?;
        terminal.send(&format!("{rows} {columns}\" ]; do sleep 0.1; done; echo si''ze-seen\r"))?;
        terminal.expect("size-seen")?;
    }
    Ok(())
}

#[test]
fn control_c_interrupts_the_command_and_not_the_session() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = shell(&vm)?;
    // Not dash, which loses an interrupt that meets its vfork.
    terminal.send("bash -c 'echo beg''un; exec sleep 1000'\r")?;
    terminal.expect("begun")?;
    terminal.send("\u{3}")?;
    terminal.expect("prompt:")?;
    terminal.send("echo code $?\r")?;
    terminal.expect("code 130")?;
    Ok(())
}

#[test]
fn control_z_stops_the_guests_job_and_fg_goes_on() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = shell(&vm)?;
    terminal.send("bash -c 'echo beg''un; sleep 2; echo fin''ished'\r")?;
    terminal.expect("begun")?;
    terminal.send("\u{1a}")?;
    terminal.expect("Stopped")?;
    terminal.send("fg\r")?;
    terminal.expect("finished")?;
    Ok(())
}

#[test]
fn the_terminal_is_as_before_whatever_ends_the_session() -> Test {
    let vm = Vm::boot()?;
    for end in ["exit 0\r", "exit 3\r", "kill -9 $$\r"] {
        let mut terminal =
            Terminal::start(&vm.home, ["sh", "-c", "stty -g; read go; coracle exec -it vm sh"])?;
        terminal.expect(":")?;
        let before = terminal.settings()?;
        terminal.send("\r")?;
        terminal.send("echo re''ady\r")?;
        terminal.expect("ready")?;
        assert_ne!(terminal.settings()?, before, "a session has its terminal raw");
        terminal.send(end)?;
        terminal.wait()?;
        assert_eq!(terminal.settings()?, before, "{end:?}");
    }
    Ok(())
}

#[test]
fn the_terminal_is_as_before_when_the_cli_or_the_vm_is_killed() -> Test {
    for who in ["cli by SIGTERM", "cli by SIGHUP", "vmm by SIGKILL"] {
        let vm = Vm::boot()?;
        let mut terminal =
            Terminal::start(&vm.home, ["sh", "-c", "stty -g; read go; exec coracle exec -it vm sh"])?;
        terminal.expect(":")?;
        let before = terminal.settings()?;
        terminal.send("\r")?;
        terminal.send("echo re''ady\r")?;
        terminal.expect("ready")?;
        match who {
            "cli by SIGTERM" => kill_process(terminal.pid(), Signal::TERM)?,
            "cli by SIGHUP" => kill_process(terminal.pid(), Signal::HUP)?,
            _ => kill_process(vm.home.vmm()?.pid, Signal::KILL)?,
        }
        let code = terminal.wait()?;
        assert!(code != 0, "{who}");
        assert_eq!(terminal.settings()?, before, "{who}, {code}");
    }
    Ok(())
}

#[test]
fn an_error_before_the_session_leaves_the_terminal_alone() -> Test {
    let home = Home::new()?;
    let mut terminal =
        Terminal::start(&home, ["sh", "-c", "read go; exec coracle exec -it no-such-sandbox sh"])?;
    let before = terminal.settings()?;
    terminal.send("\r")?;
    assert_eq!(terminal.wait()?, 125);
    terminal.expect("no-such-sandbox")?;
    assert_eq!(terminal.settings()?, before);
    Ok(())
}

/// dash, unlike bash, leaves the terminal's settings to its jobs.
#[test]
fn a_cli_that_is_stopped_gives_the_terminal_back_until_it_goes_on() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = Terminal::start(&vm.home, ["env", "PS1=host:", "dash", "-i"])?;
    terminal.expect("host:")?;
    let before = terminal.settings()?;
    terminal.send("coracle exec -it vm sh\r")?;
    terminal.send("echo re''ady\r")?;
    terminal.expect("ready")?;
    let is_cli = |process: &&tests::host::Process| process.command.contains("exec -it vm");
    let cli = vm.home.processes().iter().find(is_cli).map(|process| process.pid).expect("it runs");
    kill_process(cli, Signal::TSTP)?;
    terminal.expect("host:")?;
    assert_eq!(terminal.settings()?, before);
    terminal.send("fg\r")?;
    thread::sleep(Duration::from_millis(500));
    terminal.send("echo ba''ck\r")?;
    terminal.expect("back")?;
    terminal.send("exit\r")?;
    terminal.expect("host:")?;
    assert_eq!(terminal.settings()?, before);
    Ok(())
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none() -> Test {
    let vm = Vm::boot()?;
    let done = vm.home.coracle(["exec", "-t", "vm", "tty"]).run()?;
    assert!(done.code == 125 && done.err().contains("terminal"), "{} {}", done.code, done.err());
    Ok(())
}

#[test]
fn much_output_arrives_in_order() -> Test {
    let vm = Vm::boot()?;
    let mut terminal = shell(&vm)?;
    terminal.send("seq 20000; echo e''nd\r")?;
    terminal.expect("\nend")?;
    // The shell ends its prompt with a lone carriage return.
    let shown = terminal.shown();
    let numbers: Vec<u32> = shown.split(['\r', '\n']).filter_map(|line| line.parse().ok()).collect();
    assert!(numbers == (1..=20_000).collect::<Vec<_>>(), "{} numbers", numbers.len());
    Ok(())
}
