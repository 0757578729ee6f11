//! Streams that the guest opens: to the one port that there is, within its limits, and at nobody else's cost.

use rustix::net::listen;

use super::*;

/// As many as the guest of this test can have at a time.
fn open_all(guest: &mut Guest) -> u32 {
    let most = u32::try_from(GUEST_STREAMS_MAX).unwrap() * 2;
    for n in 0..most {
        let ports = Ports { host: HOST_PORT, guest: n };
        guest.send(ports, Op::Request);
        let (packet, _) = guest.receive().expect("an answer to each");
        if packet.op == Op::Reset as u16 {
            return n;
        }
        assert_eq!(Op::decode(packet.op), Some(Op::Response));
    }
    panic!("nothing stops it");
}

#[test]
fn a_stream_of_the_guests_goes_both_ways_and_ends_in_halves() {
    let mut guest = Guest::new();
    let (mut server, ports) = guest.open(5000);
    guest.send_data(ports, b"question");
    guest.shut(ports, SHUT_SEND);
    assert_eq!(read_all(&mut server), b"question");
    assert!(is_at_end(&mut server));
    server.write_all(b"answer").unwrap();
    guest.settle();
    assert_eq!(guest.receive().unwrap().1, b"answer");
    drop(server);
    guest.settle();
    guest.expect_shutdown(SHUT_BOTH);
    guest.send(ports, Op::Reset);
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
    guest.settle();
}

/// The whole of it through sockets and buffers that are both smaller, in the order in which it was sent.
#[test]
fn a_mebibyte_arrives_as_it_was_although_the_server_is_slow() {
    let mut guest = Guest::new();
    let (mut server, ports) = guest.open(1);
    let data = pattern(1 << 20);
    let (mut sent, mut taken, mut arrived) = (0, 0, Vec::<u8>::new());
    while arrived.len() < data.len() {
        let room = BUF_ALLOC as usize - (sent - taken);
        let length = room.min(PACKET_MAX).min(data.len() - sent);
        if length > 0 {
            guest.send_data(ports, &data[sent..sent + length]);
            sent += length;
        }
        let mut chunk = [0; 50_000];
        arrived.extend(server.read(&mut chunk).map_or(&[][..], |count| &chunk[..count]));
        guest.settle();
        while let Some((packet, _)) = guest.receive() {
            assert_eq!(Op::decode(packet.op), Some(Op::CreditUpdate));
            taken = packet.credit.fwd_cnt as usize;
        }
        guest.send(ports, Op::CreditRequest);
    }
    assert!(arrived == data);
}

#[test]
fn single_bytes_and_streams_that_carry_nothing() {
    let mut guest = Guest::new();
    for n in 0..=255_u8 {
        let (mut server, ports) = guest.open(u32::from(n));
        if n % 2 == 0 {
            guest.send_data(ports, &[n]);
            assert_eq!(read_all(&mut server), [n]);
            server.write_all(&[n]).unwrap();
            guest.settle();
            assert_eq!(guest.receive().unwrap().1, [n]);
        }
        guest.shut(ports, SHUT_BOTH);
        assert_eq!(guest.expect(Op::Reset), ports);
        assert!(is_at_end(&mut server));
    }
    assert_eq!(guest.connections(), 0);
    guest.settle();
}

#[test]
fn a_server_that_hangs_up_before_the_answer_is_seen_ends_the_stream() {
    let mut guest = Guest::silent(None);
    let ports = Ports { host: HOST_PORT, guest: 1 };
    guest.send(ports, Op::Request);
    let mut server = guest.served().unwrap();
    server.write_all(b"too busy").unwrap();
    drop(server);
    guest.settle();
    guest.fill_rx();
    assert_eq!(guest.expect(Op::Response), ports);
    guest.settle();
    assert_eq!(guest.receive().unwrap().1, b"too busy");
    guest.expect_shutdown(SHUT_RECEIVE);
    guest.expect_shutdown(SHUT_BOTH);
}

#[test]
fn where_nobody_listens_the_guest_is_refused() {
    let mut guest = Guest::new();
    let (mut server, ports) = guest.open(1);
    guest.server = UnixListener::bind(guest.folder.path().join("another")).unwrap();
    guest.send(Ports { host: HOST_PORT, guest: 2 }, Op::Request);
    assert_eq!(guest.expect(Op::Reset).guest, 2);
    guest.send_data(ports, b"still here");
    assert_eq!((read_all(&mut server), guest.connections()), (b"still here".to_vec(), 1));
    guest.settle();
}

