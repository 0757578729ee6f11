//! What is mounted where, as data.
//! It owns the layout of the guest's file systems. It is pure: nothing happens before `apply`.

use anyhow::{Result, ensure};
use protocol::{BootConfig, LAYERS_MAX, Mount};
use rustix::mount::MountFlags;

use crate::network;

/// The template's layers, bottom first: their devices, and where they are before the root is switched.
const LAYERS: [(&str, &str); LAYERS_MAX as usize] = [
    ("/dev/layer0", "/lower0"),
    ("/dev/layer1", "/lower1"),
    ("/dev/layer2", "/lower2"),
    ("/dev/layer3", "/lower3"),
    ("/dev/layer4", "/lower4"),
    ("/dev/layer5", "/lower5"),
    ("/dev/layer6", "/lower6"),
    ("/dev/layer7", "/lower7"),
    ("/dev/layer8", "/lower8"),
    ("/dev/layer9", "/lower9"),
    ("/dev/layer10", "/lower10"),
    ("/dev/layer11", "/lower11"),
    ("/dev/layer12", "/lower12"),
    ("/dev/layer13", "/lower13"),
    ("/dev/layer14", "/lower14"),
    ("/dev/layer15", "/lower15"),
];
/// Where the sandbox's disk is. Later it can only be reached by an open file descriptor.
pub const DISK: &str = "/disk";
/// Where the container's root is put together.
const ROOT: &str = "/root";
/// The sandbox's disk.
pub const DISK_DEVICE: &str = "/dev/vda";

