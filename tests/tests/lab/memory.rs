//! How much memory the guest has, and how much the host pays for it.

use std::fs;

use anyhow::{Context, Result};
use tests::host::Process;
use tests::{Home, Test, Vm};

/// What the VMM may take beyond the guest's memory.
const VMM_MAX_KIB: u64 = 5 << 10;
const GUEST_MIB: u64 = 512;

/// One line of /proc/PID/smaps: addresses, and what is resident of them.
#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    resident_kib: u64,
    /// Of the resident, each page divided by how many have it mapped.
    proportional_kib: u64,
    /// Is a layer of the template, which is in the host's page cache: unreserved, and only to be read.
    layer: bool,
    /// What is mapped, for the message of a failure.
    #[expect(dead_code, reason = "printed by Debug")]
    name: String,
}

fn mappings(pid: i32) -> Result<Vec<Mapping>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("read the VMM's smaps")?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().context("no empty lines")?;
        if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).context("an address");
            let name = words.nth(4).unwrap_or_default().to_owned();
            mappings.push(Mapping {
                start: address(start)?,
                end: address(end)?,
                resident_kib: 0,
                proportional_kib: 0,
                layer: false,
                name,
            });
        } else if first == "Rss:" {
            mappings.last_mut().context("a mapping")?.resident_kib =
                words.next().context("a number")?.parse()?;
        } else if first == "Pss:" {
            mappings.last_mut().context("a mapping")?.proportional_kib =
                words.next().context("a number")?.parse()?;
        } else if first == "VmFlags:" {
            let flags: Vec<_> = words.collect();
            mappings.last_mut().context("a mapping")?.layer =
                flags.contains(&"nr") && flags.contains(&"rd") && !flags.contains(&"wr");
        }
    }
    Ok(mappings)
}

/// The mappings that are neither the template nor the guest's memory, which is the one run of neighbours with exactly its size.
fn beyond_guest(all: &[Mapping]) -> Result<Vec<&Mapping>> {
    let size = GUEST_MIB << 20;
    let run = |first: usize| {
        let mut last = first;
        while all[last].end - all[first].start < size && all.get(last + 1)?.start == all[last].end {
            last += 1;
        }
        (all[last].end - all[first].start == size).then_some(first..=last)
    };
    let guest =
        (0..all.len()).find_map(run).with_context(|| format!("no run of {GUEST_MIB} MiB in {all:#x?}"))?;
    Ok(all
        .iter()
        .enumerate()
        .filter(|(index, mapping)| !guest.contains(index) && !mapping.layer)
        .map(|(_, mapping)| mapping)
        .collect())
}

#[test]
fn the_vmm_takes_at_most_five_mebibytes_beyond_the_guests_memory() -> Test {
    let vm = Vm::boot()?;
    vm.exec("cat /usr/bin/* > /dev/null; cp /usr/bin/git . ; sync")?;
    let all = mappings(vm.home.vmm()?.pid.as_raw_nonzero().get())?;
    let beyond = beyond_guest(&all)?;
    let kib: u64 = beyond.iter().map(|mapping| mapping.resident_kib).sum();
    eprintln!("the VMM takes {kib} KiB beyond the guest's memory");
    assert!(kib <= VMM_MAX_KIB, "{kib} KiB: {beyond:#x?}");
    Ok(())
}

/// A figure of the VMM's, in MiB: VmRSS is what is resident now, VmHWM the most that ever was.
fn status(vm: &Vm, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.home.vmm()?.pid.as_raw_pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a line of that name")?;
    let kib: u64 = line.trim_matches([':', '\t', ' ', 'k', 'B']).parse()?;
    Ok(kib >> 10)
}

#[test]
fn memory_that_the_sandbox_frees_goes_back_to_the_host() -> Test {
    let vm = Vm::boot()?;
    vm.exec("python3 -c 'x = b\"1\" * (300 << 20)'")?;
    let peak = status(&vm, "VmHWM")?;
    assert!(peak > 300, "{peak} MiB");
    vm.home.wait_for("the host has its memory back", || {
        status(&vm, "VmRSS").is_ok_and(|now| now < peak - 200)
    })?;
    eprintln!("{peak} MiB at most, {} after it", status(&vm, "VmRSS")?);
    assert_eq!(vm.exec("python3 -c 'x = b\"1\" * (300 << 20); print(len(x))'")?, "314572800\n");
    Ok(())
}

