//! Suites of others on a share that is served without privileges: pjdfstest, for what POSIX says of names and attributes,
//! and fsx, for every byte of a file that is written, mapped, cut and copied.
//! A script beside them goes through what programs do with files that neither of them tries.
//! It owns how they are run and judged. tests/suites/build.sh makes the programs, `CORACLE_SUITES` says where they are,
//! and what they may fail is in tests/suites/pjdfstest.expected.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::kernel::Mount;
use crate::virtio::fs::ids::AGENT_ID;

const EXPECTED: &str = include_str!("../../../../../tests/suites/pjdfstest.expected");
/// The host's user: neither the agent's id, nor one that pjdfstest uses.
pub(super) const HOST_ID: u32 = 1234;
const ROOT_ID: u32 = 0;
const FSX_SEEDS: u32 = 4;

/// `short` in a run of all tests, `long` when there is time: `make test-share` says so.
pub(super) fn rounds(short: u32, long: u32) -> u32 {
    if std::env::var_os("CORACLE_SHARE_LONG").is_some() { long } else { short }
}

/// The folder of the programs.
fn suites() -> Option<PathBuf> {
    let folder = std::env::var_os("CORACLE_SUITES").map(PathBuf::from);
    assert!(folder.is_some() || std::env::var_os("CI").is_none(), "CORACLE_SUITES is not set");
    if folder.is_none() {
        eprintln!("skipped: CORACLE_SUITES is not set; tests/suites/build.sh prints what to set it to");
    }
    folder
}

fn settings(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/suites").join(name)
}

/// What pjdfstest fails as this user of the guest.
fn failures(id: u32) -> Option<BTreeSet<String>> {
    let (mount, suites) = (Mount::of_user(HOST_ID)?, suites()?);
    // On another file system than the share, for renames that must fail, and with all that the user has to reach.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o777)).unwrap();
    for file in [suites.join("pjdfstest"), settings("pjdfstest.toml")] {
        fs::copy(&file, elsewhere.path().join(file.file_name().unwrap())).unwrap();
    }
    let mut suite = Command::new("./pjdfstest");
    suite.args(["-c", "pjdfstest.toml", "-s", ".", "-p"]).arg(mount.guest(""));
    let output = suite.current_dir(elsewhere.path()).env("NO_COLOR", "1").uid(id).gid(id).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("\nSummary: "), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let failed = text.lines().filter_map(|line| line.strip_suffix("FAILED"));
    Some(failed.map(|name| name.trim().to_owned()).collect())
}

#[test]
fn pjdfstest_fails_nothing_as_the_agent() {
    let Some(failed) = failures(AGENT_ID) else { return };
    assert_eq!(failed, BTreeSet::new());
}

#[test]
fn pjdfstest_fails_as_root_what_no_user_of_the_host_may_do() {
    let Some(failed) = failures(ROOT_ID) else { return };
    let reasons = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let expected =
        reasons.map(|line| line.split_once('\t').expect("name, tab, reason").0.to_owned()).collect();
    let (new, gone) = (failed.difference(&expected), expected.difference(&failed));
    let (new, gone): (Vec<_>, Vec<_>) = (new.collect(), gone.collect());
    assert!(new.is_empty() && gone.is_empty(), "not expected: {new:#?}\nexpected, but passed: {gone:#?}");
}

#[test]
fn fsx_finds_no_wrong_byte() {
    let (Some(mount), Some(suites)) = (Mount::of_user(HOST_ID), suites()) else { return };
    let operations = rounds(4_000, 1_000_000).to_string();
    for seed in (1..=FSX_SEEDS).map(|seed| seed.to_string()) {
        let file = mount.guest(&format!("seed-{seed}"));
        let mut suite = Command::new(suites.join("fsx"));
        suite.args(["-S", &seed, "-N", &operations, "-f"]).arg(settings("fsx.toml"));
        let output = suite.arg("-P").arg(mount.guest("")).arg(&file).output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(file).unwrap();
    }
}
/// Runs tests/suites/posix.py in a folder, as a user.
fn posix(what: &str, folder: &Path, id: u32) -> String {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", include_str!("../../../../../tests/suites/posix.py"), what]);
    let output = python.current_dir(folder).uid(id).gid(id).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
}

#[test]
fn programs_find_on_a_share_what_a_disk_has() {
    let Some(mount) = Mount::of_user(HOST_ID) else { return };
    posix("check", &mount.guest(""), AGENT_ID);
    assert_eq!(posix("look", &mount.guest(""), AGENT_ID), posix("look", &mount.host(""), HOST_ID));
}
