//! What a run has shown: everything that was seen, and the verdict on it. Decides only.

use std::time::Duration;

use crate::testkit::chaos::gaps;
use crate::testkit::chaos::gaps::Effect;
use crate::testkit::chaos::gaps::Happened;
use crate::testkit::chaos::gaps::OfKind;
use crate::testkit::mix::layout::Layout;
use crate::testkit::mix::lost;
use crate::testkit::mix::lost::Lost;
use crate::testkit::observed::Answer;
use crate::testkit::observed::Asked;
use crate::testkit::observed::Moment;
use crate::testkit::observed::Observed;
use crate::types::request::WriteOutcome;

/// A run with fewer acknowledged writes than this says nothing.
const WRITES_MIN: usize = 100;
/// And so does one with fewer in a second.
const WRITES_PER_SECOND_MIN: f64 = 5.0;

/// Who led a shard from a moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// From when.
    pub at: Moment,
    /// Which shard, by name.
    pub shard: String,
    /// Which node; `None`: none that anybody knew.
    pub node: Option<usize>,
}

/// What was asked of the cluster itself, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// When it was asked.
    pub at: Moment,
    /// What, for people.
    pub what: String,
    /// Why it was not done; `None`: it was.
    pub refused: Option<String>,
}

/// Everything that was seen in a run.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The schedule follows from it.
    pub seed: u64,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// How long faults were to go on.
    pub duration: Duration,
    /// What every key begins with.
    pub prefix: String,
    /// What clients asked and were told, in order.
    pub history: Vec<Observed>,
    /// What was read when all was well again.
    pub finals: Vec<Observed>,
    /// The faults, in order.
    pub faults: Vec<Happened>,
    /// What was asked of the cluster itself, in order.
    pub changes: Vec<Changed>,
    /// Who led what, in order.
    pub leaders: Vec<Led>,
    /// When the last fault was over and everything was put right.
    pub healed: Moment,
    /// When the clients were stopped.
    pub ended: Moment,
    /// What went wrong besides what clients saw: nodes that ended by themselves, replicas that did not
    /// come back, or that differ. Each is a sentence.
    pub complaints: Vec<String>,
    /// Whether somebody stopped the run early.
    pub interrupted: bool,
    /// How late the run itself was woken at worst: on a machine that has no time for it, nodes seem dead
    /// to each other.
    pub late: Duration,
}

/// Whether one order explains all that clients were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// There is one.
    Linearizable,
    /// There is none: the smallest part that shows it, for people, line by line.
    Broken(Vec<String>),
    /// It was not found out, and why.
    Undecided(String),
}

/// What is said of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was as promised.
    Good,
    /// A promise was broken.
    Bad,
    /// Nothing was broken, but too little was tried to say more.
    SaysNothing,
}

/// How many requests ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All.
    pub requests: usize,
    /// Reads and scans with an answer.
    pub reads: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes whose condition did not hold.
    pub conditions_failed: usize,
    /// Writes of which nobody knows whether they happened.
    pub unknown: usize,
    /// Writes that were refused.
    pub refused: usize,
    /// Reads without an answer.
    pub reads_failed: usize,
}

/// The verdict and its grounds.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What is said of the run.
    pub verdict: Verdict,
    /// Why it is not good; empty when it is.
    pub reasons: Vec<String>,
    /// Whether one order explains everything.
    pub order: Order,
    /// Acknowledged writes that are missing.
    pub lost: Lost,
    /// How many requests ended how.
    pub counts: Counts,
    /// What each fault did, in order.
    pub effects: Vec<Effect>,
    /// The same by kind.
    pub kinds: Vec<OfKind>,
}

/// Judges a run, once it is known whether an order explains it.
pub fn judge(findings: &Findings, order: Order) -> Outcome {
    let counts = Counts::of(&findings.history);
    let layout = Layout::new(&findings.prefix);
    let lost = lost::lost(&findings.history, &findings.finals, &layout);
    let acknowledged = gaps::acknowledgements(&findings.history);
    let effects = gaps::effects(&findings.faults, &acknowledged, findings.ended);
    let kinds = gaps::by_kind(&findings.faults, &effects);
    let broken = broken(findings, &order, &lost);
    let doubtful = doubtful(findings, &order, &counts);
    let verdict = match (broken.is_empty(), doubtful.is_empty()) {
        (false, _) => Verdict::Bad,
        (true, false) => Verdict::SaysNothing,
        (true, true) => Verdict::Good,
    };
    Outcome {
        verdict,
        reasons: broken.into_iter().chain(doubtful).collect(),
        order,
        lost,
        counts,
        effects,
        kinds,
    }
}

