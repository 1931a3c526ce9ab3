//! Looks for one order of a part's acts in which every answer is right. Decides only.
//!
//! Depth first, with the failed configurations remembered. Three observations keep it from trying orders
//! that differ in nothing:
//!
//! - A read that sees what it needs is placed at once. It changes nothing, so no order is lost by it.
//! - A single write of unknown outcome is tried only when an act under way needs what it would leave
//!   behind. In any order it can be moved to just before the act that looks at it, and one that
//!   nobody looks at can be left out.
//! - When a choice has failed, only acts are tried whose order matters for what has failed, directly or
//!   through others (a persistent set: Godefroid, Partial-Order Methods for the Verification of Concurrent
//!   Systems). Any other one can be placed later just as well.

use std::collections::HashSet;

use crate::testkit::linear::act::Act;
use crate::testkit::linear::act::Effect;
use crate::testkit::linear::act::NEVER;
use crate::testkit::linear::act::Need;
use crate::testkit::linear::board::Blocked;
use crate::testkit::linear::board::Board;
use crate::testkit::linear::board::Mark;
use crate::testkit::linear::part::Part;
use crate::types::Timestamp;

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is an order.
    Ordered,
    /// There is none.
    Stuck,
    /// The bound was reached first.
    GaveUp,
}

/// How long to search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) placements: u64,
    pub(super) wrong_turns: u64,
}

/// Where an order could not go on.
#[derive(Debug, Clone)]
pub(super) struct DeadEnd {
    /// The acts placed, first one first.
    pub(super) order: Vec<usize>,
    /// Every act that had to be one of the next, and what was against it.
    pub(super) blocked: Vec<Obstacle>,
}

/// What was against an act.
#[derive(Debug, Clone)]
pub(super) struct Obstacle {
    pub(super) number: usize,
    pub(super) blocked: Blocked,
    /// Those that still have to see what it would change.
    pub(super) readers: Vec<usize>,
}

/// A walk through the orders of one part.
pub(super) struct Search<'p> {
    part: &'p Part,
    board: Board<'p>,
    path: Vec<Placed>,
    failed: HashSet<u128>,
    /// How often an act was placed.
    pub(super) placements: u64,
    /// How often one with a choice was taken back.
    wrong_turns: u64,
    bound: Bound,
    /// The most that was placed at once of what happened, by the order of ends.
    furthest: usize,
    /// Where it could not go on; noted only if asked for.
    pub(super) dead_ends: Option<Vec<DeadEnd>>,
}

/// An act on the board, and how it got there.
struct Placed {
    number: usize,
    mark: Mark,
    /// None: without a choice.
    choice: Option<Choice>,
}

/// What has been tried at one configuration.
struct Choice {
    last: Candidate,
    /// What is worth trying after the first; found out when that has failed.
    related: Option<HashSet<usize>>,
}

/// What may be next. Ordered by what is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    hint: Timestamp,
    number: usize,
    /// How many keys a range delete of unknown outcome removes.
    cleared: u32,
}

