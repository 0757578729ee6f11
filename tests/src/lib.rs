//! What the suite stands on: a user with a home of its own, a running sandbox, and a check that nothing is left of it.
//! It owns deadlines, clean-up and what is printed about a failure. The product's own `exec` is how tests reach the
//! guest; there is no other agent in it.

mod call;
pub mod fuzz;
mod home;
pub mod host;
pub mod hosts;
pub mod random;
pub mod registry;
mod terminal;
mod vm;

pub use call::{Call, Done, Running};
pub use home::Home;
pub use terminal::Terminal;
pub use vm::Vm;

/// What a test returns: an error fails it, with its causes.
pub type Test = anyhow::Result<()>;

/// How often a test tries something: the second where `make test-share` says that there is time.
#[must_use]
pub fn rounds((short, long): (u32, u32)) -> u32 {
    if std::env::var_os("CORACLE_SHARE_LONG").is_some() { long } else { short }
}
