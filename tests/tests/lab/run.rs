//! What a script relies on: streams, exit codes, input, environment, directory and user of a command.

use tests::random::Random;
use tests::{Home, Test, Vm};

/// `coracle run --rm … shell . -- COMMAND` on a small machine.
fn once<'a>(flags: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--rm", "--cpus", "1", "-m", "512m"], flags, &["shell", ".", "--"], command].concat()
}

#[test]
fn a_script_gets_its_commands_streams_apart_and_its_exit_code() -> Test {
    let home = Home::new()?;
    let done = home.coracle(once(&[], &["sh", "-c", "echo out; echo err >&2; exit 42"])).run()?;
    assert_eq!((done.out(), done.err(), done.code), ("out\n".into(), "err\n".into(), 42));
    assert_eq!(home.coracle(["ls", "-q"]).ok()?, "", "--rm leaves nothing that is seen after it");
    home.is_clean()
}

#[test]
fn a_pipe_goes_through() -> Test {
    let home = Home::new()?;
    let run = home.coracle(once(&[], &["sort"])).input("pear\napple\n");
    assert_eq!(run.ok()?, "apple\npear\n");
    Ok(())
}

#[test]
fn exit_codes_are_the_commands_own() -> Test {
    let vm = Vm::boot()?;
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 137, 200, 254, 255] {
        let done = vm.command(["sh", "-c", &format!("exit {code}")]).run()?;
        assert_eq!((done.code, done.err()), (code, String::new()));
    }
    Ok(())
}

#[test]
fn a_signal_is_128_and_its_number() -> Test {
    let vm = Vm::boot()?;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        assert_eq!(vm.command(["sh", "-c", &format!("kill -{signal} $$")]).run()?.code, code);
    }
    Ok(())
}

#[test]
fn what_cannot_be_run_is_126_or_127_and_says_why() -> Test {
    let vm = Vm::boot()?;
    vm.home.write("proj/no-shebang", "echo no\n")?;
    vm.home.write("proj/not-executable", "#!/bin/sh\n")?;
    for (program, code) in
        [("no-such-program", 127), ("/no/such", 127), ("/etc", 126), ("./not-executable", 126)]
    {
        let done = vm.command([program]).run()?;
        assert_eq!(done.code, code, "{program}: {}", done.err());
        assert!(done.err().contains(program) && done.err().lines().count() == 1, "{}", done.err());
    }
    let done = vm.command(["true"]).args(["-x"; 0]).run()?;
    assert_eq!((done.code, done.out(), done.err()), (0, String::new(), String::new()));
    Ok(())
}

#[test]
fn a_working_directory_that_is_not_there_is_told() -> Test {
    let vm = Vm::boot()?;
    let done = vm.home.coracle(["exec", "-w", "/no/such/dir", "vm", "true"]).run()?;
    assert!(
        (125..=127).contains(&done.code) && done.err().contains("/no/such/dir"),
        "{} {}",
        done.code,
        done.err()
    );
    assert_eq!(vm.home.coracle(["exec", "-w", "/usr/bin", "vm", "pwd"]).ok()?, "/usr/bin\n");
    Ok(())
}

#[test]
fn eight_mebibytes_of_any_bytes_come_back_as_they_went() -> Test {
    let vm = Vm::boot()?;
    let bytes = Random::new(1).bytes(8 << 20);
    let done = vm.command_reading(&bytes, ["cat"]).deadline(120).run()?;
    assert_eq!(done.code, 0, "{}", done.err());
    assert!(done.stdout == bytes, "{} bytes came back, or others", done.stdout.len());
    Ok(())
}

#[test]
fn the_end_of_input_arrives() -> Test {
    let vm = Vm::boot()?;
    assert_eq!(vm.command_reading(b"", ["wc", "-c"]).ok()?, "0\n");
    assert_eq!(vm.command_reading(b"x", ["wc", "-c"]).ok()?, "1\n");
    assert_eq!(vm.command(["wc", "-c"]).ok()?, "0\n", "without -i there is none");
    Ok(())
}

#[test]
fn output_that_nobody_reads_ends_the_command_as_in_any_pipe() -> Test {
    let vm = Vm::boot()?;
    let script = "coracle exec vm yes | head -n 1; echo ${PIPESTATUS[0]}";
    let out = vm.home.program("bash").args(["-c", script]).ok()?;
    assert!(out.starts_with("y\n") && !out.ends_with("\n0\n"), "{out}");
    vm.home.wait_for("`yes` ends in the sandbox", || vm.exec("! pgrep -x yes").is_ok())
}

