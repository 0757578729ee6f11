//! Bounds: descriptors, inodes, handles and depth.

use rustix::io::Errno;

use super::client::Client;
use crate::virtio::fs::dirs::DIRS_MAX;
use crate::virtio::fs::opcode::Opcode;

/// Descriptors of this process that refer to something in the share.
fn descriptors(client: &Client) -> usize {
    let share = client.host("").canonicalize().unwrap();
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(&share)))
        .count()
}

#[test]
fn a_tree_of_20000_files_is_known_with_few_descriptors() {
    let mut client = Client::new();
    let (dirs, files) = (1000, 20);
    for dir in 0..dirs {
        std::fs::create_dir(client.host(&dir.to_string())).unwrap();
        for file in 0..files {
            std::fs::File::create(client.host(&format!("{dir}/{file}"))).unwrap();
        }
    }
    let mut nodes = Vec::new();
    for dir in 0..dirs {
        let node = client.lookup(client.root, &dir.to_string()).unwrap().node;
        nodes.push(node);
        for file in 0..files {
            nodes.push(client.lookup(node, &file.to_string()).unwrap().node);
        }
    }
    assert_eq!(client.server.known_inodes(), 1 + dirs * (1 + files));
    assert!(descriptors(&client) <= DIRS_MAX + 2, "{}", descriptors(&client));
    // All of them are still reached, in another order than they were found.
    for &node in nodes.iter().rev().step_by(7) {
        client.getattr(node).unwrap();
    }
    for node in nodes {
        client.forget(node, 1);
    }
    assert_eq!(client.server.known_inodes(), 1);
    assert!(descriptors(&client) <= 2, "what is forgotten is closed");
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
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&output.stderr));
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
