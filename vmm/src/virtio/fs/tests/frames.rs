//! Messages that are not what they say, and any bytes at all.

use rustix::io::Errno;

use super::client::{Bytes, Client};
use crate::virtio::BrokenQueue;
use crate::virtio::fs::opcode::Opcode;
use crate::virtio::fs::wire::{InHeader, InitIn, InitOut, MAJOR, OutHeader, Wire as _};

/// The error and the length of the answer to raw bytes.
fn answer(client: &mut Client, header: InHeader, body: &[u8]) -> (i32, usize) {
    let mut request = Bytes::of(&header).raw(body).0;
    let mut reply = [0; 4096];
    let length = client.server.answer(&mut request, &mut reply).unwrap();
    (OutHeader::decode(&mut &reply[..]).unwrap().error, length)
}

#[test]
fn the_length_must_be_that_of_the_buffers() {
    let mut client = Client::new();
    let header = InHeader { opcode: Opcode::Lookup as u32, node: 1, ..InHeader::default() };
    for len in [0, 39, 40, 41, 43, 1 << 20, u32::MAX] {
        let (error, length) = answer(&mut client, InHeader { len, ..header }, b"x\0");
        assert_eq!((error, length), (-libc::EINVAL, 16), "{len}");
    }
    assert_eq!(answer(&mut client, InHeader { len: 42, ..header }, b"x\0").0, -libc::ENOENT);
    assert_eq!(answer(&mut client, InHeader { len: 42, extensions: 1, ..header }, b"x\0").0, -libc::EINVAL);
    assert_eq!(answer(&mut client, InHeader { len: 42, ..header }, b"xx").0, -libc::EINVAL);
    assert_eq!(answer(&mut client, InHeader { len: 44, ..header }, b"x\0y\0").0, -libc::EINVAL);
    let huge = vec![b'x'; 1 << 20];
    let header = InHeader { len: (1 << 20) + 40, ..header };
    assert_eq!(answer(&mut client, header, &huge).0, -libc::EINVAL);
}

#[test]
fn without_a_header_or_room_for_one_the_queue_is_broken() {
    let mut client = Client::new();
    let mut room = [0; 100];
    for length in [0, 1, 39] {
        assert!(matches!(client.server.answer(&mut vec![0; length], &mut room), Err(BrokenQueue(_))));
    }
    let header = InHeader { len: 40, opcode: Opcode::Statfs as u32, node: 1, ..InHeader::default() };
    let mut request = Bytes::of(&header).0;
    assert!(matches!(client.server.answer(&mut request, &mut room[..15]), Err(BrokenQueue(_))));
    // Room for the header only: the answer is that it does not fit.
    assert_eq!(client.server.answer(&mut request, &mut room[..16]), Ok(16));
    assert_eq!(OutHeader::decode(&mut &room[..]).unwrap().error, -libc::EIO);
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let mut client = Client::new();
    let dir = client.mkdir(client.root, "d").unwrap().node;
    client.run(Opcode::Destroy, 0, &Bytes::default()).unwrap();
    assert_eq!(client.lookup(client.root, "d"), Err(Errno::IO));
    client.init().unwrap();
    assert_eq!(client.getattr(dir), Err(Errno::STALE));
    assert!(client.lookup(client.root, "d").is_ok());
    client.init().unwrap();
    assert_eq!(client.server.known_inodes(), 1, "a second mount starts anew");
}

#[test]
fn init_agrees_on_a_version() {
    let mut client = Client::new();
    let mut init = |major: u32| {
        let request = InitIn { major, minor: 5, max_readahead: u32::MAX, flags: 1 };
        client.get::<InitOut>(Opcode::Init, 0, &Bytes::of(&request))
    };
    assert_eq!(init(0), Err(Errno::PROTO));
    assert_eq!(init(MAJOR - 1), Err(Errno::PROTO));
    assert_eq!(init(u32::MAX).map(|out| (out.major, out.flags)), Ok((MAJOR, 0)));
    let out = init(MAJOR).unwrap();
    assert_eq!((out.minor, out.flags, out.max_write), (5, 1, 1 << 20));
}

#[test]
fn operations_that_are_not_served_say_so() {
    let mut client = Client::new();
    // ACCESS, FLUSH, locks, BMAP, POLL, SETUPMAPPING, STATX, CUSE_INIT; after this answer Linux does not ask again.
    for opcode in [34, 25, 31, 32, 33, 37, 40, 48, 49, 52, 4096, 0, 7, 19, u32::MAX] {
        let header = InHeader { len: 40, opcode, node: 1, ..InHeader::default() };
        assert_eq!(answer(&mut client, header, &[]).0, -libc::ENOSYS, "{opcode}");
    }
    assert_eq!(client.call(Opcode::Ioctl, client.root, &Bytes::default().raw(&[0; 32])), Err(Errno::NOTTY));
}

#[test]
fn any_bytes_get_an_answer() {
    let mut client = Client::new();
    std::fs::create_dir(client.host("d")).unwrap();
    std::fs::write(client.host("d/f"), "text").unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 1).unwrap()
    };
    let opcodes = Opcode::ALL;
    for round in 0..20_000 {
        let opcode = opcodes[random() % opcodes.len()];
        // SYNCFS and FSYNC are slow and take no harm.
        if matches!(opcode, Opcode::Syncfs | Opcode::Fsync | Opcode::Fsyncdir | Opcode::Destroy) {
            continue;
        }
        let mut body = Vec::new();
        for _ in 0..random() % 12 {
            // Small numbers are nodes, handles, names and sizes that exist.
            let word = if random() % 3 == 0 { random() } else { random() % 5 };
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.truncate(body.len().saturating_sub(random() % 8));
        body.extend_from_slice([&b""[..], b"d\0", b"f\0", b"x\0y\0", b"\xff"][round % 5]);
        let _any = client.call(opcode, random() as u64 % 5, &Bytes::default().raw(&body));
    }
    client.init().unwrap();
    assert!(client.getattr(client.root).is_ok());
}
