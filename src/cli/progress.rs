//! How far a long verb has come: a bar for a person at a terminal, a line now and then for a log.

use std::time::Duration;

use indicatif::HumanBytes;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tokio::time::Instant;

use crate::cli::world::World;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "{elapsed_precise} [{bar:30}] {bytes}/{total_bytes} {msg}, {eta} left";
const BAR_WITHOUT_END: &str = "{elapsed_precise} {spinner} {bytes} {msg}";
const BAR_OF_TIME: &str = "{elapsed_precise} [{bar:20}] {msg}";
const BAR_OF_STEPS: &str = "{elapsed_precise} [{bar:30}] {pos}/{len}, {eta} left";

/// Counts what is done and shows it.
pub struct Progress<'a> {
    world: &'a World,
    /// What is done to a record, as in `imported`.
    done_verb: &'static str,
    bar: Option<ProgressBar>,
    bytes_total: Option<u64>,
    records: u64,
    bytes: u64,
    started: Instant,
    shown: Instant,
}

impl<'a> Progress<'a> {
    /// Starts counting. `bytes_total` is how many there will be, if that is known.
    pub fn start(world: &'a World, done_verb: &'static str, bytes_total: Option<u64>) -> Self {
        let now = Instant::now();
        Progress {
            world,
            done_verb,
            bar: world.stderr_is_terminal.then(|| bar(bytes_total)),
            bytes_total,
            records: 0,
            bytes: 0,
            started: now,
            shown: now,
        }
    }

    /// Counts records and bytes that are done, and shows it if it is time.
    pub fn advance(&mut self, records: u64, bytes: u64) {
        self.records += records;
        self.bytes += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            bar.set_message(format!("{} records, {:.0}/s", self.records, self.rate()));
            return;
        }
        if self.shown.elapsed() >= LINE_INTERVAL {
            self.shown = Instant::now();
            self.world.tell(self.line());
        }
    }

    /// Records done.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Bytes done.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away, so that something else can be said.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// All of it in one sentence.
    pub fn summary(&self) -> String {
        let Progress {
            done_verb, records, ..
        } = self;
        let bytes = HumanBytes(self.bytes);
        let seconds = self.elapsed().as_secs_f64();
        let rate = self.rate();
        format!("{done_verb} {records} records, {bytes} in {seconds:.1} s ({rate:.0}/s)")
    }

    fn line(&self) -> String {
        let summary = self.summary();
        let Some(left) = self.left() else {
            return summary;
        };
        let seconds = left.as_secs();
        let percent = 100 * self.bytes / self.bytes_total.unwrap_or(1).max(1);
        format!("{summary}, {percent} %, {seconds} s left")
    }

    fn left(&self) -> Option<Duration> {
        let total = self.bytes_total?;
        if self.bytes == 0 {
            return None;
        }
        let todo = total.saturating_sub(self.bytes) as f64 / self.bytes as f64;
        Some(self.elapsed().mul_f64(todo))
    }

    fn rate(&self) -> f64 {
        self.records as f64 / self.elapsed().as_secs_f64().max(0.001)
    }
}

/// Counts steps of which it is known how many there are.
pub struct Steps<'a> {
    world: &'a World,
    /// What a step is, as in `cut`.
    done_verb: &'static str,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    shown: Instant,
}

impl<'a> Steps<'a> {
    /// Starts counting up to `total`.
    pub fn start(world: &'a World, done_verb: &'static str, total: u64) -> Self {
        let bar = || {
            let style = ProgressStyle::with_template(BAR_OF_STEPS);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        };
        Steps {
            world,
            done_verb,
            bar: world.stderr_is_terminal.then(bar),
            total,
            done: 0,
            shown: Instant::now(),
        }
    }

    /// Counts one step that is done, and shows it if it is time.
    pub fn advance(&mut self) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.shown.elapsed() >= LINE_INTERVAL {
            self.shown = Instant::now();
            let Steps {
                done_verb,
                done,
                total,
                ..
            } = self;
            self.world.tell(format!("{done_verb} {done} of {total}"));
        }
    }

    /// Takes the bar away, so that something else can be said.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far something is that takes a known time, with a line that says what it does just now.
pub struct Meter<'a> {
    world: &'a World,
    bar: Option<ProgressBar>,
    shown: Option<Instant>,
}

impl<'a> Meter<'a> {
    /// Of something that takes `total`.
    pub fn start(world: &'a World, total: Duration) -> Self {
        let bar = || {
            let style = ProgressStyle::with_template(BAR_OF_TIME);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total.as_secs()).with_style(style)
        };
        Meter {
            world,
            bar: world.stderr_is_terminal.then(bar),
            shown: None,
        }
    }

    /// So much is over; shows the line if it is time.
    pub fn show(&mut self, passed: Duration, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(passed.as_secs());
            bar.set_message(line.to_owned());
        } else if self
            .shown
            .is_none_or(|shown| shown.elapsed() >= LINE_INTERVAL)
        {
            self.shown = Some(Instant::now());
            self.world.tell(format!("{} s: {line}", passed.as_secs()));
        }
    }

    /// Takes the bar away, so that something else can be said.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Counts down what is left, which may rise in between.
pub struct Countdown<'a> {
    world: &'a World,
    bar: Option<ProgressBar>,
    /// The most that was left at any time.
    most: u64,
    shown: Option<Instant>,
}

impl<'a> Countdown<'a> {
    /// Nothing is known yet.
    pub fn start(world: &'a World) -> Self {
        let bar = || {
            let style = ProgressStyle::with_template(BAR_OF_TIME);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        };
        Countdown {
            world,
            bar: world.stderr_is_terminal.then(bar),
            most: 0,
            shown: None,
        }
    }

    /// So much is left; shows the line if it is time.
    pub fn show(&mut self, left: u64, line: &str) {
        self.most = self.most.max(left);
        if let Some(bar) = &self.bar {
            bar.set_length(self.most);
            bar.set_position(self.most - left);
            bar.set_message(line.to_owned());
        } else if self
            .shown
            .is_none_or(|shown| shown.elapsed() >= LINE_INTERVAL)
        {
            self.shown = Some(Instant::now());
            self.world.tell(line);
        }
    }

    /// Says something else above the bar.
    pub fn tell(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.world.tell(line)),
            None => self.world.tell(line),
        }
    }

    /// Takes the bar away, so that something else can be said.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(bytes_total: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes_total {
        Some(total) => (ProgressBar::new(total), BAR),
        None => (ProgressBar::new_spinner(), BAR_WITHOUT_END),
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_understood() {
        for template in [BAR, BAR_WITHOUT_END, BAR_OF_STEPS, BAR_OF_TIME] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
