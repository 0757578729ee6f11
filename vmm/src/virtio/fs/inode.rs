//! The inodes the guest knows: which file of the host each node id stands for, and where it was last seen.
//! It owns node ids, the guest's lookup counts and the bound on what all of that takes. It holds no descriptor and
//! makes no system call: a location is a hint, and whoever opens by it must compare the `Identity` of what it finds.

use std::collections::HashMap;
use std::ffi::CStr;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::wire::{Name, ROOT_ID};

/// What the table may take. A guest that knows more files than fit (about 1.3 million) gets ENFILE.
const BYTES_MAX: usize = 256 << 20;
/// What an inode takes without its name: the entries in both tables, which double when they grow, and the
/// allocator's share.
const INODE_BYTES: usize = 192;

/// What makes a file of the host the same file: its number alone is given to the next file after a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// Time of birth, in nanoseconds; 0 on file systems that do not keep it.
    born: i64,
    /// The type's bits of the mode, which never change.
    format: u32,
}

impl Identity {
    pub fn of(stat: &Statx) -> Self {
        let born = stat.stx_btime;
        Self {
            dev: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: born.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(born.tv_nsec)),
            format: FileType::from_raw_mode(u32::from(stat.stx_mode)).as_raw_mode(),
        }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.format)
    }
}

/// A node id: the index in the table plus `ROOT_ID`, and the generation of that place in the upper half, so that an
/// id which was given back does not name the next inode. It may name nothing: what the guest sends is one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u64);

impl Node {
    pub const ROOT: Self = Self(ROOT_ID);

    fn new(index: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | (index as u64 + ROOT_ID))
    }

    /// The index, or one that is beyond any table.
    fn index(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).expect("32 bits").wrapping_sub(1)
    }

    fn generation(self) -> u64 {
        self.0 >> 32
    }
}

/// A file the guest knows.
#[derive(Debug)]
pub struct Inode {
    pub identity: Identity,
    /// How often the guest was given the node id and has not given it back.
    lookups: u64,
    /// Handles that are open, and inodes whose location is in this one: they keep it in the table.
    uses: u32,
    location: Option<Location>,
    /// Stands for the attributes that the guest was told with a token.
    pub told: u64,
}

/// The directory a file was last seen in, and its name there.
#[derive(Debug)]
struct Location {
    parent: Node,
    name: Box<CStr>,
}

impl Inode {
    pub fn kind(&self) -> FileType {
        self.identity.kind()
    }

    pub fn location(&self) -> Option<(Node, Name<'_>)> {
        let Location { parent, name } = self.location.as_ref()?;
        Name::new(name).ok().map(|name| (*parent, name))
    }

    /// What was found where this inode was last seen is this inode, and not something put in its place.
    pub fn check(&self, found: &Statx) -> Result<(), Errno> {
        if Identity::of(found) == self.identity { Ok(()) } else { Err(Errno::STALE) }
    }
}

/// One place in the table.
#[derive(Debug)]
struct Place {
    generation: u32,
    inode: Option<Inode>,
}

#[derive(Debug)]
pub struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
    nodes: HashMap<Identity, Node>,
    /// Directories that are no longer in the table and have not been asked for by `pop_gone`.
    gone: Vec<Node>,
    bytes: usize,
}

impl Table {
    /// A table with nothing but the root.
    pub fn new(root: Identity) -> Self {
        let inode = Inode { identity: root, lookups: 1, uses: 1, location: None, told: 0 };
        Self {
            places: vec![Place { generation: 0, inode: Some(inode) }],
            free: Vec::new(),
            nodes: HashMap::from([(root, Node::ROOT)]),
            gone: Vec::new(),
            bytes: INODE_BYTES,
        }
    }

    /// The inode of a node id the guest sent, if there is one.
    pub fn get(&self, node: Node) -> Result<&Inode, Errno> {
        let place = self.places.get(node.index()).ok_or(Errno::STALE)?;
        place.inode.as_ref().filter(|_| u64::from(place.generation) == node.generation()).ok_or(Errno::STALE)
    }

    fn get_mut(&mut self, node: Node) -> Option<&mut Inode> {
        let place = self.places.get_mut(node.index())?;
        place.inode.as_mut().filter(|_| u64::from(place.generation) == node.generation())
    }