#[test]
fn variables_come_from_flags_files_and_the_caller() -> Test {
    let home = Home::new()?;
    let file = home.write("env", "# comment\nB=file\nC=file\n")?;
    let file = file.to_str().expect("a temporary path is text");
    let flags = ["-e", "A=x y=z", "-e", "B=flag", "-e", "MINE", "--env-file", file];
    let run = home.coracle(once(&flags, &["sh", "-c", r#"echo "$A|$B|$C|$MINE|$HIDDEN""#]));
    assert_eq!(run.env("MINE", "mine").env("HIDDEN", "hidden").ok()?, "x y=z|flag|file|mine|\n");
    Ok(())
}

#[test]
fn the_command_runs_in_the_workspace_as_the_user_agent() -> Test {
    let vm = Vm::boot()?;
    let workspace = vm.home.workspace().canonicalize()?;
    assert_eq!(vm.exec("pwd")?, format!("{}\n", workspace.display()));
    assert_eq!(vm.exec("id -u; id -un; echo $HOME; echo $USER")?, "1000\nagent\n/home/agent\nagent\n");
    assert_eq!(vm.exec("sudo id -u; sudo -u nobody id -un")?, "0\nnobody\n");
    assert_eq!(vm.exec("echo > ~/mine && stat -c %U ~ ~/mine")?, "agent\nagent\n");
    Ok(())
}

#[test]
fn a_container_of_its_own_is_what_the_command_sees() -> Test {
    let vm = Vm::boot()?;
    assert_eq!(vm.exec("hostname")?, "vm\n");
    assert_eq!(vm.exec("stat -fc %T / /proc /sys /dev/pts /dev/shm /tmp | head -2")?, "overlayfs\nproc\n");
    assert_eq!(
        vm.exec("echo $(( $(date +%s) / 1000 ))")?,
        format!("{}\n", std::time::UNIX_EPOCH.elapsed()?.as_secs() / 1000)
    );
    let kernel_threads = vm.exec("ps -e -o comm= | grep -c kthreadd; true")?;
    assert_eq!(kernel_threads, "0\n", "the container has a process space of its own");
    Ok(())
}

#[test]
fn arguments_arrive_byte_for_byte_and_too_many_are_refused() -> Test {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let vm = Vm::boot()?;
    let odd = OsStr::from_bytes(b"\xff $(id) '\"\\\n*");
    let done = vm.command(["printf", "%s"]).args([odd]).run()?;
    assert_eq!(done.stdout, odd.as_bytes());
    let long = "x".repeat(100 << 10);
    assert_eq!(vm.command(["sh", "-c", "echo ${#1}", "sh", &long]).ok()?, format!("{}\n", long.len()));
    let done = vm.command(["true"]).args([&long; 20]).run()?;
    assert!((125..=126).contains(&done.code), "2 MiB: {}", done.code);
    assert!(done.err().lines().count() == 1 && done.err().len() < 400, "{}", done.err());
    Ok(())
}

#[test]
fn many_sessions_at_once_do_not_mix() -> Test {
    let vm = Vm::boot()?;
    let sessions: Result<Vec<_>, _> = (0..8)
        .map(|n| {
            vm.command(["sh", "-c", &format!("for i in $(seq 200); do echo {n}; done; exit {n}")]).spawn()
        })
        .collect();
    for (n, session) in sessions?.into_iter().enumerate() {
        let done = session.wait()?;
        assert_eq!((done.out(), done.code), (format!("{n}\n").repeat(200), i32::try_from(n)?));
    }
    Ok(())
}

#[test]
fn as_many_processors_as_asked_for() -> Test {
    let vm = Vm::boot_with(["--cpus", "2", "-m", "512m"])?;
    assert_eq!(vm.exec("nproc")?, "2\n");
    let both = "for cpu in 0 1; do taskset -c $cpu sh -c 'i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done' & done; wait";
    vm.exec(both)?;
    assert_eq!(vm.exec("grep -c ^processor /proc/cpuinfo")?, "2\n");
    Ok(())
}

#[test]
fn timings_are_told_on_the_error_stream() -> Test {
    let home = Home::new()?;
    let done = home.coracle(once(&["--timings=json"], &["echo", "hi"])).run()?;
    assert_eq!((done.code, done.out()), (0, "hi\n".into()));
    let timings: serde_json::Value = serde_json::from_slice(&done.stderr)?;
    assert!(timings.is_object() || timings.is_array(), "{timings}");
    Ok(())
}
