//! Every message there and back, and what happens to bytes that are none.

use crate::*;

fn exec() -> Exec {
    Exec {
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), vec![0xff, b'\n']],
        env: vec![b"A=".to_vec(), b"PATH=/bin".to_vec()],
        cwd: b"/tmp".to_vec(),
        user: "agent:users".into(),
        stdio: Stdio::Pipes { stdin: true, stdout: false, stderr: true },
    }
}

fn boot_config() -> BootConfig {
    let folder = Mount { tag: "ws0".into(), path: b"/home/me/p".to_vec(), read_only: false, file: None };
    let file =
        Mount { tag: "ws1".into(), path: b"/a/b".to_vec(), read_only: true, file: Some(b"b".to_vec()) };
    BootConfig {
        hostname: "shell-p".into(),
        layers: 2,
        mounts: vec![folder, file],
        hot_memory: vec![(0x2000_0000, 0x1000_0000), (1 << 32, u64::MAX)],
        docker: true,
        network: true,
        agent: true,
        late_device: (0xd000_1000, 6),
        authority: b"-----BEGIN CERTIFICATE-----\n".to_vec(),
        wall_clock_ns: 1_766_000_000_123_456_789,
    }
}

fn requests() -> Vec<Request> {
    let size = WinSize { rows: 24, columns: u16::MAX };
    let on_tty = Exec { stdio: Stdio::Tty(size), ..exec() };
    vec![
        Request::Exec(exec()),
        Request::Exec(on_tty),
        Request::Resize(size),
        Request::Signal(SIGNAL_MAX),
        Request::GrowDisk(21 << 30),
        Request::Shutdown,
    ]
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Started,
        Reply::Exited { code: 255 },
        Reply::Failed { code: 127, message: "exec: \"ü\": not found in PATH".into() },
        Reply::VersionMismatch { init: 7 },
    ]
}

fn hellos() -> Vec<Hello> {
    let roles = [Role::Control, Role::Stdin, Role::Stdout, Role::Stderr, Role::Tty];
    roles.map(|role| Hello { token: *b"0123456789abcdef", role }).to_vec()
}

/// There and back, whole and fed in two pieces cut at every byte.
#[track_caller]
fn check<M: Message + PartialEq + std::fmt::Debug>(messages: &[M]) {
    for message in messages {
        let frame = message.encode().unwrap();
        assert_eq!(decode::<M>(&frame).as_ref(), Ok(message));
        for cut in 0..frame.len() {
            decode::<M>(&frame[..cut]).unwrap_err();
            let mut decoder = Decoder::default();
            decoder.feed(&frame[..cut]);
            assert_eq!(decoder.take::<M>(), Ok(None));
            assert_eq!(decoder.pending(), cut);
            decoder.feed(&frame[cut..]);
            assert_eq!(decoder.take::<M>().unwrap().as_ref(), Some(message));
            assert_eq!((decoder.take::<M>(), decoder.pending()), (Ok(None), 0));
        }
        refuses_shorter_and_longer_bodies::<M>(frame[4], &frame[5..]);
    }
}

fn refuses_shorter_and_longer_bodies<M: Message + std::fmt::Debug>(kind: u8, body: &[u8]) {
    for cut in 0..body.len() {
        assert!(matches!(M::decode(kind, &body[..cut]), Err(Error::Truncated { .. })), "cut at {cut}");
    }
    assert_eq!(M::decode(kind, &[body, &[0]].concat()).unwrap_err(), Error::Trailing { count: 1 });
}

#[test]
fn every_message_survives_the_wire_and_nothing_else_passes_for_it() {
    check(&hellos());
    check(&requests());
    check(&replies());
    check(&[BootConfig { layers: LAYERS_MAX, ..BootConfig::default() }, boot_config()]);
}

#[test]
fn a_hello_has_the_length_that_readers_count_on() {
    assert_eq!(hellos()[0].encode().unwrap().len(), HELLO_LEN);
}

