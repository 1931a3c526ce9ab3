//! Three nodes, the logs of two shards and more, and messages between their leaders that come late, twice or
//! never, while nodes lag and lose what they have not flushed: whatever the order, every key has one owner, and
//! in the end all nodes are equal.
//!
//! What leaders and nodes do about a merge is said here in a few lines each, as the rules are.

use crate::shard::command::Split;
use crate::shard::command::SplitOutcome;
use crate::shard::destroy;
use crate::shard::empty;
use crate::shard::merge;
use crate::shard::merge_command::Absorb;
use crate::shard::merge_command::MergeOutcome;
use crate::shard::merge_command::MergeStep;
use crate::shard::merge_command::Prepare;
use crate::shard::merge_command::Unfreeze;
use crate::shard::read::ReadError;
use crate::shard::row::Part;
use crate::types::shard::Attempt;
use crate::types::shard::Fate;

use super::*;

const NODES: usize = 3;
const MAJORITY: usize = 2;

/// The replica of a shard on a node.
fn replica_on(shard: ShardId, node: usize) -> ReplicaId {
    let first = match shard {
        ShardId(1) => REPLICA.0,
        ShardId(id) => 10 * id,
    };
    ReplicaId(first + node as u64)
}

fn shard_of(replica: ReplicaId) -> ShardId {
    ShardId((replica.0 / 10).max(1))
}

/// One node.
struct Host {
    engine: Arc<MemoryEngine>,
    slots: Arc<Slots>,
    machines: BTreeMap<ShardId, ShardMachine>,
    /// How many entries of each log it has; `None` when its replica is gone for ever.
    synced: BTreeMap<ShardId, Option<usize>>,
    /// Whose rows have gone since the last flush.
    ended: Vec<ShardId>,
}

impl Host {
    fn row(&self, shard: ShardId) -> Option<Arc<Row>> {
        self.machines
            .get(&shard)
            .map(|machine| machine.reader().row())
    }

    fn flush(&mut self) {
        self.engine.flush().unwrap();
        for shard in self.ended.drain(..) {
            self.synced.insert(shard, None);
        }
    }

    fn is_rowless(&self) -> bool {
        let mut logs = self.synced.iter();
        logs.any(|(shard, synced)| {
            let has_row = self.machines.contains_key(shard) || self.ended.contains(shard);
            synced.is_some() && !has_row
        })
    }

    fn reopen(&mut self) {
        let engine: Arc<dyn Engine> = self.engine.clone();
        self.slots = Slots::open(engine.clone()).unwrap();
        self.ended.clear();
        self.machines.clear();
        for replica in crate::shard::replicas(&*engine).unwrap() {
            let machine = open_in(&engine, &self.slots, replica);
            self.machines.insert(shard_of(replica), machine);
        }
        for replica in crate::shard::destroyed(&*engine).unwrap() {
            self.ended.push(shard_of(replica));
        }
    }
}

/// What is under way between leaders. Nothing is ever taken out: it may come again.
#[derive(Default)]
struct Messages {
    freezes: Vec<(ShardId, Attempt, Epoch)>,
    frozen: Vec<Absorb>,
    unfreezes: Vec<(ShardId, Unfreeze)>,
}

struct World {
    hosts: Vec<Host>,
    logs: BTreeMap<ShardId, Vec<LogEntry>>,
    messages: Messages,
    leader: Leader,
    model: Model,
    last_id: u64,
}

impl World {
    fn new() -> World {
        let host = |node| {
            let engine = memory();
            let machine = seeded_as(engine.clone(), replica_on(ShardId(1), node));
            engine.flush().unwrap();
            Host {
                engine,
                slots: machine.reader().slots().clone(),
                machines: [(ShardId(1), machine)].into(),
                synced: BTreeMap::new(),
                ended: Vec::new(),
            }
        };
        World {
            hosts: (0..NODES).map(host).collect(),
            logs: BTreeMap::new(),
            messages: Messages::default(),
            leader: Leader::new(),
            model: Model::default(),
            last_id: 1,
        }
    }

