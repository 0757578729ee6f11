//! Everything that reads bytes of a guest, fed with any bytes at all. A target returns when it is content and panics
//! when it is not; `cargo test` runs each on a fixed number of inputs, and tests/fuzz/ by coverage for as long as wanted.
//! This file owns the list of targets and how bytes become choices.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are choices here, and what is cut off is no loss"
)]

use crate::random::Random;

mod devices;
mod driver;
mod gateway;
mod messages;
mod policy;
mod share;

/// Something to feed.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that get far, to be varied.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    Target { name: "protocol", run: messages::protocol, seeds: messages::seeds },
    Target { name: "boot_config", run: messages::boot_config, seeds: messages::boot_config_seeds },
    Target { name: "stream", run: messages::stream, seeds: messages::stream_seeds },
    Target { name: "publish", run: messages::publish, seeds: none },
    Target { name: "share", run: share::share, seeds: none },
    Target { name: "blk", run: devices::blk, seeds: none },
    Target { name: "rng", run: devices::rng, seeds: none },
    Target { name: "balloon", run: devices::balloon, seeds: none },
    Target { name: "fs", run: devices::fs, seeds: none },
    Target { name: "vsock", run: devices::vsock, seeds: none },
    Target { name: "client_greeting", run: gateway::client_greeting, seeds: gateway::client_greeting_seeds },
    Target { name: "request_head", run: gateway::request_head, seeds: gateway::request_head_seeds },
    Target { name: "dns", run: gateway::dns, seeds: gateway::dns_seeds },
    Target { name: "agent", run: gateway::agent, seeds: gateway::agent_seeds },
    Target { name: "policy_name", run: policy::policy_name, seeds: policy::policy_name_seeds },
    Target { name: "policy_rule", run: policy::policy_rule, seeds: policy::policy_rule_seeds },
    Target { name: "policy_file", run: policy::policy_file, seeds: policy::policy_file_seeds },
];

/// Runs the target of that name.
///
/// # Panics
/// When there is none, or it has found something.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("one of TARGETS");
    (target.run)(input);
}

fn none() -> Vec<Vec<u8>> {
    Vec::new()
}

/// An input for a target: one of `corpus` with some bytes changed, or new ones.
pub fn vary(corpus: &[Vec<u8>], random: &mut Random, length_max: usize) -> Vec<u8> {
    let length = random.below(length_max as u64) as usize;
    if corpus.is_empty() || random.below(4) == 0 {
        return random.bytes(length);
    }
    let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
    for _ in 0..random.below(4) {
        let at = random.below(input.len() as u64 + 1) as usize;
        match random.below(4) {
            0 => input.truncate(at),
            1 => input.insert(at, random.word() as u8),
            2 => input.splice(at.., random.bytes(length / 4)).for_each(drop),
            _ => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.word() as u8),
        }
    }
    input
}

/// The input as a source of choices; at its end all of them are zero.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn word16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn word32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn word64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of these.
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// Zero or a small number for the most part, and now and then one that is an edge of something.
    fn number(&mut self) -> u64 {
        match self.byte() {
            0..0x60 => 0,
            small @ 0x60..0xc0 => u64::from(small - 0x60),
            0xc0..0xd0 => 1 << (self.byte() % 64),
            0xd0..0xe0 => (1_u64 << (self.byte() % 64)).wrapping_sub(1),
            0xe0..0xf0 => u64::MAX - u64::from(self.byte()),
            _ => self.word64(),
        }
    }
}
