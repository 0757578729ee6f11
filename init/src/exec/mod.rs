//! Exec: commands in the container, served over connections.
//! Connections arrive (`arrival`), are joined to sessions (`session`) that start a command (`launch`, in the forked
//! child) and move its bytes (`pump`), all from one poll loop (`server`).

pub mod server;

mod arrival;
mod launch;
mod pump;
mod search;
mod session;
pub(crate) mod user;
