//! `stats` and `resize` on sandboxes that are stopped, or whose VMM is a process that only holds the lock.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use support::{Home, share};

const GIB: u64 = 1 << 30;

/// The home has a sandbox named box, with a disk of 20 GiB.
fn home() -> Home {
    let home = Home::new();
    let folder = home.sandbox("box", "0123456789ab");
    let disk = File::create(folder.join("disk.img")).unwrap();
    disk.set_len(20 * GIB).unwrap();
    disk.write_all_at(&[7; 1 << 20], 0).unwrap();
    home
}

fn config(home: &Home) -> Value {
    serde_json::from_slice(&fs::read(home.sandboxes().join("box/config.json")).unwrap()).unwrap()
}

fn disk_length(home: &Home) -> u64 {
    fs::metadata(home.sandboxes().join("box/disk.img")).unwrap().len()
}

/// A process with the lock as its input that dies of SIGHUP, as nothing of Coracle does: it is told apart by that.
struct Busy(Child);

impl Busy {
    fn new(home: &Home) -> Self {
        let lock = File::create(home.sandboxes().join("box/lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let child =
            Command::new("sh").args(["-c", "while :; do :; done"]).stdin(share(&lock)).spawn().unwrap();
        lock.write_all_at(child.id().to_string().as_bytes(), 0).unwrap();
        Self(child)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn stats_of_what_runs_and_of_what_does_not() {
    let home = home();
    let head = "SANDBOX   CPU %   MEM USED / GIVEN   DISK REAL / APPARENT\n";
    assert_eq!(home.run(["stats"]).stdout(), head, "nothing runs");
    assert_eq!(
        home.run(["stats", "-a"]).stdout(),
        format!("{head}box       -       - / 512.0 MiB      1.0 MiB / 20.0 GiB\n")
    );
    let busy = Busy::new(&home);
    let ran = home.run(["stats", "--json"]);
    let all: Value = serde_json::from_str(ran.stdout()).unwrap();
    let [one] = all.as_array().unwrap().as_slice() else { panic!("{all}") };
    assert_eq!((&one["name"], &one["running"]), (&Value::from("box"), &Value::from(true)));
    assert!(one["cpu_percent"].as_f64().unwrap() > 20.0, "{one}");
    let used = one["memory_used"].as_u64().unwrap();
    assert!((4096..32 << 20).contains(&used), "{one}");
    assert_eq!(
        (&one["memory_given"], &one["disk_apparent"]),
        (&Value::from(GIB / 2), &Value::from(20 * GIB))
    );
    drop(busy);
    assert!(home.run(["stats", "0123"]).stdout().contains("box       -       - / 512.0 MiB"));
}

#[test]
fn a_broken_sandbox_is_no_reason_to_show_nothing() {
    let home = home();
    fs::write(home.sandbox("odd", "ba9876543210").join("config.json"), "{").unwrap();
    let ran = home.run(["stats", "--no-stream", "-a"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout().contains("\nodd       -       - / -"), "{}", ran.stdout());
}

#[test]
fn a_stopped_sandbox_gets_other_sizes() {
    let home = home();
    let ran = home.run(["resize", "--disk", "50g", "--cpus", "3", "-m", "600m", "box"]);
    assert_eq!((ran.code, ran.stdout(), &*ran.stderr), (Some(0), "box\n", ""));
    let now = config(&home);
    assert_eq!((&now["disk_mib"], &now["cpus"], &now["memory_mib"]), (&51200.into(), &3.into(), &640.into()));
    assert_eq!((&now["id"], &now["env"][0]), (&"0123456789ab".into(), &"STORED=1".into()), "the rest stays");
    assert_eq!(disk_length(&home), 50 * GIB);
    assert!(!home.sandboxes().join("box/config.json.new").exists());
    let again = home.run(["resize", "--disk", "50g", "0123"]);
    assert_eq!((again.code, again.stdout()), (Some(0), "box\n"), "by id, and nothing left to do");
}

/// A command that was killed between its steps is repeated, and an older disk that is longer is not cut.
#[test]
fn a_disk_is_never_cut() {
    let home = home();
    File::options()
        .write(true)
        .open(home.sandboxes().join("box/disk.img"))
        .unwrap()
        .set_len(60 * GIB)
        .unwrap();
    assert_eq!(home.run(["resize", "--disk", "50g", "box"]).code, Some(0));
    assert_eq!((disk_length(&home), &config(&home)["disk_mib"]), (60 * GIB, &51200.into()));
}

#[test]
fn a_running_sandbox_that_cannot_be_told_has_its_sizes_at_the_next_start() {
    let home = home();
    let _busy = Busy::new(&home);
    let ran = home.run(["resize", "--disk", "50g", "-m", "1g", "box"]);
    assert_eq!((ran.code, ran.stdout()), (Some(0), "box\n"));
    assert!(ran.stderr.contains("box sees its larger disk from its next start on"), "{}", ran.stderr);
    assert!(ran.stderr.contains("has other CPUs and memory from its next start on"), "{}", ran.stderr);
    assert_eq!((disk_length(&home), &config(&home)["memory_mib"]), (50 * GIB, &1024.into()));
}

#[test]
fn bad_sizes_are_refused_and_change_nothing() {
    let home = home();
    let before = home.snapshot();
    let cases: [(&[&str], &str); 15] = [
        (&["resize"], "resize needs NAME"),
        (&["resize", "box"], "resize needs a new size: --disk, --cpus or --memory"),
        (&["resize", "--disk", "10g", "box"], "the disk of box has 20g and cannot become 10g: it only grows"),
        (&["resize", "--disk", "1", "box"], "--disk: \"1\" is not from 1g to 1t"),
        (&["resize", "--disk", "2t", "box"], "is not from 1g to 1t"),
        (&["resize", "--disk", "-5g", "box"], "is not a size"),
        (&["resize", "--disk", "", "box"], "is not a size"),
        (&["resize", "--cpus", "0", "box"], "--cpus: \"0\" is not a number of CPUs from 1 to 64"),
        (&["resize", "-m", "1", "box"], "--memory: \"1\" is not from 128m"),
        (&["resize", "--disk", "30g", "bo"], "no sandbox \"bo\"; did you mean box?"),
        (&["resize", "--disk", "30g", "../box"], "no sandbox \"../box\""),
        (&["resize", "--disk", "30g", "box", "more"], "resize does not take \"more\""),
        (&["stats", "bo"], "no sandbox \"bo\"; did you mean box?"),
        (&["stats", "-a", "box"], "-a is for all sandboxes"),
        (&["stats", "--frob"], "unknown flag \"--frob\""),
    ];
    for (args, part) in cases {
        let ran = home.run(args);
        assert_eq!((ran.code, ran.stdout()), (Some(125), ""), "{args:?}");
        assert!(ran.stderr.contains(part) && ran.stderr.lines().count() == 1, "{args:?}: {}", ran.stderr);
    }
    assert_eq!(home.snapshot(), before);
}
