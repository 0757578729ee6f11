//! The file server, by requests as a hostile kernel would send them: well framed for the most part, with nodes, handles
//! and names it was given, others it was not, and numbers at their edges. A secret beside the share must stay one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vmm::config::{Rules, Share};
use vmm::virtio::fs::Server;

use super::Choices;
use crate::host::contains;

const SECRET: &[u8] = b"what no guest may see";
/// Room for a reply; some requests get less.
const REPLY_MAX: usize = 8 << 10;
const REQUESTS_MAX: usize = 200;
/// Names that exist, that do not, and that are no names.
const NAMES: [&[u8]; 15] = [
    b"a",
    b"b",
    b"dir",
    b"link",
    b"out",
    b"up",
    b"",
    b".",
    b"..",
    b"a/b",
    b"/etc",
    b"../secret",
    b"user.x",
    b"new",
    b".env",
];

/// The operations and what each is followed by. In a shape, `4` and `8` are numbers of so many bytes, `0` and `2` those
/// numbers in four, `l` a length that does not fill a disk, `f` a handle, `o` a node, `n` a name, `s` the length of the
/// data `d` behind it. SYNCFS is not among them: it would sync the whole machine, again and again.
const OPERATIONS: [(u32, &str); 36] = [
    (1, "n"),
    (2, "8"),
    (3, "44f"),
    (4, "44f8888844444444"),
    (5, ""),
    (6, "nn"),
    (8, "4444n"),
    (9, "44n"),
    (10, "n"),
    (11, "n"),
    (12, "onn"),
    (13, "on"),
    (14, "44"),
    (15, "f844844"),
    (16, "f8s4844d"),
    (17, ""),
    (18, "f448"),
    (20, "f44"),
    (21, "s4nd"),
    (22, "44n"),
    (23, "44"),
    (24, "n"),
    (26, "4444"),
    (27, "44"),
    (28, "f844844"),
    (29, "f448"),
    (30, "f44"),
    (35, "4444n"),
    (36, "8"),
    (38, ""),
    (39, "d"),
    (42, "20o8o8"),
    (43, "f8l40"),
    (44, "f844844"),
    (45, "o40nn"),
    (47, "f8of8l00"),
];
const MORE_OPERATIONS: [(u32, &str); 3] = [(46, "f844"), (51, "4444n"), (99, "d")];

const LOOKUP: u32 = 1;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
/// Operations whose reply begins with a node, and of those the one with a handle behind it.
const GIVES_NODE: [u32; 6] = [1, 6, 8, 9, 13, 35];
const GIVES_HANDLE: [u32; 2] = [14, 27];
const CREATE: u32 = 35;
const ENTRY_SIZE: usize = 128;
const HEADER_SIZE: usize = 16;

/// A share, new for each input, and what is beside it.
struct Scene {
    dir: TempDir,
    read_only: bool,
    /// There is a secret in the share, too.
    hiding: bool,
}

impl Scene {
    fn new(read_only: bool, hiding: bool) -> Self {
        // Memory, where there is such a folder: a sync of the host's disk would take most of the time.
        let base =
            ["/dev/shm", "/tmp"].map(Path::new).into_iter().find(|it| it.is_dir()).expect("/tmp is there");
        let dir = tempfile::tempdir_in(base).expect("make a folder");
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("dir")).expect("make a folder");
        fs::write(dir.path().join("secret"), SECRET).expect("write a file");
        fs::write(share.join("a"), "content of a").expect("write a file");
        if hiding {
            fs::write(share.join(".env"), SECRET).expect("write a file");
        }
        symlink("../secret", share.join("link")).expect("make a link");
        symlink("..", share.join("up")).expect("make a link");
        symlink(dir.path(), share.join("out")).expect("make a link");
        Self { dir, read_only, hiding }
    }

    fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    fn server(&self) -> Server {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.share(), flags, Mode::empty()).expect("open the share");
        let hidden = if self.hiding { vec![b".env".to_vec()] } else { Vec::new() };
        let rules = Rules { hidden, ..Rules::default() };
        Server::new(Share { tag: "ws0".into(), root, read_only: self.read_only, only: None, rules })
            .expect("serve the share")
    }

    /// What is beside the share, as it must stay.
    fn surroundings(&self) -> Vec<String> {
        let inside = format!("{}/share", self.dir.path().display());
        crate::host::snapshot(self.dir.path()).into_iter().filter(|line| !line.starts_with(&inside)).collect()
    }
}

impl Drop for Scene {
    /// The guest may have made folders that not even their owner may enter, and so not remove.
    fn drop(&mut self) {
        let mut folders = vec![self.share()];
        while let Some(folder) = folders.pop() {
            let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(
                entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()),
            );
        }
    }
}

/// What the guest was given.
struct Known {
    nodes: Vec<u64>,
    /// With the node that each is of.
    handles: Vec<(u64, u64)>,
}

