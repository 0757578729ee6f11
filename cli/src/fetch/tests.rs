//! Downloads from servers of all manners, good and bad.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::stand_in::{Asked, Reply, Server};

const CONTENT: &[u8] = &[5; 300_000];

struct Fixture {
    folder: tempfile::TempDir,
    blobs: Blobs,
    digest: Digest,
    server: Server,
}

impl Fixture {
    fn new(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        Self { folder, blobs, digest: Digest::of(CONTENT), server: Server::start(answer) }
    }

    /// A server that answers by the number of the request, from 0.
    fn in_turn(answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        let count = AtomicUsize::new(0);
        Self::new(move |asked| answer(count.fetch_add(1, Ordering::Relaxed), asked))
    }

    fn fetch(&self, size: Option<u64>) -> anyhow::Result<PathBuf> {
        let wanted = Wanted { digest: &self.digest, size, size_max: 1 << 20 };
        to_file(&Client::impatient(), &self.blobs, &self.server.url("/f?secret"), wanted, &Progress::silent())
    }

    fn gets(&self) {
        let path = self.fetch(Some(CONTENT.len() as u64)).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), CONTENT);
        assert_eq!(self.files(), 1);
    }

    fn fails(&self, size: Option<u64>) -> String {
        let error = format!("{:#}", self.fetch(size).unwrap_err());
        assert!(self.blobs.get(&self.digest).is_none());
        assert!(!error.contains("secret"), "{error}");
        error
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("blobs/sha256")).unwrap().count()
    }
}

#[test]
fn a_file_is_fetched_once() {
    let fixture = Fixture::new(|asked| Reply::file(asked, CONTENT));
    fixture.gets();
    fixture.gets();
    fixture.fetch(None).unwrap();
    assert_eq!(fixture.server.asked().len(), 1);
}

#[test]
fn a_download_goes_on_where_it_was_cut() {
    let fixture = Fixture::in_turn(|number, asked| match number {
        0 => Reply::file(asked, CONTENT).cut(200_000),
        1 => Reply::of(503, "").with("retry-after", "0"),
        2 => Reply::file(asked, CONTENT).cut(0),
        3 => Reply::file(asked, CONTENT).cut(50_000),
        _ => Reply::file(asked, CONTENT),
    });
    fixture.gets();
    let from: Vec<_> = fixture.server.asked().iter().map(Asked::from).collect();
    assert_eq!(from, [0, 200_000, 200_000, 200_000, 250_000]);
}

#[test]
fn a_killed_download_is_gone_on_with_later() {
    let fixture = Fixture::new(|asked| Reply::file(asked, CONTENT));
    let Claim::Ours(mut partial) = fixture.blobs.claim(&fixture.digest).unwrap() else { panic!() };
    partial.append(&CONTENT[..1000]).unwrap();
    drop(partial);
    fixture.gets();
    assert_eq!(fixture.server.asked()[0].from(), 1000);
}

#[test]
fn what_was_left_is_not_believed() {
    for left in [b"xxx".to_vec(), vec![5; 400_000], [vec![4], CONTENT[1..].to_vec()].concat()] {
        let fixture = Fixture::new(|asked| Reply::file(asked, CONTENT));
        let Claim::Ours(mut partial) = fixture.blobs.claim(&fixture.digest).unwrap() else { panic!() };
        partial.append(&left).unwrap();
        drop(partial);
        fixture.gets();
    }
}

#[test]
fn a_server_need_not_know_ranges() {
    let fixture = Fixture::in_turn(|number, _| match number {
        0..3 => Reply::of(200, CONTENT).cut(100_000 + number),
        _ => Reply::of(200, CONTENT),
    });
    fixture.gets();
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let fixture = Fixture::in_turn(|number, asked| match number {
        0 => Reply::file(asked, CONTENT).cut(100),
        1 => Reply::of(206, &CONTENT[50..]).with("content-range", "bytes 50-299999/300000"),
        2 => Reply::of(206, CONTENT).with("content-range", "nonsense"),
        _ => Reply::file(asked, CONTENT),
    });
    fixture.gets();
    let from: Vec<_> = fixture.server.asked().iter().map(Asked::from).collect();
    assert_eq!(from, [0, 100, 0, 0]);
}

#[test]
fn wrong_content_leaves_nothing_behind() {
    let fixture = Fixture::new(|_| Reply::of(200, vec![6; CONTENT.len()]));
    let error = fixture.fails(Some(CONTENT.len() as u64));
    assert!(error.contains("its content has the digest sha256:"), "{error}");
    assert_eq!((fixture.files(), fixture.server.asked().len()), (0, 1));
}

#[test]
fn wrong_sizes_are_refused() {
    let fixture = Fixture::new(|_| Reply::of(200, vec![5; 300_001]));
    assert!(fixture.fails(Some(300_000)).contains("has 300001 bytes of it instead of 300000"));
    let fixture = Fixture::new(|_| Reply::of(200, vec![5; (1 << 20) + 1]));
    assert!(fixture.fails(None).contains("longer than 1048576 bytes"));
    // Without a length in the head it is seen while it comes.
    let endless =
        Reply { fields: vec![("transfer-encoding".into(), "chunked".into())], ..Reply::of(200, chunks()) };
    let fixture = Fixture::new(move |_| endless.clone());
    assert!(fixture.fails(None).contains("longer than 1048576 bytes"));
}

