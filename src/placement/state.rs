//! What placement knows. Decides only.
//!
//! A shard's own group is the authority over it; what stands here is what was reported last. Reports
//! come late and out of order, and of two shards one may be reported before and the other after a
//! split: ranges may overlap here or leave gaps for a while. Nothing is lost by it, since shards are
//! kept by id and each only moves on to later epochs.
//!
//! A shard that was absorbed reports nothing more. It is told from whoever has absorbed it: a shard keeps its
//! first key until it is absorbed, and whoever has a key next has higher bounds. So a shard is gone whose first
//! key another one has with higher bounds, and a late report of it is not believed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::Key;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::types::node::NodeRecord;
use crate::types::operator::Operator;
use crate::types::placement::Changes;
use crate::types::placement::PlacementAnswer;
use crate::types::placement::PlacementCommand;
use crate::types::rule::Rule;
use crate::types::shard::ShardDescriptor;

/// Records in one answer to [`PlacementState::changes_since`]: some hundred kilobytes.
const CHANGES_MAX: usize = 1_000;
/// Keyspaces, deleted ones too: the state is written whole at each change. Full: no more are made.
const KEYSPACES_MAX: usize = 4_096;

/// Placement's whole state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlacementState {
    /// The nodes, by id.
    members: Vec<Recorded<Member>>,
    /// The shards, by id.
    shards: Vec<Recorded<ShardDescriptor>>,
    /// What is recorded of nodes beside where they are, by id. Of a node that has said nothing, nothing.
    nodes: Vec<NodeRecord>,
    /// What persons want, by prefix.
    rules: Vec<Rule>,
    /// What persons have set of the policy, by name.
    settings: BTreeMap<String, String>,
    /// Whether placement only watches.
    paused: bool,
    /// What is being done, by shard.
    operators: Vec<Recorded<Operator>>,
    /// The next number for a node, a shard or a replica.
    next_id: u64,
    /// The number of the last change of a record. The same on every replica.
    changes: u64,
    /// The keyspaces, by name; deleted ones stay, so that nobody is given their names or prefixes.
    keyspaces: Vec<Recorded<Definition>>,
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

    /// What is recorded of a node; nothing particular while it has said nothing.
    pub fn node(&self, id: NodeId) -> NodeRecord {
        let mut nodes = self.nodes.iter();
        let known = nodes.find(|node| node.id == id).cloned();
        known.unwrap_or_else(|| NodeRecord {
            id,
            ..NodeRecord::default()
        })
    }

    /// What persons want, by prefix.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What persons have set of the policy, by name.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// The keyspaces, by name, deleted ones too.
    pub fn keyspaces(&self) -> impl Iterator<Item = &Definition> {
        self.keyspaces.iter().map(|known| &known.item)
    }

    /// Why there cannot be such a keyspace, as a sentence. One that is there already as it is asked for is well.
    pub fn refusal_of(&self, keyspace: &Keyspace) -> Option<String> {
        let mut known = self.keyspaces();
        if let Some(same) = known.find(|known| known.keyspace.name == keyspace.name) {
            let name = &keyspace.name;
            return match (same.retired, same.keyspace == *keyspace) {
                (false, true) => None,
                (false, false) => Some(format!("there is a keyspace {name} with other options")),
                (true, _) => Some(format!(
                    "a keyspace {name} was deleted, and its name is not used again"
                )),
            };
        }
        let mut known = self.keyspaces();
        if let Some(near) = known.find(|known| known.keyspace.overlaps(keyspace)) {
            let Keyspace { name, prefix, .. } = &near.keyspace;
            let (prefix, own) = (prefix.escape_ascii(), keyspace.prefix.escape_ascii());
            let state = if near.retired { "deleted " } else { "" };
            return Some(format!(
                "its prefix {own} and {prefix} of the {state}keyspace {name} begin alike"
            ));
        }
        let is_full = self.keyspaces.len() >= KEYSPACES_MAX;
        is_full.then(|| format!("there are {KEYSPACES_MAX} already, deleted ones too"))
    }

    /// Whether placement only watches.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What is being done, by shard, each with the number of the change that recorded it.
    pub fn operators(&self) -> impl Iterator<Item = (&Operator, u64)> {
        let operators = self.operators.iter();
        operators.map(|known| (&known.item, known.change))
    }

    /// What is being done with a shard, and the change that recorded it.
    pub fn operator(&self, shard: ShardId) -> Option<(&Operator, u64)> {
        let known = self
            .operators
            .binary_search_by_key(&shard, |known| known.item.shard);
        let known = &self.operators[known.ok()?];
        Some((&known.item, known.change))
    }

    /// Whether a report of this shard would change anything.
    pub fn wants(&self, shard: &ShardDescriptor) -> bool {
        let known = self.shard(shard.id);
        let is_new = known.is_none_or(|it| it != shard && !shard.epoch.is_before(it.epoch));
        is_new && !self.is_absorbed(shard)
    }

    fn is_absorbed(&self, shard: &ShardDescriptor) -> bool {
        self.shards().any(|other| has_absorbed(other, shard))
    }

    /// What has changed behind the change numbered `since`; 0: everything. Not all of it when that
    /// would be too much for one message.
    pub fn changes_since(&self, since: u64) -> Changes {
        let members = self.members.iter().map(|known| known.change);
        let shards = self.shards.iter().map(|known| known.change);
        let keyspaces = self.keyspaces.iter().map(|known| known.change);
        let mut behind: Vec<u64> = members
            .chain(shards)
            .chain(keyspaces)
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
            keyspaces: between(&self.keyspaces, since, upto),
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, command: PlacementCommand) -> PlacementAnswer {
        match command {
            PlacementCommand::RecordMember(member) => self.record_member(member),
            PlacementCommand::RecordShard(shard) => self.record_shard(shard),
            PlacementCommand::TakeIds { count } => PlacementAnswer::FirstId(self.take_ids(count)),
            PlacementCommand::AddMember(newcomer) => self.add_member(newcomer),
            PlacementCommand::DescribeNode { node, labels, role } => {
                self.change_node(node, |record| {
                    record.labels = labels;
                    record.role = role;
                })
            }
            PlacementCommand::SetDuty { node, duty } => {
                self.change_node(node, |record| record.duty = duty)
            }
            PlacementCommand::NoteSilence { node, since } => {
                self.change_node(node, |record| record.silent_since = since)
            }
            PlacementCommand::SetRule(rule) => self.set_rule(rule),
            PlacementCommand::DeleteRule { prefix } => self.delete_rule(&prefix),
            PlacementCommand::SetSetting { name, value } => {
                match value {
                    Some(value) => self.settings.insert(name, value),
                    None => self.settings.remove(&name),
                };
                PlacementAnswer::Recorded
            }
            PlacementCommand::SetPaused(paused) => {
                self.paused = paused;
                PlacementAnswer::Recorded
            }
            PlacementCommand::RecordOperators(operators) => self.record_operators(operators),
            PlacementCommand::EndOperator { shard, change } => self.end_operator(shard, change),
            PlacementCommand::CreateKeyspace(keyspace) => self.create_keyspace(keyspace),
            PlacementCommand::RetireKeyspace { name } => self.retire_keyspace(name),
        }
    }

    fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut NodeRecord)) -> PlacementAnswer {
        if self.member(id).is_none() {
            return PlacementAnswer::Missing;
        }
        let mut record = self.node(id);
        change(&mut record);
        match self.nodes.binary_search_by_key(&id, |node| node.id) {
            Ok(place) => self.nodes[place] = record,
            Err(place) => self.nodes.insert(place, record),
        }
        PlacementAnswer::Recorded
    }

    fn set_rule(&mut self, rule: Rule) -> PlacementAnswer {
        let place = self
            .rules
            .binary_search_by(|known| known.prefix.cmp(&rule.prefix));
        match place {
            Ok(place) => self.rules[place] = rule,
            Err(place) => self.rules.insert(place, rule),
        }
        PlacementAnswer::Recorded
    }

    fn delete_rule(&mut self, prefix: &Key) -> PlacementAnswer {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.prefix != *prefix);
        match self.rules.len() < before {
            true => PlacementAnswer::Recorded,
            false => PlacementAnswer::Missing,
        }
    }

    /// Of two drivers that plan for one shard the first one counts.
    fn record_operators(&mut self, operators: Vec<Operator>) -> PlacementAnswer {
        let mut answer = PlacementAnswer::Recorded;
        for operator in operators {
            let known = self.operator(operator.shard).map(|(known, _)| known);
            let is_repeat = known
                .is_some_and(|known| known.aim == operator.aim && known.action == operator.action);
            if is_repeat {
                continue;
            }
            let is_second = known.is_some() && !mutant::lives(Mutant::OperatorsDoubled);
            if is_second || !self.has_free(&operator) {
                answer = PlacementAnswer::Outdated;
                continue;
            }
            self.changes += 1;
            put(&mut self.operators, operator, self.changes, |it| it.shard);
        }
        answer
    }

    /// Whether the shards that an operator takes are there, and no merge takes them either.
    fn has_free(&self, operator: &Operator) -> bool {
        let right = operator.action.absorbed();
        let is_there = |id: ShardId| id == ShardId::PLACEMENT || self.shard(id).is_some();
        let is_merging = |id: ShardId| {
            let mut operators = self.operators();
            operators.any(|(other, _)| other.action.absorbed() == Some(id))
        };
        let has_own = right.is_some_and(|right| self.operator(right).is_some());
        let mut both = [Some(operator.shard), right].into_iter().flatten();
        let is_taken = has_own || both.clone().any(is_merging);
        both.all(is_there) && (!is_taken || mutant::lives(Mutant::MergedDoubly))
    }

    fn end_operator(&mut self, shard: ShardId, change: u64) -> PlacementAnswer {
        let before = self.operators.len();
        self.operators
            .retain(|known| known.item.shard != shard || known.change != change);
        match self.operators.len() < before {
            true => PlacementAnswer::Recorded,
            false => PlacementAnswer::Missing,
        }
    }

    fn create_keyspace(&mut self, keyspace: Keyspace) -> PlacementAnswer {
        if self.refusal_of(&keyspace).is_some() {
            return PlacementAnswer::Outdated;
        }
        self.define(Definition {
            keyspace,
            retired: false,
        })
    }

    fn retire_keyspace(&mut self, name: KeyspaceName) -> PlacementAnswer {
        let known = self
            .keyspaces()
            .find(|known| known.keyspace.name == name)
            .cloned();
        let Some(known) = known else {
            return PlacementAnswer::Missing;
        };
        self.define(Definition {
            retired: true,
            ..known
        })
    }

    fn define(&mut self, definition: Definition) -> PlacementAnswer {
        if !self.keyspaces().any(|known| *known == definition) {
            self.changes += 1;
            put(&mut self.keyspaces, definition, self.changes, |it| {
                it.keyspace.name.clone()
            });
        }
        PlacementAnswer::Recorded
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
            Some(_) | None if self.is_absorbed(&shard) => return PlacementAnswer::Outdated,
            Some(_) | None => {}
        }
        self.shards
            .retain(|known| !has_absorbed(&shard, &known.item));
        self.changes += 1;
        put(&mut self.shards, shard, self.changes, |shard| shard.id);
        PlacementAnswer::Recorded
    }
}