    /// The guest is told of a file: makes or finds its inode and counts one lookup.
    /// `seen` is where the file was found; a file without a name has none.
    pub fn enter(&mut self, identity: Identity, seen: Option<(Node, Name<'_>)>) -> Result<Node, Errno> {
        let node = match self.nodes.get(&identity) {
            // The root, mounted again below itself: a loop, as the guest's kernel would say.
            Some(&Node::ROOT) => return Err(Errno::LOOP),
            Some(&node) => node,
            None => self.insert(identity)?,
        };
        if let Some((parent, name)) = seen {
            self.locate(node, parent, name);
        }
        let inode = self.get_mut(node).expect("found or made above");
        inode.lookups = inode.lookups.saturating_add(1);
        Ok(node)
    }

    fn insert(&mut self, identity: Identity) -> Result<Node, Errno> {
        if self.bytes > BYTES_MAX {
            return Err(Errno::NFILE);
        }
        let index = self.free.pop().map_or(self.places.len(), |index| index as usize);
        if index == self.places.len() {
            self.places.push(Place { generation: 0, inode: None });
        }
        let place = &mut self.places[index];
        place.inode = Some(Inode { identity, lookups: 0, uses: 0, location: None, told: 0 });
        let node = Node::new(index, place.generation);
        self.nodes.insert(identity, node);
        self.bytes += INODE_BYTES;
        Ok(node)
    }

    /// The node of a file that the guest knows.
    pub fn find(&self, identity: &Identity) -> Option<Node> {
        self.nodes.get(identity).copied()
    }

    /// The guest is told the attributes that `told` stands for.
    pub fn tell(&mut self, node: Node, told: u64) {
        if let Some(inode) = self.get_mut(node) {
            inode.told = told;
        }
    }

    /// The file with this identity, if the guest knows it, is now found elsewhere.
    pub fn moved(&mut self, identity: &Identity, parent: Node, name: Name<'_>) -> Option<Node> {
        let node = self.find(identity)?;
        self.locate(node, parent, name);
        Some(node)
    }

    fn locate(&mut self, node: Node, parent: Node, name: Name<'_>) {
        let full = self.bytes > BYTES_MAX;
        let Some(inode) = self.get_mut(node) else { return };
        // Without room for a longer name the old place stays, where the file is not found any more.
        if full || node == Node::ROOT || node == parent || inode.location() == Some((parent, name)) {
            return;
        }
        let old = inode.location.replace(Location { parent, name: name.as_c_str().into() });
        self.bytes += name.to_bytes().len();
        self.hold(parent);
        if let Some(old) = old {
            self.bytes -= old.name.count_bytes();
            self.let_go(old.parent);
        }
    }

    /// The names on the way from the entry `name` of `parent` up to the root. Outdated locations can form a circle,
    /// which has no end.
    pub fn way<'a>(&'a self, parent: Node, name: Name<'a>) -> impl Iterator<Item = &'a [u8]> + Clone {
        let up = |&(parent, _): &(Node, Name<'a>)| self.get(parent).ok()?.location();
        std::iter::successors(Some((parent, name)), up).map(|(_, name)| name.to_bytes())
    }

    /// The guest gives `count` lookups back.
    pub fn forget(&mut self, node: Node, count: u64) {
        if let Some(inode) = self.get_mut(node) {
            inode.lookups = inode.lookups.saturating_sub(count);
            self.remove_unused(node);
        }
    }

    /// Keeps an inode in the table until `let_go`.
    pub fn hold(&mut self, node: Node) {
        if let Some(inode) = self.get_mut(node) {
            inode.uses += 1;
        }
    }

    pub fn let_go(&mut self, node: Node) {
        if let Some(inode) = self.get_mut(node) {
            inode.uses -= 1;
            self.remove_unused(node);
        }
    }

    /// Removes an inode nobody needs, then the directories that were only kept for being on the way to it.
    fn remove_unused(&mut self, mut node: Node) {
        loop {
            let place = &mut self.places[node.index()];
            let Some(inode) = place.inode.take_if(|inode| inode.lookups == 0 && inode.uses == 0) else {
                return;
            };
            place.generation = place.generation.wrapping_add(1);
            self.free.push(u32::try_from(node.index()).expect("it came from a node id"));
            self.nodes.remove(&inode.identity);
            self.bytes -= INODE_BYTES;
            if inode.kind() == FileType::Directory {
                self.gone.push(node);
            }
            let Some(Location { parent, name }) = inode.location else { return };
            self.bytes -= name.count_bytes();
            let Some(above) = self.get_mut(parent) else { return };
            above.uses -= 1;
            node = parent;
        }
    }

    /// A directory that was removed, once.
    pub fn pop_gone(&mut self) -> Option<Node> {
        self.gone.pop()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}
