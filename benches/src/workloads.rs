//! What the share is measured with: shell scripts, as data. Each is run on the share and on the guest's own disk.
//! It owns the list and what is promised for each kind. `sides` runs them.
//!
//! A script runs in a folder with `tree`, a git repository, and `large`, a file; and leaves both as they were.
//! `cargo build` would need a template that has cargo. `unpack packages` does to a file system what `npm ci` does after its
//! downloads, without node.

/// What a workload is bound by, and so what is promised for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Many small files.
    Metadata,
    /// The bytes of one large file.
    Streaming,
    /// Bytes that the guest has read before.
    Reread,
}

impl Kind {
    /// How many times as long as on the guest's own disk it may take on the share.
    #[must_use]
    pub const fn target(self) -> f64 {
        match self {
            Self::Metadata => 2.0,
            Self::Streaming => 1.25,
            Self::Reread => 1.1,
        }
    }
}

/// What the guest has in its caches when a workload begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Caches {
    /// Nothing. The host's caches are warm on both sides, as its memory holds both.
    Cold,
    /// What one run of the workload before left there.
    Warm,
}

#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub kind: Kind,
    pub caches: Caches,
    /// Before each run, and not timed.
    pub prepare: &'static str,
    pub script: &'static str,
}

/// Bytes of `large`.
pub const LARGE_LEN: usize = 32 << 20;

/// Makes what the scripts find; once on each side, where `tree` is a plain folder yet.
pub const FIXTURE: &str = "cd tree
    git init -q .
    git -c core.autocrlf=false add .
    git -c user.name=bench -c user.email=bench@localhost commit -qm tree
    git status --porcelain
    cd ..
    tar -cf tree.tar tree/node_modules
    mkdir -p npm \"/var/tmp$PWD\"
    python3 - <<'END'
import base64, hashlib, json, os, tarfile
registry, at = '/var/tmp' + os.getcwd() + '/', 'http://127.0.0.1:4873/'
names = sorted(os.listdir('tree/node_modules'))
top = {'name': 'bench', 'version': '1.0.0', 'dependencies': {name: '1.0.0' for name in names}}
lock = {'': top}
for name in names:
    folder = 'tree/node_modules/' + name
    with open(folder + '.json', 'w') as file: json.dump({'name': name, 'version': '1.0.0'}, file)
    with tarfile.open(registry + name, 'w:gz') as tar:
        tar.add(folder, 'package', filter=lambda it: None if it.name.endswith('package.json') else it)
        tar.add(folder + '.json', 'package/package.json')
    os.unlink(folder + '.json')
    digest = hashlib.sha512(open(registry + name, 'rb').read()).digest()
    integrity = 'sha512-' + base64.b64encode(digest).decode()
    lock['node_modules/' + name] = {'version': '1.0.0', 'resolved': at + name, 'integrity': integrity}
with open('npm/package.json', 'w') as file: json.dump(top, file)
with open('npm/package-lock.json', 'w') as file:
    json.dump({**top, 'lockfileVersion': 3, 'requires': True, 'packages': lock}, file)
END";

const STAT: &str = "python3 -c 'import os
for _ in range(500): os.stat(\"large\")'";
const RANDOM: &str = "python3 -c 'import os
fd = os.open(\"large\", os.O_RDWR)
for i in range(500): os.pread(fd, 4096, i * 7919 % 8192 * 4096)
for i in range(500): os.pwrite(fd, b\"x\" * 4096, i * 7919 % 8192 * 4096)
os.fsync(fd)'";
const MMAP: &str = "python3 -c 'import mmap
with open(\"large\", \"rb\") as file:
    map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(map[at] for at in range(0, len(map), 4096))'";
const UNPACK: &str = "mkdir -p new/.bin && tar -xf tree.tar -C new
    cd new/tree/node_modules
    for package in *; do mv $package .$package && mv .$package $package; ln -s ../$package/package.json ../../.bin/$package; done
    cd ../../.. && rm -f new/.bin/*";
const FORGET_NEW: &str = "rm -rf new";
/// From a registry on the guest's loopback, with an empty cache of npm's own on the disk.
const NPM_CI: &str = "python3 -m http.server -b 127.0.0.1 -d \"/var/tmp$PWD\" 4873 2>/dev/null &
    until (: </dev/tcp/127.0.0.1/4873) 2>/dev/null; do sleep 0.1; done
    cd npm && npm ci --cache /var/tmp/npm --no-audit --no-fund --no-update-notifier --ignore-scripts
    kill %1";
const FORGET_NPM: &str = "rm -rf npm/node_modules /var/tmp/npm";

const fn metadata(
    name: &'static str,
    caches: Caches,
    prepare: &'static str,
    script: &'static str,
) -> Workload {
    Workload { name, kind: Kind::Metadata, caches, prepare, script }
}

const fn bytes(name: &'static str, kind: Kind, caches: Caches, script: &'static str) -> Workload {
    Workload { name, kind, caches, prepare: "", script }
}

pub const WORKLOADS: &[Workload] = &[
    metadata("stat one file 500 times", Caches::Warm, "", STAT),
    metadata("git status", Caches::Cold, "", "git -C tree status --porcelain"),
    metadata("git status again", Caches::Warm, "", "git -C tree status --porcelain"),
    metadata("find", Caches::Cold, "", "find tree -type f"),
    metadata("find again", Caches::Warm, "", "find tree -type f"),
    metadata("grep", Caches::Cold, "", "grep -r absent tree/node_modules || [[ $? == 1 ]]"),
    metadata("grep again", Caches::Warm, "", "grep -r absent tree/node_modules || [[ $? == 1 ]]"),
    metadata("git clone", Caches::Cold, FORGET_NEW, "git clone -q tree new"),
    metadata("tar out", Caches::Cold, "", "tar -cf - tree/node_modules | cat"),
    metadata("tar in", Caches::Cold, "rm -rf new && mkdir new", "tar -xf tree.tar -C new"),
    metadata("unpack packages", Caches::Cold, FORGET_NEW, UNPACK),
    metadata("npm ci", Caches::Cold, FORGET_NPM, NPM_CI),
    metadata("rm", Caches::Cold, "rm -rf new && mkdir new && tar -xf tree.tar -C new", "rm -rf new"),
    bytes("sequential read", Kind::Streaming, Caches::Cold, "dd if=large bs=1M of=/dev/null"),
    bytes(
        "sequential write",
        Kind::Streaming,
        Caches::Cold,
        "dd if=/dev/zero of=large bs=1M count=32 conv=notrunc,fsync",
    ),
    bytes("random 4 KiB", Kind::Streaming, Caches::Cold, RANDOM),
    bytes("mmap read", Kind::Streaming, Caches::Cold, MMAP),
    bytes("sequential read again", Kind::Reread, Caches::Warm, "dd if=large bs=1M of=/dev/null"),
    bytes("mmap read again", Kind::Reread, Caches::Warm, MMAP),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_workload_has_a_name_of_its_own() {
        let names: HashSet<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), WORKLOADS.len());
    }

    #[test]
    fn only_what_was_read_before_is_a_reread() {
        let rereads = WORKLOADS.iter().filter(|workload| workload.kind == Kind::Reread);
        assert!(rereads.clone().all(|workload| workload.caches == Caches::Warm));
        assert!(rereads.count() > 0);
    }
}
