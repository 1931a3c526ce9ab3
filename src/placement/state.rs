//! What placement knows. Decides only.
//!
//! A shard's own group is the authority over it; what stands here is what was reported last. Reports
//! come late and out of order, and of two shards one may be reported before and the other after a
//! split: ranges may overlap here or leave gaps for a while. Nothing is lost by it, since shards are
//! kept by id and each only moves on to later epochs.

use serde::Deserialize;
use serde::Serialize;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::placement::Changes;
use crate::types::placement::PlacementAnswer;
use crate::types::placement::PlacementCommand;
use crate::types::shard::ShardDescriptor;

/// Records in one answer to [`PlacementState::changes_since`]: some hundred kilobytes.
const CHANGES_MAX: usize = 1_000;

/// Placement's whole state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlacementState {
    /// The nodes, by id.
    members: Vec<Recorded<Member>>,
    /// The shards, by id.
    shards: Vec<Recorded<ShardDescriptor>>,
    /// The next number for a node, a shard or a replica.
    next_id: u64,
    /// The number of the last change of a record. The same on every replica.
    changes: u64,
}

/// Something recorded, and the number of the change that made it what it is; no two have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded<T> {
    item: T,
    change: u64,
}

impl PlacementState {
    /// The state of a cluster just formed. Numbers from `next_id` on are given out, but none that is
    /// in use here.
    pub fn formed(
        members: Vec<Member>,
        shards: Vec<ShardDescriptor>,
        next_id: u64,
    ) -> PlacementState {
        let nodes = members.iter().map(|member| member.id.0);
        let replicas = shards.iter().flat_map(|shard| &shard.replicas);
        let used = nodes
            .chain(replicas.map(|replica| replica.id.0))
            .chain(shards.iter().map(|shard| shard.id.0));
        let mut state = PlacementState {
            next_id: next_id.max(used.max().unwrap_or(0) + 1),
            ..PlacementState::default()
        };
        for member in members {
            state.record_member(member);
        }
        for shard in shards {
            state.record_shard(shard);
        }
        state
    }

    /// The nodes, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().map(|known| &known.item)
    }

    /// The shards, by id.
    pub fn shards(&self) -> impl Iterator<Item = &ShardDescriptor> {
        self.shards.iter().map(|known| &known.item)
    }

    /// A node, if it is a member.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        let place = self
            .members
            .binary_search_by_key(&id, |known| known.item.id);
        Some(&self.members[place.ok()?].item)
    }

    /// A shard, if it has been reported.
    pub fn shard(&self, id: ShardId) -> Option<&ShardDescriptor> {
        let place = self.shards.binary_search_by_key(&id, |known| known.item.id);
        Some(&self.shards[place.ok()?].item)
    }

    /// Whether a report of this shard would change anything.
    pub fn wants(&self, shard: &ShardDescriptor) -> bool {
        self.shard(shard.id)
            .is_none_or(|known| known != shard && !shard.epoch.is_before(known.epoch))
    }

    /// What has changed behind the change numbered `since`; 0: everything. Not all of it when that
    /// would be too much for one message.
    pub fn changes_since(&self, since: u64) -> Changes {
        let members = self.members.iter().map(|known| known.change);
        let shards = self.shards.iter().map(|known| known.change);
        let mut behind: Vec<u64> = members
            .chain(shards)
            .filter(|change| *change > since)
            .collect();
        behind.sort_unstable();
        let more = behind.len() > CHANGES_MAX;
        let upto = match more {
            true => behind[CHANGES_MAX - 1],
            // A replica that lags may know less than the one asked before.
            false => self.changes.max(since),
        };
        Changes {
            upto,
            more,
            members: between(&self.members, since, upto),
            shards: between(&self.shards, since, upto),
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, command: PlacementCommand) -> PlacementAnswer {
        match command {
            PlacementCommand::RecordMember(member) => self.record_member(member),
            PlacementCommand::RecordShard(shard) => self.record_shard(shard),
            PlacementCommand::TakeIds { count } => PlacementAnswer::FirstId(self.take_ids(count)),
            PlacementCommand::AddMember(newcomer) => self.add_member(newcomer),
        }
    }

    fn take_ids(&mut self, count: u64) -> u64 {
        let first = self.next_id;
        if !mutant::lives(Mutant::IdsGivenTwice) {
            self.next_id = first.saturating_add(count);
        }
        first
    }

    /// An id belongs to one incarnation for ever.
    fn record_member(&mut self, member: Member) -> PlacementAnswer {
        match self.member(member.id) {
            Some(known)
                if known.incarnation != member.incarnation
                    && !mutant::lives(Mutant::IncarnationReplaced) =>
            {
                return PlacementAnswer::Outdated;
            }
            Some(known) if *known == member => return PlacementAnswer::Recorded,
            Some(_) | None => {}
        }
        self.changes += 1;
        put(&mut self.members, member, self.changes, |member| member.id);
        PlacementAnswer::Recorded
    }

    /// A name may be taken: its first holder has lost its disk, and is another node.
    fn add_member(&mut self, newcomer: Newcomer) -> PlacementAnswer {
        let same = |member: &&Member| member.incarnation == newcomer.incarnation;
        let known = self.members().find(same).map(|member| member.id);
        let id = known.unwrap_or_else(|| NodeId(self.take_ids(1)));
        self.record_member(newcomer.into_member(id));
        PlacementAnswer::Member(id)
    }

    fn record_shard(&mut self, shard: ShardDescriptor) -> PlacementAnswer {
        match self.shard(shard.id) {
            Some(known)
                if shard.epoch.is_before(known.epoch)
                    && !mutant::lives(Mutant::LateReportBelieved) =>
            {
                return PlacementAnswer::Outdated;
            }
            Some(known) if *known == shard => return PlacementAnswer::Recorded,
            Some(_) | None => {}
        }
        self.changes += 1;
        put(&mut self.shards, shard, self.changes, |shard| shard.id);
        PlacementAnswer::Recorded
    }
}