    /// A node gets a log up to here.
    fn sync(&mut self, node: usize, shard: ShardId, entries: usize) {
        let synced = self.hosts[node].synced.entry(shard).or_insert(Some(0));
        *synced = synced.map(|synced| synced.max(entries));
    }

    fn length(&self, shard: ShardId) -> usize {
        self.logs.get(&shard).map_or(0, Vec::len)
    }

    /// A node applies what it has of a log, up to an index; gives the last answer. What that needs is brought to
    /// its place out of that one's own log.
    fn apply(&mut self, node: usize, shard: ShardId, upto: u64) -> Option<Bytes> {
        let mut last = None;
        loop {
            let host = &mut self.hosts[node];
            let machine = host.machines.get_mut(&shard)?;
            let applied = machine.applied().position.unwrap();
            let synced = host.synced.get(&shard).copied().unwrap_or(Some(0));
            let synced = synced.expect("what is gone has no row");
            let log = self.logs.get(&shard).into_iter().flatten().take(synced);
            let missing = log.filter(|entry| {
                let index = entry.position.index;
                index > applied.index && index <= upto
            });
            let missing: Vec<LogEntry> = missing.cloned().collect();
            let answers = machine.apply(&missing).unwrap();
            last = answers.into_iter().next_back().or(last);
            let need = machine.take_need();
            let engine: Arc<dyn Engine> = host.engine.clone();
            for child in machine.take_seeded() {
                let opened = open_in(&engine, &host.slots, child);
                host.machines.insert(shard_of(child), opened);
            }
            let ended = host.machines.get_mut(&shard).unwrap().take_ended();
            for ended in ended.into_iter().map(shard_of) {
                host.machines.remove(&ended);
                host.ended.push(ended);
            }
            let Some(need) = need else { return last };
            self.apply(node, need.shard, need.position.index);
            let brought = self.hosts[node].row(need.shard);
            let brought = brought.and_then(|row| row.applied.position);
            assert_eq!(brought, Some(need.position), "node {node} lacks {need}");
        }
    }

    /// A node that can lead the shard has applied all of its log, as after a barrier.
    fn lead(&mut self, shard: ShardId, nodes: u16) -> Option<usize> {
        let lives = |host: &&Host| host.machines.contains_key(&shard);
        if self.hosts.iter().filter(lives).count() < MAJORITY {
            return None;
        }
        let node = usize::from(nodes) % NODES;
        self.hosts[node].machines.get(&shard)?;
        self.sync(node, shard, self.length(shard));
        self.apply(node, shard, u64::MAX);
        self.hosts[node]
            .machines
            .contains_key(&shard)
            .then_some(node)
    }

    /// A leader, and another node that makes a majority with it.
    fn quorum(&mut self, shard: ShardId, nodes: u16) -> Option<(usize, usize)> {
        let node = self.lead(shard, nodes)?;
        let first = node + 1 + usize::from(nodes / 7) % 2;
        let mut others = (first..first + NODES).map(|other| other % NODES);
        let lives = |other: &usize| self.hosts[*other].machines.contains_key(&shard);
        others
            .find(|other| *other != node && lives(other))
            .map(|other| (node, other))
    }

    /// An entry that is committed, and the leader's answer.
    fn commit(&mut self, shard: ShardId, (node, other): (usize, usize), payload: Payload) -> Bytes {
        let position = Position {
            term: 1,
            index: 2 + self.length(shard) as u64,
        };
        let log = self.logs.entry(shard).or_default();
        log.push(LogEntry { position, payload });
        for node in [node, other] {
            self.sync(node, shard, self.length(shard));
        }
        self.apply(node, shard, u64::MAX).expect("it is applied")
    }

    fn propose(
        &mut self,
        shard: ShardId,
        nodes: u16,
        body: Body,
        planned_at: Option<Epoch>,
    ) -> Option<(Bytes, Timestamp, usize)> {
        let quorum = self.quorum(shard, nodes)?;
        let row = self.hosts[quorum.0].row(shard).unwrap();
        self.leader.last = self.leader.last.max(row.last_stamp).max(row.ceiling);
        let stamp = self.leader.stamp(1);
        let header = Header {
            stamp,
            ceiling: stamp.plus(u64::from(nodes % 3)),
            epoch: planned_at.unwrap_or(row.descriptor.epoch),
        };
        let payload = Payload::Command(Command { header, body }.encode());
        let answer = self.commit(shard, quorum, payload);
        Some((answer, stamp, quorum.0))
    }