#[test]
fn an_idle_sandbox_gives_its_page_cache_back() -> Test {
    let vm = Vm::boot()?;
    vm.exec("head -c 250M /dev/zero | tr '\\0' x > ~/large; sync; cat ~/large > /dev/null")?;
    let busy = status(&vm, "VmRSS")?;
    vm.home.wait_for("the cache is the host's", || status(&vm, "VmRSS").is_ok_and(|now| now + 120 < busy))?;
    eprintln!("{busy} MiB after reading, {} when idle", status(&vm, "VmRSS")?);
    assert_eq!(vm.exec("tail -c 3 ~/large")?, "xxx");
    Ok(())
}

/// Programs in the sandbox use the host's pages of the template: no copy in guest memory, and nothing private in the VMM's.
#[test]
fn what_is_read_of_a_template_takes_no_memory_of_the_guest() -> Test {
    let vm = Vm::boot()?;
    let kib = |script: &str| -> Result<u64> { Ok(vm.exec(script)?.trim().parse::<u64>()?) };
    let cached = || kib("awk '/^Cached/ {print $2}' /proc/meminfo");
    let before = cached()?;
    let read = kib("cat /usr/bin/* | wc -c")? >> 10;
    let grown = cached()?.saturating_sub(before);
    assert!(read > 30 << 10, "{read} KiB are too few to tell");
    assert!(grown < read / 8, "{grown} KiB of {read} KiB read are copies");
    let all = mappings(vm.home.vmm()?.pid.as_raw_nonzero().get())?;
    let layers: u64 = all.iter().filter(|it| it.layer).map(|it| it.resident_kib).sum();
    assert!(layers > read / 2, "{layers} KiB of the template are mapped");
    Ok(())
}

/// Each has the same pages of the host's cache mapped, so a template is in memory once, however many use it.
#[test]
fn twenty_sandboxes_have_one_template_in_memory() -> Test {
    const COUNT: u64 = 20;
    const PRIVATE_MAX_KIB: u64 = 128 << 10;
    let home = Home::new()?;
    for number in 1..=COUNT {
        let name = format!("s{number}");
        let run = [
            "run",
            "-d",
            "--name",
            &name,
            "--idle-timeout",
            "10m",
            "--cpus",
            "1",
            "-m",
            "512m",
            "shell",
            ".",
        ];
        home.coracle(run).ok()?;
        home.coracle(["exec", &name, "sh", "-c", "cat /usr/bin/* >/dev/null"]).ok()?;
        let vmms: Vec<_> = home.processes().into_iter().filter(Process::is_vmm).collect();
        assert_eq!(vmms.len() as u64, number, "all run at once");
        if ![1, 10, COUNT].contains(&number) {
            continue;
        }
        let (mut once, mut together, mut private) = (0, 0, 0);
        for vmm in vmms {
            let (layers, others): (Vec<_>, Vec<_>) =
                mappings(vmm.pid.as_raw_nonzero().get())?.into_iter().partition(|it| it.layer);
            once = layers.iter().map(|it| it.resident_kib).sum::<u64>().max(once);
            together += layers.iter().map(|it| it.proportional_kib).sum::<u64>();
            private += others.iter().map(|it| it.proportional_kib).sum::<u64>();
        }
        eprintln!(
            "{number} sandboxes: {together} KiB of the template, {} KiB each for itself",
            private / number
        );
        assert!(once > 30 << 10, "{once} KiB of the template are too few to tell");
        assert!(together < once + once / 10, "{together} KiB are resident for {once} KiB of the template");
        assert!(private / number < PRIVATE_MAX_KIB, "{private} KiB are private to {number} sandboxes");
    }
    Ok(())
}

#[test]
fn a_large_guest_gets_all_of_its_memory_soon_after_its_start() -> Test {
    let vm = Vm::boot_with(["--cpus", "1", "-m", "8g"])?;
    let total = || -> Result<u64> {
        Ok(vm.exec("awk '/^MemTotal/ {print $2}' /proc/meminfo")?.trim().parse::<u64>()? >> 10)
    };
    vm.home.wait_for("8 GiB arrive", || total().is_ok_and(|mib| mib > 7800))?;
    let use_it = "python3 -c 'x = bytearray(1 << 30); x[::4096] = b\"1\" * (1 << 18); print(len(x))'";
    assert_eq!(vm.exec(use_it)?, "1073741824\n");
    Ok(())
}

#[test]
fn a_small_guest_works() -> Test {
    let vm = Vm::boot_with(["--cpus", "1", "-m", "256m"])?;
    assert_eq!(vm.exec("git init -q x && python3 -c 'print(1)'")?, "1\n");
    Ok(())
}
