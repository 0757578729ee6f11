//! Bounds: descriptors, inodes, handles and depth.

use rustix::io::Errno;

use super::client::Client;
use crate::virtio::fs::dirs::DIRS_MAX;
use crate::virtio::fs::opcode::Opcode;

/// How many files the large tree has, if not the few that are made in a second.
const TREE_FILES: &str = "CORACLE_TREE_FILES";
const TREE_FILES_LEAST: usize = 20_000;
const TREE_DIRS: usize = 1000;
/// What a million files may take: memory of the whole process beyond what it had, and descriptors.
const MEMORY_MAX: usize = 256 << 20;
const DESCRIPTORS_MAX: usize = 1000;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of this process that are in memory: Linux Documentation/filesystems/proc.rst, "VmRSS".
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// Empty files, evenly in `TREE_DIRS` directories, with names as long as those of sources are.
fn make_tree(client: &Client, files: usize) {
    for dir in 0..TREE_DIRS {
        std::fs::create_dir(client.host(&dir.to_string())).unwrap();
        for file in 0..files / TREE_DIRS {
            std::fs::File::create(client.host(&format!("{dir}/file-{file:08}.rs"))).unwrap();
        }
    }
}

#[test]
fn a_large_tree_is_known_with_little_memory_and_few_descriptors() {
    if !alone("a_large_tree_is_known_with_little_memory_and_few_descriptors") {
        return;
    }
    let files = std::env::var(TREE_FILES).map_or(TREE_FILES_LEAST, |files| files.parse().unwrap());
    let mut client = Client::new();
    make_tree(&client, files);
    let mut nodes = Vec::with_capacity(TREE_DIRS + files);
    let (resident_before, descriptors_before) = (resident(), descriptors());
    for dir in 0..TREE_DIRS {
        let node = client.lookup(client.root, &dir.to_string()).unwrap().node;
        nodes.push(node);
        for file in 0..files / TREE_DIRS {
            nodes.push(client.lookup(node, &format!("file-{file:08}.rs")).unwrap().node);
        }
    }
    assert_eq!(client.server.known_inodes(), 1 + nodes.len());
    let grown = resident() - resident_before;
    eprintln!("{files} files: {} MiB, {} descriptors", grown >> 20, descriptors());
    assert!(grown <= MEMORY_MAX, "{grown}");
    assert!(descriptors() <= DESCRIPTORS_MAX && descriptors() <= descriptors_before + DIRS_MAX);
    // All of them are still reached, in another order than they were found.
    for &node in nodes.iter().rev().step_by(7) {
        client.getattr(node).unwrap();
    }
    for node in nodes {
        client.forget(node, 1);
    }
    assert_eq!(client.server.known_inodes(), 1);
    assert!(descriptors() <= descriptors_before, "what is forgotten is closed");
}

#[test]
fn a_tree_deeper_than_a_path_can_say_is_walked_and_given_up() {
    let mut client = Client::new();
    let mut nodes = vec![client.root];
    for _ in 0..2500 {
        nodes.push(client.mkdir(*nodes.last().unwrap(), "d").unwrap().node);
    }
    client.server.forget_descriptors();
    assert_eq!(client.lookup(nodes[2500], "x"), Err(Errno::STALE));
    assert_eq!(client.lookup(nodes[2000], "x"), Err(Errno::NOENT));
    for node in nodes.into_iter().rev().skip(1) {
        client.call(Opcode::Rmdir, node, &super::client::Bytes::default().name("d")).unwrap();
    }
}

/// Runs the calling test again in a process of its own, and whether this is that process: descriptors are counted per process,
/// and other tests open and close theirs at the same time.
fn alone(test: &str) -> bool {
    const ALONE: &str = "CORACLE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let itself = std::env::current_exe().unwrap();
    let output = std::process::Command::new(itself)
        .args(["--exact", &name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let [told, besides] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(told.contains("1 passed"), "{told}{besides}");
    eprint!("{besides}");
    false
}

#[test]
fn running_out_of_handles_is_an_error_and_no_more() {
    if !alone("running_out_of_handles_is_an_error_and_no_more") {
        return;
    }
    let mut client = Client::new();
    std::fs::write(client.host("f"), "text").unwrap();
    let node = client.walk("f").unwrap();
    client.server.limit_descriptors(200);
    let mut handles = Vec::new();
    let error = loop {
        match client.open(node, libc::O_RDONLY) {
            Ok(fh) => handles.push(fh),
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::NFILE);
    assert!(client.getattr(node).is_ok());
    assert!(std::fs::File::open(client.host("f")).is_ok(), "the rest of the process has some left");
    for fh in handles {
        client.release(node, fh).unwrap();
    }
    assert!(client.open(node, libc::O_RDONLY).is_ok());
}
