//! `coracle resize` and `coracle stats` on sandboxes that run.

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Test, Vm};

/// The size of the sandbox's root, in MiB.
fn root_mib(vm: &Vm) -> Result<u64> {
    vm.exec("df --output=size -BM / | tail -1 | tr -dc 0-9")?.parse().context("a size")
}

fn stats(vm: &Vm) -> Result<Value> {
    let all: Value = serde_json::from_str(&vm.home.coracle(["stats", "--json", &vm.name]).ok()?)?;
    Ok(all[0].clone())
}

#[test]
fn a_disk_grows_under_a_running_sandbox_and_stays_so() -> Test {
    let vm = Vm::boot_with(["--cpus", "1", "-m", "512m", "--disk", "1g"])?;
    vm.exec("echo kept > ~/kept; sync")?;
    let before = root_mib(&vm)?;
    assert!(before < 1024, "{before} MiB");
    let done = vm.home.coracle(["resize", "--disk", "4g", &vm.name]).run()?;
    assert_eq!((done.code, &*done.out(), &*done.err()), (0, "vm\n", ""));
    assert!(root_mib(&vm)? > before + 2900, "{} MiB", root_mib(&vm)?);
    vm.exec("fallocate -l 2500M ~/large; rm ~/large")?;
    let refused = vm.home.coracle(["resize", "--disk", "2g", &vm.name]).run()?;
    assert!(refused.code == 125 && refused.err().contains("it only grows"), "{}", refused.err());

    // The memory is that of the next start, where both sizes may be said, and the disk is as it was left.
    let done = vm.home.coracle(["resize", "-m", "1g", &vm.name]).run()?;
    assert!(done.code == 0 && done.err().contains("from its next start on"), "{}", done.err());
    vm.home.coracle(["stop", &vm.name]).ok()?;
    vm.start(["-m", "1g", "--disk", "4g"])?;
    assert_eq!(vm.exec("cat ~/kept")?, "kept\n");
    assert!(root_mib(&vm)? > before + 2900);
    let total = || vm.exec("awk '/^MemTotal/ {print $2}' /proc/meminfo");
    vm.home.wait_for("1 GiB arrives", || {
        total().is_ok_and(|kib| kib.trim().parse::<u64>().is_ok_and(|it| it > 900 << 10))
    })?;
    Ok(())
}

#[test]
fn stats_show_what_a_sandbox_takes() -> Test {
    let vm = Vm::boot()?;
    let busy = vm.command(["timeout", "30", "sh", "-c", "while :; do :; done"]).spawn()?;
    vm.home.wait_for("a busy sandbox", || {
        stats(&vm).is_ok_and(|stats| stats["cpu_percent"].as_f64().is_some_and(|cpu| cpu > 50.0))
    })?;
    drop(busy);
    let stats = stats(&vm)?;
    let figure = |name: &str| stats[name].as_u64().with_context(|| format!("{name} in {stats}"));
    assert!((20 << 20..512 << 20).contains(&figure("memory_used")?), "{stats}");
    assert_eq!((figure("memory_given")?, figure("disk_apparent")?), (512 << 20, 20 << 30));
    assert!((48 << 10..64 << 20).contains(&figure("disk_real")?), "{stats}");
    Ok(())
}
