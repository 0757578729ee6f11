//! Guests and clients that behave: bytes both ways, half-closed and closed connections, credit, fairness.

use super::*;

#[test]
fn each_client_gets_a_port_of_its_own() {
    let mut guest = Guest::new();
    let (mut one, one_ports) = guest.connect();
    let (mut two, two_ports) = guest.connect();
    assert_ne!(one_ports, two_ports);
    guest.send_data(two_ports, b"two");
    guest.send_data(one_ports, b"one");
    assert_eq!((&read_all(&mut one)[..], &read_all(&mut two)[..]), (&b"one"[..], &b"two"[..]));
    guest.settle();
}

/// What the host's programs did before they wrote is taken note of before the guest can know what they wrote.
#[test]
fn the_guest_sees_nothing_before_what_has_to_be_done_first() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connect();
    let used = guest.rx.used_count();
    let (done, log) = std::sync::mpsc::channel();
    guest.vsock.before_delivery(move || done.send(used()).unwrap());
    let before = guest.rx.used_count();
    for text in [&b"one"[..], b"two"] {
        let published = before();
        client.write_all(text).unwrap();
        guest.turn();
        assert_eq!(log.try_recv(), Ok(published), "when it is done nothing is published");
        assert_eq!((before(), guest.receive().unwrap().1), (published + 1, text.to_vec()));
    }
    drop(client);
    guest.turn();
    assert!(log.try_recv().is_ok(), "that a client is gone may mean something too");
}

/// A guest that sends back what it gets, both sides as fast as they can, with rings that wrap around many times.
#[test]
fn ten_mebibytes_come_back_as_they_were() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    let data = pattern(10 << 20);
    let (mut written, mut echoed, mut back) = (0, 0, Vec::new());
    let mut pending: Vec<u8> = Vec::new();
    let mut credit = Credit { buf_alloc: BUF_ALLOC, fwd_cnt: 0 };
    let mut chunk = vec![0; 200 << 10];
    while back.len() < data.len() {
        written += client.write(&data[written..]).unwrap_or(0);
        guest.turn();
        while let Some((packet, bytes)) = guest.take() {
            credit = packet.credit;
            guest.taken = guest.taken.wrapping_add(packet.len);
            pending.extend(bytes);
        }
        guest.fill_rx();
        let room = credit.buf_alloc - u32::try_from(echoed).unwrap().wrapping_sub(credit.fwd_cnt);
        let count = pending.len().min(room as usize).min(PACKET_MAX);
        if count > 0 {
            let packet: Vec<u8> = pending.drain(..count).collect();
            guest.send_data(ports, &packet);
            echoed += count;
        } else {
            guest.send(ports, Op::CreditUpdate);
        }
        if let Ok(count) = client.read(&mut chunk) {
            back.extend_from_slice(&chunk[..count]);
        }
    }
    assert!(back == data);
    guest.settle();
}

#[test]
fn single_bytes_get_through() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    for n in 0..=255_u8 {
        client.write_all(&[n]).unwrap();
        guest.turn();
        assert_eq!(guest.receive().unwrap().1, [n]);
        guest.expect_nothing();
        guest.send_data(ports, &[n]);
        assert_eq!(read_all(&mut client), [n]);
    }
    guest.send_data(ports, &[]);
    assert!(read_all(&mut client).is_empty());
    guest.settle();
}

#[test]
fn either_side_may_stop_sending_and_go_on_receiving() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    assert_eq!(guest.receive().unwrap().1, b"question");
    guest.expect_shutdown(SHUT_SEND);
    guest.send_data(ports, b"answer");
    guest.shut(ports, SHUT_SEND);
    assert_eq!(read_all(&mut client), b"answer");
    assert!(is_at_end(&mut client));
    guest.settle();
    guest.expect_shutdown(SHUT_BOTH);

    let (mut client, ports) = guest.connect();
    guest.send_data(ports, b"greeting");
    guest.shut(ports, SHUT_SEND);
    assert_eq!(read_all(&mut client), b"greeting");
    assert!(is_at_end(&mut client));
    client.write_all(b"thanks").unwrap();
    guest.settle();
    assert_eq!(guest.receive().unwrap().1, b"thanks");
    client.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    guest.expect_shutdown(SHUT_BOTH);
}

#[test]
fn a_client_that_closes_is_heard_to_the_end() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    client.write_all(&pattern(100_000)).unwrap();
    drop(client);
    guest.settle();
    let mut heard = Vec::new();
    let mut shut = 0;
    while let Some((packet, bytes)) = guest.receive() {
        heard.extend(bytes);
        shut |= packet.flags;
    }
    assert!(heard == pattern(100_000));
    assert_eq!((shut, guest.connections()), (SHUT_BOTH, 1));
    guest.send(ports, Op::Reset);
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
    guest.settle();
}

