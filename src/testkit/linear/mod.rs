//! Whether there is an order of all requests in which every answer is right. Decides only.
//!
//! # What is judged
//!
//! A history is *linearizable* if its requests can be put into one order in which each request stands
//! somewhere between its begin and its end, and each answer is what a single map of keys to values with
//! versions would have said there (Herlihy and Wing, Linearizability: A Correctness Condition for Concurrent
//! Objects). A write without a final answer may stand anywhere after its begin, also after its client
//! stopped waiting, or nowhere. A write that was refused stands nowhere. A condition that failed is a read:
//! the conditions before it held, this one did not, and the version was the one told.
//!
//! The answers carry versions, and a version is part of what a key holds: a read returns it, a condition
//! compares with it, and the one that a write was told belongs to that write. But versions are no evidence
//! for the order. They say what to try first, so that a right history is ordered nearly without a wrong
//! turn; a wrong version can only make a wrong history look as wrong as it is. That versions rise along a
//! key is checked apart ([`Violation::complaints`]). A write of unknown outcome has whichever version is
//! seen later, the same for all its keys, but none that another write was told.
//!
//! Workloads of counters, sets and lists that are appended to need nothing of their own: they are reads and
//! writes with conditions, and an element that is lost or there twice is a value that no order explains. So
//! is a write that was applied twice: its value comes back after another one has replaced it.
//!
//! # How
//!
//! Linearizability is local (the same paper): a history is right if its parts about single keys are, each
//! by itself (Horn and Kroening, Faster Linearizability Checking via P-Compositionality). Writes of several
//! keys, range deletes and scans are one step each and bind their keys together; so a history falls into
//! as many parts as there are groups of keys that nothing binds. `compile` makes these parts.
//!
//! A part is searched by Wing and Gong's method (Testing and Verifying Concurrent Objects): place any
//! request that may be first, go on, go back. Configurations that failed are remembered, as Lowe does
//! (Testing for Linearizability): which requests are placed, and what the keys hold. What nobody will look
//! at again does not count as held. So a moment at which nothing is under way needs no rule of its own:
//! whatever came before, the configuration there is the same one. `search` and `board` say what keeps the
//! number of configurations small.
//!
//! A part that is not ordered nearly at once is first tried in pieces: the requests around the place where
//! the search came to nothing, then each key alone. A part has no order if a piece of it has none, and that
//! is found faster and read more easily.
//!
//! # What is reported
//!
//! The smallest part found that has no order (`shrink` says what may be left out and why that is fair), as a
//! timeline, and what stood against going on where the search came furthest. A search has a bound; where it
//! is reached the verdict is neither, which is never called right.
//!
//! Reads of followers are no part of the order. [`check_followers`] says what they must keep to, and its
//! complaints are in the verdict.

use std::fmt;

use crate::testkit::linear::part::Part;
use crate::testkit::linear::search::Bound;
use crate::testkit::linear::search::Outcome;
use crate::testkit::linear::search::Search;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Observed;
use crate::types::Key;

mod act;
mod part;
mod links;
mod board;
mod search;
mod groups;
mod compile;
mod show;
mod evidence;
mod follower;
mod shrink;
pub mod sample;
#[cfg(test)]
mod tests;

pub use follower::check_followers;

/// How long to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often the search may place a request, for each part of the history.
    pub placements_max: u64,
}

impl Default for Options {
    /// Seconds to a minute for a part that needs all of it.
    fn default() -> Options {
        Options {
            placements_max: 30_000_000,
        }
    }
}

impl Options {
    fn bound(&self) -> Bound {
        Bound {
            placements: self.placements_max,
            wrong_turns: u64::MAX,
        }
    }
}

/// What a history says about the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every answer is right in some order.
    Linearizable(Counts),
    /// It is not.
    Violated(Violation),
    /// Not known: the search reached its bound. Nothing else was found to be wrong.
    Inconclusive {
        /// How much was judged.
        counts: Counts,
        /// The first key of each part for which it is not known.
        keys: Vec<Key>,
    },
}

/// How much was judged, and how much work that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests.
    pub requests: usize,
    /// Requests without an answer.
    pub unknown: usize,
    /// Parts with no key in common.
    pub parts: usize,
    /// How often a request was placed.
    pub placements: u64,
}

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// How much was judged.
    pub counts: Counts,
    /// What is wrong with the answers whatever the order.
    pub complaints: Vec<String>,
    /// What cannot be ordered, at most [`UNORDERED_MAX`] of them.
    pub unordered: Vec<Unordered>,
    /// How many parts cannot be ordered.
    pub unordered_parts: usize,
}

/// Parts that are made small and shown.
pub const UNORDERED_MAX: usize = 3;

/// Complaints that are shown.
const COMPLAINTS_MAX: usize = 20;

/// A small part of a history that has no order, and with it the whole has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unordered {
    /// The requests, by their begin. Each is necessary.
    pub requests: Vec<Observed>,
    /// The same for people, one line each. Of a scan, only what matters.
    pub lines: Vec<String>,
    /// What stood against going on in the longest orders tried.
    pub why: Vec<String>,
}

