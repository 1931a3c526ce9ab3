//! A shard absorbs its right neighbour, and a crash comes at every step of it.
//!
//! Three nodes run in one process. The steps that a node takes on its disk and in its engine are counted from the
//! moment the merge begins until one shard serves all keys on every node and a checkpoint has covered it. Then the
//! same is done again for each step, and the node does not live to take it: it is killed, or its power is cut, and it
//! comes back at once or after the others have gone on. While it is away the others serve all keys: the merge is done
//! or given up. In the end it is done, every node has one shard and knows that the other one has ended, nothing that
//! was answered is lost or done twice, and the replicas are equal.

#![allow(clippy::unwrap_used)]

mod rack;

use std::collections::BTreeSet;

use quorate::error::Error;
use quorate::node::merges::Wanted;
use quorate::node::replica::Replica;
use quorate::shard::command::Split;
use quorate::shard::command::SplitOutcome;
use quorate::shard::row::Merge;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::request::ReadKind;
use quorate::types::request::Write;
use quorate::types::shard;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Scan;
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

/// What the keys of each half begin with; the shard was split before the second.
const HALVES: [&str; 2] = ["a", "m"];
/// The right half.
const RIGHT: ShardId = ShardId(50);

/// A rack with a shard that was split, and is to be one again.
struct Stage {
    rack: Rack,
    facts: Facts,
    /// Sent while a node may be away, and again until they are answered.
    late: Vec<Write>,
    /// Sent behind the checkpoint.
    last: Vec<Write>,
}

impl Crashed for Stage {
    /// Keys of every kind in both halves, some from before the split, some flushed, and equal on all nodes.
    async fn set() -> Stage {
        let mut stage = Stage {
            rack: Rack::start().await,
            facts: Facts::default(),
            late: HALVES.map(late_write).into(),
            last: HALVES.map(late_write).into(),
        };
        let first = HALVES.map(first_writes).concat();
        stage.facts.write(&stage.rack, &first).await;
        stage.split().await;
        stage.rack.level(&[SHARD, RIGHT]).await;
        stage.rack.purge().await;
        let second = HALVES.map(second_writes).concat();
        stage.facts.write(&stage.rack, &second).await;
        stage.rack.level(&[SHARD, RIGHT]).await;
        stage
    }

    /// From the beginning of the merge on until nothing of it is left to be done.
    async fn happen(&mut self) {
        self.merge().await;
        self.serve().await;
        self.rack.purge().await;
        // What was purged is written with the next entry.
        self.facts.write(&self.rack, &self.last).await;
    }

    /// The living nodes serve all keys, be it as one shard or as two.
    async fn serve(&mut self) {
        self.facts.write(&self.rack, &self.late).await;
        for node in self.rack.living() {
            for half in HALVES {
                let what = format!("{half} on n{}", node + 1);
                eventually(&what, async || self.reads(node, half).await).await;
            }
        }
    }

    /// Everything that holds when the merge is over and all nodes are back.
    async fn check(&mut self) {
        self.merge().await;
        self.serve().await;
        self.facts.write(&self.rack, &self.last).await;
        self.facts.repeat(&self.rack).await;
        self.serve().await;
        self.rack.level(&[SHARD]).await;
        for node in NODES {
            self.check_node(node).await;
        }
    }

    fn rack(&mut self) -> &mut Rack {
        &mut self.rack
    }
}

impl Stage {
    async fn split(&self) {
        eventually("the shard is split", async || {
            let leader = self.rack.leader(SHARD)?;
            let replica = self.rack.replica(leader, SHARD)?;
            let outcome = self.rack.on(leader, split(replica)).await;
            outcome.unwrap_or_else(|| Err(format!("n{} has ended", leader + 1)))
        })
        .await;
    }

    /// Merges the shards unless that is done, as placement does it whose last attempt had no answer.
    async fn merge(&self) {
        eventually("the shards are one", async || self.merge_once().await).await;
    }

