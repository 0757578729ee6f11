//! `coracle doctor`: what could keep sandboxes from starting, or from starting fast, and what to do about each.
//! Every check stands alone and changes nothing. The ids are for programs and stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use argh::{ArgsInfo, FromArgs};
use gateway::policy::{self, Rules};
use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};
use serde_json::{Value, json};
use vmm::{Probe, has_jail, probe};

use crate::cmd::Typed;
use crate::config::Network;
use crate::output::{print, table};
use crate::store::{Sandbox, Store};
use crate::templates::{self, build};
use crate::text::plain;
use crate::{parts, places, units};

/// Below this a new sandbox may soon have no room to write, below the second not even to start.
const FREE_MIB_LOW: u64 = 5 << 10;
const FREE_MIB_NONE: u64 = 256;

#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "doctor",
    help_triggers("-h", "--help"),
    usage = "[--json]",
    note = "The exit code is 1 when a check fails; a warning is not a failure."
)]
/// Check this machine, and say what to do about what is found.
pub struct Args {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// What a check found.
enum Finding {
    Ok(String),
    /// It works, but not well; and the remedy.
    Warn(String, String),
    /// Sandboxes do not start; and the remedy.
    Fail(String, String),
}

use Finding::{Fail, Ok as Good, Warn};

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let findings = [
            ("kvm", kvm()),
            ("favordynmods", favordynmods(&read("/proc/mounts"))),
            ("nx_huge_pages", nx_huge_pages(&read("/sys/module/kvm/parameters/nx_huge_pages"))),
            ("landlock", landlock(has_jail())),
            ("disk_space", disk_space()),
            ("kernel", part(parts::kernel())),
            ("init", part(parts::initramfs())),
            ("disks", parts::disks().map_or_else(|error| broken(&error), |disks| whole(&disks))),
            ("template", base()),
            ("gateway", gateway()),
        ];
        let failed = findings.iter().any(|(_, finding)| matches!(finding, Fail(..)));
        print(&if self.json { json(&findings, failed) } else { text(&findings) })?;
        Ok(u8::from(failed))
    }
}

fn text(findings: &[(&str, Finding)]) -> String {
    let mut rows = Vec::new();
    for (id, finding) in findings {
        let (status, what, remedy) = finding.parts();
        rows.push(vec![status.to_owned(), (*id).to_owned(), what.to_owned()]);
        if !remedy.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("-> {remedy}")]);
        }
    }
    table(&rows)
}

fn json(findings: &[(&str, Finding)], failed: bool) -> String {
    let checks = findings.iter().map(|(id, finding)| {
        let (status, what, remedy) = finding.parts();
        json!({ "id": id, "status": status, "found": what, "remedy": remedy })
    });
    format!("{:#}\n", json!({ "ok": !failed, "checks": Value::from_iter(checks) }))
}

impl Finding {
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Good(what) => ("ok", what, ""),
            Warn(what, remedy) => ("warn", what, remedy),
            Fail(what, remedy) => ("FAIL", what, remedy),
        }
    }
}

fn kvm() -> Finding {
    const DEVICE: &str = "/dev/kvm";
    if !Path::new(DEVICE).exists() {
        let remedy = "enable virtualisation in the firmware and load kvm_intel or kvm_amd; in a virtual machine or a \
                      container, have its host pass /dev/kvm on";
        return Fail(format!("there is no {DEVICE}"), remedy.into());
    }
    if accessat(CWD, DEVICE, Access::READ_OK | Access::WRITE_OK, AtFlags::empty()).is_err() {
        let remedy = "sudo usermod -aG kvm $USER, then log in again";
        return Fail(format!("you may not open {DEVICE}"), remedy.into());
    }
    match probe() {
        Ok(Probe::Able) => Good("present, permitted, and able to run an unmodified kernel".into()),
        Ok(Probe::Unable(reason)) => Fail(
            format!("it cannot run an unmodified kernel: {}", plain(reason)),
            "use a machine with hardware virtualisation (VMX or SVM); a KVM that interprets guest kernels will not do".into(),
        ),
        Err(error) => Fail(
            format!("it does not work: {}", plain(format!("{:#}", anyhow::Error::new(error)))),
            "see the host kernel's log with dmesg".into(),
        ),
    }
}

/// Linux Documentation/admin-guide/cgroup-v2.rst, "Mounting": without it, moving the first thread into a cgroup waits for
/// every CPU, and KVM does that when it makes a machine.
fn favordynmods(mounts: &str) -> Finding {
    let mut cgroup2 = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let Some(fields) = cgroup2.rfind(|fields| fields.get(2) == Some(&"cgroup2")) else {
        return Good("no cgroup2 is mounted".into());
    };
    let on = fields.get(3).is_some_and(|options| options.split(',').any(|option| option == "favordynmods"));
    match on {
        true => Good("on".into()),
        false => Warn(
            "off: each start can take up to 40 ms longer".into(),
            format!("sudo mount -o remount,favordynmods {}", plain(fields[1])),
        ),
    }
}

