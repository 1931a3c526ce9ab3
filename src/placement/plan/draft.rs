//! A plan while it is being made. Decides only.
//!
//! It counts what each node will have when everything that is under way or planned has been done, so that the
//! next thing planned does not do the same again, and it holds the limits.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::placement::node::Health;
use crate::placement::node::NodeView;
use crate::placement::node::Unfit;
use crate::placement::order::copy_time;
use crate::placement::plan::hold::Explanation;
use crate::placement::plan::hold::Finding;
use crate::placement::plan::hold::Hold;
use crate::placement::plan::hold::Limit;
use crate::placement::policy::Policy;
use crate::placement::shard::ShardView;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::operator::Action;
use crate::types::operator::Aim;
use crate::types::operator::Operator;
use crate::types::rule::Rule;
use crate::types::shard::Replica;

/// What is to be done for an aim, and why: nothing, something, or something that is held back.
pub(super) type Verdict = Result<Option<Proposal>, Hold>;

/// Something to do with one shard.
pub(super) struct Proposal {
    pub(super) action: Action,
    pub(super) reason: String,
}

/// All are alike where a node's role is looked at.
const ANY_SHARD: ShardId = ShardId(1);

/// A node, and what it will have.
pub(super) struct Seat<'a> {
    pub(super) node: &'a NodeView,
    fitness: Result<(), Unfit>,
    placement_fitness: Result<(), Unfit>,
    /// What its replicas weigh.
    pub(super) bytes: u64,
    /// What it costs to lead what it leads.
    pub(super) lead: u64,
    /// Replicas that come to it, and their bytes.
    arriving: usize,
    arriving_bytes: u64,
    /// Replicas that its leaders send.
    sending: usize,
    /// Leads passed on from or to it.
    transfers: usize,
}

impl Seat<'_> {
    /// The share of the node's disk that so many bytes are; 0 while nobody knows how big it is.
    pub(super) fn share(&self, bytes: u64) -> f64 {
        match self.node.capacity_bytes {
            0 => 0.0,
            capacity_bytes => bytes as f64 / capacity_bytes as f64,
        }
    }

    /// Whether it may get a replica of the shard, or the lead of one that it has.
    pub(super) fn fitness(&self, shard: &ShardView) -> Result<(), Unfit> {
        match shard.is_placement() {
            true => self.placement_fitness,
            false => self.fitness,
        }
    }

    /// Whether it holds shards and leads.
    pub(super) fn is_fit(&self) -> bool {
        self.fitness.is_ok()
    }
}

/// A plan while it is being made.
pub(super) struct Draft<'a> {
    pub(super) view: &'a View,
    pub(super) policy: &'a Policy,
    pub(super) seats: BTreeMap<NodeId, Seat<'a>>,
    now: Timestamp,
    rules: BTreeMap<ShardId, &'a Rule>,
    /// What it costs to lead any shard, besides what is asked of it.
    lead_floor: u64,
    moves: usize,
    splits: usize,
    merges: usize,
    /// Shards that are absorbed by their left neighbours, or will be.
    absorbed: BTreeSet<ShardId>,
    planned: BTreeMap<ShardId, Operator>,
    order: Vec<ShardId>,
    /// Shards for which something waits for its turn, or for a node: nothing less urgent goes first.
    waiting: BTreeSet<ShardId>,
    explained: Option<Explanation>,
}