/// Below these, everything is the kernel's or made at every start: a share there could not work, or would break what
/// the container needs.
const RESERVED_TREES: [&str; 4] = ["/proc", "/sys", "/dev/pts", "/dev/mqueue"];
/// Only these themselves are taken.
const RESERVED: [&str; 5] = ["/", "/dev", "/dev/shm", "/run", "/etc"];

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mounts a file system; the folder is made if it is missing.
    Mount {
        kind: &'static str,
        source: &'static str,
        target: &'static str,
        flags: MountFlags,
        options: String,
    },
    /// Writes a file, unless it is there: at a sandbox's first start only.
    Seed { path: &'static str, text: String },
    /// Has a file say this at every start.
    Keep { path: &'static str, text: String },
    /// Moves a mounted file system.
    Move { from: &'static str, to: &'static str },
    /// Makes a symbolic link.
    Link { path: &'static str, to: &'static str },
    /// Opens the sandbox's disk, for what needs it when it is out of sight.
    OpenDisk,
    /// Makes the container's root the root.
    SwitchRoot { path: &'static str },
    /// Mounts a share of the host's.
    Share(Mount),
}

/// All steps, in their order.
pub fn plan(config: &BootConfig) -> Result<Vec<Step>> {
    let mut steps = root(config);
    steps.extend(devices());
    steps.extend(kernel_file_systems());
    steps.push(Step::SwitchRoot { path: ROOT });
    for share in &config.mounts {
        check(&share.path)?;
        steps.push(Step::Share(share.clone()));
    }
    Ok(steps)
}

/// The template's layers, shared and read-only, under what this sandbox has changed.
fn root(config: &BootConfig) -> Vec<Step> {
    let hostname = &config.hostname;
    let layers = &LAYERS[..usize::from(config.layers)];
    let lower: Vec<_> = layers.iter().rev().map(|&(_, folder)| folder).collect();
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    // Without a uuid of its own, there is none to be written to the disk; nothing asks for it.
    let overlay = format!("lowerdir={},upperdir={DISK}/upper,workdir={DISK}/work,uuid=null", lower.join(":"));
    let mut steps: Vec<_> = layers
        .iter()
        .map(|&(device, folder)| mount("erofs", device, folder, MountFlags::RDONLY, "dax=always"))
        .collect();
    steps.extend([
        // What is deleted goes back to the host some seconds later, in the background.
        mount("ext4", DISK_DEVICE, DISK, MountFlags::NOATIME, "discard"),
        // Straight into the upper layer: through the overlay each would be a copy of the template's first.
        Step::Seed { path: "/disk/upper/etc/hostname", text: format!("{hostname}\n") },
        Step::Seed { path: "/disk/upper/etc/hosts", text: hosts },
    ]);
    if config.network {
        let text = format!("nameserver {}\n", network::ADDRESS);
        steps.push(Step::Keep { path: "/disk/upper/etc/resolv.conf", text });
    }
    steps.extend([mount("overlay", "overlay", ROOT, MountFlags::NOATIME, &overlay), Step::OpenDisk]);
    steps
}

/// The kernel's own devtmpfs, as it is: it costs no system call per device, shows what appears later (loop devices,
/// tun, fuse), and hides nothing that an agent, root by sudo, could not make itself.
fn devices() -> Vec<Step> {
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    vec![
        Step::Move { from: "/dev", to: "/root/dev" },
        mount("devpts", "devpts", "/root/dev/pts", no_exec, "gid=5,mode=620,ptmxmode=666"),
        mount("tmpfs", "shm", "/root/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777"),
        Step::Link { path: "/root/dev/fd", to: "/proc/self/fd" },
        Step::Link { path: "/root/dev/stdin", to: "/proc/self/fd/0" },
        Step::Link { path: "/root/dev/stdout", to: "/proc/self/fd/1" },
        Step::Link { path: "/root/dev/stderr", to: "/proc/self/fd/2" },
    ]
}

/// /run must not outlive the processes that it speaks of. /tmp stays on the disk, which has more space than memory.
/// /proc is missing: only a process in the container's PID namespace can mount it.
fn kernel_file_systems() -> Vec<Step> {
    let no_files = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    vec![
        mount("tmpfs", "run", "/root/run", MountFlags::NOSUID | MountFlags::NODEV, "mode=755"),
        mount("sysfs", "sysfs", "/root/sys", no_files, ""),
        mount("cgroup2", "cgroup2", "/root/sys/fs/cgroup", no_files, ""),
    ]
}

fn mount(
    kind: &'static str,
    source: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &str,
) -> Step {
    Step::Mount { kind, source, target, flags, options: options.to_owned() }
}

/// The CLI refuses such paths with a better message; this keeps the boot from going on half broken.
fn check(path: &[u8]) -> Result<()> {
    let shown = path.escape_ascii();
    let normal = path == b"/"
        || path.split(|&b| b == b'/').skip(1).all(|it| !it.is_empty() && it != b"." && it != b"..");
    ensure!(normal, "share at \"{shown}\": not a normalised path");
    let below =
        |tree: &str| path.strip_prefix(tree.as_bytes()).is_some_and(|it| it.is_empty() || it[0] == b'/');
    let reserved = RESERVED.iter().any(|it| path == it.as_bytes()) || RESERVED_TREES.into_iter().any(below);
    ensure!(!reserved, "share at \"{shown}\": the sandbox needs this path itself");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(path: &str) -> BootConfig {
        let mount = Mount { tag: "ws0".into(), path: path.into(), read_only: false, file: None };
        BootConfig { hostname: "shell-p".into(), layers: 2, mounts: vec![mount], ..BootConfig::default() }
    }

    #[test]
    fn shares_come_last_and_in_their_order() {
        let mut config = share("/home/me/p");
        config.mounts.push(Mount { path: b"/home/me/p/docs".to_vec(), ..config.mounts[0].clone() });
        let steps = plan(&config).unwrap();
        let first = steps.iter().position(|it| matches!(it, Step::SwitchRoot { .. })).unwrap();
        assert_eq!(
            steps[first + 1..],
            config.mounts.clone().into_iter().map(Step::Share).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_root_is_an_overlay_of_layers_and_disk() {
        let steps = plan(&share("/p")).unwrap();
        let targets: Vec<_> = steps
            .iter()
            .filter_map(|it| match it {
                Step::Mount { kind, target, .. } => Some((*kind, *target)),
                _ => None,
            })
            .collect();
        let (layers, others) = targets.split_at(2);
        assert_eq!(layers, [("erofs", "/lower0"), ("erofs", "/lower1")]);
        assert_eq!(others[..2], [("ext4", "/disk"), ("overlay", "/root")]);
        let top_first = |it: &Step| matches!(it, Step::Mount { options, .. } if options.starts_with("lowerdir=/lower1:/lower0,"));
        assert!(steps.iter().any(top_first));
    }

    #[test]
    fn a_share_that_would_break_the_container_is_refused() {
        for path in
            ["/", "/proc", "/proc/self", "/sys", "/dev", "/dev/pts/0", "/run", "/a//b", "/a/", "/a/../b"]
        {
            plan(&share(path)).unwrap_err();
        }
        for path in ["/p", "/home/agent", "/processes", "/run/user/1000/p", "/dev/shm/p", "/a/..b"] {
            plan(&share(path)).unwrap();
        }
    }
}
