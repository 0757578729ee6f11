//! Guests that do their worst, as root: each ends or stays contained, and the host tells what happened.

use std::fs;
use std::time::{Duration, Instant};

use tests::{Test, Vm};

/// What the log of a sandbox may take on the host.
const LOG_MAX: u64 = 10 << 20;

/// Runs `script` as root, which ends the VM: the session must end with one line of reason, and the next command start
/// the sandbox again.
fn ends_the_vm(script: &str, reason: &str) -> Test {
    let vm = Vm::boot()?;
    let done = vm.command(["sudo", "sh", "-c", script]).run()?;
    assert_eq!(done.code, 125, "{}", done.err());
    assert!(done.err().contains(reason), "{:?} is not in {}", reason, done.err());
    vm.home.wait_for("the VMM ends", || vm.home.processes().is_empty())?;
    assert!(vm.home.coracle(["ls"]).ok()?.contains("stopped"));
    assert_eq!(vm.exec("echo again")?, "again\n");
    Ok(())
}

/// Writes one byte to an I/O port, by machine code that root of the guest makes up itself.
fn write_port(port: u16, byte: u8) -> String {
    let [low, high] = port.to_le_bytes();
    format!(
        "python3 -c \"
import ctypes, mmap
ctypes.CDLL(None).iopl(3) and exit('no ports here')
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes([0x66, 0xba, {low}, {high}, 0xb0, {byte}, 0xee, 0xc3]))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
\""
    )
}

#[test]
fn a_panic_is_told_with_the_kernels_last_words() -> Test {
    ends_the_vm("echo c > /proc/sysrq-trigger; sleep 30", "panic")
}

#[test]
fn a_reboot_ends_the_vm() -> Test {
    ends_the_vm("echo b > /proc/sysrq-trigger; sleep 30", "")
}

#[test]
fn root_may_power_off_through_the_mark_port_and_nothing_else_happens() -> Test {
    let script = write_port(0xf4, 0x50);
    let vm = Vm::boot()?;
    let done = vm.command(["sudo", "sh", "-c", &format!("{script}; sleep 30")]).run()?;
    if done.err().contains("no ports here") {
        return Ok(());
    }
    assert_eq!((done.code, done.err().lines().count()), (125, 1), "{}", done.err());
    vm.home.wait_for("the VMM ends", || vm.home.processes().is_empty())?;
    assert_eq!(vm.exec("echo again")?, "again\n");
    Ok(())
}

#[test]
fn other_bytes_to_the_mark_port_change_nothing() -> Test {
    let vm = Vm::boot()?;
    for byte in [0, 1, 3, 4, 5, 6, 15, 16, 0x7f, 0xff] {
        vm.command(["sudo", "sh", "-c", &write_port(0xf4, byte)]).run()?;
    }
    assert_eq!(vm.exec("echo well")?, "well\n");
    Ok(())
}

/// Root of the guest writes to the template's memory as if it were memory.
#[test]
fn what_is_written_to_a_template_is_lost() -> Test {
    const WRITE: &str = "
import mmap, os
options = open('/proc/cmdline').read().split()
start = next(it for it in options if it.startswith('layers='))[7:].split(',')[0]
memory = mmap.mmap(os.open('/dev/mem', os.O_RDWR), 4096, offset=int(start, 16))
for at in range(1024, 1032):
    memory[at] = 0x55
print(memory[1024:1028].hex())";
    let vm = Vm::boot()?;
    let magic = vm.command(["sudo", "python3", "-c", WRITE]).ok()?;
    assert_eq!(magic, "e2e1f5e0\n", "the superblock's magic number");
    let other = Vm::boot()?;
    assert_eq!(other.exec("echo well")?, "well\n");
    Ok(())
}

