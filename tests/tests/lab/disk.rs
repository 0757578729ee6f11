//! The sandbox's disk as the host pays for it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use tests::{Home, Test, Vm};

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

/// As its own root, a user may mount a small file system for the state.
const ON_A_SMALL_DISK: &str =
    "mkdir -p $XDG_STATE_HOME && mount -t tmpfs -o size=400m small $XDG_STATE_HOME && exec sh -ec \"$0\"";
/// 5 % of 400 MiB, in KiB.
const FLOOR_KIB: u64 = 20 << 10;

#[test]
fn a_full_host_costs_a_sandbox_its_growth_and_nobody_anything_else() -> Test {
    let home = Home::new()?;
    let story = r#"
        run() { coracle exec "$@"; }
        free() { df --output=avail -k $XDG_STATE_HOME | tail -1; }
        coracle run -d --name one --cpus 1 -m 512m --idle-timeout 10m shell .
        coracle run -d --name two --cpus 1 -m 512m --idle-timeout 10m shell .
        run one sh -c 'echo kept > ~/kept; sync'
        if run one sh -c 'dd if=/dev/zero of=$HOME/large bs=1M count=450 conv=fsync' 2>&1; then echo 'it fitted?'; fi
        echo "free $(free)"
        run one sh -c 'cat ~/kept; echo small > ~/small && sync ~/small && rm ~/large && sync && echo deleted'
        until [ "$(free)" -gt 200000 ]; do sleep 1; done
        run one sh -c 'dd if=/dev/zero of=$HOME/again bs=1M count=100 conv=fsync 2>/dev/null && cat ~/small && rm ~/again && sync'
        until [ "$(free)" -gt 300000 ]; do sleep 1; done
        run one sh -c 'dd if=/dev/zero of=$HOME/large bs=1M count=450 conv=fsync' || true
        run two sh -c 'echo others go on'
        coracle run --rm --cpus 1 -m 512m shell . -- true || echo "refused $?"
        coracle rm -f one
        coracle run --rm --cpus 1 -m 512m shell . -- echo room again
        coracle rm -f two
    "#;
    let done =
        home.program("unshare").args(["-Urm", "sh", "-ec", ON_A_SMALL_DISK, story]).deadline(300).run()?;
    let (out, err) = (done.out(), done.err());
    assert_eq!(done.code, 0, "{out}\n{err}");
    let free: u64 = out.lines().find_map(|line| line.strip_prefix("free ")).unwrap_or("0").trim().parse()?;
    assert!((FLOOR_KIB / 2..FLOOR_KIB + (2 << 10)).contains(&free), "{free} KiB stay free\n{out}\n{err}");
    for said in
        ["Input/output error", "kept\n", "deleted\n", "small\n", "others go on", "refused 125", "room again"]
    {
        assert!(out.contains(said), "{said}: {out}\n{err}");
    }
    assert!(err.contains("MiB are free where sandboxes are kept"), "{err}");
    Ok(())
}
