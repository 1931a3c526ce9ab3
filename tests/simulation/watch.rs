//! Sees everything that the nodes send, and holds it against what must be.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use quorate::error::Result;
use quorate::node::registry::Registry;
use quorate::placement::PlacementState;
use quorate::raft::Group;
use quorate::raft::Leadership;
use quorate::shard::Row;
use quorate::testkit::invariants::Violation;
use quorate::testkit::invariants::entries::Entries;
use quorate::testkit::invariants::leaders::Leaders;
use quorate::testkit::invariants::ranges;
use quorate::testkit::invariants::replicas::Replicas;
use quorate::testkit::invariants::states::States;
use quorate::testkit::invariants::voters::Voters;
use quorate::testkit::invariants::votes::Votes;
use quorate::types::NodeId;
use quorate::types::ShardId;
use quorate::types::shard::ShardDescriptor;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use tokio::time::Instant;

/// A shard that is led and stands still goes on, or is absorbed, within this time, when nothing is done to it.
const FROZEN_MAX: Duration = Duration::from_secs(1);

/// All that was seen in one run.
#[derive(Default)]
pub struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    leaders: Leaders,
    votes: Votes,
    entries: Entries,
    states: States,
    /// The hashes of what was applied, which production compares too.
    chains: States,
    replicas: Replicas,
    voters: Voters,
    violations: Vec<Violation>,
    snapshots: u64,
    splits: u64,
    moves: u64,
    crashes: u64,
    /// Shards that others have absorbed.
    absorbed: BTreeSet<ShardId>,
    /// Since when the leader of each shard has seen it frozen.
    frozen: BTreeMap<ShardId, Instant>,
    /// The longest that one was.
    frozen_max: Duration,
    /// Nothing is done to the cluster any more.
    is_calm: bool,
    /// By shard and the change that recorded each.
    operators: BTreeSet<(ShardId, u64)>,
}

/// Something that a run should have had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Snapshot,
    Split,
    Move,
    Crash,
}

/// How much was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub terms: usize,
    pub entries: usize,
    pub states_compared: u64,
    pub snapshots: u64,
    pub splits: u64,
    pub moves: u64,
    pub merges: usize,
    pub frozen_max: Duration,
    pub crashes: u64,
    pub operators: usize,
}

impl Watch {
    /// `least`: fewer voters of a group nobody wants; 0: not known.
    pub fn new(least: usize) -> Arc<Watch> {
        let state = State {
            voters: Voters { least },
            ..State::default()
        };
        Arc::new(Watch {
            state: Mutex::new(state),
        })
    }

    /// A call has arrived.
    pub fn request(&self, _from: NodeId, _to: NodeId, request: &Request) {
        if let Request::Append(route, append) = request {
            self.append(*route, append);
        }
    }

    /// A call was answered; the answer may be lost.
    pub fn response(&self, request: &Request, response: &Result<Response>) {
        if let (Request::Append(route, asked), Ok(Response::Append(answer))) = (request, response) {
            self.appended(*route, asked.vote.term, answer);
        }
        let (Request::Vote(route, asked), Ok(Response::Vote(answer))) = (request, response) else {
            return;
        };
        if answer.granted && !asked.pre_vote {
            let (term, candidate) = (asked.vote.term, asked.vote.replica);
            self.note(|state| state.votes.granted(route.group, route.to, term, candidate));
        }
    }

    /// A leader's message has arrived.
    pub fn append(&self, route: Route, append: &AppendRequest) {
        let vote = append.vote;
        self.note(|state| state.leaders.led(route.group, vote.term, vote.replica));
        for entry in &append.entries {
            let committed = append.committed;
            let is_committed = committed.is_some_and(|upto| entry.position <= upto);
            self.note(|state| match is_committed {
                true => state.entries.committed(route.group, entry),
                false => state.entries.seen(route.group, entry),
            });
        }
    }

    /// A replica has answered what a leader of the term sent.
    pub fn appended(&self, route: Route, term: u64, answer: &AppendResponse) {
        if matches!(answer, AppendResponse::Matched(_)) {
            self.state().votes.took(route.group, route.to, term);
        }
    }