/// A disk is written to straight from a page of the template, which is memory of the host's.
#[test]
fn a_piece_of_the_template_is_written_past_the_page_cache() -> Test {
    const WRITE: &str = "
import mmap, os
program = os.path.realpath('/usr/bin/python3')
pages = mmap.mmap(os.open(program, os.O_RDONLY), 1 << 20, prot=mmap.PROT_READ)
copy = os.open('/var/tmp/copy', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
assert os.pwritev(copy, [pages], 0) == 1 << 20
print(open('/var/tmp/copy', 'rb').read() == open(program, 'rb').read(1 << 20))";
    let vm = Vm::boot()?;
    assert_eq!(vm.command(["sudo", "python3", "-c", WRITE]).ok()?, "True\n");
    Ok(())
}

#[test]
fn a_fork_bomb_stays_inside_and_can_be_removed() -> Test {
    let vm = Vm::boot()?;
    let bomb = "f() { f | f & }; f; sleep 1000";
    let session = vm.command(["bash", "-c", bomb]).spawn()?;
    std::thread::sleep(Duration::from_secs(5));
    assert!(vm.home.coracle(["ls"]).deadline(5).ok()?.contains("running"));
    let start = Instant::now();
    vm.home.coracle(["stop", "vm"]).deadline(60).ok()?;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    drop(session);
    assert_eq!(vm.exec("echo again")?, "again\n");
    Ok(())
}

#[test]
fn killing_everything_in_the_container_ends_no_more_than_that() -> Test {
    let vm = Vm::boot()?;
    let done = vm.command(["sudo", "sh", "-c", "kill -9 -1; sleep 1; echo alive"]).run()?;
    assert!([0, 125, 137].contains(&done.code), "{} {}", done.code, done.err());
    assert_eq!(vm.exec("echo again")?, "again\n");
    Ok(())
}

#[test]
fn a_flooded_console_costs_the_host_a_bounded_log() -> Test {
    let vm = Vm::boot()?;
    let flood = "echo 7 > /proc/sys/kernel/printk 2>/dev/null; echo on > /proc/sys/kernel/printk_devkmsg 2>/dev/null
        timeout 10 sh -c 'while :; do echo \"<0>flood flood flood flood flood flood flood flood\"; done > /dev/kmsg'; true";
    let done = vm.command(["sudo", "sh", "-c", flood]).deadline(120).run()?;
    assert_eq!(done.code, 0, "{}", done.err());
    assert_eq!(vm.exec("echo well")?, "well\n");
    let size: u64 = fs::read_dir(vm.home.sandboxes().join("vm"))?
        .flatten()
        .filter(|entry| entry.file_name() != "disk.img")
        .map(|entry| entry.metadata().map_or(0, |data| data.len()))
        .sum();
    assert!(size <= LOG_MAX, "{size} bytes");
    Ok(())
}

#[test]
fn a_guest_without_memory_kills_its_own() -> Test {
    let vm = Vm::boot()?;
    let done = vm
        .command(["python3", "-c", "x = []\nwhile True: x.append(bytearray(b'x' * (16 << 20)))"])
        .deadline(120)
        .run()?;
    assert!([1, 137, 125].contains(&done.code), "{} {}", done.code, done.err());
    assert_eq!(vm.exec("echo well")?, "well\n");
    Ok(())
}

#[test]
fn a_full_disk_is_the_guests_own_trouble() -> Test {
    let vm = Vm::boot_with(["--cpus", "1", "-m", "512m", "--disk", "1g"])?;
    let fill = "fallocate -l 2G ~/big 2>&1 || dd if=/dev/zero of=big bs=1M count=2000 2>&1";
    let done = vm.command(["sh", "-c", &format!("cd ~; {{ {fill}; }} | grep -o 'No space left' | head -n 1; rm -f big; echo well > ~/note; cat ~/note")]).run()?;
    assert_eq!(done.out(), "No space left\nwell\n");
    Ok(())
}

#[test]
fn control_bytes_of_the_guest_do_not_reach_the_terminal_through_messages() -> Test {
    let vm = Vm::boot()?;
    let done = vm.command(["no\u{1b}]0;such\u{7}program"]).run()?;
    assert!(
        done.code == 127 && !done.stderr.contains(&0x1b) && !done.stderr.contains(&7),
        "{:?}",
        done.err()
    );
    Ok(())
}

#[test]
fn the_guest_reaches_no_host_port_by_vsock_but_the_gateways() -> Test {
    let vm = Vm::boot()?;
    let script = "
import socket
for cid in (0, 1, 2, 3, 4, 2**32 - 2):
    for port in (0, 1, 22, 1024, 1025, 2375, 2**32 - 2):
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(2)
        try:
            s.connect((cid, port))
            if cid != 1 and cid != 3: print('connected', cid, port)
        except OSError:
            pass
";
    let done = vm.command(["sudo", "python3", "-c", script]).deadline(180).run()?;
    assert_eq!((done.code, done.out()), (0, "connected 2 1025\n".into()), "{}", done.err());
    assert_eq!(vm.exec("echo well")?, "well\n");
    Ok(())
}