fn put<T, Id: Ord>(records: &mut Vec<Recorded<T>>, item: T, change: u64, id: impl Fn(&T) -> Id) {
    let place = records.binary_search_by_key(&id(&item), |known| id(&known.item));
    let record = Recorded { item, change };
    match place {
        Ok(at) => records[at] = record,
        Err(at) => records.insert(at, record),
    }
}

fn between<T: Clone>(records: &[Recorded<T>], since: u64, upto: u64) -> Vec<T> {
    let changed = records
        .iter()
        .filter(|known| known.change > since && known.change <= upto);
    changed.map(|known| known.item.clone()).collect()
}

#[cfg(test)]
mod tests {
    use crate::types::Incarnation;
    use crate::types::KeyRange;
    use crate::types::ReplicaId;
    use crate::types::shard::Epoch;
    use crate::types::shard::Replica;

    use super::*;

    fn shard(id: u64, conf: u64, bounds: u64) -> ShardDescriptor {
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange::ALL,
            epoch: Epoch { conf, bounds },
            replicas: vec![Replica {
                id: ReplicaId(41),
                node: NodeId(2),
            }],
        }
    }

    fn newcomer(incarnation: u8, name: &str) -> Newcomer {
        Newcomer {
            incarnation: Incarnation([incarnation; 16]),
            name: name.into(),
            node_address: format!("{name}:7401"),
            client_address: format!("{name}:7400"),
        }
    }

    fn add(state: &mut PlacementState, incarnation: u8, name: &str) -> PlacementAnswer {
        state.apply(PlacementCommand::AddMember(newcomer(incarnation, name)))
    }

    fn record(state: &mut PlacementState, shard: ShardDescriptor) -> PlacementAnswer {
        state.apply(PlacementCommand::RecordShard(shard))
    }

    #[test]
    fn a_late_report_does_not_undo_a_later_one() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 2, 2)], 0);
        for late in [shard(1, 1, 2), shard(1, 2, 1)] {
            assert!(!state.wants(&late));
            assert_eq!(record(&mut state, late), PlacementAnswer::Outdated);
        }
        assert!(state.wants(&shard(1, 3, 2)));
        assert_eq!(
            record(&mut state, shard(1, 3, 2)),
            PlacementAnswer::Recorded
        );
        assert!(!state.wants(&shard(1, 3, 2)));
        assert_eq!(state.shard(ShardId(1)), Some(&shard(1, 3, 2)));
    }

    #[test]
    fn shards_that_overlap_or_leave_gaps_lose_nothing() {
        let part = |id, bounds, start: &'static str, end: Option<&'static str>| ShardDescriptor {
            range: KeyRange {
                start: start.into(),
                end: end.map(Into::into),
            },
            ..shard(id, 1, bounds)
        };
        // The child's report comes before its parent's, the grandchild's before both.
        let reports = [
            part(3, 3, "t", None),
            part(2, 2, "m", None),
            part(2, 3, "m", Some("t")),
            part(1, 2, "", Some("m")),
            part(2, 2, "m", None),
        ];
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 1, 1)], 0);
        for report in reports.clone() {
            record(&mut state, report);
        }
        let known: Vec<ShardDescriptor> = state.shards().cloned().collect();
        assert_eq!(
            known,
            [&reports[3], &reports[2], &reports[0]].map(Clone::clone)
        );
    }

    #[test]
    fn numbers_in_use_are_not_given_out() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 1, 1)], 7);
        let first = state.apply(PlacementCommand::TakeIds { count: 3 });
        assert_eq!(first, PlacementAnswer::FirstId(42));
        let next = state.apply(PlacementCommand::TakeIds { count: 1 });
        assert_eq!(next, PlacementAnswer::FirstId(45));
        let mut state = PlacementState::formed(Vec::new(), Vec::new(), 7);
        let first = state.apply(PlacementCommand::TakeIds { count: 1 });
        assert_eq!(first, PlacementAnswer::FirstId(7));
    }

    #[test]
    fn an_incarnation_has_one_id_and_a_name_may_have_several() {
        let founder = newcomer(1, "n1").into_member(NodeId(1));
        let mut state = PlacementState::formed(vec![founder], Vec::new(), 9);
        assert_eq!(add(&mut state, 1, "n1"), PlacementAnswer::Member(NodeId(1)));
        assert_eq!(add(&mut state, 2, "n2"), PlacementAnswer::Member(NodeId(9)));
        assert_eq!(add(&mut state, 2, "n2"), PlacementAnswer::Member(NodeId(9)));
        assert_eq!(
            add(&mut state, 3, "n2"),
            PlacementAnswer::Member(NodeId(10))
        );
        assert_eq!(
            add(&mut state, 2, "moved"),
            PlacementAnswer::Member(NodeId(9))
        );
        let names: Vec<&str> = state.members().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["n1", "moved", "n2"]);
        let stolen = newcomer(4, "thief").into_member(NodeId(9));
        let stolen = state.apply(PlacementCommand::RecordMember(stolen));
        assert_eq!(stolen, PlacementAnswer::Outdated);
    }

    #[test]
    fn what_has_changed_is_told_once_as_it_is_now() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 1, 1)], 0);
        let first = state.changes_since(0);
        assert_eq!(first.shards, [shard(1, 1, 1)]);
        assert_eq!(state.changes_since(first.upto).shards, []);
        record(&mut state, shard(1, 1, 2));
        record(&mut state, shard(1, 1, 3));
        add(&mut state, 2, "n2");
        add(&mut state, 2, "n2");
        let next = state.changes_since(first.upto);
        assert_eq!(next.shards, [shard(1, 1, 3)]);
        assert_eq!(next.members.len(), 1);
        assert_eq!(
            state.changes_since(next.upto),
            Changes {
                upto: next.upto,
                ..Changes::default()
            }
        );
    }

    #[test]
    fn many_changes_are_told_in_portions_without_a_hole() {
        let count = CHANGES_MAX as u64 * 2 + 5;
        let shards = (1..=count).map(|id| shard(id, 1, 1)).collect();
        let state = PlacementState::formed(Vec::new(), shards, 0);
        let (mut since, mut told, mut portions) = (0, Vec::new(), 0);
        loop {
            let changes = state.changes_since(since);
            assert!(changes.shards.len() <= CHANGES_MAX);
            told.extend(changes.shards.into_iter().map(|shard| shard.id.0));
            since = changes.upto;
            portions += 1;
            if !changes.more {
                break;
            }
        }
        assert_eq!((portions, told), (3, (1..=count).collect::<Vec<u64>>()));
    }
}