    /// The members change, to the same ones. Nobody does that to a shard that has a part in a merge; but it may be
    /// in the left one's log all the same.
    fn change_members(&mut self, (_, first, _, number): Step) {
        let shard = ShardId(1 + u64::from(first) % self.last_id);
        let Some(quorum) = self.quorum(shard, number) else {
            return;
        };
        let row = self.hosts[quorum.0].row(shard).unwrap();
        if row.frozen().is_none() {
            let members = row.applied.membership.clone();
            self.commit(shard, quorum, Payload::Membership(members));
        }
    }

    fn step_of_merge(
        &mut self,
        shard: ShardId,
        nodes: u16,
        step: MergeStep,
        planned_at: Option<Epoch>,
    ) -> Option<MergeOutcome> {
        let body = Body::Merge(step);
        let (answer, _, _) = self.propose(shard, nodes, body, planned_at)?;
        match Answer::decode(&answer).unwrap() {
            Answer::Merge(outcome) => Some(outcome),
            other => panic!("a step of a merge was answered {other:?}"),
        }
    }

    /// The shard with a key, as some node knows it.
    fn find(&self, key: &Key, node: usize) -> Option<ShardId> {
        let mut machines = self.hosts[node].machines.iter();
        let found = machines.find(|(_, machine)| machine.reader().row().slot_of(key).is_some());
        found.map(|(shard, _)| *shard)
    }

    fn split(&mut self, (_, first, second, number): Step) {
        let Some(shard) = self.find(&key(first), usize::from(number) % NODES) else {
            return;
        };
        let Some(node) = self.lead(shard, number) else {
            return;
        };
        self.last_id += 1;
        let child = ShardId(self.last_id);
        let reader = self.hosts[node].machines[&shard].reader();
        let body = Body::Split(Split {
            at: key(second),
            child,
            left: reader.size_below(&key(second)).unwrap(),
            replicas: replicas(replica_on(child, 0).0),
        });
        let Some((answer, _, _)) = self.propose(shard, node as u16, body, None) else {
            return;
        };
        let Ok(Answer::Split(outcome)) = Answer::decode(&answer) else {
            panic!("a split is answered as one")
        };
        let row = self.hosts[node].row(shard).unwrap();
        if row.merge.part != Part::Alone {
            assert_eq!(outcome, SplitOutcome::Merging);
        }
    }

    /// The left one prepares, for what some node knows of its neighbour.
    fn begin(&mut self, (_, first, second, number): Step) {
        let Some(left) = self.find(&key(first), usize::from(number) % NODES) else {
            return;
        };
        let Some(node) = self.lead(left, number) else {
            return;
        };
        let row = self.hosts[node].row(left).unwrap();
        let told_by = usize::from(second) % NODES;
        let right = row.descriptor.range.end.as_ref();
        let right = right.and_then(|end| self.find(end, told_by));
        let Some(right) = right.and_then(|right| self.hosts[told_by].row(right)) else {
            return;
        };
        let right = right.descriptor.clone();
        let (id, epoch, over) = (right.id, right.epoch, Vec::new());
        let step = MergeStep::Prepare(Prepare { right, over });
        let prepared = self.step_of_merge(left, node as u16, step, None);
        if let Some(MergeOutcome::Prepared { attempt }) = prepared {
            self.messages.freezes.push((id, attempt, epoch));
        }
    }

    fn freeze(&mut self, (_, _, second, number): Step) {
        let Some((right, attempt, epoch)) = one_of(&self.messages.freezes, second) else {
            return;
        };
        let step = MergeStep::Freeze(attempt);
        let outcome = self.step_of_merge(right, number, step, Some(epoch));
        if let Some(MergeOutcome::Frozen {
            right,
            position,
            above,
        }) = outcome
        {
            self.messages.frozen.push(Absorb {
                attempt,
                right,
                frozen: position,
                above,
            });
        }
    }

