//! Guests that break the rules: every one ends at most its own connection, and costs a bounded amount.

use super::*;

/// Nobody reads at the host: the device buffers what it has promised to, and not a byte more.
#[test]
fn a_guest_without_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    let mut sent = 0;
    while guest.connections() == 1 {
        guest.send_data(ports, &[7; 4096]);
        sent += 4096;
        assert!(guest.vsock.streams.buffered() <= BUF_ALLOC as usize);
        assert!(sent < 8 << 20, "nothing stops it");
    }
    loop {
        let (packet, _) = guest.receive().expect("a reset in the end");
        if packet.op == Op::Reset as u16 {
            break;
        }
        assert_eq!(packet.op, Op::CreditUpdate as u16);
    }
    assert!(read_all(&mut client).iter().all(|byte| *byte == 7));
    assert!(is_at_end(&mut client));
    guest.settle();
}

/// The guest has given no buffers: whatever happens on the host, the event loop is not woken for it.
#[test]
fn a_guest_that_takes_nothing_costs_nothing() {
    let mut guest = Guest::silent(None);
    guest.vsock.release();
    let mut clients: Vec<_> = (0..200).map(|_| guest.client()).collect();
    for client in &mut clients {
        client.write_all(b"hello").unwrap();
    }
    guest.settle();
    drop(clients.split_off(100));
    guest.settle();
    guest.fill_rx();
    let mut requests = Vec::new();
    while let Some((packet, _)) = guest.receive() {
        guest.settle();
        requests.push(Ports { host: packet.src_port, guest: packet.dst_port });
    }
    assert_eq!(requests.len(), 200);
    for ports in requests {
        guest.send(ports, Op::Response);
        guest.settle();
        let (packet, bytes) = guest.receive().unwrap();
        assert_eq!((packet.ports(), &bytes[..]), (Ports { host: PORT, guest: ports.host }, &b"hello"[..]));
        while guest.receive().is_some() {}
    }
}

#[test]
fn one_call_moves_a_bounded_number_of_packets() {
    let mut guest = Guest::new();
    let ports = Ports { host: 1, guest: 1 };
    for _ in 0..SIZE {
        guest.offer_packet(guest.packet(ports, Op::Data), &[]);
    }
    assert!(guest.tx.wants_kick());
    guest.vsock.kick(1).unwrap();
    let used = |guest: &mut Guest| std::iter::from_fn(|| guest.tx.take_used()).count();
    assert_eq!(used(&mut guest), PACKETS_MAX);
    assert!(guest.is_awake(Duration::from_millis(900)), "the event loop does the rest");
    guest.settle();
    assert_eq!(used(&mut guest), SIZE as usize - PACKETS_MAX);
}

/// A flood of packets that all have to be refused, by a guest that does not take the refusals.
#[test]
fn resets_are_owed_up_to_a_limit() {
    let mut guest = Guest::silent(None);
    let mut refused = 0;
    let mut offered = 0_u32;
    for _ in 0..20 {
        while guest.tx.free() > 0 {
            offered += 1;
            guest.offer_packet(guest.packet(Ports { host: offered, guest: 1 }, Op::Data), &[]);
        }
        if guest.tx.wants_kick() {
            guest.vsock.kick(1).unwrap();
        }
        guest.settle();
        while guest.tx.take_used().is_some() {}
    }
    assert!(guest.vsock.streams.is_backed_up());
    guest.fill_rx();
    for _ in 0..20 {
        guest.settle();
        while let Some((packet, _)) = guest.receive() {
            refused += 1;
            assert_eq!((packet.op, packet.src_port), (Op::Reset as u16, refused), "all of them, in order");
        }
    }
    assert_eq!(refused, offered);
}

#[test]
fn packets_for_nobody_are_refused_and_resets_are_not_answered() {
    let mut guest = Guest::new();
    for number in 0..=300 {
        for host in [0, 1, PORT, u32::MAX] {
            let ports = Ports { host, guest: 77 };
            let packet = Packet { op: number, ..guest.packet(ports, Op::Request) };
            guest.send_packet(packet, &[]);
            if number == Op::Reset as u16 {
                guest.expect_nothing();
            } else {
                assert_eq!(guest.expect(Op::Reset), ports);
            }
        }
    }
    assert_eq!(guest.connections(), 0);
    guest.settle();
}

/// What no well-behaved guest does on a connection: it is reset, its client sees the end, the next one works.
#[test]
fn a_connection_whose_guest_breaks_the_rules_is_reset() {
    type Change = fn(&mut Packet);
    let broken: [(&str, Change, usize); 9] = [
        ("a second request", |packet| packet.op = Op::Request as u16, 0),
        ("a second response", |packet| packet.op = Op::Response as u16, 0),
        ("operation 0", |packet| packet.op = 0, 0),
        ("operation 8", |packet| packet.op = 8, 0),
        ("operation 65535", |packet| packet.op = u16::MAX, 0),
        ("more payload claimed than there is", |packet| packet.len = 101, 100),
        ("payload claimed and none there", |packet| packet.len = 1, 0),
        ("all the payload there can be", |packet| packet.len = u32::MAX, 100),
        ("a packet above the limit", |packet| packet.len = 65537, 65537),
    ];
    for (what, change, length) in broken {
        let mut guest = Guest::new();
        let (mut client, ports) = guest.connect();
        let mut packet = guest.packet(ports, Op::Data);
        change(&mut packet);
        guest.send_packet(packet, &vec![0; length]);
        assert_eq!(guest.expect(Op::Reset), ports, "{what}");
        assert!(is_at_end(&mut client), "{what}");
        guest.settle();
        guest.connect();
    }
}