    /// Looks at a living node. `deep`: the states of its shards too.
    pub fn node(&self, node: NodeId, registry: &Registry, deep: bool) {
        for group in registry.groups() {
            let (id, replica, view) = (group.id(), group.replica(), group.view());
            self.note(|state| state.replicas.seen(replica, id, node));
            self.note(|state| state.votes.reached(id, replica, view.term));
            if view.role == "leader" {
                self.note(|state| state.leaders.led(id, view.term, replica));
                let membership = group.membership();
                self.note(|state| state.voters.seen(id, &membership));
            }
        }
        let shards = registry.shards();
        let held: Vec<ShardDescriptor> = shards
            .iter()
            .map(|replica| replica.reader().descriptor())
            .collect();
        self.note(|_| ranges::apart(&held).map_err(|why| format!("on {node}: {why}")));
        for replica in &shards {
            self.merging(&replica.reader().row(), replica.group());
        }
        for replica in shards.iter().filter(|replica| deep && replica.is_filled()) {
            let (id, of) = (replica.group().id(), replica.group());
            for link in replica.reader().chains() {
                let (position, chain) = (link.position, link.chain.0);
                self.note(|state| state.chains.seen(id, position, chain, of.replica()));
            }
            match replica.reader().state_hash() {
                Ok(found) => {
                    let Some(position) = found.position else {
                        continue;
                    };
                    self.note(|state| state.states.seen(id, position, found.hash, of.replica()));
                }
                Err(error) => self.note(|_| Err(format!("the state of {id} on {node}: {error}"))),
            }
        }
    }

    /// Looks at the part that a shard has in merges. One that is led does not stand still for long.
    fn merging(&self, row: &Row, group: &Group) {
        let (shard, now) = (row.descriptor.id, Instant::now());
        let mut state = self.state();
        state.absorbed.extend(&row.merge.absorbed);
        if !matches!(*group.leadership().borrow(), Leadership::Leading { .. }) {
            return;
        }
        if row.frozen().is_none() {
            state.frozen.remove(&shard);
            return;
        }
        let since = *state.frozen.entry(shard).or_insert(now);
        let lasts = now.duration_since(since);
        state.frozen_max = state.frozen_max.max(lasts);
        if state.is_calm && lasts > FROZEN_MAX {
            state.frozen.insert(shard, now);
            let (leader, view) = (group.replica(), group.view());
            let why = format!(
                "{shard} has been frozen for {lasts:?}, as {leader} sees it that leads in term {} and has applied {:?}",
                view.term, row.applied.position
            );
            state.violations.push(why);
        }
    }

    /// From now on nothing is done to the cluster.
    pub fn calm(&self) {
        let mut state = self.state();
        state.frozen.clear();
        state.is_calm = true;
    }

    /// A node has ended.
    pub fn ended(&self, node: NodeId) {
        let mut state = self.state();
        for (group, replica) in state.replicas.on(node) {
            state.votes.ended(group, replica);
        }
    }

    /// It has happened once more.
    pub fn count(&self, event: Event) {
        let mut state = self.state();
        match event {
            Event::Snapshot => state.snapshots += 1,
            Event::Split => state.splits += 1,
            Event::Move => state.moves += 1,
            Event::Crash => state.crashes += 1,
        }
    }

    /// Something else was seen that cannot be.
    pub fn complain(&self, why: Violation) {
        self.note(|_| Err(why));
    }

    /// What was seen that cannot be.
    pub fn violations(&self) -> Vec<Violation> {
        self.state().violations.clone()
    }

    /// How much was seen.
    pub fn seen(&self) -> Seen {
        let state = self.state();
        Seen {
            terms: state.leaders.count(),
            entries: state.entries.count(),
            states_compared: state.states.compared() + state.chains.compared(),
            snapshots: state.snapshots,
            splits: state.splits,
            moves: state.moves,
            merges: state.absorbed.len(),
            frozen_max: state.frozen_max,
            crashes: state.crashes,
            operators: state.operators.len(),
        }
    }

    /// Looks at what a replica of placement has recorded.
    pub fn placement(&self, placement: &PlacementState) {
        let operators = placement.operators();
        let operators = operators.map(|(operator, change)| (operator.shard, change));
        self.state().operators.extend(operators);
    }

    fn note(&self, look: impl FnOnce(&mut State) -> std::result::Result<(), Violation>) {
        let mut state = self.state();
        if let Err(why) = look(&mut state) {
            state.violations.push(why);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}
