//! A shard is split, and a crash comes at every step of it.
//!
//! Three nodes run in one process. The steps that a node takes on its disk and in its engine are counted from
//! the moment the split is proposed until both halves serve on every node and a checkpoint has covered both.
//! Then the same is done again for each step, and the node does not live to take it: it is killed, or its
//! power is cut, and it comes back at once or after the others have gone on. Whatever the step, in the end
//! every node has both halves, nothing that was answered is lost or done twice, and the replicas are equal.

#![allow(clippy::unwrap_used)]

mod rack;

use std::collections::BTreeSet;

use quorate::error::Error;
use quorate::node::opener::SEED;
use quorate::node::replica::Replica;
use quorate::shard::command::Split;
use quorate::shard::command::SplitOutcome;
use quorate::types::Key;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::request::Write;
use quorate::types::shard;
use rack::Crash;
use rack::Kept;
use rack::NODES;
use rack::Rack;
use rack::SHARD;
use rack::cases::Crashed;
use rack::cases::crash_at_every_step;
use rack::cases::play;
use rack::eventually;
use rack::facts::Facts;
use rack::facts::first_writes;
use rack::facts::late_write;
use rack::facts::second_writes;

/// What the keys of each half begin with; the shard is split before the second.
const HALVES: [&str; 2] = ["a", "m"];
/// A rack with a shard that is split.
struct Stage {
    rack: Rack,
    facts: Facts,
    /// Sent when both halves serve, and again until they are answered.
    late: Vec<Write>,
    /// Sent behind the checkpoint.
    last: Vec<Write>,
    attempts: u64,
}

impl Crashed for Stage {
    /// Keys of every kind in both halves, some of them flushed, and equal on all nodes.
    async fn set() -> Stage {
        let mut stage = Stage {
            rack: Rack::start().await,
            facts: Facts::default(),
            late: HALVES.map(late_write).into(),
            last: HALVES.map(late_write).into(),
            attempts: 0,
        };
        let first = HALVES.map(first_writes).concat();
        stage.facts.write(&stage.rack, &first).await;
        stage.rack.level(&[SHARD]).await;
        stage.rack.purge().await;
        let second = HALVES.map(second_writes).concat();
        stage.facts.write(&stage.rack, &second).await;
        stage.rack.level(&[SHARD]).await;
        stage
    }

    /// From the proposal on until nothing of the split is left to be done.
    async fn happen(&mut self) {
        self.serve().await;
        self.rack.purge().await;
        // What was purged is written with the next entry.
        self.facts.write(&self.rack, &self.last).await;
    }

    /// The living nodes split the shard, and serve both halves.
    async fn serve(&mut self) {
        self.split().await;
        self.facts.write(&self.rack, &self.late).await;
        for node in self.rack.living() {
            for half in HALVES {
                let what = format!("{half} on n{}", node + 1);
                eventually(&what, async || self.reads(node, half).await).await;
            }
        }
    }

    /// Everything that holds when the split is over and all nodes are back.
    async fn check(&mut self) {
        self.serve().await;
        self.facts.write(&self.rack, &self.last).await;
        self.facts.repeat(&self.rack).await;
        self.serve().await;
        let [left, right] = HALVES.map(|half| self.half(0, half).unwrap());
        let shards = [left, right].map(|half| half.reader().descriptor().id);
        assert_eq!(shards[0], SHARD);
        self.rack.level(&shards).await;
        for node in NODES {
            self.check_node(node, shards[1]);
        }
    }

    fn rack(&mut self) -> &mut Rack {
        &mut self.rack
    }
}

impl Stage {
    /// Splits the shard unless it is split, as an operator does it whose last attempt had no answer.
    async fn split(&mut self) {
        eventually("the shard is split", async || {
            let leader = self.rack.leader(SHARD)?;
            let replica = self.rack.replica(leader, SHARD)?;
            self.attempts += 1;
            let attempt = split(replica, 100 * self.attempts);
            let outcome = self.rack.on(leader, attempt).await;
            outcome.unwrap_or_else(|| Err(format!("n{} has ended", leader + 1)))
        })
        .await;
    }

    async fn reads(&self, node: usize, half: &str) -> Result<(), String> {
        let key = Key::from(format!("{half}/value"));
        let replica = self.half(node, half)?;
        self.facts.read(&self.rack, node, replica, key).await
    }

    /// A node's replica of a half, once there are two.
    fn half(&self, node: usize, half: &str) -> Result<Replica, String> {
        self.rack.check(node);
        let registry = self.rack.registry(node);
        let found = registry.shard_of(half.as_bytes());
        let found = found.map_err(|error| error.to_string())?;
        match found.reader().descriptor().range.contains(other(half)) {
            false => Ok(found),
            true => Err("the shard is not split here".to_owned()),
        }
    }