#[test]
fn messages_come_out_of_one_stream_in_order() {
    let stream: Vec<u8> = requests().iter().flat_map(|it| it.encode().unwrap()).collect();
    for piece in [1, 3, stream.len()] {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for bytes in stream.chunks(piece) {
            decoder.feed(bytes);
            seen.extend(std::iter::from_fn(|| decoder.take::<Request>().unwrap()));
        }
        assert_eq!(seen, requests());
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_header() {
    let header = |length: u32, kind| [&length.to_le_bytes()[..], &[kind]].concat();
    let next = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        decoder.take::<Request>()
    };
    assert_eq!(next(&header(1 << 20, 0x10)), Ok(None));
    for length in [(1 << 20) + 1, u32::MAX] {
        let error = Error::TooLong { field: "message", length: length as usize, limit: FRAME_MAX };
        assert_eq!(next(&header(length, 0x10)), Err(error));
    }
    decode::<Hello>(&header(20, 0x01)).unwrap_err();
}

#[test]
fn counts_and_lengths_beyond_the_body_are_refused_before_memory_is_taken() {
    let all_ones = [0xff; 4];
    let two_to_the_16 = [0, 0, 1, 0];
    let limit = ARGV_MAX;
    let too_long = Error::TooLong { field: "argv", length: u32::MAX as usize, limit };
    assert_eq!(Request::decode(0x10, &all_ones), Err(too_long));
    assert_eq!(Request::decode(0x10, &two_to_the_16), Err(Error::Truncated { field: "argv" }));
    let argument = [&[1, 0, 0, 0][..], &all_ones].concat();
    let too_long = Error::TooLong { field: "argument", length: u32::MAX as usize, limit: ARG_LEN_MAX };
    assert_eq!(Request::decode(0x10, &argument), Err(too_long));
}

#[test]
fn kinds_out_of_place_are_refused() {
    for kind in 0..=255 {
        let known = matches!(kind, 0x10..=0x14);
        assert_eq!(Request::decode(kind, &[]) == Err(Error::Kind { kind }), !known);
        let known = matches!(kind, 0x20..=0x23);
        assert_eq!(Reply::decode(kind, &[]) == Err(Error::Kind { kind }), !known);
    }
    Hello::decode(0x02, &[]).unwrap_err();
    BootConfig::decode(0x01, &[]).unwrap_err();
}

#[test]
fn another_version_is_named_whatever_follows_it() {
    for rest in [&[][..], &[7; 17]] {
        let body = [&[2, 0], rest].concat();
        assert_eq!(Hello::decode(0x01, &body), Err(Error::Version { theirs: 2 }));
    }
}

#[test]
fn values_that_mean_nothing_are_refused_on_both_sides() {
    let refused = [
        Exec { argv: vec![], ..exec() },
        Exec { argv: vec![b"a\0b".to_vec()], ..exec() },
        Exec { argv: vec![vec![b'a'; ARG_LEN_MAX + 1]], ..exec() },
        Exec { argv: vec![vec![b'a'; ARG_LEN_MAX]; 9], ..exec() },
        Exec { argv: vec![vec![]; ARGV_MAX + 1], ..exec() },
        Exec { env: vec![b"A=\0".to_vec()], ..exec() },
        Exec { cwd: b"tmp".to_vec(), ..exec() },
        Exec { cwd: vec![b'/'; PATH_LEN_MAX + 1], ..exec() },
        Exec { user: "a\0".into(), ..exec() },
    ];
    for exec in refused {
        Request::Exec(exec).encode().unwrap_err();
    }
    Request::Signal(0).encode().unwrap_err();
    Request::decode(0x12, &[65]).unwrap_err();
    Hello::decode(0x01, &[&[1, 0][..], &[0; 16], &[5]].concat()).unwrap_err();
    for layers in [0, LAYERS_MAX + 1] {
        BootConfig { layers, ..boot_config() }.encode().unwrap_err();
    }
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        let mut config = boot_config();
        config.mounts[1].file = Some(name.to_vec());
        config.encode().unwrap_err();
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let failed = Reply::Failed { code: 125, message: "ü".repeat(MESSAGE_LEN_MAX) };
    let Reply::Failed { message, .. } = decode(&failed.encode().unwrap()).unwrap() else { panic!() };
    assert_eq!(message, "ü".repeat(MESSAGE_LEN_MAX / 2));
}

#[test]
fn random_bytes_are_an_error_and_nothing_worse() {
    let valid: Vec<_> = requests().iter().map(|it| it.encode().unwrap()).collect();
    let boot = boot_config().encode().unwrap();
    let mut random = Random(1);
    for round in 0..200_000 {
        // Half of them are valid ones with a few bytes changed: they get deeper than noise does.
        let mut bytes: Vec<u8> = match round % 4 {
            0 => valid[random.below(valid.len())].clone(),
            1 => boot.clone(),
            _ => (0..random.below(64)).map(|_| random.byte()).collect(),
        };
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.byte();
            }
        }
        let (kind, body) = bytes.split_at_checked(5).map_or((0, &[][..]), |(header, body)| (header[4], body));
        let _ = (Hello::decode(kind, body), Request::decode(kind, body), Reply::decode(kind, body));
        let _ = (BootConfig::decode(kind, body), decode::<Request>(&bytes));
    }
}

/// xorshift64: enough variety, the same at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}