impl<'p> Search<'p> {
    pub(super) fn new(part: &'p Part, bound: Bound) -> Search<'p> {
        Search {
            part,
            board: Board::new(part),
            path: Vec::new(),
            failed: HashSet::new(),
            placements: 0,
            wrong_turns: 0,
            bound,
            furthest: 0,
            dead_ends: None,
        }
    }

    /// Walks until it is known. Called once.
    pub(super) fn run(&mut self) -> Outcome {
        let mut tried = None;
        loop {
            if tried.is_none() {
                self.place_settled_reads();
                if self.board.is_complete() {
                    return Outcome::Ordered;
                }
            }
            if self.placements > self.bound.placements || self.wrong_turns > self.bound.wrong_turns
            {
                return Outcome::GaveUp;
            }
            let is_known = tried.is_none() && self.failed.contains(&self.board.fingerprint());
            if !is_known && self.place_next(tried.take()) {
                continue;
            }
            match self.take_back() {
                Some(choice) => tried = Some(choice),
                None => return Outcome::Stuck,
            }
        }
    }

    /// The act that was next to end where the search came furthest.
    pub(super) fn obstacle(&self) -> usize {
        self.part.returns.get(self.furthest).copied().unwrap_or(0)
    }

    /// Reads under way that see what they need. Placing one may let others begin.
    fn place_settled_reads(&mut self) {
        loop {
            let horizon = self.board.horizon();
            let began = self.board.required();
            let began = began.take_while(|number| self.part.acts[*number].began <= horizon);
            let reads = began.filter(|number| self.board.is_settled_read(*number));
            let reads: Vec<usize> = reads.collect();
            if reads.is_empty() {
                return;
            }
            for number in reads {
                let placed = self.place(number, 0);
                assert!(placed.is_ok(), "a read that is settled can be placed");
            }
        }
    }

    fn place(&mut self, number: usize, cleared: u32) -> Result<(), Blocked> {
        let mark = self.board.place(number, cleared)?;
        self.placements += 1;
        self.path.push(Placed {
            number,
            mark,
            choice: None,
        });
        Ok(())
    }

    /// Places the first candidate that has not been tried here; false when there is none.
    fn place_next(&mut self, tried: Option<Choice>) -> bool {
        let mut candidates = Candidates::of(self.part, &self.board);
        if let Some(tried) = &tried {
            let related = tried
                .related
                .as_ref()
                .expect("found out when the first has failed");
            candidates.retain(|next| *next > tried.last && related.contains(&next.number));
        }
        candidates.sort_unstable();
        let is_first = tried.is_none();
        let related = tried.and_then(|tried| tried.related);
        for next in candidates {
            // What cannot be placed says nothing about the others.
            if self.place(next.number, next.cleared).is_ok() {
                let placed = self.path.last_mut().expect("it was placed just now");
                placed.choice = Some(Choice {
                    last: next,
                    related,
                });
                return true;
            }
        }
        if is_first {
            self.note_dead_end();
        }
        self.failed.insert(self.board.fingerprint());
        false
    }

    /// Goes back to the last configuration where there was a choice.
    fn take_back(&mut self) -> Option<Choice> {
        while let Some(placed) = self.path.pop() {
            self.board.take_back(placed.number, placed.mark);
            if let Some(mut choice) = placed.choice {
                self.wrong_turns += 1;
                if choice.related.is_none() {
                    choice.related = Some(related(self.part, &self.board, placed.number));
                }
                return Some(choice);
            }
        }
        None
    }

    fn note_dead_end(&mut self) {
        self.furthest = self.furthest.max(self.board.returned());
        let Some(dead_ends) = &mut self.dead_ends else {
            return;
        };
        let horizon = self.board.horizon();
        let began = self.board.required();
        let began = began.take_while(|number| self.part.acts[*number].began <= horizon);
        let began: Vec<usize> = began.collect();
        let mut blocked = Vec::new();
        for number in began {
            match self.board.place(number, 0) {
                Ok(mark) => self.board.take_back(number, mark),
                Err(reason) => blocked.push(Obstacle {
                    number,
                    readers: match reason {
                        Blocked::Overwrites { key, .. } => self.board.readers(key, number),
                        Blocked::Unmet { .. } | Blocked::Miscounted { .. } => Vec::new(),
                    },
                    blocked: reason,
                }),
            }
        }
        dead_ends.push(DeadEnd {
            order: self.path.iter().map(|placed| placed.number).collect(),
            blocked,
        });
    }
}

/// The acts among which one is first in any order from here on, if there is an order: the start, and
/// whatever may come before one of them and does not leave it as it is.
fn related(part: &Part, board: &Board<'_>, start: usize) -> HashSet<usize> {
    let first_return = board.first_return();
    let mut members = HashSet::from([start]);
    let mut open = vec![start];
    while let Some(member) = open.pop() {
        let ended = part.acts[member].ended;
        let mut add = |number: usize| {
            if members.insert(number) {
                open.push(number);
            }
        };
        if ended == NEVER {
            add(first_return);
        }
        let (mut later, mut now) = (false, Vec::new());
        for number in board
            .required()
            .take_while(|n| part.acts[*n].began <= ended)
        {
            let may_matter = part.conflict(member, number) && !part.sees(number, member);
            if part.acts[number].began <= board.horizon() {
                now.extend(may_matter.then_some(number));
            } else {
                later |= may_matter;
                // One of those is enough to know: they all wait for the same act.
                if later || members.contains(&first_return) {
                    break;
                }
            }
        }
        let optional = board.optional();
        for number in optional.take_while(|n| part.acts[*n].began <= ended) {
            if part.conflict(member, number) {
                if part.acts[number].began <= board.horizon() {
                    now.push(number);
                } else {
                    later = true;
                }
            }
        }
        let mut add = |number: usize| {
            if members.insert(number) {
                open.push(number);
            }
        };
        now.into_iter().for_each(&mut add);
        if later {
            add(first_return);
        }
    }
    members
}

/// What may be next at one configuration.
struct Candidates<'b, 'p> {
    part: &'p Part,
    board: &'b Board<'p>,
    found: Vec<Candidate>,
    /// Optional acts that have been looked at.
    seen: Vec<usize>,
    /// Optional acts on several keys that would leave behind what an act under way needs, and how soon.
    wanted: Vec<(usize, Timestamp)>,
}

impl<'p> Candidates<'_, 'p> {
    fn of(part: &'p Part, board: &Board<'p>) -> Vec<Candidate> {
        let mut candidates = Candidates {
            part,
            board,
            found: Vec::new(),
            seen: Vec::new(),
            wanted: Vec::new(),
        };
        let horizon = board.horizon();
        let began = |number: &usize| part.acts[*number].began <= horizon;
        for number in board.required().take_while(began) {
            candidates.add_required(number);
        }
        for number in part.optional_wide.iter().copied().take_while(began) {
            if !board.is_placed(number) {
                candidates.add_wide(number);
            }
        }
        candidates.found
    }

