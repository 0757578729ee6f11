//! The guest's way out, as the kernel is told of it: an address, a route, and rules that lead all TCP and all DNS to the relay.
//! It owns what they are. They keep nobody in: without them a packet has nowhere to go, as there is no network device.
//!
//! Address and route are the loopback interface's. TCP to anywhere has a route, is turned to the relay before it leaves, and
//! the rest is refused at once instead of lost. What goes to another network that the guest has made, Docker's, is left alone.
//! Source: Linux include/uapi/linux/netfilter/nf_tables.h and linux/rtnetlink.h.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use rustix::net::netlink;

use super::netlink::Batch;

/// The sandbox's own address (of TEST-NET-1, RFC 5737), at which the relay is reached by containers of its Docker as well.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Of the relay, both TCP and DNS: a question by TCP needs no redirection then.
pub const PORT: u16 = 53;
/// The loopback interface's number, in every network namespace.
const LOOPBACK: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// NETLINK_ROUTE is 0, which is no protocol of its own.
const ROUTE: Option<rustix::net::Protocol> = None;
const TABLE: &str = "coracle";
const INET: u8 = 2;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const APPEND: u16 = 0x800;
const REGISTERS: [u32; 2] = [1, 2];

/// A place where rules are looked at: name, kind, number of the hook, priority.
type Chain = (&'static str, &'static str, u32, i32);
const PREROUTING: Chain = ("prerouting", "nat", 0, -100);
const OUTPUT: Chain = ("output", "nat", 3, -100);
const REFUSE_FORWARD: Chain = ("refuse_forward", "filter", 2, 0);
const REFUSE_OUTPUT: Chain = ("refuse_output", "filter", 3, 0);

/// Sets all of it up; the loopback interface is up already.
///
/// # Errors
/// What the kernel says.
pub fn apply() -> Result<()> {
    routes().send(ROUTE).context("give the sandbox an address and a route")?;
    tables().send(Some(netlink::NETFILTER)).context("load the rules")
}

fn routes() -> Batch {
    const LINK_SCOPE: u8 = 253;
    const MAIN_TABLE: u8 = 254;
    const BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    let mut batch = Batch::default();
    batch.message(NEW_ADDRESS, 0, |it| {
        it.raw(&[INET, 32, 0, 0]);
        it.raw(&LOOPBACK.to_ne_bytes());
        it.attribute(1, &ADDRESS.octets());
        it.attribute(2, &ADDRESS.octets());
    });
    batch.message(NEW_ROUTE, 0, |it| {
        it.raw(&[INET, 0, 0, 0, MAIN_TABLE, BOOT, LINK_SCOPE, UNICAST, 0, 0, 0, 0]);
        it.attribute(4, &LOOPBACK.to_ne_bytes());
        it.attribute(7, &ADDRESS.octets());
    });
    batch
}

fn tables() -> Batch {
    let mut batch = Batch::default();
    // The whole batch is for nf_tables.
    let edge = |batch: &mut Batch, kind| batch.message(kind, 0, |it| it.raw(&[0, 0, 0, 10]));
    edge(&mut batch, BATCH_BEGIN);
    batch.message(NEW_TABLE, 0, |it| {
        it.raw(&[INET, 0, 0, 0]);
        it.text(1, TABLE);
    });
    for chain in [PREROUTING, OUTPUT, REFUSE_FORWARD, REFUSE_OUTPUT] {
        add_chain(&mut batch, chain);
    }
    for (chain, leaves) in [(PREROUTING, Leaves::ByRoute), (OUTPUT, Leaves::ByDevice)] {
        rule(&mut batch, chain, |it| {
            leaves.expressions(it);
            protocol_is(it, TCP);
            to_relay(it);
        });
        rule(&mut batch, chain, |it| {
            leaves.expressions(it);
            protocol_is(it, UDP);
            is_for_dns(it);
            to_relay(it);
        });
    }
    for chain in [REFUSE_FORWARD, REFUSE_OUTPUT] {
        rule(&mut batch, chain, |it| {
            Leaves::ByDevice.expressions(it);
            refuse(it);
        });
    }
    edge(&mut batch, BATCH_END);
    batch
}