pub fn share(input: &[u8]) {
    let mut choices = Choices(input);
    let kind = choices.byte();
    let scene = Scene::new(kind.is_multiple_of(4), kind & 16 != 0);
    let before = scene.surroundings();
    let inside = crate::host::snapshot(&scene.share());
    let mut server = scene.server();
    let mut known = mount(&mut server);
    for _ in 0..REQUESTS_MAX {
        if choices.is_empty() {
            break;
        }
        let operation = usize::from(choices.byte()) % (OPERATIONS.len() + MORE_OPERATIONS.len());
        let operation =
            OPERATIONS.iter().chain(&MORE_OPERATIONS).nth(operation).expect("within their number");
        ask(&mut server, &mut choices, *operation, &mut known);
        if operation.0 == DESTROY && choices.byte() < 0xf0 {
            known = mount(&mut server);
        }
    }
    drop(server);
    assert_eq!(scene.surroundings(), before);
    if scene.read_only {
        assert_eq!(crate::host::snapshot(&scene.share()), inside);
    }
    if scene.hiding {
        // The guest may have closed the folder to everyone.
        fs::set_permissions(scene.share(), fs::Permissions::from_mode(0o700)).expect("open the folder");
        assert_eq!(fs::read(scene.share().join(".env")).expect("read a file"), SECRET);
    }
}

/// Says the first word as Linux does, and looks up the first name.
fn mount(server: &mut Server) -> Known {
    let mut known = Known { nodes: vec![1], handles: vec![(1, 0)] };
    ask(server, &mut Choices(&[]), (INIT, ""), &mut known);
    ask(server, &mut Choices(&[]), (LOOKUP, "n"), &mut known);
    known
}

/// Sends one request and looks at the reply.
fn ask(server: &mut Server, choices: &mut Choices<'_>, (opcode, shape): (u32, &str), known: &mut Known) {
    let (of, handle) = pick(choices, &known.handles).unwrap_or((choices.number(), choices.number()));
    let body = match shape {
        "" if opcode == INIT => [7_u32, 40, 1 << 20, u32::MAX].map(u32::to_le_bytes).concat(),
        _ => body(choices, shape, handle, known),
    };
    let node = if shape.contains('f') { of } else { known.node(choices) };
    let length = u32::try_from(40 + body.len()).expect("short");
    let length = if choices.byte() == 0xff { choices.word32() } else { length };
    let mut request = Vec::new();
    request.extend([length, opcode].map(u32::to_le_bytes).concat());
    request.extend([77, node].map(u64::to_le_bytes).concat());
    request.extend([1000_u32, 1000, 1, 0].map(u32::to_le_bytes).concat());
    request.extend(body);
    let room = if choices.byte() == 0xfe { usize::from(choices.byte()) } else { REPLY_MAX };
    let mut reply = vec![0; room];
    let Ok(written) = server.answer(&mut request, &mut reply) else { return };
    assert!(written <= room);
    assert!(!contains(&reply[..written], SECRET), "operation {opcode} gave the secret away");
    if written >= HEADER_SIZE {
        assert_eq!(reply[..4], u32::try_from(written).expect("short").to_le_bytes());
        known.learn(opcode, node, &reply[HEADER_SIZE..written]);
    }
}

impl Known {
    fn learn(&mut self, opcode: u32, node: u64, body: &[u8]) {
        let word =
            |at: usize| body.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().expect("eight")));
        if GIVES_NODE.contains(&opcode) {
            self.nodes.extend(word(0));
        }
        if GIVES_HANDLE.contains(&opcode) {
            self.handles.extend(word(0).map(|handle| (node, handle)));
        } else if opcode == CREATE {
            self.handles.extend(word(0).zip(word(ENTRY_SIZE)));
        }
    }

    fn node(&self, choices: &mut Choices<'_>) -> u64 {
        pick(choices, &self.nodes).unwrap_or_else(|| choices.number())
    }
}

/// One of the known ones, the newest first; seldom none.
fn pick<T: Copy>(choices: &mut Choices<'_>, known: &[T]) -> Option<T> {
    match choices.byte() {
        index @ 0..0xf0 => Some(known[known.len() - 1 - usize::from(index) % known.len()]),
        _ => None,
    }
}

fn body(choices: &mut Choices<'_>, shape: &str, handle: u64, known: &Known) -> Vec<u8> {
    let data_length = usize::from(choices.byte()) % 64;
    let mut body = Vec::new();
    for field in shape.bytes() {
        match field {
            b'0' | b'2' => body.extend(u32::from(field - b'0').to_le_bytes()),
            b'4' => body.extend(&choices.number().to_le_bytes()[..4]),
            b'8' => body.extend(choices.number().to_le_bytes()),
            b'f' => body.extend(handle.to_le_bytes()),
            b'o' => body.extend(known.node(choices).to_le_bytes()),
            b's' => body.extend((data_length as u32).to_le_bytes()),
            b'd' => body.extend(choices.take(data_length)),
            b'l' => body.extend((choices.number() & 0xf_ffff).to_le_bytes()),
            _ => {
                body.extend(choices.of(&NAMES));
                body.push(0);
            }
        }
    }
    body
}
