//! What a VMM leaves behind when it ends, for the commands that were attached: exit.json.
//! It owns its format, and the sentence that a user reads. A report may hold text from the guest: it is escaped here.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::text::plain;

const REPORT_MAX: u64 = 1 << 20;
/// Characters of a kernel message that fit into one line for a user.
const CAUSE_MAX: usize = 200;

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exit", rename_all = "snake_case")]
pub enum Report {
    /// Shut down from inside, or because it was asked to.
    PoweredOff,
    Reset,
    Panicked {
        console: String,
    },
    Crashed {
        reason: String,
        console: String,
    },
    UnsupportedKvm {
        reason: String,
    },
    /// Given up before it could be used.
    NotReady {
        console: String,
    },
    /// It was asked to end, did not in time, and was ended.
    Forced,
    /// The VMM could not start or go on.
    Failed {
        message: String,
    },
}

impl Report {
    pub fn write(&self, file: &File) -> Result<()> {
        let json = serde_json::to_vec(self).context("encode the report")?;
        file.write_all_at(&json, 0).context("write the report")
    }

    /// The report, `None` when the VMM left none: it was killed.
    pub fn read(file: &mut File) -> Option<Self> {
        let mut json = Vec::new();
        file.take(REPORT_MAX).read_to_end(&mut json).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// What happened to the sandbox, as the rest of a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::PoweredOff => "it was stopped".into(),
            Self::Reset => "the guest rebooted, which ends a sandbox; start it again with coracle run".into(),
            Self::Panicked { console } => format!("the guest kernel panicked: {}", cause(console)),
            Self::Crashed { reason, console } => {
                format!("the virtual machine crashed ({}): {}", plain(reason), cause(console))
            }
            Self::NotReady { console } => {
                format!(
                    "the guest was not ready after {} s; its last line is: {}",
                    vmm::BOOT_TIMEOUT.as_secs(),
                    cause(console)
                )
            }
            Self::UnsupportedKvm { reason } => format!(
                "this machine's KVM cannot run an unmodified Linux kernel ({}); use a machine with hardware virtualisation, \
                 see coracle doctor",
                plain(reason)
            ),
            Self::Forced => "it was stopped by force".into(),
            Self::Failed { message } => plain(message),
        }
    }

    /// The kernel's last lines, for those who ask for all causes.
    pub fn console(&self) -> &str {
        match self {
            Self::Panicked { console } | Self::Crashed { console, .. } | Self::NotReady { console } => {
                console
            }
            _ => "",
        }
    }
}

/// The line of a kernel log that says why: the first that speaks of a panic, else the last.
fn cause(console: &str) -> String {
    let lines = || console.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find(|line| line.contains("Kernel panic")).or_else(|| lines().next_back());
    let line = line.unwrap_or("the kernel said nothing");
    plain(&line[..line.floor_char_boundary(CAUSE_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_as_it_was_and_is_harmless() {
        let console = "[0.1] a\r\n[0.2] Kernel panic - not syncing: \x1b[2Jbad\n[0.3] end\n".to_owned();
        for report in [Report::PoweredOff, Report::Panicked { console: console.clone() }] {
            let mut file = tempfile::tempfile().unwrap();
            report.write(&file).unwrap();
            assert_eq!(Report::read(&mut file), Some(report));
        }
        let sentence = Report::Panicked { console }.sentence();
        assert_eq!(sentence, "the guest kernel panicked: [0.2] Kernel panic - not syncing: \\u{1b}[2Jbad");
        assert_eq!(Report::read(&mut tempfile::tempfile().unwrap()), None);
    }
}
