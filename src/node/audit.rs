//! What is wrong with a stopped node's stores, told from what each of them says. Decides only:
//! `cli/verify.rs` reads them.
//!
//! The log and the engine are written by themselves, so each may be whole and both together impossible:
//! then one of them was lost, or came from elsewhere.

use std::collections::BTreeMap;

use crate::node::opener::Origin;
use crate::shard::row::Row;
use crate::types::Position;
use crate::types::ReplicaId;
use crate::wal;
use crate::wal::LogState;
use crate::wal::LoggedReplica;

/// What is to be done about a node whose stores cannot be trusted.
pub const AS_A_NEW_NODE: &str = "move the data directory away and start the node with --join as a new one; \
                                 its replicas are rebuilt from the others";

/// What the engine says of one replica.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The last entry applied.
    pub applied: Option<Position>,
    /// Whether its parent has written its first row, so that the log may not know it yet.
    pub is_split_off: bool,
}

impl Stored {
    /// Of a shard's replica.
    pub fn of(row: &Row) -> Stored {
        Stored {
            applied: row.applied.position,
            is_split_off: row.birth.is_some(),
        }
    }
}

/// What contradicts itself between the log and the engine. `ended`: replicas whose rows the engine has given up, and
/// that the log does not call gone yet. `founded`: the node has had its first replicas.
pub fn contradictions(
    log: &wal::Inspected,
    engine: &BTreeMap<ReplicaId, Stored>,
    ended: &[ReplicaId],
    founded: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    if founded && log.replicas.is_empty() {
        found.push(
            "the log knows no replica, and this node has had some: the log was lost".to_owned(),
        );
    }
    for (known, state) in &log.replicas {
        match engine.get(&known.id) {
            Some(stored) if known.gone => found.push(format!(
                "{} has ended, and the engine has it at entry {}: the engine is older than the log",
                known.id,
                index(stored.applied)
            )),
            Some(stored) => found.extend(reach(known.id, state, stored)),
            None if ended.contains(&known.id) => {}
            None => found.extend(rowless(known, state, engine)),
        }
    }
    for (replica, stored) in engine {
        let is_known = log.replicas.iter().any(|(known, _)| known.id == *replica);
        if !is_known && !stored.is_split_off {
            found.push(format!(
                "the engine has {replica}, which the log does not know: the log was lost"
            ));
        }
    }
    found
}

/// The log must go on where the engine ends. That it ends before is what a crash leaves behind a snapshot
/// that was installed just now.
fn reach(replica: ReplicaId, log: &LogState, stored: &Stored) -> Vec<String> {
    let mut found = Vec::new();
    let (applied, purged) = (index(stored.applied), index(log.purged));
    if purged > applied {
        found.push(format!(
            "{replica}: the engine is at entry {applied} and the log is purged up to {purged}: the engine was lost"
        ));
    }
    if applied > 1 && log.vote.is_none() {
        found.push(format!(
            "{replica}: it has applied entries, and the log has no vote of it: the log was lost"
        ));
    }
    found
}

/// A replica that was born and has no row: its first row is written again, if the log still has all that
/// came behind it.
fn rowless(
    known: &LoggedReplica,
    log: &LogState,
    engine: &BTreeMap<ReplicaId, Stored>,
) -> Option<String> {
    if known.gone {
        return None;
    }
    let replica = known.id;
    let origin = match Origin::decode(replica, &known.born) {
        Ok(origin) => origin,
        Err(error) => return Some(error.to_string()),
    };
    let is_lost = match origin {
        Origin::Placement { .. }
        | Origin::Shard { .. }
        | Origin::Empty { .. }
        | Origin::EmptyPlacement => log.purged.is_some_and(|purged| purged.index > 1),
        Origin::Split(birth) => !engine.contains_key(&birth.replica),
    };
    is_lost.then(|| {
        format!("the engine does not have {replica}, which was born here: the engine was lost")
    })
}

fn index(position: Option<Position>) -> u64 {
    position.map_or(0, |position| position.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ShardId;
    use crate::types::log::Vote;
    use crate::types::shard::Birth;

    fn at(index: u64) -> Option<Position> {
        Some(Position { term: 1, index }).filter(|_| index > 0)
    }

    fn log(purged: u64, last: u64, gone: bool) -> wal::Inspected {
        let origin = Origin::Split(Birth {
            parent: ShardId(1),
            replica: ReplicaId(1),
            position: Position { term: 1, index: 3 },
        });
        let vote = Vote {
            term: 1,
            replica: ReplicaId(7),
            committed: true,
        };
        let known = LoggedReplica {
            id: ReplicaId(7),
            born: origin.encode(),
            gone,
        };
        let state = LogState {
            purged: at(purged),
            last: at(last),
            vote: Some(vote),
        };
        wal::Inspected {
            segments: 1,
            torn: false,
            replicas: vec![(known, state)],
        }
    }

    fn engine(applied: u64) -> BTreeMap<ReplicaId, Stored> {
        let stored = Stored {
            applied: at(applied),
            is_split_off: false,
        };
        [(ReplicaId(7), stored)].into()
    }

    #[test]
    fn what_cannot_be_together_is_said() {
        let none = BTreeMap::new();
        let table = [
            (log(5, 9, false), engine(7), ""),
            (log(7, 7, false), engine(7), ""),
            (log(8, 9, false), engine(7), "the engine was lost"),
            (log(0, 6, false), engine(7), ""),
            (log(0, 0, true), engine(7), "older than the log"),
            (log(0, 0, true), none.clone(), ""),
            (log(5, 9, false), none, "does not have r7"),
        ];
        for (log, engine, said) in table {
            let found = contradictions(&log, &engine, &[], true);
            assert_eq!(found.is_empty(), said.is_empty(), "{found:?}");
            assert!(found.concat().contains(said), "{found:?}");
        }
        // Destroyed or absorbed, and the power was cut before the log could say so.
        let ended = [ReplicaId(7)];
        let found = contradictions(&log(5, 9, false), &BTreeMap::new(), &ended, true);
        assert_eq!(found, [""; 0]);
        let mut empty = log(0, 0, false);
        empty.replicas.clear();
        assert_eq!(
            contradictions(&empty, &BTreeMap::new(), &[], false),
            [""; 0]
        );
        assert_eq!(contradictions(&empty, &BTreeMap::new(), &[], true).len(), 1);
        assert_eq!(contradictions(&empty, &engine(3), &[], false).len(), 1);
    }
}