    /// The left one absorbs when every replica of the right one has the freeze in its log.
    fn absorb(&mut self, (_, _, second, number): Step) {
        let Some(absorb) = one_of(&self.messages.frozen, second) else {
            return;
        };
        let (right, entries) = (absorb.right.id, absorb.frozen.index as usize - 1);
        if number % 2 == 0 {
            for node in 0..NODES {
                if self.hosts[node].machines.contains_key(&right) {
                    self.sync(node, right, entries);
                }
            }
        }
        let has_it = |host: &Host| {
            let synced = host.synced.get(&right).copied().flatten();
            host.machines.contains_key(&right) && synced >= Some(entries)
        };
        if self.hosts.iter().all(has_it) {
            let left = absorb.attempt.left;
            self.leader.last = self.leader.last.max(absorb.above);
            self.step_of_merge(left, number, MergeStep::Absorb(absorb), None);
        }
    }

    fn cancel(&mut self, (_, _, second, number): Step) {
        let Some((right, attempt, _)) = one_of(&self.messages.freezes, second) else {
            return;
        };
        let step = MergeStep::Cancel(attempt);
        let cancelled = self.step_of_merge(attempt.left, number, step, None);
        if cancelled == Some(MergeOutcome::Cancelled) {
            let settled = attempt.prepared;
            let unfreeze = Unfreeze { attempt, settled };
            self.messages.unfreezes.push((right, unfreeze));
        }
    }

    fn unfreeze(&mut self, (_, _, second, number): Step) {
        let Some((right, unfreeze)) = one_of(&self.messages.unfreezes, second) else {
            return;
        };
        self.step_of_merge(right, number, MergeStep::Unfreeze(unfreeze), None);
    }

    /// The leader of a shard that stands still asks what has become of the attempt.
    fn ask(&mut self, shard: ShardId, number: u16) {
        let Some(node) = self.lead(shard, number) else {
            return;
        };
        let row = self.hosts[node].row(shard).unwrap();
        let Some(frozen) = row.frozen().copied() else {
            return;
        };
        let shards: Vec<ShardId> = (1..=self.last_id).map(ShardId).collect();
        for asked in shards {
            let Some(leader) = self.lead(asked, number) else {
                continue;
            };
            let row = self.hosts[leader].row(asked).unwrap();
            if merge::fate(&row, &frozen.attempt, shard) == Fate::Cancelled {
                let (attempt, settled) = (frozen.attempt, frozen.attempt.prepared);
                let step = MergeStep::Unfreeze(Unfreeze { attempt, settled });
                self.step_of_merge(shard, number, step, None);
                return;
            }
        }
    }

    fn write(&mut self, step: Step) -> Result<(), TestCaseError> {
        let number = step.3;
        let write = self.leader.write(step, &self.model);
        let Some(shard) = self.find(write.first_key(), usize::from(number) % NODES) else {
            return Ok(());
        };
        let body = Body::Writes(vec![write.clone()]);
        let Some((answer, stamp, node)) = self.propose(shard, number / 3, body, None) else {
            return Ok(());
        };
        let is_final = |outcome: &WriteOutcome| {
            !matches!(outcome, WriteOutcome::Frozen | WriteOutcome::StaleEpoch)
        };
        if !outcomes(&answer).iter().all(is_final) {
            return Ok(());
        }
        let row = self.hosts[node].row(shard).unwrap();
        check_answers(&mut self.model, &answer, &[(write, stamp)], &row)
    }

    /// A linearizable read: of a leader that has applied all of its log.
    fn read(&mut self, (_, first, _, number): Step) -> Result<(), TestCaseError> {
        let key = key(first);
        let Some(shard) = self.find(&key, usize::from(number) % NODES) else {
            return Ok(());
        };
        let Some(node) = self.lead(shard, number / 3) else {
            return Ok(());
        };
        let found = match self.hosts[node].machines[&shard].reader().get(&key, None) {
            Ok(found) => found.value.into_option(),
            Err(ReadError::Frozen | ReadError::OutOfBounds { .. }) => return Ok(()),
            Err(error) => panic!("a leader does not read: {error}"),
        };
        let found = found.map(|found| (found.version, found.value));
        prop_assert_eq!(found, self.model.at(&key, Timestamp::MAX));
        Ok(())
    }

