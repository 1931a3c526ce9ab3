//! The timeline of a run as a picture: faults, answers and their latency, gaps, leaders. Decides only.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::testkit::chaos::outcome::Findings;
use crate::testkit::chaos::outcome::Outcome;
use crate::testkit::chaos::report::escape;
use crate::testkit::chaos::report::seconds;
use crate::testkit::chaos::report::series::Series;
use crate::testkit::observed::Moment;

/// Room for the names on the left.
const LEFT: f64 = 64.0;
/// Room for the second axis.
const RIGHT: f64 = 56.0;
const WIDTH_MIN: f64 = 1_180.0;
const WIDTH_MAX: f64 = 24_000.0;
/// A long run is drawn wider and scrolled.
const WIDTH_PER_SECOND: f64 = 9.5;
const FAULT_ROW: f64 = 19.0;
const FAULT_ROWS: usize = 4;
const ANSWERS_HEIGHT: f64 = 170.0;
const LATENCY_HEIGHT: f64 = 80.0;
const BAND: f64 = 15.0;
const SPACE: f64 = 26.0;
/// A gap that is shorter is not marked: one slice without a write is no news.
const GAP_SHOWN_US: u64 = 400_000;
/// About as many letters fit in so much room.
const LETTER: f64 = 6.1;

/// Draws; `y` grows as parts are added.
struct Picture {
    body: String,
    width: f64,
    run_us: f64,
    y: f64,
}

/// The picture, an `svg` element.
pub(super) fn timeline(findings: &Findings, outcome: &Outcome) -> String {
    let run_us = findings.ended.0.max(1);
    let width = (run_us as f64 / 1e6 * WIDTH_PER_SECOND).clamp(WIDTH_MIN, WIDTH_MAX);
    let mut picture = Picture {
        body: String::new(),
        width,
        run_us: run_us as f64,
        y: 4.0,
    };
    let series = Series::of(&findings.history, run_us);
    picture.faults(findings);
    let top = picture.y;
    picture.answers(&series);
    picture.latency(&series);
    picture.shades(findings, outcome, top);
    picture.changes(findings);
    picture.leaders(findings);
    picture.axis();
    let Picture { body, width, y, .. } = picture;
    format!(
        "<svg viewBox=\"0 0 {width:.0} {y:.0}\" width=\"{width:.0}\" height=\"{y:.0}\" role=\"img\" \
         aria-label=\"Timeline of the run\">{body}</svg>"
    )
}