/// Which promises were broken.
fn broken(findings: &Findings, order: &Order, lost: &Lost) -> Vec<String> {
    let mut broken = Vec::new();
    if let Order::Broken(_) = order {
        broken.push("no order explains what clients were told".to_owned());
    }
    if lost.writes > 0 {
        broken.push(format!("{} acknowledged writes are lost", lost.writes));
    }
    broken.extend(findings.complaints.iter().cloned());
    let unread = findings
        .finals
        .iter()
        .filter(|read| !matches!(read.answer, Answer::Found(..)))
        .count();
    if unread > 0 {
        broken.push(format!("{unread} keys could not be read at the end"));
    }
    broken
}

/// Why the run says less than it should.
fn doubtful(findings: &Findings, order: &Order, counts: &Counts) -> Vec<String> {
    let mut doubtful = Vec::new();
    if let Order::Undecided(why) = order {
        doubtful.push(format!(
            "whether an order explains everything is open: {why}"
        ));
    }
    if findings.faults.is_empty() {
        doubtful.push("there was no fault".to_owned());
    }
    let seconds = findings.ended.0 as f64 / 1_000_000.0;
    let rate = counts.acknowledged as f64 / seconds.max(0.001);
    if counts.acknowledged < WRITES_MIN || rate < WRITES_PER_SECOND_MIN {
        let count = counts.acknowledged;
        doubtful.push(format!(
            "{count} acknowledged writes in {seconds:.0} s are too few to mean something"
        ));
    }
    if counts.reads == 0 {
        doubtful.push("nothing was read".to_owned());
    }
    doubtful
}

impl Counts {
    /// Of a history.
    pub fn of(history: &[Observed]) -> Counts {
        let mut counts = Counts::default();
        for observed in history {
            counts.requests += 1;
            let is_write = matches!(observed.asked, Asked::Write(_));
            let counted = match &observed.answer {
                Answer::Found(..) | Answer::Scanned { .. } => &mut counts.reads,
                Answer::Wrote(WriteOutcome::Done { .. }, _) => &mut counts.acknowledged,
                Answer::Wrote(..) => &mut counts.conditions_failed,
                Answer::Unknown if is_write => &mut counts.unknown,
                Answer::Unknown => &mut counts.reads_failed,
                Answer::Refused if is_write => &mut counts.refused,
                Answer::Refused => &mut counts.reads_failed,
            };
            *counted += 1;
        }
        counts
    }
}

impl Verdict {
    /// In one sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Verdict::Good => "Linearizable, and no acknowledged write is lost",
            Verdict::Bad => "A promise was broken",
            Verdict::SaysNothing => "The run says nothing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::chaos::sample::findings;
    use crate::testkit::mix::model::Lie;

    #[tokio::test(start_paused = true)]
    async fn a_run_without_a_fault_in_the_store_is_good() {
        let outcome = judge(&findings(Lie::None, 1).await, Order::Linearizable);
        assert_eq!(outcome.reasons, Vec::<String>::new());
        assert_eq!(outcome.verdict, Verdict::Good);
        assert_eq!((outcome.lost.writes, outcome.kinds.len()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_broken_promise_is_bad() {
        let findings = findings(Lie::None, 1).await;
        let broken = Order::Broken(vec!["c1 read the past".to_owned()]);
        assert_eq!(judge(&findings, broken).verdict, Verdict::Bad);
        let mut ended = findings.clone();
        ended.complaints.push("n2 ended by itself".to_owned());
        assert_eq!(judge(&ended, Order::Linearizable).verdict, Verdict::Bad);
        let mut unread = findings;
        unread.finals[0].answer = Answer::Unknown;
        assert_eq!(judge(&unread, Order::Linearizable).verdict, Verdict::Bad);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_write_is_bad_though_an_order_was_found() {
        let findings = findings(Lie::LosesWrites, 3).await;
        let outcome = judge(&findings, Order::Linearizable);
        assert_eq!(outcome.verdict, Verdict::Bad);
        assert!(outcome.reasons[0].contains("acknowledged writes are lost"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_was_not_busy_is_no_pass() {
        let findings = findings(Lie::None, 1).await;
        let mut few = findings.clone();
        few.history.truncate(100);
        let outcome = judge(&few, Order::Linearizable);
        // What is there at the end was then written by nobody, which is as bad as it looks.
        assert_eq!(outcome.verdict, Verdict::Bad);
        few.finals.clear();
        let outcome = judge(&few, Order::Linearizable);
        assert_eq!(outcome.verdict, Verdict::SaysNothing);
        assert!(
            outcome.reasons[0].contains("too few"),
            "{:?}",
            outcome.reasons
        );
        let mut calm = findings.clone();
        calm.faults.clear();
        assert_eq!(
            judge(&calm, Order::Linearizable).verdict,
            Verdict::SaysNothing
        );
        let open = Order::Undecided("it took too long".to_owned());
        assert_eq!(judge(&findings, open).verdict, Verdict::SaysNothing);
    }
}