#[test]
fn where_too_many_wait_the_guest_is_refused_and_can_try_again() {
    let mut guest = Guest::new();
    listen(&guest.server, 2).unwrap();
    let mut answers = [Op::Response, Op::Response, Op::Response, Op::Reset, Op::Reset].into_iter().zip(0..);
    for (answer, port) in answers.by_ref() {
        guest.send(Ports { host: HOST_PORT, guest: port }, Op::Request);
        assert_eq!(guest.expect(answer).guest, port);
    }
    assert_eq!(guest.connections(), 3);
    let _served = guest.served().unwrap();
    guest.send(Ports { host: HOST_PORT, guest: 4 }, Op::Request);
    assert_eq!(guest.expect(Op::Response).guest, 4);
}

#[test]
fn only_a_request_for_a_stream_to_that_port_opens_anything() {
    let mut guest = Guest::new();
    for host in [0, 1, PORT, HOST_PORT - 1, HOST_PORT + 1, 1 << 30, u32::MAX] {
        guest.send(Ports { host, guest: HOST_PORT }, Op::Request);
        if host != HOST_PORT {
            assert_eq!(guest.expect(Op::Reset).host, host);
        }
    }
    let ports = Ports { host: HOST_PORT, guest: 1 };
    for op in (0..=9).filter(|op| ![Op::Request as u16, Op::Reset as u16].contains(op)) {
        guest.send_packet(Packet { op, ..guest.packet(ports, Op::Data) }, &[]);
        assert_eq!(guest.expect(Op::Reset), ports);
    }
    guest.send_packet(Packet { kind: 2, ..guest.packet(ports, Op::Request) }, &[]);
    assert_eq!(Packet::decode(guest.rx.take_used().unwrap().1.first_chunk().unwrap()).op, Op::Reset as u16);
    assert!(guest.served().is_none());
    assert_eq!(guest.connections(), 0);
    guest.settle();
}

#[test]
fn port_0_and_other_folders_cannot_be_configured() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, port_0) = server(folder.path(), 0);
    let above =
        config::Outbound { port: HOST_PORT, folder: port_0.folder.try_clone().unwrap(), name: "../server" };
    for outbound in [port_0, above] {
        let config = config::Vsock {
            listeners: Vec::new(),
            outbound: vec![outbound],
            idle_timeout: None,
            goodbye: (PORT, Vec::new()),
        };
        assert!(matches!(Vsock::new(config), Err(Error::Outbound)));
    }
}

#[test]
fn another_server_takes_the_place_of_one_that_is_gone_and_no_link_does() {
    let mut guest = Guest::new();
    let (_first, ports) = guest.open(1);
    let path = guest.folder.path().join(SERVER);
    // The first one still serves: what has its name by now is another's.
    std::fs::remove_file(&path).unwrap();
    let imposter = UnixListener::bind(&path).unwrap();
    imposter.set_nonblocking(true).unwrap();
    guest.open(9);
    assert!(imposter.accept().is_err());
    drop(imposter);
    let try_with = |guest: &mut Guest, n, op| {
        guest.send(Ports { host: HOST_PORT, guest: n }, Op::Request);
        assert_eq!(guest.expect(op).guest, n);
    };
    guest.server = UnixListener::bind(guest.folder.path().join("another")).unwrap();
    guest.server.set_nonblocking(true).unwrap();
    std::fs::remove_file(&path).unwrap();
    try_with(&mut guest, 2, Op::Reset);
    std::os::unix::fs::symlink("another", &path).unwrap();
    try_with(&mut guest, 3, Op::Reset);
    std::fs::rename(guest.folder.path().join("another"), &path).unwrap();
    try_with(&mut guest, 4, Op::Response);
    guest.send_data(Ports { host: HOST_PORT, guest: 4 }, b"anew");
    assert_eq!(read_all(&mut guest.served().unwrap()), b"anew");
    assert_eq!((guest.connections(), ports.guest), (3, 1));
    guest.settle();
}

/// virtio 1.2, 5.10.6: a pair of ports is one connection.
#[test]
fn a_pair_of_ports_in_use_is_refused() {
    let mut guest = Guest::new();
    let (mut server, ports) = guest.open(1);
    guest.send(ports, Op::Request);
    assert_eq!(guest.expect(Op::Reset), ports);
    assert!(is_at_end(&mut server) && guest.served().is_none());
    assert_eq!(guest.connections(), 0);
    // The guest has closed this one, and the server has not read all of it.
    let (mut server, ports) = guest.open(1);
    let mut sent = 0;
    while guest.vsock.streams.buffered() == 0 {
        guest.send_data(ports, &[7; 4096]);
        sent += 4096;
    }
    guest.shut(ports, SHUT_BOTH);
    while guest.expect_any() != Op::Reset {}
    guest.send(ports, Op::Request);
    assert_eq!(guest.expect(Op::Reset), ports);
    assert!(guest.served().is_none());
    let mut arrived = 0;
    while guest.connections() > 0 {
        arrived += read_all(&mut server).len();
        guest.settle();
    }
    assert_eq!(arrived + read_all(&mut server).len(), sent);
    guest.open(1);
}