/// Linux Documentation/admin-guide/hw-vuln/multihit.rst, "Mitigation control on the kernel command line and KVM".
fn nx_huge_pages(value: &str) -> Finding {
    match value.trim() {
        "" => Good("KVM has no such setting here".into()),
        "N" | "never" => Good("off".into()),
        value => Warn(
            format!("{}: a start can take up to 20 ms longer", plain(value)),
            "if this processor is not vulnerable (see /sys/devices/system/cpu/vulnerabilities/itlb_multihit), load kvm with \
             nx_huge_pages=never"
                .into(),
        ),
    }
}

/// Linux Documentation/userspace-api/landlock.rst, "Kernel support".
fn landlock(is_there: bool) -> Finding {
    match is_there {
        true => Good("on: the kernel keeps what serves a shared folder inside it".into()),
        false => Warn(
            "off: Coracle's own checks alone keep a sandbox inside its shared folders".into(),
            "use Linux 5.19 or newer, with landlock in the list of lsm= on the kernel's command line".into(),
        ),
    }
}

fn disk_space() -> Finding {
    let state = match places::state() {
        Ok(state) => state,
        Err(error) => return Fail(plain(format!("{error:#}")), "set HOME".into()),
    };
    let remedy = "make room, or set XDG_STATE_HOME to a larger file system";
    let exists = |path: &&Path| path.exists();
    let free = state.ancestors().find(exists).context("no folder").and_then(|path| Ok(statvfs(path)?));
    let free_mib = match free {
        Ok(free) => free.f_bavail.saturating_mul(free.f_frsize) >> 20,
        Err(error) => return Fail(plain(format!("{}: {error:#}", state.display())), remedy.into()),
    };
    let what = format!("{} free for {}", units::show_mib(free_mib), plain(&state));
    match free_mib {
        0..FREE_MIB_NONE => Fail(what, remedy.into()),
        FREE_MIB_NONE..FREE_MIB_LOW => Warn(what, remedy.into()),
        _ => Good(what),
    }
}

fn base() -> Finding {
    let layers = build::base().and_then(|base| templates::layers(&base.image));
    layers.map_or_else(|error| broken(&error), |layers| whole(&layers))
}

fn part(part: Result<PathBuf>) -> Finding {
    part.map_or_else(|error| broken(&error), |path| whole(&[path]))
}

fn whole(paths: &[PathBuf]) -> Finding {
    Good(paths.iter().map(plain).collect::<Vec<_>>().join(" "))
}

fn broken(error: &anyhow::Error) -> Finding {
    Fail(
        format!("{error:#}"),
        "install Coracle again, or set CORACLE_SHARE to the folder that holds vmlinux".into(),
    )
}

/// What keeps sandboxes from the network that policy allows them.
fn gateway() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("getent").is_file()) {
        let remedy = "install getent, a part of every C library (Debian: libc-bin), where PATH leads to";
        return Warn("getent is missing: sandboxes reach no host by its name".into(), remedy.into());
    }
    let rules = places::settings().and_then(|folder| Rules::read(&folder.join(policy::NAME)));
    let rules = match rules {
        Ok(rules) => rules.unwrap_or_default(),
        Err(error) => {
            let remedy = "until that is put right, sandboxes reach nothing";
            return Warn(plain(format!("{error:#}")), remedy.into());
        }
    };
    let all = Store::open().ok().flatten().and_then(|store| store.sandboxes().ok()).unwrap_or_default();
    let lacks_it = |it: &&Sandbox| {
        let wants = it.config().is_ok_and(|config| config.network == Network::Gateway);
        wants && it.is_running() && !it.has_gateway()
    };
    match all.iter().find(lacks_it) {
        Some(Sandbox { name, .. }) => Warn(
            format!("that of sandbox {name} was killed: it has no network"),
            format!("coracle exec {name} true starts another"),
        ),
        None => {
            let (preset, count) = (rules.preset.unwrap_or_default(), rules.allow.len() + rules.deny.len());
            Good(format!("getent is there; preset {}, {count} rules of your own", preset.name()))
        }
    }
}

/// A file that the kernel makes, or nothing.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(finding: &Finding) -> &'static str {
        finding.parts().0
    }

    #[test]
    fn mount_options_are_found() {
        let line =
            |options| format!("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n");
        assert_eq!(status(&favordynmods(&line("rw,nosuid,favordynmods"))), "ok");
        assert_eq!(status(&favordynmods(&line("rw,nosuid"))), "warn");
        assert_eq!(status(&favordynmods("")), "ok");
        assert_eq!(status(&favordynmods("cgroup2")), "ok");
    }

    #[test]
    fn a_kernel_without_landlock_is_worth_a_warning_and_no_failure() {
        assert_eq!((status(&landlock(true)), status(&landlock(false))), ("ok", "warn"));
    }

    #[test]
    fn nx_huge_pages_values() {
        for (value, expected) in
            [("N\n", "ok"), ("never\n", "ok"), ("", "ok"), ("Y\n", "warn"), ("auto\n", "warn")]
        {
            assert_eq!(status(&nx_huge_pages(value)), expected, "{value:?}");
        }
    }
}
