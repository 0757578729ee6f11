//! `coracle version`.

use anyhow::Result;
use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use crate::cmd::Typed;
use crate::output::print;

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "version", help_triggers("-h", "--help"), usage = "[--json]")]
/// Print Coracle's version.
pub struct Args {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Args {
    pub fn run(self, _typed: Typed) -> Result<u8> {
        let version = env!("CARGO_PKG_VERSION");
        print(&match self.json {
            true => format!("{}\n", json!({ "version": version, "protocol": protocol::VERSION })),
            false => format!("coracle {version}\n"),
        })?;
        Ok(0)
    }
}
