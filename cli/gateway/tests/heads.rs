//! Requests as no client would write them, through TLS and hyper as they are: whatever arrives at the host is for it, has our
//! credential once, and nothing of theirs. The heads alone are fuzzed in tests/src/fuzz/gateway.rs.

mod support;

use std::time::Duration;

use support::{CANARY, H1, HOST, ok, test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Lines that are put together and then damaged.
const FIRST: [&str; 7] = [
    "GET / HTTP/1.1",
    "POST /a?access_token=theirs HTTP/1.1",
    "GET https://api.example.com/b HTTP/1.1",
    "GET http://evil.example/ HTTP/1.1",
    "GET / HTTP/1.0",
    "CONNECT api.example.com:443 HTTP/1.1",
    "OPTIONS * HTTP/1.1",
];
const LINES: [&str; 16] = [
    "Host: evil.example",
    "Accept: */*",
    "TE: trailers",
    "Authorization: Bearer theirs",
    "authorization:theirs",
    "X-Api-Key: theirs",
    "Cookie: theirs",
    "Proxy-Authorization: theirs",
    "Connection: close, authorization",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Content-Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity, chunked",
    "X-Long: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
    "Expect: 100-continue",
];
const BODIES: [&str; 4] = [
    "",
    "12345",
    "5\r\n12345\r\n0\r\n\r\n",
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nAuthorization: theirs\r\n\r\n",
];
const PIECES: [&str; 8] = ["\r", "\n", "\0", ":", " ", "\r\n", "\r\n\r\n", "\u{ff}"];
const ROUNDS: u64 = 300;
const PATIENCE: Duration = Duration::from_millis(20);

/// Xorshift; Marsaglia 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

fn request(random: &mut Random) -> Vec<u8> {
    let mut text = format!("{}\r\n", random.of(&FIRST));
    if random.below(8) > 0 {
        text += "Host: api.example.com\r\n";
    }
    for _ in 0..random.below(6) {
        text += random.of(&LINES);
        text += "\r\n";
    }
    text += "\r\n";
    text += random.of(&BODIES);
    let mut bytes = text.into_bytes();
    for _ in 0..random.below(4).saturating_sub(1) {
        let at = random.below(bytes.len());
        let piece = random.of(&PIECES).as_bytes().to_vec();
        bytes.splice(at..at, piece);
    }
    bytes
}

#[test]
fn nothing_of_theirs_arrives_however_it_is_written() {
    test(async |world| {
        let host = world.host(H1, ok).await;
        let secrets = world.canary();
        let mut arrived = 0;
        for seed in 1..=ROUNDS {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let text = request(&mut random);
            let (mut guest, _) = world.guest(host, &secrets, H1).await;
            let _ = guest.write_all(&text).await;
            // It waits for more of some.
            let _ = timeout(PATIENCE, guest.read_to_end(&mut Vec::new())).await;
            for seen in world.seen.lock().unwrap().drain(..) {
                arrived += 1;
                let shown = || format!("seed {seed}: {:?} became {seen:?}", String::from_utf8_lossy(&text));
                assert_eq!(seen.all("authorization"), [format!("Bearer {CANARY}")], "{}", shown());
                assert_eq!(seen.all("host"), [HOST], "{}", shown());
                for name in ["x-api-key", "cookie", "proxy-authorization", "connection", "transfer-encoding"]
                {
                    // How the body comes is between us and the host; a switch of protocols is asked for by us.
                    let ours = ["chunked", "upgrade"];
                    assert!(seen.all(name).iter().all(|it| ours.contains(it)), "{}", shown());
                }
                assert!(!seen.line.contains("theirs") && !seen.line.contains("smuggled"), "{}", shown());
            }
        }
        assert!(arrived > 50, "{arrived} of {ROUNDS}");
    });
}
