//! The network of a sandbox: nothing gets out but what is allowed, whatever the guest tries and whatever becomes of the gateway; and
//! what is allowed works again after each of that.

use tests::Test;

mod carries;
mod world;

use world::World;

/// Names that may be reached, most of which lead to where no name may lead.
const ALLOWED: [&str; 5] = [
    "--allow",
    "allowed.test,other.test,localhost:8099",
    "--allow",
    "loop.test,zero.test,meta.test,private.test,shared.test,many.test",
    "--no-docker",
];

#[test]
fn nothing_leaves_but_what_is_allowed() -> Test {
    let world = World::with(&ALLOWED)?;
    world.is_connected()?;
    world.probe("user")?;
    world.probe("root")?;

    // The same after a change of policy, and after a restart.
    world.vm.home.coracle(["policy", "allow", "--sandbox", "vm", "more.test"]).ok()?;
    world.probe("user")?;
    world.vm.home.coracle(["policy", "rm", "--sandbox", "vm", "more.test"]).ok()?;
    world.is_connected()?;
    world.vm.home.coracle(["stop", "vm"]).ok()?;
    world.is_connected()?;
    world.probe("user")?;
    world.probe("root")?;
    world.is_connected()
}

#[test]
fn a_gateway_that_is_killed_lets_nothing_out_and_comes_back() -> Test {
    let world = World::with(&ALLOWED)?;
    world.is_connected()?;
    world.kill_gateway(true)?;
    world.is_connected()?;
    world.kill_gateway(true)?;
    world.probe("user")?;

    // Without the process that keeps it there is no network, until the next command starts another.
    let probes = world.probe_later()?;
    world.kill_gateway(false)?;
    world.vm.home.wait_for("the worker ends as well", || world.gateway(true).is_none())?;
    world.heard()?;
    world.vm.home.write("proj/go", "")?;
    let heard = world.judge("without a gateway", &probes.wait()?)?;
    assert_eq!(heard, [""; 0], "not even what is allowed");

    world.is_connected()?;
    world.probe("user")?;
    Ok(())
}

#[test]
fn a_guest_that_takes_its_network_apart_gains_nothing() -> Test {
    let world = World::with(&ALLOWED)?;
    world.is_connected()?;
    world.probe("broken")?;
    world.vm.home.coracle(["stop", "vm"]).ok()?;
    world.is_connected()
}