/// Judges a history, in any order.
pub fn check(history: &[Observed], options: &Options) -> Verdict {
    let mut complaints = Vec::new();
    let history = evidence::one_per_id(history, &mut complaints);
    evidence::check(&history, &mut complaints);
    complaints.extend(check_followers(&history));
    let mut counts = Counts {
        requests: history.len(),
        unknown: history
            .iter()
            .filter(|o| o.answer == Answer::Unknown)
            .count(),
        ..Counts::default()
    };
    let (mut stuck, mut gave_up) = (Vec::new(), Vec::new());
    for part in compile::parts(&history) {
        counts.parts += 1;
        match judge(part, options, &mut counts) {
            Judged::Ordered => {}
            Judged::Stuck(part) => stuck.push(part),
            Judged::GaveUp(part) => gave_up.push(part.names.keys[0].clone()),
        }
    }
    if !stuck.is_empty() || !complaints.is_empty() {
        let shown = stuck.iter().take(UNORDERED_MAX);
        return Verdict::Violated(Violation {
            counts,
            complaints,
            unordered: shown.map(|part| explain(part, &history, options)).collect(),
            unordered_parts: stuck.len(),
        });
    }
    match gave_up.is_empty() {
        true => Verdict::Linearizable(counts),
        false => Verdict::Inconclusive {
            counts,
            keys: gave_up,
        },
    }
}

enum Judged {
    Ordered,
    /// This part, or one key of it.
    Stuck(Part),
    GaveUp(Part),
}

/// Wrong turns after which a part is first tried in pieces.
const WRONG_TURNS_MAX: u64 = 1_000;

/// Requests on either side of where a search came to nothing that are tried alone: so many first, then ever
/// more, up to this many.
const WINDOW_MIN: usize = 128;
const WINDOW_MAX: usize = 8_192;

fn judge(part: Part, options: &Options, counts: &mut Counts) -> Judged {
    let mut run = |part: &Part, bound: Bound| {
        let mut search = Search::new(part, bound);
        let outcome = search.run();
        counts.placements += search.placements;
        (outcome, search.obstacle())
    };
    let all = options.bound();
    let few = Bound {
        wrong_turns: WRONG_TURNS_MAX,
        ..all
    };
    let (outcome, obstacle) = run(&part, few);
    match outcome {
        Outcome::Ordered => return Judged::Ordered,
        Outcome::Stuck => return Judged::Stuck(part),
        Outcome::GaveUp => {}
    }
    let mut size = WINDOW_MIN;
    while size <= WINDOW_MAX.min(part.acts.len()) {
        let window = shrink::window(&part, obstacle, size);
        if run(&window, few).0 == Outcome::Stuck {
            return Judged::Stuck(window);
        }
        size *= 4;
    }
    for key in 0..part.names.keys.len() {
        let alone = part.of_key(key);
        if run(&alone, few).0 == Outcome::Stuck {
            return Judged::Stuck(alone);
        }
    }
    match run(&part, all).0 {
        Outcome::Ordered => Judged::Ordered,
        Outcome::Stuck => Judged::Stuck(part),
        Outcome::GaveUp => Judged::GaveUp(part),
    }
}

/// Orders whose end is told.
const DEAD_ENDS_MAX: usize = 3;

fn explain(part: &Part, history: &[Observed], options: &Options) -> Unordered {
    let part = shrink::shrink(part, options.bound());
    let mut search = Search::new(&part, options.bound());
    search.dead_ends = Some(Vec::new());
    let outcome = search.run();
    assert!(outcome == Outcome::Stuck, "what was shrunk has no order");
    let mut dead_ends = search.dead_ends.unwrap_or_default();
    dead_ends.sort_by_key(|dead_end| std::cmp::Reverse(dead_end.order.len()));
    dead_ends.truncate(DEAD_ENDS_MAX);
    let acts = part.acts.iter();
    Unordered {
        requests: acts
            .clone()
            .map(|act| history[act.source].clone())
            .collect(),
        lines: acts
            .map(|act| show::line_of(&history[act.source], act, &part))
            .collect(),
        why: dead_ends
            .iter()
            .map(|dead_end| show::dead_end(dead_end, &part, history))
            .collect(),
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            requests,
            unknown,
            parts,
            placements,
        } = self;
        write!(
            f,
            "{requests} requests, {unknown} of them unknown, in {parts} parts, {placements} placements"
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Linearizable(counts) => write!(f, "linearizable: {counts}"),
            Verdict::Violated(violation) => violation.fmt(f),
            Verdict::Inconclusive { counts, keys } => {
                let keys: Vec<String> = keys.iter().map(crate::testkit::observed::show).collect();
                write!(f, "not known for {}: {counts}", keys.join(", "))
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "not linearizable: {}", self.counts)?;
        for complaint in self.complaints.iter().take(COMPLAINTS_MAX) {
            writeln!(f, "{complaint}")?;
        }
        if self.complaints.len() > COMPLAINTS_MAX {
            writeln!(f, "and {} more", self.complaints.len() - COMPLAINTS_MAX)?;
        }
        for unordered in &self.unordered {
            writeln!(f, "no order of these requests explains their answers:")?;
            for line in &unordered.lines {
                writeln!(f, "    {line}")?;
            }
            for why in &unordered.why {
                writeln!(f, "  {why}")?;
            }
        }
        if self.unordered_parts > self.unordered.len() {
            let more = self.unordered_parts - self.unordered.len();
            writeln!(f, "and {more} further groups of keys without an order")?;
        }
        Ok(())
    }
}