fn chunks() -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..40 {
        body.extend_from_slice(b"8000\r\n");
        body.extend_from_slice(&[5; 0x8000]);
        body.extend_from_slice(b"\r\n");
    }
    body
}

#[test]
fn tries_are_bounded() {
    let fixture = Fixture::new(|asked| Reply::file(asked, CONTENT).cut(0));
    assert!(fixture.fails(None).contains("given up after 5 tries"));
    assert_eq!(fixture.server.asked().len(), 5);
    // A byte at a time is not for ever either.
    let fixture = Fixture::new(|asked| Reply::file(asked, CONTENT).cut(1));
    assert!(fixture.fails(None).contains("was cut 30 times"));
    assert_eq!(fixture.server.asked().len(), 30);
    let fixture = Fixture::new(|_| Reply::of(429, "").with("retry-after", "3600"));
    assert!(fixture.fails(None).contains("429 Too Many Requests and wants to be asked again in 3600 s"));
    let fixture = Fixture::new(|_| Reply::of(404, ""));
    assert!(fixture.fails(None).ends_with("/f\" answers 404 Not Found"));
    assert_eq!(fixture.server.asked().len(), 1);
    let mut fixture = Fixture::new(|_| Reply::of(200, ""));
    fixture.server.address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(fixture.fails(None).contains("refused"));
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let client = Client::without_patience(Duration::from_millis(500));
    let fixture = Fixture::in_turn(|number, asked| match number {
        0 => Reply { silent: true, ..Reply::file(asked, CONTENT).cut(1000) },
        _ => Reply::file(asked, CONTENT),
    });
    let wanted = Wanted { digest: &fixture.digest, size: None, size_max: 1 << 20 };
    let start = Instant::now();
    to_file(&client, &fixture.blobs, &fixture.server.url("/f"), wanted, &Progress::silent()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(fixture.server.asked()[1].from(), 1000);
}

#[test]
fn redirects_are_followed_and_bounded() {
    let target = std::sync::Arc::new(Server::start(|asked| Reply::file(asked, CONTENT)));
    let to = target.url("/elsewhere");
    let fixture = Fixture::in_turn(move |number, _| {
        let location = if number == 0 { "/here".into() } else { to.clone() };
        Reply::of(307, "").with("location", location)
    });
    let get =
        |path: &str| Client::impatient().get(&fixture.server.url(path), &[("Authorization", "secret")], 7);
    let answer = get("/f").unwrap();
    assert_eq!((answer.status, answer.from), (206, Some(7)));
    let sent: Vec<_> =
        fixture.server.asked().iter().map(|it| it.field("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [Some("secret".to_owned()), Some("secret".to_owned())]);
    let there = &target.asked()[0];
    assert_eq!((there.path.as_str(), there.field("authorization"), there.from()), ("/elsewhere", None, 7));

    for (location, complaint) in [
        ("/f", "more than 10 times"),
        ("http://192.0.2.1/", "not encrypted"),
        ("file:///etc/passwd", "is not a URL"),
        ("https://a:b@192.0.2.1/", "has a password"),
    ] {
        let fixture = Fixture::new(move |_| Reply::of(302, "").with("location", location));
        assert!(fixture.fails(None).contains(complaint), "{location}");
    }
    let fixture = Fixture::new(|_| Reply::of(302, ""));
    assert!(fixture.fails(None).contains("redirects to nowhere"));
}

#[test]
fn heads_that_are_none_end_with_an_error() {
    for fields in [vec![("x".to_owned(), "y".repeat(1 << 20))], vec![("a b\u{1}".to_owned(), "c".to_owned())]]
    {
        let fixture = Fixture::new(move |_| Reply { fields: fields.clone(), ..Reply::of(200, "") });
        fixture.fails(None);
    }
}

#[test]
fn only_a_certificate_that_is_trusted_and_fits_is_believed() {
    const FUTURE: i32 = 2999;
    let ask = |name: &str, until, host: &str, is_trusted| {
        let (server, authority) = Server::start_tls(name, until, |asked| Reply::file(asked, CONTENT));
        let client = if is_trusted { Client::trusting(&authority) } else { Client::impatient() };
        let answer =
            client.get(&format!("https://{host}:{}/f", server.address.port()), &[("authorization", "x")], 0);
        let body = answer.and_then(|answer| answer.bytes(1 << 20));
        (body.map_err(|failure| (format!("{:#}", failure.error), failure.again)), server.asked().len())
    };
    assert_eq!(ask("localhost", FUTURE, "localhost", true).0.unwrap(), CONTENT);
    assert_eq!(ask("127.0.0.1", FUTURE, "127.0.0.1", true).0.unwrap(), CONTENT);
    for (result, requests) in [
        ask("localhost", FUTURE, "localhost", false),
        ask("other.example", FUTURE, "localhost", true),
        ask("localhost", FUTURE, "127.0.0.1", true),
        ask("localhost", 2001, "localhost", true),
    ] {
        let (error, again) = result.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        assert_eq!((again, requests), (Again::Never, 0));
    }
}