    /// A replica that has a log and has lost its row is born again of its parent, before anything else happens to
    /// that one.
    fn crash(&mut self, (_, _, second, number): Step) {
        let node = usize::from(number) % NODES;
        let host = &mut self.hosts[node];
        host.machines.clear();
        host.engine.crash(usize::from(second) * 2);
        host.reopen();
        for _ in 0..self.last_id {
            if !self.hosts[node].is_rowless() {
                return;
            }
            let shards: Vec<ShardId> = self.hosts[node].machines.keys().copied().collect();
            for shard in shards {
                self.apply(node, shard, u64::MAX);
            }
        }
        assert!(
            !self.hosts[node].is_rowless(),
            "the parent has written the row again"
        );
    }

    /// A node gets some more of a log, and applies it.
    fn follow(&mut self, (_, first, second, number): Step) {
        let node = usize::from(number) % NODES;
        let shards: Vec<ShardId> = self.hosts[node].machines.keys().copied().collect();
        let shard = shards[usize::from(first) % shards.len()];
        let synced = self.hosts[node].synced.get(&shard).copied().flatten();
        let more = synced.unwrap_or(0) + usize::from(second);
        self.sync(node, shard, more.min(self.length(shard)));
        self.apply(node, shard, u64::MAX);
    }

    /// A node gets a snapshot instead of what it lacks of a log.
    fn snapshot(&mut self, (_, first, _, number): Step) {
        let node = usize::from(number) % NODES;
        let shards: Vec<ShardId> = self.hosts[node].machines.keys().copied().collect();
        let shard = shards[usize::from(first) % shards.len()];
        if let Some(leader) = self.lead(shard, number / 3) {
            self.install(node, shard, leader);
        }
    }

    /// Those that it displaces are stopped first, and the engine is flushed before the log is purged.
    fn install(&mut self, node: usize, shard: ShardId, leader: usize) {
        let mut source = self.hosts[leader].machines[&shard].snapshot().unwrap();
        let host = &mut self.hosts[node];
        if host.machines[&shard].applied().position >= source.applied().position {
            return;
        }
        let mut sink = host.machines[&shard].receiver().begin().unwrap();
        while let Some(chunk) = source.next().unwrap() {
            sink.chunk(chunk).unwrap();
        }
        let received = sink.finish().unwrap();
        let displaced = host.machines[&shard].displaces(&received).unwrap();
        for displaced in &displaced {
            host.machines.remove(&shard_of(*displaced));
        }
        let machine = host.machines.get_mut(&shard).unwrap();
        machine.install(source.applied(), received).unwrap();
        assert_eq!(machine.take_ended(), displaced);
        host.ended.extend(displaced.into_iter().map(shard_of));
        host.flush();
        let position = source.applied().position.unwrap();
        self.sync(node, shard, position.index as usize - 1);
    }

    /// A node asks whether what it has was absorbed.
    fn ask_for_orphans(&mut self, node: usize, number: u16) {
        for shard in (1..=self.last_id).map(ShardId) {
            let Some(leader) = self.lead(shard, number) else {
                continue;
            };
            let row = self.hosts[leader].row(shard).unwrap();
            let host = &mut self.hosts[node];
            let here = host.machines.values();
            let here: Vec<_> = here.map(|it| it.reader().descriptor()).collect();
            let absorbed = &row.merge.absorbed;
            if !merge::are_left_over(&row.descriptor, absorbed, &here) {
                continue;
            }
            let engine: Arc<dyn Engine> = host.engine.clone();
            for ended in absorbed {
                if host.machines.remove(ended).is_some() {
                    destroy(&engine, &host.slots, replica_on(*ended, node)).unwrap();
                    host.ended.push(*ended);
                }
            }
            host.flush();
        }
    }