    async fn merge_once(&self) -> Result<(), String> {
        let leader = self.rack.leader(SHARD)?;
        let left = self.rack.replica(leader, SHARD)?;
        let merges = self.rack.merges(leader);
        let right = self.rack.registry(leader).shard(RIGHT);
        let attempt = async move {
            confirmed(&left).await?;
            let descriptor = left.reader().descriptor();
            if descriptor.range == KeyRange::ALL {
                return Ok(());
            }
            let right = right.map_err(|error| error.to_string())?;
            let wanted = Wanted {
                left: SHARD,
                left_epoch: descriptor.epoch,
                right: RIGHT,
                right_epoch: right.reader().descriptor().epoch,
            };
            let merged = merges.merge(wanted).await;
            merged.map(drop).map_err(|error| error.to_string())
        };
        let outcome = self.rack.on(leader, attempt).await;
        outcome.unwrap_or_else(|| Err(format!("n{} has ended", leader + 1)))
    }

    async fn reads(&self, node: usize, half: &str) -> Result<(), String> {
        self.rack.check(node);
        let key = Key::from(format!("{half}/value"));
        let replica = self.rack.registry(node).shard_of(&key);
        let replica = replica.map_err(|error| error.to_string())?;
        self.facts.read(&self.rack, node, replica, key).await
    }

    async fn check_node(&self, node: usize) {
        let shards = self.rack.registry(node).shards();
        let descriptors = shards.iter().map(|shard| shard.reader().descriptor());
        let descriptors: Vec<_> = descriptors.collect();
        assert_eq!(descriptors.len(), 1, "n{}: {descriptors:?}", node + 1);
        assert_eq!(descriptors[0].id, SHARD);
        assert_eq!(descriptors[0].range, KeyRange::ALL);
        let row = shards[0].reader().row();
        assert_eq!(row.merge.absorbed, [RIGHT], "n{}", node + 1);
        let checked = self.facts.check(shards[0].reader());
        assert_eq!(checked, Ok(()), "n{}", node + 1);
        let here = NodeId(node as u64 + 1);
        let left = BTreeSet::from([descriptors[0].replica_on(here).unwrap().id]);
        let right = BTreeSet::from([right_replica(here)]);
        assert_eq!(self.rack.rows(node), left, "in rows of n{}", node + 1);
        eventually("the right half has ended", async || {
            match self.rack.ended(node) == right {
                true => Ok(()),
                false => Err(format!("not in the log of n{}", node + 1)),
            }
        })
        .await;
        assert_eq!(self.rack.births(node), &left | &right, "n{}", node + 1);
        self.rack.check(node);
    }
}

fn right_replica(node: NodeId) -> ReplicaId {
    ReplicaId(RIGHT.0 + node.0)
}

/// What earlier leaders have committed is applied, so that a shard is seen as it is.
async fn confirmed(replica: &Replica) -> Result<(), String> {
    let failed = |error: Error| error.to_string();
    let position = replica.read_position().await.map_err(failed)?;
    replica.group().wait_applied(position).await.map_err(failed)
}

/// One attempt by the leader.
async fn split(replica: Replica) -> Result<(), String> {
    confirmed(&replica).await?;
    let planned = replica.reader().descriptor();
    if planned.range.end.is_some() {
        return Ok(());
    }
    let child = |parent: &shard::Replica| shard::Replica {
        id: right_replica(parent.node),
        node: parent.node,
    };
    let command = Split {
        at: Key::from_static(HALVES[1].as_bytes()),
        child: RIGHT,
        left: shard::Size::default(),
        replicas: planned.replicas.iter().map(child).collect(),
    };
    match replica.split(planned.epoch, command).await {
        Ok(SplitOutcome::Done { .. }) => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    }
}

#[test]
fn a_crash_at_any_step_of_a_merge_loses_nothing() {
    crash_at_every_step::<Stage>("merge");
}