#[test]
fn data_after_the_end_is_refused() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    guest.shut(ports, SHUT_SEND);
    guest.send_data(ports, b"more");
    guest.expect(Op::Reset);
    assert!(is_at_end(&mut client));
}

#[test]
fn data_before_the_response_is_refused() {
    for op in [Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest, Op::Request] {
        let mut guest = Guest::new();
        let mut client = guest.client();
        guest.turn();
        let ports = guest.expect(Op::Request);
        guest.send(ports, op);
        assert_eq!(guest.expect(Op::Reset), ports);
        assert!(is_at_end(&mut client));
    }
}

#[test]
fn a_payload_may_be_longer_than_the_packet_says() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    guest.send_packet(Packet { len: 3, ..guest.packet(ports, Op::Data) }, b"abcdef");
    assert_eq!(read_all(&mut client), b"abc");
}

#[test]
fn other_addresses_are_nobody() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    for cid in [0, 1, GUEST_CID, 1 << 32 | HOST_CID, u64::MAX] {
        guest.send_packet(Packet { dst_cid: cid, len: 1, ..guest.packet(ports, Op::Data) }, b"x");
    }
    for cid in [0, 1, HOST_CID, 4, 1 << 32 | GUEST_CID, u64::MAX] {
        guest.send_packet(Packet { src_cid: cid, len: 1, ..guest.packet(ports, Op::Data) }, b"x");
    }
    guest.expect_nothing();
    assert!(read_all(&mut client).is_empty());
    // Who tries to connect there need not wait for it.
    for cid in [0, 1, 4, 1 << 32 | HOST_CID, u64::MAX] {
        guest.send_packet(Packet { dst_cid: cid, ..guest.packet(ports, Op::Request) }, &[]);
        guest.settle();
        let reset = Packet::decode(guest.rx.take_used().unwrap().1.first_chunk().unwrap());
        let from = (reset.src_cid, reset.dst_cid, reset.ports().guest, Op::decode(reset.op));
        assert_eq!(from, (cid, GUEST_CID, ports.host, Some(Op::Reset)));
    }
    guest.send_data(ports, b"still here");
    assert_eq!(read_all(&mut client), b"still here");
}

#[test]
fn an_unknown_type_is_answered_in_kind() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    for kind in [0, 2, u16::MAX] {
        guest.send_packet(Packet { kind, len: 1, ..guest.packet(ports, Op::Data) }, b"x");
        let (_, bytes) = guest.rx.take_used().unwrap();
        let reset = Packet::decode(bytes.first_chunk().unwrap());
        assert_eq!((reset.op, reset.kind), (Op::Reset as u16, kind));
    }
    guest.send_data(ports, b"unharmed");
    assert_eq!(read_all(&mut client), b"unharmed");
}

#[test]
fn shutdowns_may_repeat_and_say_nothing() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    for flags in [0, 0, 1 << 31, 4] {
        guest.shut(ports, flags);
    }
    guest.send_data(ports, b"a");
    for _ in 0..3 {
        guest.shut(ports, SHUT_SEND);
    }
    assert_eq!(read_all(&mut client), b"a");
    client.write_all(b"b").unwrap();
    guest.settle();
    assert_eq!(guest.receive().unwrap().1, b"b");
}

/// Packets at random, most of them about connections that exist: no panic, no unbounded buffer, no spinning.
#[test]
fn random_packets_are_survived() {
    let mut bytes = pattern(40_001).into_iter().cycle();
    let mut random =
        move |below: u32| u32::from_le_bytes([(); 4].map(|()| bytes.next().expect("cycles"))) % below;
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    let mut known = vec![Ports { host: 1, guest: 1 }];
    for round in 0..20_000 {
        if round % 50 == 0 {
            clients.push(guest.client());
            clients.extend(guest.served());
            known.push(Ports { host: HOST_PORT, guest: random(8) });
        }
        if clients.len() > 20 {
            clients.swap_remove(random(20) as usize);
        }
        guest.buf_alloc = random(10_000);
        guest.taken = guest.taken.wrapping_add(random(5000));
        let ports = known[random(u32::try_from(known.len()).unwrap()) as usize];
        let op = u16::try_from(random(9)).unwrap();
        let flags = random(5);
        let length = random(3000);
        let lie = if random(20) == 0 { random(u32::MAX) } else { length };
        let packet = Packet { op, flags, len: lie, ..guest.packet(ports, Op::Data) };
        guest.send_packet(packet, &vec![0; length as usize]);
        if let Some(client) = clients.last_mut() {
            let _ = client.write(&vec![0; random(3000) as usize]);
            let _ = client.read(&mut [0; 2000]);
        }
        guest.settle();
        while let Some((packet, _)) = guest.receive() {
            if packet.op == Op::Request as u16 {
                known.push(Ports { host: packet.src_port, guest: packet.dst_port });
                guest.send(known[known.len() - 1], Op::Response);
            }
        }
        known.drain(..known.len().saturating_sub(30));
        assert!(guest.vsock.streams.buffered() <= guest.connections() * BUF_ALLOC as usize);
    }
}
