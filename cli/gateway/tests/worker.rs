//! The gateway's worker as the guest meets it: streams on a real socket, servers on loopback, and policy in files.

use std::fs;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway::credentials::{Custom, Entry as Secret, Origin, Store};
use gateway::intercept::{Hello, client_hello, ensure_authority};
use gateway::log::{self, Entry, Record};
use gateway::names::HOST;
use gateway::policy::NAME as POLICY;
use gateway::worker::{Place, serve};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(10);
const CONNECTED: u8 = 1;
const REFUSED: u8 = 2;
const UNREACHABLE: u8 = 3;
const DNS: [u8; 8] = [2, 0, 0, 0, 0, 0, 0, 0];

/// A sandbox's folder and the user's settings, with a resolver that knows what it is told.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new(policy: &str) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["sandbox", "settings", "bin"] {
            fs::create_dir(lab.path().join(name)).unwrap();
        }
        lab.policy(policy);
        let getent = lab.path().join("bin/getent");
        let script = "#!/bin/sh\necho \"$2\" >>\"${0%/*}/asked\"\ncase $2 in\n\
            *.loop.example) echo '127.0.0.1 STREAM x';;\n\
            meta.example) echo '169.254.169.254 STREAM x';;\n\
            *) exit 2;;\nesac\n";
        fs::write(&getent, script).unwrap();
        fs::set_permissions(&getent, fs::Permissions::from_mode(0o755)).unwrap();
        lab
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// As an editor does it: the file is replaced.
    fn policy(&self, text: &str) {
        let new = self.path().join("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, self.path().join("sandbox").join(POLICY)).unwrap();
    }

    /// Runs a gateway as long as the guest does what it does.
    async fn run<F: Future>(&self, guest: impl FnOnce(Guest) -> F) -> F::Output {
        let socket = self.path().join("gateway.sock");
        let _ = fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let place = Place {
            folder: self.path().join("sandbox"),
            settings: self.path().join("settings"),
            sandbox: "test".into(),
            path: Some(format!("{}:/usr/bin:/bin", self.path().join("bin").display()).into()),
            ..Place::default()
        };
        let guest = guest(Guest { socket });
        LocalSet::new()
            .run_until(async move {
                let gateway = spawn_local(serve(listener, place));
                tokio::select! {
                    result = gateway => panic!("the gateway has ended: {result:?}"),
                    output = timeout(6 * SOON, guest) => output.expect("the guest waits for something"),
                }
            })
            .await
    }

    /// The log's line that fits, as soon as it is written.
    async fn line(&self, fits: impl Fn(&Entry) -> bool) -> Entry {
        let path = self.path().join("sandbox").join(log::NAME);
        let look = async {
            loop {
                let record = Record::read(&path).unwrap();
                match record.entries.iter().find(|entry| fits(entry)) {
                    Some(entry) => return entry.clone(),
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(2 * SOON, look).await.expect("no such line in the log")
    }

    /// Stores a secret for a host; what is returned is the folder of settings.
    fn has_secret_for(&self, host: &str, port: u16) -> PathBuf {
        let custom = Custom {
            hosts: vec![(host.into(), port)],
            header: "authorization".into(),
            format: "Bearer %s".into(),
            variables: Vec::new(),
        };
        let origin = Origin::Value("s3cret".into());
        let entry = Secret { service: "mine".into(), sandbox: None, origin, custom: Some(custom) };
        let settings = self.path().join("settings");
        Store::change(&settings, |secrets| secrets.push(entry)).unwrap();
        ensure_authority(&self.path().join("sandbox")).unwrap();
        settings
    }
}

struct Guest {
    socket: std::path::PathBuf,
}

impl Guest {
    async fn stream(&self, head: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(head).await.unwrap();
        stream
    }

    async fn open(&self, addr: Ipv4Addr, port: u16) -> (u8, UnixStream) {
        let head = [&[1, 0][..], &port.to_be_bytes(), &addr.octets()].concat();
        let mut stream = self.stream(&head).await;
        let answer = timeout(3 * SOON, stream.read_u8()).await.unwrap().unwrap();
        (answer, stream)
    }

    async fn connect(&self, addr: Ipv4Addr, port: u16) -> UnixStream {
        let (answer, stream) = self.open(addr, port).await;
        assert_eq!(answer, CONNECTED);
        stream
    }

    /// Opens it until that is the answer.
    async fn until(&self, addr: Ipv4Addr, port: u16, answer: u8) {
        let answered = async {
            while self.open(addr, port).await.0 != answer {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, answered).await.unwrap();
    }

    async fn container(&self, addr: Ipv4Addr, port: u16) -> UnixStream {
        let mut stream = self.stream(&[&[3, 0][..], &port.to_be_bytes(), &addr.octets()].concat()).await;
        assert_eq!(timeout(3 * SOON, stream.read_u8()).await.unwrap().unwrap(), CONNECTED);
        stream
    }

    /// The address of a name, or the code of the answer.
    async fn resolve(&self, name: &str) -> Result<Ipv4Addr, u8> {
        let mut stream = self.stream(&DNS).await;
        assert_eq!(stream.read_u8().await.unwrap(), CONNECTED);
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        match answer[3] & 0xf {
            0 => Ok(Ipv4Addr::from(<[u8; 4]>::try_from(&answer[answer.len() - 4..]).unwrap())),
            code => Err(code),
        }
    }
}

/// A server that says back what it hears, and then how much that was.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let count = tokio::io::copy(&mut read, &mut write).await.unwrap_or(0);
                let _ = write.write_all(format!(" {count}").as_bytes()).await;
            });
        }
    });
    port
}

