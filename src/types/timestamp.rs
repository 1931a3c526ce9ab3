//! Hybrid timestamps: milliseconds and a counter in one number. Decides only.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

/// 48 bits of milliseconds since the Unix epoch, then 16 bits that count within one millisecond.
/// Orders the versions of a key; 0 stands for "absent". It never decides who leads.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Below every stamp that is given out.
    pub const ZERO: Timestamp = Timestamp(0);
    /// Above every stamp.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// The first stamp of a millisecond.
    pub const fn from_wall(wall_ms: u64) -> Timestamp {
        Timestamp(wall_ms << 16)
    }

    /// The millisecond part.
    pub fn wall_ms(self) -> u64 {
        self.0 >> 16
    }

    /// The stamp `count` later. The counter runs over into the milliseconds.
    pub fn plus(self, count: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(count))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.wall_ms(), self.0 & 0xffff)
    }
}