/// It does not wait for the answer; or it no longer wants one, which is no offence.
#[test]
fn a_guest_that_speaks_before_it_is_answered_is_reset() {
    for op in [Op::Data, Op::Response, Op::Request, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        let mut guest = Guest::silent(None);
        let ports = Ports { host: HOST_PORT, guest: 1 };
        guest.send(ports, Op::Request);
        guest.send(ports, op);
        let mut server = guest.served().unwrap();
        assert!(is_at_end(&mut server), "{op:?}");
        guest.fill_rx();
        assert_eq!(guest.expect(Op::Reset), ports);
        guest.expect_nothing();
        guest.settle();
    }
    let mut guest = Guest::silent(None);
    guest.send(Ports { host: HOST_PORT, guest: 1 }, Op::Request);
    guest.send(Ports { host: HOST_PORT, guest: 1 }, Op::Reset);
    assert!(is_at_end(&mut guest.served().unwrap()));
    guest.fill_rx();
    guest.expect_nothing();
}

#[test]
fn a_guest_that_opens_all_it_can_does_not_keep_clients_out() {
    let mut guest = Guest::new();
    let opened = open_all(&mut guest);
    assert_eq!(opened as usize, descriptors::for_guest_streams());
    let (mut client, ports) = guest.connect();
    client.write_all(b"exec").unwrap();
    guest.turn();
    assert_eq!(guest.receive().unwrap().1, b"exec");
    guest.send_data(ports, b"done");
    assert_eq!(read_all(&mut client), b"done");
    guest.send(Ports { host: HOST_PORT, guest: 0 }, Op::Reset);
    guest.send(Ports { host: HOST_PORT, guest: opened }, Op::Request);
    assert_eq!(guest.expect(Op::Response).guest, opened);
    guest.vsock.reset();
    assert_eq!(guest.connections(), 0);
    let mut server = guest.served().unwrap();
    assert!(is_at_end(&mut server));
}

#[test]
fn clients_that_connect_as_often_as_they_can_do_not_keep_the_guest_from_it() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    while clients.len() <= LISTENER_STREAMS_MAX {
        clients.push(guest.client());
        guest.settle();
        guest.receive();
    }
    assert_eq!(guest.connections(), LISTENER_STREAMS_MAX);
    guest.open(1);
}

/// All streams there are, and a server that reads none of them.
#[test]
fn what_is_buffered_for_all_streams_has_a_limit() {
    let mut guest = Guest::new();
    let opened = open_all(&mut guest);
    let mut sent = 0_u64;
    // The host's kernel takes some, the device the rest of what it has promised, and one byte more ends a stream.
    for port in 0..opened {
        let ports = Ports { host: HOST_PORT, guest: port };
        let mut reset = false;
        while !reset {
            guest.send_data(ports, &[7; BUF_ALLOC_MIN as usize]);
            sent += u64::from(BUF_ALLOC_MIN);
            while let Some((packet, _)) = guest.receive() {
                reset |= packet.op == Op::Reset as u16;
            }
        }
        assert!(guest.vsock.streams.buffered() <= BUFFERED_MAX as usize);
    }
    assert_eq!(guest.connections(), 0);
    assert!(sent < 4 * u64::from(BUFFERED_MAX), "{sent} bytes");
}

/// The guest's own streams do not count: nobody is there to see what comes of them.
#[test]
fn a_guest_with_streams_of_its_own_is_idle_all_the_same() {
    let mut guest = Guest::silent(Some(Duration::from_millis(50)));
    guest.fill_rx();
    let start = Instant::now();
    guest.vsock.release();
    let (mut server, ports) = guest.open(1);
    while !guest.vsock.goodbye_said() {
        guest.is_awake(Duration::from_millis(10));
        guest.turn();
        server.write_all(b"x").unwrap();
        guest.send_data(ports, b"y");
        while guest.receive().is_some() {}
        assert!(start.elapsed() < Duration::from_secs(20), "it is kept");
    }
    assert!(start.elapsed() >= Duration::from_millis(50));
}