async fn end(mut stream: UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = timeout(2 * SOON, stream.read_to_end(&mut rest)).await.expect("the stream stays open");
    rest
}

/// A TLS greeting as rustls sends it.
fn greeting(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_name_leads_to_its_host_and_both_ends_are_carried() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"a.loop.example\", \"127.0.0.1:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        let address = guest.resolve("A.Loop.Example").await.unwrap();
        assert_eq!(guest.resolve("b.loop.example").await, Err(3));
        let mut stream = guest.connect(address, port).await;
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(end(stream).await, b"hello 5");
        let line = lab.line(|it| it.host == "a.loop.example" && it.received > 0).await;
        assert_eq!((line.allowed, line.count, line.sent, line.received), (true, 1, 5, 7));
        let line = lab.line(|it| it.host == "b.loop.example").await;
        assert_eq!((line.allowed, line.port, &*line.reason), (false, 0, "no rule allows it"));
    })
    .await;
    // Its address is the same in the next gateway, which has not been asked for it.
    lab.run(async |guest: Guest| {
        let mut stream = guest.connect(Ipv4Addr::new(198, 18, 1, 0), port).await;
        stream.write_all(b"again").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(end(stream).await, b"again 5");
    })
    .await;
    assert_eq!(fs::read_to_string(lab.path().join("bin/asked")).unwrap(), "a.loop.example\n".repeat(2));
}

#[tokio::test]
async fn what_a_name_resolves_to_needs_a_rule_of_its_own() {
    let port = echo().await;
    let lab = Lab::new("preset = \"open\"\n");
    lab.run(async |guest: Guest| {
        for (name, answer) in
            [("a.loop.example", REFUSED), ("meta.example", REFUSED), ("none.example", UNREACHABLE)]
        {
            let address = guest.resolve(name).await.unwrap();
            assert_eq!(guest.open(address, port).await.0, answer, "{name}");
        }
        let loopback = [127, 0, 0, 1].into();
        for addr in [loopback, [169, 254, 169, 254].into(), [0, 0, 0, 0].into(), [10, 0, 0, 1].into(), HOST] {
            assert_eq!(guest.open(addr, port).await.0, REFUSED, "{addr}");
        }
        // An address of which no name is known.
        assert_eq!(guest.open([198, 19, 7, 7].into(), port).await.0, REFUSED);
        let line = lab.line(|it| it.host == "meta.example").await;
        assert!(line.reason.contains("metadata service"), "{}", line.reason);
        lab.line(|it| it.host == "198.19.7.7" && it.reason.contains("no name")).await;
    })
    .await;
}

