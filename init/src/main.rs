//! PID 1 of the guest: splits off the process that boots and serves, and reaps.
//! It owns nothing else: it has no state that could break. When its child ends, so does the machine.
#![no_main]
#![expect(
    unsafe_code,
    reason = "std's own entry aborts without an open stdin or a /dev/null, and there is no /dev yet"
)]

use init::mark::{Mark, Port};
use init::sys::{self, Fork};
use init::{boot, log, power, reap};

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    let port = Port::open().ok();
    boot::mark(port.as_ref(), Mark::InitStarted);
    boot::open_standard_streams();
    std::panic::set_hook(Box::new(|panic| log(panic)));
    match sys::fork() {
        Ok(Fork::Child) => serve(port),
        Ok(Fork::Parent(child)) => {
            drop(port);
            let status = reap::until(child);
            log(format_args!("the exec server ended: {status:?}"));
        }
        Err(errno) => log(format_args!("fork: {errno}")),
    }
    power::off()
}

/// Boots, serves until the end of the sandbox is asked for, and ends it.
fn serve(port: Option<Port>) -> ! {
    match boot::boot(port) {
        Ok(sandbox) => sandbox.serve(),
        Err(error) => log(format_args!("{error:#}")),
    }
    power::off()
}