fn add_chain(batch: &mut Batch, (name, kind, hook, priority): Chain) {
    batch.message(NEW_CHAIN, 0, |it| {
        it.raw(&[INET, 0, 0, 0]);
        it.text(1, TABLE);
        it.text(3, name);
        it.nest(4, |it| {
            it.number(1, hook);
            it.attribute(2, &priority.to_be_bytes());
        });
        it.text(7, kind);
    });
}

fn rule(batch: &mut Batch, (chain, ..): Chain, fill: impl FnOnce(&mut Batch)) {
    batch.message(NEW_RULE, APPEND, |it| {
        it.raw(&[INET, 0, 0, 0]);
        it.text(1, TABLE);
        it.text(2, chain);
        it.nest(4, fill);
    });
}

/// How it is seen that a packet is for none of the guest's own networks.
#[derive(Clone, Copy)]
enum Leaves {
    /// Its device is not known yet: the route that it would take has none but the loopback interface.
    ByRoute,
    ByDevice,
}

impl Leaves {
    fn expressions(self, it: &mut Batch) {
        const LOCAL: u32 = 2;
        const FIB_DEVICE: u32 = 1;
        const FIB_TYPE: u32 = 3;
        const META_DEVICE: u32 = 5;
        match self {
            Self::ByRoute => route(it, FIB_DEVICE),
            Self::ByDevice => meta(it, META_DEVICE),
        }
        compare(it, true, &LOOPBACK.to_ne_bytes());
        route(it, FIB_TYPE);
        compare(it, false, &LOCAL.to_ne_bytes());
    }
}

fn expression(it: &mut Batch, name: &str, fill: impl FnOnce(&mut Batch)) {
    it.nest(1, |it| {
        it.text(1, name);
        it.nest(2, fill);
    });
}

/// What the routing table says of the destination.
fn route(it: &mut Batch, result: u32) {
    const DESTINATION: u32 = 2;
    expression(it, "fib", |it| {
        it.number(1, REGISTERS[0]);
        it.number(2, result);
        it.number(3, DESTINATION);
    });
}

fn meta(it: &mut Batch, key: u32) {
    expression(it, "meta", |it| {
        it.number(1, REGISTERS[0]);
        it.number(2, key);
    });
}

fn compare(it: &mut Batch, equal: bool, value: &[u8]) {
    expression(it, "cmp", |it| {
        it.number(1, REGISTERS[0]);
        it.number(2, u32::from(!equal));
        it.nest(3, |it| it.attribute(1, value));
    });
}

fn protocol_is(it: &mut Batch, protocol: u8) {
    const PROTOCOL: u32 = 16;
    meta(it, PROTOCOL);
    compare(it, true, &[protocol]);
}

/// Its port is DNS's: two bytes after two of the transport's header.
fn is_for_dns(it: &mut Batch) {
    const TRANSPORT: u32 = 2;
    expression(it, "payload", |it| {
        it.number(1, REGISTERS[0]);
        it.number(2, TRANSPORT);
        it.number(3, 2);
        it.number(4, 2);
    });
    compare(it, true, &53_u16.to_be_bytes());
}

/// One address and port for all: answers then come from where the kernel expects them.
fn to_relay(it: &mut Batch) {
    const DESTINATION: u32 = 1;
    for (register, value) in REGISTERS.into_iter().zip([&ADDRESS.octets()[..], &PORT.to_be_bytes()]) {
        expression(it, "immediate", |it| {
            it.number(1, register);
            it.nest(2, |it| it.attribute(1, value));
        });
    }
    expression(it, "nat", |it| {
        it.number(1, DESTINATION);
        it.number(2, INET.into());
        it.number(3, REGISTERS[0]);
        it.number(5, REGISTERS[1]);
    });
}

fn refuse(it: &mut Batch) {
    const UNREACHABLE: u32 = 0;
    const PROHIBITED: u8 = 13;
    expression(it, "reject", |it| {
        it.number(1, UNREACHABLE);
        it.attribute(2, &[PROHIBITED]);
    });
}
