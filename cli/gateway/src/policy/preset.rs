//! The presets: what is allowed before any rule of the user's. Each is a file with comments, `presets/NAME.txt`, that people read;
//! it is part of the program, so that no installation lacks it.

use serde::Deserialize;

use super::rule::Rule;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    Open,
    #[default]
    Balanced,
    Locked,
}

impl Preset {
    pub const ALL: [Self; 3] = [Self::Open, Self::Balanced, Self::Locked];

    /// By its name, or by the one that Docker Sandboxes has for it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "open" | "allow-all" => Some(Self::Open),
            "balanced" => Some(Self::Balanced),
            "locked" | "deny-all" => Some(Self::Locked),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Balanced => "balanced",
            Self::Locked => "locked",
        }
    }

    /// Its file, with comments.
    pub fn text(self) -> &'static str {
        match self {
            Self::Open => include_str!("../../presets/open.txt"),
            Self::Balanced => include_str!("../../presets/balanced.txt"),
            Self::Locked => include_str!("../../presets/locked.txt"),
        }
    }

    /// What it allows.
    pub fn rules(self) -> Vec<Rule> {
        let lines = self.text().lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        lines.filter(|line| !line.is_empty()).filter_map(|line| line.parse().ok()).collect()
    }
}
