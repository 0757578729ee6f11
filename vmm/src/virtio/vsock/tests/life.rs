//! The life of the device: before the guest is ready, limits, time, goodbye, reset and the end by a broken queue.

use super::*;

#[test]
fn nothing_is_accepted_before_the_guest_is_ready() {
    let mut guest = Guest::silent(None);
    guest.fill_rx();
    let mut client = guest.client();
    client.write_all(b"early").unwrap();
    assert!(!guest.is_awake(Duration::ZERO));
    guest.vsock.release();
    guest.turn();
    let ports = guest.expect(Op::Request);
    guest.expect_nothing();
    guest.send(ports, Op::Response);
    let (packet, bytes) = guest.receive().unwrap();
    assert_eq!((packet.op, &bytes[..]), (Op::Data as u16, &b"early"[..]));
    assert!(guest.rx.interrupts.load(std::sync::atomic::Ordering::SeqCst) > 0);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    guest.turn();
    let ports = guest.expect(Op::Request);
    let (other, other_ports) = guest.connect();
    drop(other);
    guest.settle();
    guest.expect_shutdown(SHUT_BOTH);
    guest.vsock.streams.expire(now_ns());
    assert_eq!(guest.connections(), 2);
    guest.vsock.streams.expire(now_ns() + 11_000_000_000);
    guest.vsock.kick(0).unwrap();
    assert_eq!((guest.expect(Op::Reset), guest.expect(Op::Reset)), (ports, other_ports));
    assert!(is_at_end(&mut client));
    assert_eq!((guest.connections(), guest.vsock.streams.deadline()), (0, None));
}

#[test]
fn more_clients_than_connections_wait() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.extend((0..65).map(|_| guest.client()));
        guest.settle();
        while guest.receive().is_some() {}
    }
    assert_eq!((clients.len(), guest.connections()), (1040, LISTENER_STREAMS_MAX));
    guest.settle();
    let Ports { host, guest: port } = Ports { host: 1 << 30, guest: PORT };
    guest.send(Ports { host, guest: port }, Op::Reset);
    guest.settle();
    assert_eq!(guest.connections(), LISTENER_STREAMS_MAX);
    guest.expect(Op::Request);
    assert!(is_at_end(&mut clients[0]));
}

#[test]
fn clients_of_one_listener_do_not_keep_those_of_another_out() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    while clients.len() <= LISTENER_STREAMS_MAX {
        clients.push(guest.client_of("published"));
        guest.settle();
        if clients.len() <= LISTENER_STREAMS_MAX {
            assert_eq!(guest.expect(Op::Request).guest, PUBLISHED_PORT);
        }
    }
    assert_eq!(guest.connections(), LISTENER_STREAMS_MAX);
    let (mut client, ports) = guest.connect();
    guest.send_data(ports, b"welcome");
    assert_eq!(read_all(&mut client), b"welcome");
}

#[test]
fn accepting_pauses_when_the_host_has_no_descriptors() {
    let mut guest = Guest::new();
    let _client = guest.client();
    guest.vsock.listeners.pause();
    guest.vsock.kick(0).unwrap();
    assert!(!guest.is_awake(Duration::ZERO));
    let paused = Instant::now();
    while guest.connections() == 0 {
        assert!(guest.is_awake(Duration::from_millis(900)));
        guest.turn();
    }
    assert!(paused.elapsed() > Duration::from_millis(50));
    guest.expect(Op::Request);
}

#[test]
fn a_shutdown_says_goodbye_once() {
    let mut guest = Guest::new();
    guest.vsock.shutdown();
    guest.vsock.shutdown();
    assert!(guest.vsock.goodbye_said());
    assert!(guest.is_awake(Duration::from_millis(900)));
    guest.turn();
    let ports = guest.expect(Op::Request);
    guest.expect_nothing();
    guest.send(ports, Op::Response);
    assert_eq!(guest.receive().unwrap().1, b"goodbye");
    guest.settle();
    guest.expect_nothing();
}