impl Picture {
    fn x(&self, moment: Moment) -> f64 {
        let part = (moment.0 as f64 / self.run_us).min(1.0);
        LEFT + part * (self.width - LEFT - RIGHT)
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.body.write_fmt(element);
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escape(text);
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn bar(&mut self, class: &str, style: &str, place: (f64, f64), size: (f64, f64), title: &str) {
        let ((x, y), (width, height)) = (place, size);
        let (width, title) = (width.max(1.0), escape(title));
        self.put(format_args!(
            "<rect class=\"{class}\"{style} x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\" rx=\"2\"><title>{title}</title></rect>"
        ));
    }

    /// Bars with their names beside them, in as many rows as the names need.
    fn faults(&mut self, findings: &Findings) {
        self.text(0.0, self.y + 13.0, "strong", "start", "faults");
        let mut taken = [0.0_f64; FAULT_ROWS];
        for fault in &findings.faults {
            let (from, to) = (self.x(fault.began), self.x(fault.ended));
            let name = fault.kind.name();
            let needed = from + (to - from).max(6.0) + 4.0 + name.len() as f64 * LETTER + 6.0;
            // Where there is no room, the one with the most.
            let free = taken.iter().position(|end| *end <= from);
            let most = || (0..FAULT_ROWS).min_by(|a, b| taken[*a].total_cmp(&taken[*b]));
            let row = free.or_else(most).unwrap_or_default();
            taken[row] = needed;
            let y = self.y + row as f64 * FAULT_ROW;
            let lasted = seconds(fault.ended.0 - fault.began.0);
            let title = format!(
                "{name}: {}, at {}, for {lasted}",
                fault.what,
                seconds(fault.began.0)
            );
            self.bar("fault", "", (from, y + 3.0), (to - from, 12.0), &title);
            self.text((to).max(from + 6.0) + 4.0, y + 13.0, "label", "start", name);
        }
        self.y += FAULT_ROWS as f64 * FAULT_ROW + 8.0;
    }

    fn answers(&mut self, series: &Series) {
        let (top, bottom) = (self.y, self.y + ANSWERS_HEIGHT);
        let per_second = 1e6 / series.slice_us as f64;
        let most = round_up(series.most_answered() as f64 * per_second);
        for part in 0..=2 {
            let value = most * f64::from(part) / 2.0;
            let y = bottom - ANSWERS_HEIGHT * f64::from(part) / 2.0;
            self.grid(y, &format!("{value:.0}/s"));
        }
        let height = |count: u64| bottom - ANSWERS_HEIGHT * (count as f64 * per_second / most);
        let all = series.slices.iter().map(|slice| height(slice.answered));
        let all = self.points(series, 0, all.collect());
        let writes = series.slices.iter().map(|slice| height(slice.acknowledged));
        let writes = self.points(series, 0, writes.collect());
        let right = self.width - RIGHT;
        for (class, points) in [("all", all), ("writes", writes)] {
            self.put(format_args!(
                "<polygon class=\"{class}\" points=\"{LEFT:.0},{bottom:.0} {points} {right:.0},{bottom:.0}\"/>"
            ));
        }
        self.text(0.0, top + 22.0, "strong", "start", "answers");
        self.y = bottom + SPACE;
    }

    fn latency(&mut self, series: &Series) {
        let (top, bottom) = (self.y, self.y + LATENCY_HEIGHT);
        // From a tenth of a millisecond on, ten times as much for each step.
        let steps = (series.worst_p99_us() as f64 / 100.0)
            .log10()
            .ceil()
            .max(1.0);
        let height = |us: u64| {
            let part = (us.max(100) as f64 / 100.0).log10() / steps;
            bottom - LATENCY_HEIGHT * part.min(1.0)
        };
        let mut step = 0.0;
        while step <= steps {
            let us = 100.0 * 10_f64.powf(step);
            let label = if us < 1e6 {
                format!("{} ms", us / 1e3)
            } else {
                format!("{} s", us / 1e6)
            };
            self.grid(bottom - LATENCY_HEIGHT * step / steps, &label);
            step += 1.0;
        }
        // Where nothing was answered there is no line.
        let mut place = 0;
        for stretch in series
            .slices
            .chunk_by(|a, b| (a.p99_us == 0) == (b.p99_us == 0))
        {
            let first = place;
            place += stretch.len();
            if stretch[0].p99_us == 0 {
                continue;
            }
            let heights = stretch.iter().map(|slice| height(slice.p99_us)).collect();
            let points = self.points(series, first, heights);
            self.put(format_args!(
                "<polyline class=\"late\" points=\"{points}\"/>"
            ));
        }
        self.text(0.0, top + 22.0, "strong", "start", "p99");
        self.y = bottom + 14.0;
    }

    /// Each slice from the `first` on, in its middle.
    fn points(&self, series: &Series, first: usize, heights: Vec<f64>) -> String {
        let points = heights.into_iter().enumerate().map(|(place, y)| {
            let middle = (first + place) as u64 * series.slice_us + series.slice_us / 2;
            format!("{:.1},{y:.1}", self.x(Moment(middle)))
        });
        points.collect::<Vec<_>>().join(" ")
    }

    fn grid(&mut self, y: f64, label: &str) {
        let right = self.width - RIGHT;
        self.put(format_args!(
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\"/>"
        ));
        self.text(right + 6.0, y + 4.0, "", "start", label);
    }

    /// Faults reach down over what they did; times without a write are marked.
    fn shades(&mut self, findings: &Findings, outcome: &Outcome, top: f64) {
        let height = self.y - top;
        for fault in &findings.faults {
            let (from, to) = (self.x(fault.began), self.x(fault.ended));
            self.bar("shade", "", (from, top), (to - from, height), &fault.what);
        }
        let mut shown: Option<(Moment, Moment)> = None;
        for effect in &outcome.effects {
            let gap = (effect.from, effect.to);
            // Two faults may share a gap.
            if effect.gap_us() < GAP_SHOWN_US || shown == Some(gap) {
                continue;
            }
            shown = Some(gap);
            let (from, to) = (self.x(effect.from), self.x(effect.to));
            let said = format!("no write for {}", seconds(effect.gap_us()));
            self.bar("gap", "", (from, top), (to - from, height), &said);
            let middle = (from + to) / 2.0;
            let label = seconds(effect.gap_us());
            self.text(middle, top + 11.0, "label strong", "middle", &label);
        }
    }

    fn changes(&mut self, findings: &Findings) {
        if findings.changes.is_empty() {
            return;
        }
        self.text(0.0, self.y + 11.0, "strong", "start", "orders");
        for change in &findings.changes {
            let (x, y) = (self.x(change.at), self.y + 7.0);
            let class = match change.refused {
                Some(_) => "change refused",
                None => "change",
            };
            let refused = change.refused.as_deref();
            let why = refused.map_or_else(String::new, |why| format!(" — refused: {why}"));
            let title = escape(&format!("{} at {}{why}", change.what, seconds(change.at.0)));
            self.put(format_args!(
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{title}</title></circle>"
            ));
        }
        self.y += 22.0;
    }

    fn leaders(&mut self, findings: &Findings) {
        let mut shards: BTreeMap<&str, Vec<(Moment, Option<usize>)>> = BTreeMap::new();
        for led in &findings.leaders {
            let bands = shards.entry(&led.shard).or_default();
            bands.push((led.at, led.node));
        }
        let mut shards: Vec<_> = shards.into_iter().collect();
        // s2 before s10.
        shards.sort_by_key(|(shard, _)| (shard.len(), *shard));
        if !shards.is_empty() {
            self.text(0.0, self.y + 11.0, "strong", "start", "leaders");
            self.y += BAND;
        }
        for (shard, bands) in shards {
            self.text(LEFT - 6.0, self.y + 11.0, "", "end", shard);
            let ends = bands.iter().skip(1).map(|(at, _)| *at);
            let ends: Vec<Moment> = ends.chain([findings.ended]).collect();
            for ((at, node), end) in bands.iter().zip(ends) {
                let (from, to) = (self.x(*at), self.x(end));
                let (class, style) = match node {
                    Some(node) => ("", format!(" style=\"fill:var(--n{})\"", node % 9)),
                    None => ("nobody", String::new()),
                };
                let named = node.and_then(|node| findings.nodes.get(node));
                let who = named.map_or("nobody known", String::as_str);
                let title = format!("{shard} led by {who} from {}", seconds(at.0));
                let (place, size) = ((from, self.y + 1.0), (to - from, BAND - 3.0));
                self.bar(class, &style, place, size, &title);
            }
            self.y += BAND;
        }
        self.y += 6.0;
    }

    fn axis(&mut self) {
        let seconds_in_all = self.run_us / 1e6;
        let room = (self.width - LEFT - RIGHT) / 70.0;
        let step = round_up(seconds_in_all / room).max(1.0);
        let mut second = 0.0;
        while second <= seconds_in_all {
            let x = self.x(Moment((second * 1e6) as u64));
            self.text(x, self.y + 12.0, "", "middle", &format!("{second:.0} s"));
            second += step;
        }
        self.y += 20.0;
    }
}

/// The next of 1, 2, 5, 10, 20, 50, ...
fn round_up(value: f64) -> f64 {
    let scale = 10_f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let fitting = steps.into_iter().find(|step| step * scale >= value);
    fitting.unwrap_or(10.0) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let rounded = [0.7, 1.0, 3.0, 42.0, 180.0, 999.0].map(round_up);
        assert_eq!(rounded, [1.0, 1.0, 5.0, 50.0, 200.0, 1_000.0]);
    }
}