/// The client closes while the guest has no room for what it said before: nothing is lost, nothing spins.
#[test]
fn a_client_that_closes_is_heard_when_the_guest_has_room() {
    let mut guest = Guest::new();
    guest.buf_alloc = 1000;
    let (mut client, ports) = guest.connect();
    client.write_all(&pattern(2500)).unwrap();
    drop(client);
    let mut heard = Vec::new();
    let mut shut = 0;
    for _ in 0..4 {
        guest.settle();
        while let Some((packet, bytes)) = guest.receive() {
            heard.extend(bytes);
            shut |= packet.flags;
        }
        assert!(heard.len() <= guest.taken as usize + 1000);
        guest.taken = u32::try_from(heard.len()).unwrap();
        guest.send(ports, Op::CreditUpdate);
    }
    assert!(heard == pattern(2500));
    assert_eq!(shut, SHUT_BOTH);
}

/// The guest closes and even forgets the connection while its client is slow: what it sent arrives all the same.
#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    for flags in [Some(SHUT_BOTH), None] {
        let mut guest = Guest::new();
        let (mut client, ports) = guest.connect();
        let data = pattern(usize::try_from(BUF_ALLOC).unwrap() * 4);
        let mut sent = 0;
        // Until socket and buffer are full.
        while guest.vsock.streams.buffered() + PACKET_MAX <= BUF_ALLOC as usize {
            guest.send_data(ports, &data[sent..sent + 16384]);
            sent += 16384;
        }
        match flags {
            Some(flags) => guest.shut(ports, flags),
            None => guest.send(ports, Op::Reset),
        }
        while guest.receive().is_some() {}
        assert_eq!(guest.connections(), 1);
        let mut heard = Vec::new();
        while heard.len() < sent {
            heard.extend(read_all(&mut client));
            guest.settle();
        }
        assert!(heard == data[..sent]);
        assert!(is_at_end(&mut client));
        assert_eq!(guest.connections(), 0);
    }
}

#[test]
fn a_guest_that_closes_is_answered_by_a_reset() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    guest.shut(ports, SHUT_RECEIVE);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.shut(ports, SHUT_SEND);
    assert_eq!(guest.expect(Op::Reset), ports);
    assert!(is_at_end(&mut client));
    assert_eq!(guest.connections(), 0);
    guest.shut(ports, SHUT_BOTH);
    assert_eq!(guest.expect(Op::Reset), ports, "it is not known any more");
    guest.settle();
}

#[test]
fn credit_is_told_when_half_of_it_is_used_and_when_asked() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    guest.send(ports, Op::CreditRequest);
    guest.expect(Op::CreditUpdate);
    guest.send_data(ports, &[1; 40_000]);
    guest.expect_nothing();
    guest.send_data(ports, &[1; 40_000]);
    let (packet, _) = guest.receive().unwrap();
    assert_eq!(packet.op, Op::CreditUpdate as u16);
    assert_eq!(packet.credit, Credit { buf_alloc: BUF_ALLOC, fwd_cnt: 80_000 });
    assert_eq!(read_all(&mut client).len(), 80_000);
}

#[test]
fn a_guest_is_never_sent_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    guest.buf_alloc = 0;
    let (mut client, ports) = guest.connect();
    client.write_all(&[1; 10_000]).unwrap();
    guest.settle();
    guest.expect_nothing();
    guest.buf_alloc = 5000;
    guest.send(ports, Op::CreditUpdate);
    guest.settle();
    assert_eq!(guest.receive().unwrap().1.len() + guest.receive().unwrap().1.len(), 5000);
    guest.expect_nothing();
    // It claims to have taken more than it was sent, and that its buffer has shrunk.
    for (buf_alloc, taken) in [(5000, 6000), (0, 5000), (1000, 0), (u32::MAX, u32::MAX)] {
        (guest.buf_alloc, guest.taken) = (buf_alloc, taken);
        guest.expect_nothing();
        guest.send(ports, Op::CreditUpdate);
        guest.settle();
    }
    assert_eq!(guest.receive().unwrap().1.len() + guest.receive().unwrap().1.len(), 5000);
}

#[test]
fn every_connection_has_its_turn() {
    let mut guest = Guest::new();
    let (mut loud, loud_ports) = guest.connect();
    let (mut quiet, quiet_ports) = guest.connect();
    loud.write_all(&[1; 100_000]).unwrap();
    quiet.write_all(b"excuse me").unwrap();
    guest.turn();
    let speakers: Vec<u32> = (0..4).map(|_| guest.receive().unwrap().0.src_port).collect();
    assert!(speakers.contains(&loud_ports.host) && speakers.contains(&quiet_ports.host));
}

#[test]
fn a_guest_that_refuses_ends_the_client() {
    let mut guest = Guest::new();
    for _ in 0..1000 {
        let mut client = guest.client();
        guest.turn();
        let ports = guest.expect(Op::Request);
        guest.send(ports, Op::Reset);
        assert!(is_at_end(&mut client));
        guest.expect_nothing();
    }
    assert_eq!(guest.connections(), 0);
    guest.settle();
}

#[test]
fn a_packet_may_lie_in_pieces() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect();
    let header = Packet { len: 6, ..guest.packet(ports, Op::Data) }.encode();
    guest.tx.offer(&[&header[..1], &header[1..40], &[], &header[40..], b"a", b"", b"bcdef"], &[]);
    guest.vsock.kick(1).unwrap();
    assert_eq!(read_all(&mut client), b"abcdef");
}