/// Nothing freezes while one of the replicas would not come to it.
#[test]
fn a_merge_does_not_begin_while_a_replica_is_away() {
    play(async {
        let mut stage = Stage::set().await;
        let leader = stage.leader().await;
        let away = (leader + 1) % NODES.len();
        let kept = Kept::Everything;
        stage.rack.crash(&[away], Crash::Kill { kept });
        stage.serve().await;
        let refused = stage.merge_once().await.unwrap_err();
        let is_away = ["is not reached", "does not answer"];
        assert!(is_away.iter().any(|why| refused.contains(why)), "{refused}");
        let here = stage.rack.registry(leader);
        let row = |id| here.shard(id).unwrap().reader().row();
        assert!(row(RIGHT).frozen().is_none());
        assert_eq!(row(SHARD).merge, Merge::default());
        stage.rack.open(away).await;
        stage.check().await;
    });
}

/// It has neither the merge nor the freeze applied when the others have long gone on: its own log has both.
#[test]
fn a_replica_that_merges_last_brings_the_right_half_to_its_freeze() {
    play(async {
        let mut stage = Stage::set().await;
        let late = (stage.leader().await + 1) % NODES.len();
        stage.rack.hold(late, SHARD);
        stage.merge().await;
        assert_eq!(stage.rack.registry(late).shards().len(), 2);
        stage.facts.write(&stage.rack, &stage.late).await;
        stage.rack.let_go();
        stage.check().await;
    });
}

/// The entries that it missed are purged: the merged shard comes to it as a snapshot, which ends the right half.
#[test]
fn a_replica_that_was_away_for_long_gets_the_merged_shard_as_a_snapshot() {
    play(async {
        let mut stage = Stage::set().await;
        let late = (stage.leader().await + 1) % NODES.len();
        stage.rack.hold(late, SHARD);
        stage.merge().await;
        let kept = Kept::Everything;
        stage.rack.crash(&[late], Crash::Kill { kept });
        stage.rack.let_go();
        stage.serve().await;
        stage.rack.purge().await;
        stage.rack.open(late).await;
        stage.check().await;
    });
}

/// The left half was quiet, so the stamp of its cut is below what was written to the right one before the scan began.
#[test]
fn a_scan_that_is_overtaken_by_a_merge_misses_nothing_that_was_written_before_it() {
    play(async {
        let mut stage = Stage::set().await;
        let right = vec![late_write(HALVES[1])];
        stage.facts.write(&stage.rack, &right).await;
        let leader = stage.leader().await;
        let scan = |range: KeyRange, cut| Scan {
            range,
            keys_max: 2,
            bytes_max: 1 << 20,
            reverse: false,
            keys_only: true,
            read: ReadKind::Linearizable,
            cut,
        };
        let left = stage.rack.replica(leader, SHARD).unwrap();
        let range = left.reader().descriptor().range;
        let first = stage
            .rack
            .on(leader, async move { left.scan(scan(range, None)).await });
        let first = first.await.unwrap().unwrap();
        assert!(first.rest_cut.is_some());
        stage.merge().await;
        // Nobody remembers what has happened.
        stage.rack.crash(
            &NODES,
            Crash::Kill {
                kept: Kept::Everything,
            },
        );
        for node in NODES {
            stage.rack.open(node).await;
        }
        // As a client goes on: with the rest of what it wants, in the cut that it was told.
        let mut rest = Some((first.rest.unwrap().start, first.rest_cut));
        let mut keys = Vec::new();
        while let Some((start, cut)) = rest {
            let range = KeyRange { start, end: None };
            let Response::Scan(page) = stage.rack.ask(Request::Scan(scan(range, cut))).await else {
                unreachable!("a scan is answered as one");
            };
            keys.extend(page.items.into_iter().map(|item| item.key));
            rest = page.rest.map(|rest| (rest.start, page.rest_cut));
        }
        let late = Key::from(format!("{}/late", HALVES[1]));
        assert!(keys.contains(&late), "{keys:?}");
    });
}
