//! Writers and readers beside a fault, and what a fault may cost.

use std::time::Duration;

use quorate::testkit::workload;
use quorate::testkit::workload::Nodes;
use quorate::testkit::workload::Workload;
use tokio::time::Instant;

use crate::support;

/// How long no write may be answered after a fault that leaves a majority. Two seconds are promised, of
/// a release build on a machine that is not busy.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(12);

/// Writers, with whose memory of their answers the cluster is compared at the end.
pub(crate) struct Load {
    prefix: String,
    pub(crate) writers: Workload,
}

impl Load {
    /// Eight writers that use these nodes.
    pub(crate) fn start(nodes: &Nodes, prefix: &str, seed: u64) -> Load {
        let writers = support::write(nodes, prefix, seed);
        Load::of(prefix, writers)
    }

    /// One writer that uses these nodes.
    pub(crate) fn start_one(nodes: &Nodes, prefix: &str, seed: u64) -> Load {
        let options = workload::Options {
            writers: 1,
            ..support::writers(prefix, seed)
        };
        let writers = Workload::start(nodes, &options, &support::ids());
        Load::of(prefix, writers)
    }

    /// Four writers who ask these nodes in turn and wait for none of them for long: what they see is what
    /// a client of these nodes sees.
    pub(crate) fn impatient(nodes: &Nodes, prefix: &str, seed: u64) -> Load {
        let options = workload::Options {
            attempt: Duration::from_millis(500),
            writers: 4,
            ..support::writers(prefix, seed)
        };
        let writers = Workload::start(nodes, &options, &support::ids());
        Load::of(prefix, writers)
    }

    fn of(prefix: &str, writers: Workload) -> Load {
        Load {
            prefix: prefix.to_owned(),
            writers,
        }
    }

    /// Waits until so many further writes are answered.
    pub(crate) async fn answered(&self, count: usize, what: &str) {
        support::answered(&self.writers, count, what).await;
    }

    /// The longest time without an answered write that begins while `span` passes; one that does not end
    /// is [`SILENCE_MAX`].
    pub(crate) async fn longest_silence(&self, span: Duration) -> Duration {
        let began = Instant::now();
        let (mut last, mut longest) = (began, Duration::ZERO);
        loop {
            let left = span.saturating_sub(began.elapsed());
            if !self.writers.wait_answered(1, left).await {
                let rest = SILENCE_MAX.saturating_sub(last.elapsed());
                self.writers.wait_answered(1, rest).await;
                return longest.max(last.elapsed());
            }
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }

    /// Whether nothing is answered while `span` passes.
    pub(crate) async fn is_silent(&self, span: Duration) -> bool {
        !self.writers.wait_answered(1, span).await
    }

    /// Ends the writers and holds the cluster to every answer.
    pub(crate) async fn verify(self, nodes: &Nodes) {
        let history = support::stop_and_verify(self.writers, &self.prefix, nodes).await;
        let counts = history.counts();
        println!("    {}: {counts:?}", self.prefix);
    }
}
