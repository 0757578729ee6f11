//! Workloads on the share beside the guest's own disk: the ratio, the target, and how both are shown.
//! It measures nothing.

use serde::Serialize;

use crate::timer;
use crate::workloads::Workload;

/// What one workload took on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub workload: &'static str,
    pub share_ms: f64,
    pub disk_ms: f64,
    pub ratio: f64,
    pub target: f64,
    pub kept: bool,
}

impl Comparison {
    #[must_use]
    pub fn new(workload: &Workload, share: std::time::Duration, disk: std::time::Duration) -> Self {
        let (share_ms, disk_ms) = (timer::ms(share), timer::ms(disk));
        let (ratio, target) = (share_ms / disk_ms, workload.kind.target());
        Self { workload: workload.name, share_ms, disk_ms, ratio, target, kept: ratio <= target }
    }

    /// A line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let verdict = if self.kept { "kept" } else { "missed" };
        let Self { workload, share_ms, disk_ms, ratio, target, .. } = self;
        format!("{workload:<28}{share_ms:>12.3}{disk_ms:>12.3}{ratio:>8.2}{target:>8.2}  {verdict}")
    }
}

/// What stands above the lines.
#[must_use]
pub fn head() -> String {
    format!("{:<28}{:>12}{:>12}{:>8}{:>8}", "workload", "share ms", "disk ms", "ratio", "target")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::workloads::WORKLOADS;

    #[test]
    fn a_target_is_kept_up_to_itself() {
        let workload = &WORKLOADS[0];
        let compare =
            |share| Comparison::new(workload, Duration::from_millis(share), Duration::from_millis(10));
        assert!(compare(20).kept);
        assert!(!compare(21).kept);
        assert!(compare(21).line().ends_with("2.10    2.00  missed"), "{}", compare(21).line());
    }
}
