//! A sandbox that runs, in a home of its own.
//! It owns how tests start one. What is left of it is the home's to check.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{Call, Home};

/// A running sandbox with the template `shell` on the home's workspace.
#[derive(Debug)]
pub struct Vm {
    pub home: Home,
    pub name: String,
}

impl Vm {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn boot() -> Result<Self> {
        Self::boot_with(["--cpus", "1", "-m", "512m"])
    }

    /// Starts one with these flags of `coracle run`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn boot_with<I: IntoIterator<Item: AsRef<OsStr>>>(flags: I) -> Result<Self> {
        let vm = Self { home: Home::new()?, name: "vm".into() };
        vm.start(flags)?;
        Ok(vm)
    }

    /// Starts it, or does nothing when it runs. Slow tests beside this one must not let it stop for being idle.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(&self, flags: I) -> Result<()> {
        let run = self.home.coracle(["run", "-d", "--name", &self.name, "--idle-timeout", "10m"]);
        run.args(flags).args(["shell", "."]).ok()?;
        Ok(())
    }

    /// Runs a line of shell in it, as its user, and gives the output.
    ///
    /// # Errors
    /// When its exit code is not 0.
    pub fn exec(&self, script: &str) -> Result<String> {
        self.command(["sh", "-c", script]).ok()
    }

    /// A command in it, without input.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, argv: I) -> Call {
        self.home.coracle(["exec", &self.name]).args(argv)
    }

    /// As `command`, with its standard input.
    pub fn command_reading<I: IntoIterator<Item: AsRef<OsStr>>>(&self, input: &[u8], argv: I) -> Call {
        self.home.coracle(["exec", "-i", &self.name]).args(argv).input(input)
    }
}
