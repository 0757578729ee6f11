//! The exec protocol and the boot config: what decodes must encode to the same bytes, and nothing else happens.

use std::net::{Ipv4Addr, SocketAddrV4};

use protocol::{
    Answer, BootConfig, Decoder, Exec, Hello, Message, Mount, Publish, Reply, Request, Role, Stdio, Stream,
    WinSize, decode,
};

/// Every kind of message from one frame, and a stream cut in two.
pub fn protocol(input: &[u8]) {
    there_and_back::<Hello>(input);
    there_and_back::<Request>(input);
    there_and_back::<Reply>(input);
    let (cut, stream) = input.split_first().unwrap_or((&0, &[]));
    let (head, tail) = stream.split_at(usize::from(*cut).min(stream.len()));
    let mut decoder = Decoder::default();
    for piece in [head, tail] {
        decoder.feed(piece);
        while let Ok(Some(_)) = decoder.take::<Request>() {}
        assert!(decoder.pending() <= input.len());
    }
}

/// The eight bytes before a stream to the gateway, and the one that answers them.
pub fn stream(input: &[u8]) {
    if let Some(header) = input.first_chunk()
        && let Ok(stream) = Stream::decode(header)
    {
        assert_eq!(stream.encode(), *header, "one header has one form");
    }
    if let [byte, ..] = input
        && let Ok(answer) = Answer::decode(*byte)
    {
        assert_eq!(answer as u8, *byte);
    }
}

pub fn stream_seeds() -> Vec<Vec<u8>> {
    let to = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 443);
    [Stream::Tcp(to), Stream::Container(to), Stream::Dns].map(|it| it.encode().to_vec()).into()
}

/// The two bytes before a stream to a published port.
pub fn publish(input: &[u8]) {
    if let Some(bytes) = input.first_chunk()
        && let Ok(publish) = Publish::decode(*bytes)
    {
        assert_eq!(publish.encode(), *bytes, "one port has one form");
        assert_ne!(publish.port, 0);
    }
}

pub fn boot_config(input: &[u8]) {
    there_and_back::<BootConfig>(input);
}

fn there_and_back<M: Message>(frame: &[u8]) {
    if let Ok(message) = decode::<M>(frame) {
        let again = message.encode().expect("what was decoded can be sent");
        assert_eq!(again, frame, "one message has one form");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let size = WinSize { rows: 24, columns: 80 };
    let exec = Exec {
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"true".to_vec()],
        env: vec![b"A=1".to_vec(), b"PATH=/bin".to_vec()],
        cwd: b"/tmp".to_vec(),
        user: "agent:users".into(),
        stdio: Stdio::Pipes { stdin: true, stdout: true, stderr: false },
    };
    let on_terminal = Exec { stdio: Stdio::Tty(size), ..exec.clone() };
    let requests = [
        Request::Exec(exec),
        Request::Exec(on_terminal),
        Request::Resize(size),
        Request::Signal(9),
        Request::GrowDisk(21 << 30),
        Request::Shutdown,
    ];
    let failed = Reply::Failed { code: 127, message: "not found".into() };
    let replies = [Reply::Started, Reply::Exited { code: 3 }, failed, Reply::VersionMismatch { init: 2 }];
    let hello = Hello { token: [7; 16], role: Role::Stderr }.encode();
    let frames =
        requests.iter().map(Message::encode).chain(replies.iter().map(Message::encode)).chain([hello]);
    frames.map(|frame| frame.expect("these are good")).collect()
}

pub fn boot_config_seeds() -> Vec<Vec<u8>> {
    let mount = |tag: &str, file: Option<&[u8]>| Mount {
        tag: tag.into(),
        path: format!("/home/me/{tag}").into_bytes(),
        read_only: file.is_some(),
        file: file.map(<[u8]>::to_vec),
    };
    let config = BootConfig {
        hostname: "shell-proj".into(),
        layers: 2,
        mounts: vec![mount("ws0", None), mount("ws1", Some(b"file"))],
        hot_memory: vec![(0x2000_0000, 0x1000_0000), (1 << 32, 1 << 30)],
        docker: true,
        network: true,
        agent: true,
        late_device: (0xd000_1000, 6),
        authority: b"-----BEGIN CERTIFICATE-----\n".to_vec(),
        wall_clock_ns: 1 << 60,
    };
    let smallest = BootConfig { layers: 1, ..BootConfig::default() };
    vec![config.encode().expect("this is good"), smallest.encode().expect("this too")]
}