impl<'a> Draft<'a> {
    /// Nothing is planned yet. What is found about one shard may be kept to explain it.
    pub(super) fn new(
        view: &'a View,
        policy: &'a Policy,
        now: Timestamp,
        explained: Option<ShardId>,
    ) -> Draft<'a> {
        let seat = |node: &'a NodeView| Seat {
            node,
            fitness: node.fitness(ANY_SHARD, policy),
            placement_fitness: node.fitness(ShardId::PLACEMENT, policy),
            bytes: 0,
            lead: 0,
            arriving: 0,
            arriving_bytes: 0,
            sending: 0,
            transfers: 0,
        };
        let costs = view.shards.values().map(|shard| shard.steady.cost(policy));
        let mean = costs.sum::<u64>() / (view.shards.len() as u64).max(1);
        let ruled = view.groups();
        let mut draft = Draft {
            view,
            policy,
            seats: view
                .nodes
                .iter()
                .map(|(id, node)| (*id, seat(node)))
                .collect(),
            now,
            rules: ruled
                .map(|shard| (shard.descriptor.id, view.rule(shard, policy)))
                .collect(),
            lead_floor: mean.max(policy.leader_operations),
            moves: 0,
            splits: 0,
            merges: 0,
            absorbed: BTreeSet::new(),
            planned: BTreeMap::new(),
            order: Vec::new(),
            waiting: BTreeSet::new(),
            explained: explained.map(|shard| Explanation {
                shard,
                findings: Vec::new(),
            }),
        };
        for shard in view.groups() {
            draft.count(shard);
            if !draft.is_led(shard) {
                draft.note(shard, Aim::Repair, Finding::Held(Hold::NoLeader));
            }
        }
        for operator in view.operators.values() {
            if let Some(shard) = view.shard(operator.shard) {
                draft.take(shard, &operator.action);
                let held = Finding::Held(Hold::Operator(operator.to_string()));
                draft.note(shard, operator.aim, held.clone());
                let right = operator.action.absorbed();
                if let Some(right) = right.and_then(|right| view.shard(right)) {
                    let beside = Finding::Beside(operator.shard, Box::new(held));
                    draft.note(right, operator.aim, beside);
                }
            }
        }
        draft
    }

    /// The operators, in the order in which they were planned.
    pub(super) fn into_operators(mut self) -> Vec<Operator> {
        let order = std::mem::take(&mut self.order);
        let operators = order.iter().filter_map(|shard| self.planned.remove(shard));
        operators.collect()
    }

    /// What was found about the shard that is to be explained.
    pub(super) fn into_explanation(self) -> Option<Explanation> {
        self.explained
    }

    pub(super) fn rule(&self, shard: &ShardView) -> &'a Rule {
        let rule = self.rules.get(&shard.descriptor.id);
        rule.expect("every shard of the view has been given its rule")
    }

    pub(super) fn health(&self, node: NodeId) -> Health {
        self.view.health(node, self.policy)
    }

    /// Whether a node answers.
    pub(super) fn is_live(&self, node: NodeId) -> bool {
        self.health(node) < Health::Suspect
    }

    /// What a replica of the shard weighs. Placement's are not evened out.
    pub(super) fn weight(&self, shard: &ShardView) -> u64 {
        match shard.is_placement() {
            true => 0,
            false => shard.bytes + self.policy.replica_bytes,
        }
    }

    /// What it costs to lead the shard. Placement's group is not evened out.
    pub(super) fn lead(&self, shard: &ShardView) -> u64 {
        match shard.is_placement() {
            true => 0,
            false => shard.steady.cost(self.policy) + self.lead_floor,
        }
    }

    /// Whether something is being done with the shard, is planned, or waits for its turn.
    pub(super) fn is_taken(&self, shard: &ShardView) -> bool {
        let id = shard.descriptor.id;
        self.operator(shard).is_some() || self.absorbed.contains(&id) || self.waiting.contains(&id)
    }

    /// What is being done with the shard, or is planned.
    pub(super) fn operator(&self, shard: &ShardView) -> Option<&Operator> {
        let id = &shard.descriptor.id;
        let under_way = self.view.operators.get(id);
        under_way.or_else(|| self.planned.get(id))
    }

    /// Whether something can be done with the shard: a majority answers, and one of it leads.
    pub(super) fn is_led(&self, shard: &ShardView) -> bool {
        let is_live = |voter: &Replica| self.is_live(voter.node);
        let live = shard.voters().filter(is_live).count();
        let is_led = shard.leading().is_some_and(|leading| is_live(&leading));
        is_led && live > shard.voters().count() / 2
    }

    /// Whether the shard is the one to be explained.
    pub(super) fn explains(&self, shard: &ShardView) -> bool {
        let explained = self.explained.as_ref();
        explained.is_some_and(|explained| explained.shard == shard.descriptor.id)
    }

    /// Keeps what was found, if it is about the shard that is to be explained.
    pub(super) fn note(&mut self, shard: &ShardView, aim: Aim, finding: Finding) {
        if self.explains(shard)
            && let Some(explained) = &mut self.explained
        {
            explained.findings.push((aim, finding));
        }
    }

    /// Takes a proposal into the plan, or finds that it is held back. Gives what came of it.
    pub(super) fn decide(&mut self, shard: &ShardView, aim: Aim, verdict: Verdict) -> Finding {
        let admitted = verdict.and_then(|proposal| match proposal {
            Some(proposal) => self
                .admits(shard, aim, &proposal.action)
                .map(|()| Some(proposal)),
            None => Ok(None),
        });
        let finding = match admitted {
            Ok(None) => Finding::InOrder,
            Ok(Some(Proposal { action, reason })) => {
                self.take(shard, &action);
                self.plan(shard, aim, action.clone(), reason.clone());
                Finding::Planned(action, reason)
            }
            Err(hold) => {
                if matches!(hold, Hold::Limit(..) | Hold::UnknownDisk(_)) {
                    self.waiting.insert(shard.descriptor.id);
                }
                Finding::Held(hold)
            }
        };
        self.note(shard, aim, finding.clone());
        finding
    }

    /// Whether the limits leave room for it.
    pub(super) fn admits(&self, shard: &ShardView, aim: Aim, action: &Action) -> Result<(), Hold> {
        let policy = self.policy;
        let sending = shard
            .leading()
            .and_then(|leading| self.seats.get(&leading.node));
        let sending = sending.map_or(0, |seat| seat.sending);
        match action {
            Action::Add { to } | Action::Move { to, .. } => {
                self.has_place(*to)?;
                within(Limit::Sending, sending, policy.moves_per_node)?;
                within(Limit::Moves, self.moves, policy.moves_per_cluster)
            }
            Action::Transfer { from, to } => {
                let max = match aim == Aim::Relieve {
                    true => policy.drains_per_node,
                    false => policy.transfers_per_node,
                };
                let seats = [from, to].map(|node| self.seats.get(node));
                let transfers = seats.into_iter().flatten().map(|seat| seat.transfers);
                within(Limit::Transfers, transfers.max().unwrap_or(0), max)
            }
            Action::Split { .. } => within(Limit::Splits, self.splits, policy.splits_at_once),
            Action::Merge { .. } => within(Limit::Merges, self.merges, policy.merges_at_once),
            Action::Remove { .. } => Ok(()),
        }
    }

    /// Whether one more replica may be on its way to a node.
    pub(super) fn has_place(&self, node: NodeId) -> Result<(), Hold> {
        let seat = self.seats.get(&node);
        if seat.is_some_and(|seat| !seat.node.knows_disk()) {
            return Err(Hold::UnknownDisk(node));
        }
        let arriving = seat.map_or(0, |seat| seat.arriving);
        within(Limit::Arriving, arriving, self.policy.moves_per_node)
    }

    /// Whether a node will have room for a replica of the shard.
    pub(super) fn has_room(&self, seat: &Seat<'_>, shard: &ShardView) -> bool {
        let more_bytes = seat.arriving_bytes + shard.bytes;
        seat.node.has_room(more_bytes, self.policy)
    }

    fn plan(&mut self, shard: &ShardView, aim: Aim, action: Action, reason: String) {
        let (bytes, time) = match &action {
            Action::Add { .. } | Action::Move { .. } => {
                (shard.bytes, copy_time(shard.bytes, self.policy))
            }
            Action::Remove { .. }
            | Action::Transfer { .. }
            | Action::Split { .. }
            | Action::Merge { .. } => (0, self.policy.operator_time),
        };
        let expires_ms = self.now.wall_ms() + time.as_millis() as u64;
        let operator = Operator {
            shard: shard.descriptor.id,
            aim,
            action,
            reason,
            epoch: shard.descriptor.epoch,
            voters: shard.voters().collect(),
            bytes,
            expires: Timestamp::from_wall(expires_ms),
        };
        self.order.push(operator.shard);
        self.planned.insert(operator.shard, operator);
    }

    /// Counts a shard as it is.
    fn count(&mut self, shard: &ShardView) {
        let (weight, lead) = (self.weight(shard), self.lead(shard));
        for replica in &shard.descriptor.replicas {
            if let Some(seat) = self.seats.get_mut(&replica.node) {
                seat.bytes += weight;
            }
        }
        if let Some(seat) = self.leading_seat(shard) {
            seat.lead += lead;
        }
    }

    /// Counts an action as under way, and what will be when it is done.
    fn take(&mut self, shard: &ShardView, action: &Action) {
        match action {
            Action::Add { to } => self.add(shard, *to),
            Action::Remove { replica } => self.remove(shard, replica.node),
            Action::Move { from, to } => {
                self.add(shard, *to);
                self.remove(shard, from.node);
                if shard.leader == Some(from.id) {
                    self.pass(shard, *to);
                }
            }
            Action::Transfer { from, to } => {
                self.pass(shard, *to);
                for node in [from, to] {
                    if let Some(seat) = self.seats.get_mut(node) {
                        seat.transfers += 1;
                    }
                }
            }
            Action::Split { .. } => self.splits += 1,
            Action::Merge { right, .. } => self.absorb(shard, *right),
        }
    }

    /// The right one has no replicas of its own any more, and nobody leads it.
    fn absorb(&mut self, shard: &ShardView, right: ShardId) {
        self.merges += 1;
        let is_first = self.absorbed.insert(right);
        let Some(right) = self.view.shard(right).filter(|_| is_first) else {
            return;
        };
        for replica in &right.descriptor.replicas {
            if let Some(seat) = self.seats.get_mut(&replica.node) {
                seat.bytes -= self.policy.replica_bytes;
            }
        }
        let (lead, cost) = (self.lead(right), right.steady.cost(self.policy));
        if let Some(seat) = self.leading_seat(right) {
            seat.lead -= lead;
        }
        if let Some(seat) = self.leading_seat(shard) {
            seat.lead += cost;
        }
    }

    fn add(&mut self, shard: &ShardView, to: NodeId) {
        if shard.voter_on(to).is_some() {
            return;
        }
        let weight = self.weight(shard);
        self.moves += 1;
        if let Some(seat) = self.seats.get_mut(&to) {
            seat.arriving += 1;
            seat.arriving_bytes += shard.bytes;
            if shard.descriptor.replica_on(to).is_none() {
                seat.bytes += weight;
            }
        }
        if let Some(seat) = self.leading_seat(shard) {
            seat.sending += 1;
        }
    }

    fn remove(&mut self, shard: &ShardView, from: NodeId) {
        let weight = self.weight(shard);
        let holds = shard.descriptor.replica_on(from).is_some();
        if let Some(seat) = self.seats.get_mut(&from).filter(|_| holds) {
            seat.bytes -= weight;
        }
    }

    fn pass(&mut self, shard: &ShardView, to: NodeId) {
        let lead = self.lead(shard);
        if let Some(seat) = self.leading_seat(shard) {
            seat.lead -= lead;
        }
        if let Some(seat) = self.seats.get_mut(&to) {
            seat.lead += lead;
        }
    }

    fn leading_seat(&mut self, shard: &ShardView) -> Option<&mut Seat<'a>> {
        let leading = shard.leading()?;
        self.seats.get_mut(&leading.node)
    }
}

fn within(limit: Limit, count: usize, max: usize) -> Result<(), Hold> {
    match count < max {
        true => Ok(()),
        false => Err(Hold::Limit(limit, max)),
    }
}