#[tokio::test]
async fn this_machine_has_a_name_and_opened_ports_only() {
    let (open, closed) = (echo().await, echo().await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let lab = Lab::new(&format!("allow = [\"localhost:{open}\", \"localhost:{nobody}\"]\n"));
    lab.run(async |guest: Guest| {
        assert_eq!(guest.resolve("host.coracle.internal").await, Ok(HOST));
        let mut stream = guest.connect(HOST, open).await;
        // As servers that speak first are waited for, so is this one.
        stream.shutdown().await.unwrap();
        assert_eq!(end(stream).await, b" 0");
        assert_eq!(guest.open(HOST, closed).await.0, REFUSED);
        assert_eq!(guest.open(HOST, nobody).await.0, REFUSED);
        lab.line(|it| it.port == closed && !it.allowed).await;
        lab.line(|it| it.port == nobody && it.allowed).await;
    })
    .await;
}

#[tokio::test]
async fn a_change_of_policy_cuts_what_it_no_longer_allows() {
    let (one, two) = (echo().await, echo().await);
    let both = format!("allow = [\"localhost:{one}\", \"localhost:{two}\"]\n");
    let lab = Lab::new(&both);
    lab.run(async |guest: Guest| {
        let (first, mut second) = (guest.connect(HOST, one).await, guest.connect(HOST, two).await);
        lab.policy(&format!("allow = [\"localhost:{two}\"]\n"));
        assert_eq!(end(first).await, b"");
        assert_eq!(guest.open(HOST, one).await.0, REFUSED);
        second.write_all(b"still").await.unwrap();
        let mut heard = [0; 5];
        second.read_exact(&mut heard).await.unwrap();
        // One that cannot be read allows nothing.
        lab.policy("allow = 7\n");
        assert_eq!(end(second).await, b"");
        lab.line(|it| it.port == two && !it.allowed && it.reason.contains("until it is repaired")).await;
        lab.policy(&both);
        guest.until(HOST, one, CONNECTED).await;
        // Rules that are gone are not known: the preset would allow more.
        fs::remove_file(lab.path().join("sandbox/policy.toml")).unwrap();
        guest.until(HOST, one, REFUSED).await;
        lab.line(|it| it.port == one && !it.allowed && it.reason.contains("rules are gone")).await;
    })
    .await;
}

#[tokio::test]
async fn tls_shows_the_name_that_it_was_opened_for() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"a.loop.example\", \"127.0.0.1:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        let address = guest.resolve("a.loop.example").await.unwrap();
        let loopback = Ipv4Addr::LOCALHOST;
        let good = greeting("a.loop.example");
        // An address by itself may show an allowed name, or none: that of an address is none.
        for (addr, hello) in [(address, &good), (loopback, &good), (loopback, &greeting("127.0.0.1"))] {
            let mut stream = guest.connect(addr, port).await;
            // Byte by byte at its beginning.
            for byte in &hello[..8] {
                stream.write_all(&[*byte]).await.unwrap();
                stream.flush().await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            stream.write_all(&hello[8..]).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(end(stream).await.starts_with(hello));
        }
        let (fronted, bare) = (greeting("b.loop.example"), greeting("127.0.0.1"));
        for (addr, hello) in [(address, &fronted), (address, &bare), (loopback, &fronted)] {
            let mut stream = guest.connect(addr, port).await;
            stream.write_all(hello).await.unwrap();
            assert_eq!(end(stream).await, b"", "nothing of it has reached the host");
        }
        lab.line(|it| !it.allowed && it.reason.contains("TLS does not show the name")).await;
    })
    .await;
}

/// A server that tells what a connection begins with, and closes it.
async fn first_bytes() -> (u16, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 << 10];
            let count = stream.read(&mut bytes).await.unwrap_or(0);
            bytes.truncate(count);
            let _ = told.send(bytes);
        }
    });
    (port, heard)
}

#[tokio::test]
async fn tls_ends_here_for_hosts_that_have_a_secret_and_for_no_others() {
    let (port, mut heard) = first_bytes().await;
    let rules =
        ["a.loop.example", "b.loop.example", &format!("127.0.0.1:{port}")].map(|it| format!("{it:?}"));
    let lab = Lab::new(&format!("allow = [{}]\n", rules.join(", ")));
    let settings = lab.has_secret_for("a.loop.example", port);
    lab.run(async |guest: Guest| {
        let one = guest.resolve("a.loop.example").await.unwrap();
        let other = guest.resolve("b.loop.example").await.unwrap();
        let (one_hello, other_hello) = (greeting("a.loop.example"), greeting("b.loop.example"));
        let mut stream = guest.connect(one, port).await;
        stream.write_all(&one_hello).await.unwrap();
        let begun = heard.recv().await.unwrap();
        assert!(begun != one_hello, "it is the gateway that greets the host");
        assert_eq!(client_hello(&begun), Hello::Sni(Some("a.loop.example".into())));
        let mut stream = guest.connect(other, port).await;
        stream.write_all(&other_hello).await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), other_hello);
        // A container would not believe it, so it has the host itself.
        let mut stream = guest.container(one, port).await;
        stream.write_all(&one_hello).await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), one_hello);
        let mut stream = guest.container(one, port).await;
        stream.write_all(&other_hello).await.unwrap();
        assert_eq!((end(stream).await, heard.recv().await.unwrap()), (vec![], vec![]), "with another's name");
        // Without TLS, or with another's, nothing gets there.
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &other_hello] {
            let mut stream = guest.connect(one, port).await;
            stream.write_all(bytes).await.unwrap();
            assert_eq!(end(stream).await, b"");
            assert_eq!(heard.recv().await.unwrap(), b"");
        }
        lab.line(|it| !it.allowed && it.reason.contains("not TLS")).await;
        let least = one_hello.len() as u64;
        lab.line(|it| it.host == "a.loop.example" && it.allowed && it.sent >= least).await;
        // Without its secret it is a host like any other.
        Store::change(&settings, Vec::clear).unwrap();
        let spliced = async {
            loop {
                let mut stream = guest.connect(one, port).await;
                stream.write_all(&one_hello).await.unwrap();
                if heard.recv().await.unwrap() == one_hello {
                    return;
                }
            }
        };
        timeout(SOON, spliced).await.unwrap();
        // What cannot be read may have had a secret for a service's host.
        fs::write(settings.join("secrets.json"), "{").unwrap();
        lab.policy("allow = [\"api.anthropic.com\"]\n");
        let refused = async {
            let address = loop {
                match guest.resolve("api.anthropic.com").await {
                    Ok(address) => break address,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            };
            while guest.open(address, 443).await.0 != REFUSED {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, refused).await.unwrap();
        lab.line(|it| it.host == "api.anthropic.com" && it.reason.contains("secrets cannot be read")).await;
    })
    .await;
}