    fn check_node(&self, node: usize, child: ShardId) {
        let shards = self.rack.registry(node).shards();
        let descriptors = shards.iter().map(|shard| shard.reader().descriptor());
        let descriptors: Vec<_> = descriptors.collect();
        assert_eq!(descriptors.len(), 2, "n{}: {descriptors:?}", node + 1);
        assert_eq!(descriptors[0].range.start, Key::new());
        assert_eq!(
            descriptors[0].range.end.as_ref(),
            Some(&descriptors[1].range.start)
        );
        assert_eq!(descriptors[1].range.end, None);
        assert_eq!(descriptors[1].id, child);
        for shard in &shards {
            let checked = self.facts.check(shard.reader());
            assert_eq!(checked, Ok(()), "n{}", node + 1);
            // All replicas begin in this term, so that nobody is elected in it.
            let term = shard.group().view().term;
            assert!(term > SEED.term, "{term} on n{}", node + 1);
        }
        let here = |descriptor: &shard::ShardDescriptor| {
            let replica = descriptor.replica_on(NodeId(node as u64 + 1));
            replica.unwrap().id
        };
        let replicas: BTreeSet<ReplicaId> = descriptors.iter().map(here).collect();
        assert_eq!(self.rack.births(node), replicas, "born on n{}", node + 1);
        assert_eq!(self.rack.rows(node), replicas, "in rows of n{}", node + 1);
        self.rack.check(node);
    }
}

fn other(half: &str) -> &[u8] {
    let other = HALVES.into_iter().find(|other| *other != half);
    other.unwrap().as_bytes()
}

/// One attempt by the leader, with the ids from `first` on.
async fn split(replica: Replica, first: u64) -> Result<(), String> {
    let failed = |error: Error| error.to_string();
    // What earlier leaders have committed is applied, so that the shard is seen as it is.
    let position = replica.read_position().await.map_err(failed)?;
    replica.group().wait_applied(position).await.unwrap();
    let planned = replica.reader().descriptor();
    if planned.range.end.is_some() {
        return Ok(());
    }
    let child = |parent: &shard::Replica| shard::Replica {
        id: ReplicaId(first + parent.node.0),
        node: parent.node,
    };
    let command = Split {
        at: Key::from_static(HALVES[1].as_bytes()),
        child: ShardId(first),
        left: shard::Size::default(),
        replicas: planned.replicas.iter().map(child).collect(),
    };
    match replica
        .split(planned.epoch, command)
        .await
        .map_err(failed)?
    {
        SplitOutcome::Done { .. } => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    }
}

#[test]
fn a_crash_at_any_step_of_a_split_loses_nothing() {
    crash_at_every_step::<Stage>("split");
}

#[test]
fn a_replica_that_was_away_splits_when_it_is_back() {
    play(async {
        let mut stage = Stage::set().await;
        let away = (stage.leader().await + 1) % NODES.len();
        let kept = Kept::Everything;
        stage.rack.crash(&[away], Crash::Kill { kept });
        stage.serve().await;
        stage.rack.open(away).await;
        stage.check().await;
    });
}

/// Its child is called by the other nodes all the while.
#[test]
fn a_replica_that_splits_last_joins_a_child_that_is_led_already() {
    play(async {
        let mut stage = Stage::set().await;
        let late = (stage.leader().await + 1) % NODES.len();
        stage.rack.hold(late, SHARD);
        stage.split().await;
        stage.facts.write(&stage.rack, &stage.late).await;
        assert_eq!(stage.rack.registry(late).shards().len(), 1);
        stage.rack.let_go();
        stage.check().await;
    });
}

/// The others have the split and commit it without the leader's disk; what the leader has not synced itself
/// must not be in its engine, which would come back from a power cut ahead of the log.
#[test]
fn a_leader_whose_disk_stands_still_does_not_split_before_it_has_synced() {
    play(async {
        let mut stage = Stage::set().await;
        let leader = stage.leader().await;
        let followers = NODES.into_iter().filter(|node| *node != leader);
        let registries: Vec<_> = followers.map(|node| stage.rack.registry(node)).collect();
        let here = stage.rack.registry(leader);
        stage.rack.steps(leader).hold_syncs();
        let split = async || match registries.iter().all(|others| others.shards().len() == 2) {
            true => Ok(()),
            false => Err("not everywhere".to_owned()),
        };
        tokio::select! {
            () = stage.split() => panic!("the leader has split before it has synced"),
            () = eventually("the followers split", split) => {}
        }
        assert_eq!(here.shards().len(), 1);
        let kept = Kept::Everything;
        stage
            .rack
            .crash(&[leader], Crash::PowerCut { seed: 1, kept });
        stage.rack.open(leader).await;
        stage.check().await;
    });
}

/// The entries that it missed are purged: the shard comes to it as a snapshot, without the right half, and
/// the right half's leader introduces it there.
#[test]
fn a_replica_that_was_away_for_long_is_introduced_to_the_right_half() {
    play(async {
        let mut stage = Stage::set().await;
        let away = (stage.leader().await + 1) % NODES.len();
        let kept = Kept::Everything;
        stage.rack.crash(&[away], Crash::Kill { kept });
        stage.serve().await;
        stage.rack.purge().await;
        stage.rack.open(away).await;
        stage.check().await;
    });
}