    fn add_required(&mut self, number: usize) {
        let act = &self.part.acts[number];
        if self.board.fits(number) {
            self.found.push(Candidate {
                hint: act.hint,
                number,
                cleared: 0,
            });
        }
        if !self.has_optional() {
            return;
        }
        self.add_wanted(act, act.hint);
        if let Some(count) = act.count.as_ref().filter(|_| !self.board.counts(act)) {
            for key in &count.keys {
                self.add_optional(*key, None, act.hint);
            }
        }
    }

    fn has_optional(&self) -> bool {
        self.board.optional().next().is_some()
    }

    fn add_wide(&mut self, number: usize) {
        let act = &self.part.acts[number];
        self.add_wanted(act, Timestamp::MAX);
        if !self.board.fits(number) {
            return;
        }
        let cleared = act.clears.as_ref().map_or(0..=0, |clears| {
            1..=self.board.there(&clears.keys).min(clears.limit)
        });
        let wanted = self.wanted.iter().filter(|(wanted, _)| *wanted == number);
        let hint = wanted.map(|(_, hint)| *hint).min().unwrap_or(act.hint);
        self.found.extend(cleared.map(|cleared| Candidate {
            hint: if act.hint == Timestamp::MAX {
                hint
            } else {
                act.hint
            },
            number,
            cleared,
        }));
    }

    /// Writes of unknown outcome that would leave behind what the act needs.
    fn add_wanted(&mut self, act: &'p Act, hint: Timestamp) {
        let board = self.board;
        for (key, need) in board.unsettled(act) {
            let version = need.slot().map(|slot| self.part.names.slots[slot as usize]);
            let hint = version.unwrap_or(hint);
            self.add_optional(key, Some(need), hint);
            for number in &self.part.optional_wide {
                let act = &self.part.acts[*number];
                let mut effects = act.effects.iter();
                let clears = need == Need::Absent
                    && act
                        .clears
                        .as_ref()
                        .is_some_and(|clears| clears.keys.contains(&key));
                if clears
                    || effects.any(|(at, effect)| *at == key && leaves(self.part, *effect, need))
                {
                    self.wanted.push((*number, hint));
                }
            }
        }
    }

    fn add_optional(&mut self, key: usize, need: Option<Need>, hint: Timestamp) {
        let part = self.part;
        for number in part.optional_on[key].iter().copied() {
            let act = &part.acts[number];
            if act.began > self.board.horizon() {
                return;
            }
            let leaves = need.is_none_or(|need| leaves(part, act.effects[0].1, need));
            if !leaves || self.board.is_placed(number) || self.seen.contains(&number) {
                continue;
            }
            self.seen.push(number);
            if self.board.fits(number) {
                self.found.push(Candidate {
                    // Where its version was seen says more than who could use it.
                    hint: if act.hint == Timestamp::MAX {
                        hint
                    } else {
                        act.hint
                    },
                    number,
                    cleared: 0,
                });
            }
            self.add_wanted(act, hint);
        }
    }
}

/// Whether a key meets the need after this effect of unknown outcome.
fn leaves(part: &Part, effect: Effect, need: Need) -> bool {
    match effect {
        Effect::Delete => need == Need::Absent,
        Effect::Put { value, .. } => {
            need.allows_value(value) && need.slot().is_none_or(|slot| part.is_orphan(slot))
        }
    }
}