/// Whether a shard has ended in another one, or in one of which that other one has come.
fn has_absorbed(other: &ShardDescriptor, shard: &ShardDescriptor) -> bool {
    other.id != shard.id
        && other.epoch.bounds > shard.epoch.bounds
        && other.range.contains(&shard.range.start)
        && !mutant::lives(Mutant::AbsorbedRecorded)
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
    use crate::types::Timestamp;
    use crate::types::keyspace::Layout;
    use crate::types::node::Duty;
    use crate::types::operator::Action;
    use crate::types::operator::Aim;
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

    fn part(id: u64, bounds: u64, start: &'static str, end: &'static str) -> ShardDescriptor {
        ShardDescriptor {
            range: KeyRange {
                start: start.into(),
                end: (!end.is_empty()).then(|| end.into()),
            },
            ..shard(id, 1, bounds)
        }
    }

    fn ids(state: &PlacementState) -> Vec<u64> {
        state.shards().map(|shard| shard.id.0).collect()
    }

    #[test]
    fn what_was_absorbed_is_gone_and_does_not_come_back() {
        let parts = vec![
            part(1, 2, "", "g"),
            part(2, 5, "g", "m"),
            part(3, 5, "m", ""),
        ];
        let mut state = PlacementState::formed(Vec::new(), parts.clone(), 9);
        assert_eq!(
            record(&mut state, part(1, 6, "", "m")),
            PlacementAnswer::Recorded
        );
        assert_eq!(ids(&state), [1, 3]);
        let late = &parts[1];
        assert!(!state.wants(late));
        assert_eq!(record(&mut state, late.clone()), PlacementAnswer::Outdated);
        // Whoever is split off there later is another shard.
        record(&mut state, part(4, 7, "g", "m"));
        record(&mut state, part(1, 7, "", "g"));
        assert!(!state.wants(late));
        assert_eq!(ids(&state), [1, 3, 4]);
        // Two merges of which one report tells.
        record(&mut state, part(1, 9, "", ""));
        assert_eq!(ids(&state), [1]);
    }

    #[test]
    fn of_a_split_and_a_merge_each_report_may_come_first() {
        // 1 splits off 2, absorbs it, and splits off 3 there.
        let reports = [
            part(1, 1, "", ""),
            part(1, 2, "", "m"),
            part(2, 2, "m", ""),
            part(1, 3, "", ""),
            part(1, 4, "", "p"),
            part(3, 4, "p", ""),
        ];
        let known = |order: &[usize]| {
            let mut state = PlacementState::formed(Vec::new(), Vec::new(), 9);
            for at in order {
                record(&mut state, reports[*at].clone());
            }
            ids(&state)
        };
        assert_eq!(known(&[0, 1, 2]), [1, 2]);
        assert_eq!(
            known(&[2, 0, 1]),
            [1, 2],
            "a parent that is late ends no child"
        );
        assert_eq!(known(&[0, 1, 2, 3]), [1]);
        assert_eq!(known(&[3, 2, 1]), [1]);
        assert_eq!(known(&[2, 5, 4, 3]), [1, 3]);
        assert_eq!(known(&[5, 2, 4]), [1, 3], "the end of 2 is told by 1 alone");
    }

    #[test]
    fn a_merge_takes_both_shards() {
        let parts = vec![part(1, 1, "", "m"), part(2, 1, "m", ""), part(3, 1, "", "")];
        let mut state = PlacementState::formed(Vec::new(), parts, 9);
        let merge = |left, right| Operator {
            aim: Aim::Merge,
            action: Action::Merge {
                right: ShardId(right),
                epoch: Epoch::default(),
            },
            ..operator(left, 0, "small and cold")
        };
        let mut record =
            |operator: Operator| state.apply(PlacementCommand::RecordOperators(vec![operator]));
        assert_eq!(
            record(merge(1, 7)),
            PlacementAnswer::Outdated,
            "there is no 7"
        );
        assert_eq!(record(operator(2, 5, "")), PlacementAnswer::Recorded);
        assert_eq!(record(merge(1, 2)), PlacementAnswer::Outdated);
        assert_eq!(record(merge(1, 3)), PlacementAnswer::Recorded);
        assert_eq!(
            record(merge(1, 3)),
            PlacementAnswer::Recorded,
            "it is there"
        );
        assert_eq!(record(operator(3, 5, "")), PlacementAnswer::Outdated);
        assert_eq!(record(operator(1, 5, "")), PlacementAnswer::Outdated);
    }

    fn operator(id: u64, to: u64, reason: &str) -> Operator {
        Operator {
            shard: ShardId(id),
            aim: Aim::Repair,
            action: Action::Add { to: NodeId(to) },
            reason: reason.to_owned(),
            epoch: Epoch::default(),
            voters: Vec::new(),
            bytes: 0,
            expires: Timestamp::MAX,
        }
    }

    #[test]
    fn a_shard_has_one_operator_and_only_that_one_is_ended() {
        let mut state = PlacementState::formed(Vec::new(), vec![shard(1, 1, 1)], 0);
        let record = |state: &mut PlacementState, to, reason| {
            let operators = vec![operator(1, to, reason)];
            state.apply(PlacementCommand::RecordOperators(operators))
        };
        let end = |state: &mut PlacementState, change| {
            let shard = ShardId(1);
            state.apply(PlacementCommand::EndOperator { shard, change })
        };
        assert_eq!(record(&mut state, 5, "first"), PlacementAnswer::Recorded);
        assert_eq!(record(&mut state, 6, "second"), PlacementAnswer::Outdated);
        let again = record(&mut state, 5, "sent again");
        assert_eq!(again, PlacementAnswer::Recorded, "it is there already");
        let (known, first) = state.operator(ShardId(1)).unwrap();
        assert_eq!(known.reason, "first");
        assert_eq!(end(&mut state, first), PlacementAnswer::Recorded);
        assert_eq!(end(&mut state, first), PlacementAnswer::Missing);
        assert_eq!(record(&mut state, 5, "third"), PlacementAnswer::Recorded);
        assert_eq!(
            end(&mut state, first),
            PlacementAnswer::Missing,
            "a late end"
        );
        assert_eq!(state.operators().count(), 1);
        let unknown = PlacementCommand::RecordOperators(vec![operator(2, 5, "nowhere")]);
        assert_eq!(state.apply(unknown), PlacementAnswer::Outdated);
    }

    #[test]
    fn what_persons_want_replaces_what_they_wanted_and_names_what_is_not_there() {
        let founder = newcomer(1, "n1").into_member(NodeId(1));
        let mut state = PlacementState::formed(vec![founder], Vec::new(), 9);
        let duty = |node| PlacementCommand::SetDuty {
            node: NodeId(node),
            duty: Duty::Leave,
        };
        assert_eq!(state.apply(duty(1)), PlacementAnswer::Recorded);
        assert_eq!(state.apply(duty(2)), PlacementAnswer::Missing);
        assert_eq!(state.node(NodeId(1)).duty, Duty::Leave);
        let rule = |prefix: &'static str, replicas| Rule {
            prefix: prefix.into(),
            replicas,
            ..Rule::default()
        };
        for rule in [rule("b", 3), rule("a", 3), rule("b", 5)] {
            state.apply(PlacementCommand::SetRule(rule));
        }
        assert_eq!(state.rules(), [rule("a", 3), rule("b", 5)]);
        let delete = |prefix: &'static str| PlacementCommand::DeleteRule {
            prefix: prefix.into(),
        };
        assert_eq!(state.apply(delete("a")), PlacementAnswer::Recorded);
        assert_eq!(state.apply(delete("a")), PlacementAnswer::Missing);
    }

    fn keyspace(name: &str, prefix: &'static str) -> Keyspace {
        let prefix = Some(Key::from(prefix));
        Keyspace::new(name.parse().unwrap(), prefix, Layout::Ordered).unwrap()
    }

    #[test]
    fn a_name_and_a_prefix_are_used_once_and_never_again() {
        let mut state = PlacementState::default();
        let create = |state: &mut PlacementState, name, prefix| {
            let keyspace = keyspace(name, prefix);
            let refusal = state.refusal_of(&keyspace);
            let answer = state.apply(PlacementCommand::CreateKeyspace(keyspace));
            assert_eq!(refusal.is_none(), answer == PlacementAnswer::Recorded);
            refusal.unwrap_or_default()
        };
        let retire = |state: &mut PlacementState, name: &str| {
            let name = name.parse().unwrap();
            state.apply(PlacementCommand::RetireKeyspace { name })
        };
        assert_eq!(create(&mut state, "a", "a/"), "");
        assert_eq!(create(&mut state, "a", "a/"), "", "sent again");
        let other = "there is a keyspace a with other options";
        assert_eq!(create(&mut state, "a", "b/"), other);
        let near = "its prefix a/b and a/ of the keyspace a begin alike";
        assert_eq!(create(&mut state, "b", "a/b"), near);
        assert!(create(&mut state, "b", "a").contains("begin alike"));
        assert_eq!(create(&mut state, "b", "b/"), "");
        assert_eq!(retire(&mut state, "c"), PlacementAnswer::Missing);
        assert_eq!(retire(&mut state, "a"), PlacementAnswer::Recorded);
        let upto = state.changes_since(0).upto;
        assert_eq!(retire(&mut state, "a"), PlacementAnswer::Recorded);
        assert_eq!(state.changes_since(upto).keyspaces, [], "it is retired");
        let gone = "a keyspace a was deleted, and its name is not used again";
        assert_eq!(create(&mut state, "a", "a/"), gone);
        let near = "its prefix a/ and a/ of the deleted keyspace a begin alike";
        assert_eq!(create(&mut state, "c", "a/"), near);
        let known = state.changes_since(0).keyspaces;
        let known = known
            .iter()
            .map(|it| (it.keyspace.name.as_str(), it.retired));
        assert_eq!(known.collect::<Vec<_>>(), [("a", true), ("b", false)]);
    }

    #[test]
    fn there_is_an_end_of_keyspaces() {
        let mut state = PlacementState::default();
        let number = |number: usize| format!("k{number}").parse().unwrap();
        let create = |state: &mut PlacementState, name: KeyspaceName| {
            let keyspace = Keyspace::new(name, None, Layout::Ordered).unwrap();
            state.apply(PlacementCommand::CreateKeyspace(keyspace))
        };
        for made in 0..KEYSPACES_MAX {
            assert_eq!(create(&mut state, number(made)), PlacementAnswer::Recorded);
        }
        let one_more = create(&mut state, number(KEYSPACES_MAX));
        assert_eq!(one_more, PlacementAnswer::Outdated);
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