#[tokio::test]
async fn a_host_that_had_a_secret_is_out_of_reach_while_secrets_cannot_be_read() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"a.loop.example\", \"b.loop.example\", \"127.0.0.1:{port}\"]\n"));
    let file = lab.has_secret_for("a.loop.example", port).join("secrets.json");
    lab.run(async |guest: Guest| {
        let (one, other) = (guest.resolve("a.loop.example").await, guest.resolve("b.loop.example").await);
        let (one, other) = (one.unwrap(), other.unwrap());
        guest.connect(one, port).await;
        let stored = fs::read(&file).unwrap();
        fs::write(&file, "{").unwrap();
        guest.until(one, port, REFUSED).await;
        guest.connect(other, port).await;
        fs::write(&file, stored).unwrap();
        guest.until(one, port, CONNECTED).await;
    })
    .await;
}

#[tokio::test]
async fn many_connections_and_much_of_each_are_carried() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"localhost:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        let mut streams = Vec::new();
        for _ in 0..200 {
            streams.push(guest.connect(HOST, port).await);
        }
        // Nobody reads: what is on its way fills up, and the gateway waits with the rest.
        let (mut read, mut write) = guest.connect(HOST, port).await.into_split();
        let bytes: Vec<u8> = (0..48_u32 << 20).map(|at| at.wrapping_mul(at).to_be_bytes()[2]).collect();
        let sent = bytes.clone();
        let writer = spawn_local(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        sleep(Duration::from_millis(300)).await;
        assert!(!writer.is_finished(), "nothing holds the writer back");
        for mut stream in streams {
            stream.write_all(b"x").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(end(stream).await, b"x 1");
        }
        let mut heard = Vec::new();
        read.read_to_end(&mut heard).await.unwrap();
        assert!(heard.starts_with(&bytes) && heard.ends_with(b" 50331648"));
    })
    .await;
}

#[tokio::test]
async fn the_log_has_a_connection_as_soon_as_it_is_decided() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"localhost:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        guest.connect(HOST, port).await;
        for last in 1..=5 {
            assert_eq!(guest.open([10, 0, 0, last].into(), port).await.0, REFUSED);
            let line = lab.line(|it| it.host == format!("10.0.0.{last}"));
            timeout(Duration::from_millis(500), line).await.expect("it is written at once");
        }
        assert!(lab.line(|it| it.host == "host.coracle.internal").await.allowed);
    })
    .await;
}

#[tokio::test]
async fn nonsense_is_hung_up_on() {
    let port = echo().await;
    let lab = Lab::new(&format!("allow = [\"localhost:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        for bad in [[5, 0, 0, 0, 0, 0, 0, 0], [3, 1, 0, 80, 1, 1, 1, 1], [255; 8]] {
            assert_eq!(end(guest.stream(&bad).await).await, b"");
        }
        // A message without its header, one that is too long, and an answer.
        for bad in [&[0, 0][..], &[0xff, 0xff, 0], &[0, 12, 0, 7, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            let stream = guest.stream(&[&DNS, bad].concat()).await;
            assert_eq!(end(stream).await, [CONNECTED], "{bad:?}");
        }
        guest.connect(HOST, port).await;
    })
    .await;
}

#[tokio::test]
async fn a_host_that_hangs_up_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _: TcpStream = stream;
        }
    });
    let lab = Lab::new(&format!("allow = [\"localhost:{port}\"]\n"));
    lab.run(async |guest: Guest| {
        assert_eq!(end(guest.connect(HOST, port).await).await, b"");
    })
    .await;
}
