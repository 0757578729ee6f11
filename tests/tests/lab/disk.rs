//! The sandbox's disk as the host pays for it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use tests::{Test, Vm};

/// What a file system keeps for itself of what was written and deleted: its journal, tables, bitmaps.
const KEPT: u64 = 16 << 20;
const WRITE_200_MB: &str = "dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' x > ~/large; sync";

/// Bytes that the disk of `vm` takes on the host.
fn taken(vm: &Vm) -> Result<u64> {
    Ok(File::open(vm.home.sandboxes().join(&vm.name).join("disk.img"))?.metadata()?.blocks() * 512)
}

#[test]
fn what_is_deleted_in_the_sandbox_is_free_on_the_host_seconds_later() -> Test {
    let vm = Vm::boot()?;
    let before = taken(&vm)?;
    vm.exec(WRITE_200_MB)?;
    assert!(taken(&vm)? > before + (200 << 20) - KEPT);
    vm.exec("rm ~/large")?;
    vm.home.wait_for("the host has its space back", || taken(&vm).is_ok_and(|now| now < before + KEPT))?;
    assert_eq!(vm.exec("echo well > ~/small; sync; cat ~/small")?, "well\n");
    Ok(())
}

#[test]
fn what_is_deleted_right_before_a_stop_is_free_after_it() -> Test {
    let vm = Vm::boot()?;
    let before = taken(&vm)?;
    vm.exec(WRITE_200_MB)?;
    vm.exec("rm ~/large")?;
    vm.home.coracle(["stop", &vm.name]).ok()?;
    let after = taken(&vm)?;
    assert!(after < before + KEPT, "{before} bytes before, {after} after");
    vm.start(["--cpus", "1", "-m", "512m"])?;
    vm.exec("test ! -e ~/large")?;
    Ok(())
}