#[test]
fn a_shutdown_before_the_guest_is_ready_waits_for_it() {
    let mut guest = Guest::silent(None);
    guest.fill_rx();
    guest.vsock.shutdown();
    assert!(guest.vsock.goodbye_said() && !guest.is_awake(Duration::ZERO));
    guest.vsock.release();
    assert!(guest.is_awake(Duration::from_millis(900)));
    guest.turn();
    guest.expect(Op::Request);
}

#[test]
fn an_idle_guest_is_asked_to_end() {
    let mut guest = Guest::silent(Some(Duration::from_millis(80)));
    guest.fill_rx();
    assert!(!guest.is_awake(Duration::from_millis(120)), "it is not ready yet");
    guest.vsock.release();
    let (client, ports) = guest.connect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(120) {
        guest.is_awake(Duration::from_millis(10));
        guest.turn();
    }
    assert!(!guest.vsock.goodbye_said(), "there is a connection");
    drop(client);
    guest.settle();
    guest.send(ports, Op::Reset);
    let closed = Instant::now();
    while !guest.vsock.goodbye_said() {
        assert!(guest.is_awake(Duration::from_millis(900)));
        guest.turn();
    }
    assert!(closed.elapsed() > Duration::from_millis(70));
}

#[test]
fn a_reset_forgets_everything_and_the_next_driver_works() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connect();
    let mut waiting = guest.client();
    waiting.write_all(b"wait").unwrap();
    guest.turn();
    guest.vsock.shutdown();
    guest.vsock.reset();
    assert!(is_at_end(&mut client));
    assert_eq!(guest.connections(), 0);
    let _next = guest.client();
    guest.settle();
    let memory = guest.memory.clone();
    (guest.rx, guest.tx) = start(&mut guest.vsock, &memory);
    guest.fill_rx();
    guest.turn();
    let ports = guest.expect(Op::Request);
    guest.send(ports, Op::Response);
    guest.settle();
}

#[test]
fn broken_queues_stop_the_device_and_leave_the_event_loop_alone() {
    type Breach = fn(&mut Guest) -> Result<(), BrokenQueue>;
    let breaches: [(&str, Breach); 6] = [
        ("no room for a header", |guest| {
            guest.rx.offer(&[], &[43]);
            guest.tx.offer(&[&guest.packet(Ports { host: 1, guest: 1 }, Op::Data).encode()], &[]);
            guest.vsock.kick(1)
        }),
        ("room for a header only", |guest| {
            guest.rx.offer(&[], &[44]);
            guest.tx.offer(&[&guest.packet(Ports { host: 1, guest: 1 }, Op::Data).encode()], &[]);
            guest.vsock.kick(1)
        }),
        ("half a header", |guest| {
            guest.tx.offer(&[&[0; 43]], &[]);
            guest.vsock.kick(1)
        }),
        ("nothing to read", |guest| {
            guest.tx.offer(&[], &[100]);
            guest.vsock.kick(1)
        }),
        ("a head beyond the ring", |guest| {
            guest.tx.publish(SIZE);
            guest.vsock.kick(1)
        }),
        ("a chain that loops", |guest| {
            guest.tx.describe(0, guest.tx.buffer(0).0, 16, 1, 0);
            guest.tx.publish(0);
            guest.vsock.kick(1)
        }),
    ];
    for (what, breach) in breaches {
        let mut guest = Guest::silent(Some(Duration::from_millis(1)));
        guest.vsock.release();
        let mut client = guest.client();
        guest.turn();
        guest.vsock.shutdown();
        assert!(breach(&mut guest).is_err(), "{what}");
        assert!(is_at_end(&mut client), "{what}");
        let _next = guest.client();
        assert!(!guest.is_awake(Duration::from_millis(20)), "{what}");
    }
}