    /// A replica that another one of its shard calls for is made where there is room. It votes, and is filled by
    /// whoever has most.
    fn make_missing(&mut self, node: usize) {
        for shard in (1..=self.last_id).map(ShardId) {
            let position = |other: &usize| {
                let machine = self.hosts[*other].machines.get(&shard);
                machine.map(|machine| machine.applied().position)
            };
            let first = (0..NODES).max_by_key(position).expect("there are nodes");
            let host = &self.hosts[node];
            let Some(row) = self.hosts[first].row(shard) else {
                continue;
            };
            let range = &row.descriptor.range;
            let holder = crate::shard::holder(&*host.engine, range).unwrap();
            if holder.is_some() || host.synced.get(&shard) == Some(&None) {
                continue;
            }
            let (engine, replica) = (host.engine.clone() as _, replica_on(shard, node));
            empty(&engine, &host.slots, replica, row.descriptor.clone()).unwrap();
            let machine = open_in(&engine, &host.slots, replica);
            self.hosts[node].machines.insert(shard, machine);
            self.install(node, shard, first);
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (kind, first, _, number) = step;
        self.leader.wall_ms += u64::from(number % 11);
        match kind % 25 {
            0 => self.split(step),
            1 => {
                let host = &mut self.hosts[usize::from(number) % NODES];
                host.flush();
                let machines = host.machines.values_mut();
                machines.for_each(|machine| collect_some(machine, 3));
                while host.slots.clear().unwrap() {}
            }
            2 => self.crash(step),
            3 | 4 => self.follow(step),
            5 | 6 => self.begin(step),
            7 | 8 => self.freeze(step),
            9..=11 => self.absorb(step),
            12 => self.cancel(step),
            13 => self.unfreeze(step),
            14 => self.ask(ShardId(1 + u64::from(first) % self.last_id), number),
            15 => self.snapshot(step),
            16 => {
                self.ask_for_orphans(usize::from(number) % NODES, number / 3);
                self.make_missing(usize::from(number) % NODES);
            }
            17 | 18 => self.read(step)?,
            19 => self.change_members(step),
            _ => self.write(step)?,
        }
        for host in &self.hosts {
            let clear_list = host.slots.clear_list().unwrap();
            let audit =
                crate::shard::audit::audit(&*host.engine, &clear_list, &mut |_| {}).unwrap();
            prop_assert_eq!(audit.problems, Vec::<String>::new());
        }
        Ok(())
    }

    /// Everything arrives, and nothing is left undecided.
    fn settle(&mut self) {
        for round in 0..2 * self.last_id {
            let shards: Vec<ShardId> = (1..=self.last_id).map(ShardId).collect();
            for shard in &shards {
                for node in 0..NODES {
                    if self.hosts[node].machines.contains_key(shard) {
                        self.sync(node, *shard, self.length(*shard));
                        self.apply(node, *shard, u64::MAX);
                    }
                }
            }
            for node in 0..NODES {
                self.ask_for_orphans(node, round as u16);
                self.make_missing(node);
            }
            for shard in shards {
                let row = self.hosts[0].row(shard);
                match row.map(|row| row.merge.part) {
                    Some(Part::Left(open)) => {
                        let step = MergeStep::Cancel(open.attempt);
                        self.step_of_merge(shard, round as u16, step, None);
                    }
                    Some(Part::Right(_)) => self.ask(shard, round as u16),
                    Some(Part::Alone) | None => {}
                }
            }
        }
    }
}

/// One of what was sent, mostly of the last.
fn one_of<T: Clone>(sent: &[T], second: u8) -> Option<T> {
    let back = usize::from(second) * usize::from(second) / 8;
    sent.iter()
        .rev()
        .nth(back.min(sent.len().saturating_sub(1)))
        .cloned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_key_has_one_owner_in_whatever_order_messages_come(steps in steps(300)) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        world.settle();
        let of_first: Vec<ShardId> = world.hosts[0].machines.keys().copied().collect();
        for host in &world.hosts {
            prop_assert_eq!(&host.machines.keys().copied().collect::<Vec<_>>(), &of_first);
            for (shard, machine) in &host.machines {
                let (row, other) = (host.row(*shard).unwrap(), world.hosts[0].row(*shard).unwrap());
                prop_assert_eq!(row.merge.part, Part::Alone);
                prop_assert_eq!(row.without_places(), other.without_places());
                prop_assert_eq!(hash(machine), hash(&world.hosts[0].machines[shard]));
                check_reads(&world.model, &machine.reader())?;
            }
        }
    }
}
