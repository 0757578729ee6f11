//! Every fuzz target on its seeds, what was found before and a fixed number of varied inputs, so that each run of the tests
//! exercises them for some seconds. A crash that was found once goes into tests/fuzz/regressions/NAME and stays here.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::fuzz::{TARGETS, vary};
use tests::random::Random;

/// No input may take longer, on a busy machine and without optimization.
const INPUT_MAX: Duration = Duration::from_secs(5);
const LENGTH_MAX: usize = 2048;

fn found_before(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(name);
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("it can be read")).collect()
}

fn survives(name: &'static str, inputs: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let mut known = found_before(name);
    known.extend((target.seeds)());
    for input in &known {
        (target.run)(input);
    }
    for seed in 0..inputs {
        let input = vary(&known, &mut Random::new(seed), LENGTH_MAX);
        let (start, shown) = (Instant::now(), Shown(name, seed));
        (target.run)(&input);
        assert!(start.elapsed() < INPUT_MAX, "{:?}", start.elapsed());
        drop(shown);
    }
}

/// Tells which input it was when a target panics.
struct Shown(&'static str, u64);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, seed {}", self.0, self.1);
        }
    }
}

macro_rules! targets {
    ($($name:ident $inputs:literal,)*) => {
        $(#[test]
        fn $name() {
            survives(stringify!($name), $inputs);
        })*

        #[test]
        fn no_target_is_forgotten() {
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    protocol 200_000,
    boot_config 200_000,
    stream 200_000,
    publish 1_000,
    share 3_000,
    blk 3_000,
    rng 3_000,
    balloon 3_000,
    fs 3_000,
    vsock 3_000,
    client_greeting 50_000,
    request_head 50_000,
    dns 100_000,
    agent 100_000,
    policy_name 20_000,
    policy_rule 100_000,
    policy_file 20_000,
}
