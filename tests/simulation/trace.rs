//! What happened in a run, line by line, with the virtual time. Two runs of one seed have the same trace,
//! byte for byte.

use std::fmt::Arguments;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Lines that are kept when nobody wants them all: what led to a failure.
const LINES_KEPT: usize = 400;

/// Clones are the same trace.
#[derive(Clone)]
pub struct Trace {
    began: Instant,
    lines: Arc<Mutex<Lines>>,
}

struct Lines {
    all: bool,
    lines: std::collections::VecDeque<String>,
    count: u64,
    hash: u32,
}

impl Trace {
    /// Begins now. `all`: every line is kept; otherwise the last ones.
    pub fn new(all: bool) -> Trace {
        let lines = Lines {
            all,
            lines: std::collections::VecDeque::new(),
            count: 0,
            hash: 0,
        };
        Trace {
            began: Instant::now(),
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// One more line.
    pub fn say(&self, what: Arguments<'_>) {
        let at = self.elapsed().as_micros();
        let line = format!("{:>6}.{:03} {what}", at / 1_000, at % 1_000);
        let mut lines = self.lines.lock().expect("nothing panics under this lock");
        lines.count += 1;
        lines.hash = crc32c::crc32c_append(lines.hash, line.as_bytes());
        lines.lines.push_back(line);
        if !lines.all && lines.lines.len() > LINES_KEPT {
            lines.lines.pop_front();
        }
    }

    /// What was kept.
    pub fn text(&self) -> String {
        let lines = self.lines.lock().expect("nothing panics under this lock");
        let kept: Vec<&str> = lines.lines.iter().map(String::as_str).collect();
        kept.join("\n")
    }

    /// How many lines there were, and their checksum.
    pub fn sum(&self) -> (u64, u32) {
        let lines = self.lines.lock().expect("nothing panics under this lock");
        (lines.count, lines.hash)
    }
}
