//! Questions for names, from a stream of the guest: what policy allows has an address, all else is not there.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::gate::Gate;
use crate::dns::{Found, MESSAGE_MAX, Zone, answer};
use crate::policy::{Decision, Name, Reason};

/// Between two questions; whoever asks opens another stream then.
const IDLE: Duration = Duration::from_secs(120);
const TOO_MANY: Reason = Reason::Other("the sandbox has asked for more names than there is room for");

/// Answers questions until there are no more, or one is none.
pub async fn serve(gate: &Gate, mut stream: UnixStream) -> std::io::Result<()> {
    let mut message = Vec::new();
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        if usize::from(length) > MESSAGE_MAX {
            return Ok(());
        }
        message.resize(length.into(), 0);
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let Some(answer) = answer(&message, &mut Known(gate)) else { return Ok(()) };
        let length = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes();
        timeout(IDLE, stream.write_all(&[&length[..], &answer].concat())).await??;
    }
}

struct Known<'a>(&'a Gate);

impl Zone for Known<'_> {
    fn address(&mut self, name: &Name, asked: bool) -> Found {
        let decision = self.0.policy().decide_name(name);
        let (found, decision) = match decision.allowed {
            false => (Found::Denied, decision),
            true => match self.0.names.borrow_mut().address(name) {
                // What comes of it is logged with the connection.
                Ok(Some(address)) => return Found::Address(address),
                _ => (Found::Full, Decision::denied(TOO_MANY)),
            },
        };
        // Who wants an address asks for others as well: one line is enough.
        if asked {
            self.0.record_name(name, &decision);
        }
        found
    }

    fn name(&self, address: Ipv4Addr) -> Option<Name> {
        self.0.names.borrow().name(address)
    }
}
