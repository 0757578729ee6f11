//! Tokens: by them the guest knows, without asking, whether what it was told about a file still holds.
//! It owns their table. It does not know what a token was given for: each stands for a slot, and when a slot is renewed
//! all that was said with its old token is void at once, since the guest's kernel compares the two at each use (see
//! `kernel-config/patches`). Two things that share a slot are void together, which costs a question and no truth.

use std::sync::atomic::Ordering;

use vm_memory::{Address, Bytes, GuestAddress};

use super::inode::Node;
use super::wire::Name;
use crate::virtio::Memory;

/// Slots in the table; a token's slot is its remainder.
const COUNT: usize = 4096;
/// What the table takes in guest memory.
pub const TABLE_BYTES: u32 = 32 << 10;

const _: () = assert!(TABLE_BYTES as usize == COUNT * size_of::<u64>());

/// The slot of an entry of a directory, and of the attributes of the file that is there.
pub fn entry_slot(dir: Node, name: Name<'_>) -> usize {
    slot(name.to_bytes().iter().fold(mix(dir.0), |hash, &byte| mix(hash ^ u64::from(byte))))
}

/// The slot of a directory's own attributes and of the list of its entries.
pub fn dir_slot(dir: Node) -> usize {
    slot(mix(!dir.0))
}

/// A step of FNV-1a with its high half folded in.
fn mix(hash: u64) -> u64 {
    let hash = hash.wrapping_mul(0x0000_0100_0000_01b3) ^ 0xcbf2_9ce4_8422_2325;
    hash ^ hash >> 32
}

fn slot(hash: u64) -> usize {
    usize::try_from(hash % COUNT as u64).expect("less than COUNT")
}

/// The tokens of one mount. The ones that count are here; the guest has a copy, and what it makes of that is its own loss.
#[derive(Debug)]
pub struct Tokens {
    values: Vec<u64>,
    memory: Memory,
    table: GuestAddress,
}

impl Tokens {
    /// `table` is a place of `TABLE_BYTES` in `memory`, aligned for what it holds.
    pub fn new(memory: Memory, table: GuestAddress) -> Self {
        Self { values: vec![0; COUNT], memory, table }
    }

    /// The token of a slot; never 0, which is no token.
    pub fn get(&mut self, slot: usize) -> u64 {
        if self.values[slot] == 0 {
            self.renew(slot);
        }
        self.values[slot]
    }

    /// Voids what was said with the slot's token.
    pub fn renew(&mut self, slot: usize) {
        let next = (self.values[slot] / COUNT as u64 + 1) * COUNT as u64 + slot as u64;
        self.values[slot] = next;
        // The table was in memory when the driver gave it, and guest memory stays.
        let _ = self.memory.store(
            next,
            self.table.unchecked_add((slot * size_of::<u64>()) as u64),
            Ordering::Release,
        );
    }

    /// Voids everything.
    pub fn renew_all(&mut self) {
        for slot in 0..COUNT {
            if self.values[slot] != 0 {
                self.renew(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::driver;

    fn tokens() -> (Tokens, Memory) {
        let memory = driver::memory(1, 1);
        (Tokens::new(memory.clone(), GuestAddress(0)), memory)
    }

    #[test]
    fn a_token_is_in_the_table_until_it_is_renewed() {
        let (mut tokens, memory) = tokens();
        for slot in [0, 1, COUNT - 1] {
            let given = tokens.get(slot);
            let entry = || memory.read_obj::<u64>(GuestAddress(slot as u64 * 8)).unwrap();
            assert!(given != 0 && given % COUNT as u64 == slot as u64 && entry() == given);
            tokens.renew(slot);
            assert!(entry() != given && entry() == tokens.get(slot));
        }
    }

    #[test]
    fn renewing_all_leaves_none() {
        let (mut tokens, _) = tokens();
        let given: Vec<_> = (0..COUNT).step_by(7).map(|slot| (slot, tokens.get(slot))).collect();
        tokens.renew_all();
        assert!(given.into_iter().all(|(slot, old)| tokens.get(slot) != old));
    }

    #[test]
    fn slots_are_spread() {
        let names: Vec<_> =
            (0..1000).map(|n| std::ffi::CString::new(format!("file{n}.js")).unwrap()).collect();
        let used: std::collections::HashSet<_> =
            names.iter().map(|name| entry_slot(Node::ROOT, Name::new(name).unwrap())).collect();
        assert!(used.len() > 800, "{} of 1000", used.len());
    }
}
