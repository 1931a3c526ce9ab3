//! Placement of the cluster in memory: does one thing each time it is looked at, and goes wrong as told.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use quorate::error::Error;
use quorate::error::Result;
use quorate::placement::policy::Policy;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::node::Duty;
use quorate::types::overview::Arrangement;
use quorate::types::overview::Event;
use quorate::types::overview::Explained;
use quorate::types::overview::Finding;
use quorate::types::overview::NodeOverview;
use quorate::types::overview::OperatorOverview;
use quorate::types::overview::Overview;
use quorate::types::overview::Setting;
use quorate::types::overview::ShardOverview;
use quorate::types::report::Load;
use quorate::types::report::NodeReport;
use quorate::types::report::ShardReport;
use quorate::types::rule::Rule;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::types::shard::Size;
use quorate::wire::request::OverviewQuery;
use quorate::wire::request::Response;

use super::State;

/// What placement knows and does.
#[derive(Default)]
pub(crate) struct Placement {
    pub(crate) duties: BTreeMap<u64, Duty>,
    pub(crate) rules: Vec<Rule>,
    settings: BTreeMap<String, String>,
    paused: bool,
    /// Orders, with what is done by each.
    orders: Vec<(OperatorOverview, Work)>,
    events: Vec<Event>,
    last_number: u64,
    /// Nothing is done; this is why.
    pub(crate) held: Option<String>,
    /// Orders end without having been carried out.
    pub(crate) gives_up: bool,
    /// Nodes without a replica of placement's group any more.
    pub(crate) left: BTreeSet<u64>,
    /// Counts nothing, as after a change of its leader.
    pub(crate) has_heard_nothing: bool,
}

/// What is done by an order.
#[derive(Clone, Copy)]
enum Work {
    /// A replica moves from one node to another.
    Move(u64, u64),
    /// The shard absorbs this one.
    Merge(ShardId),
}

impl State {
    pub(super) fn overview(&mut self, query: OverviewQuery) -> Result<Response> {
        let driver = self.driver()?;
        let shards = self.shards.clone();
        let shards = shards.iter().filter(|_| query.shards);
        let policy = Policy::of(&self.placement.settings);
        let settings = policy.settings().into_iter();
        let settings = settings.map(|(name, value)| Setting {
            is_set: self.placement.settings.contains_key(name),
            name: name.to_owned(),
            value,
        });
        let operators = self.placement.orders.iter();
        let overview = Overview {
            driver: NodeId(driver),
            at: self.now(),
            paused: self.placement.paused,
            nodes: self.nodes().map(|node| self.node_overview(node)).collect(),
            shards: shards.map(|shard| self.shard_overview(shard)).collect(),
            operators: operators.map(|(order, _)| order.clone()).collect(),
            rules: self.placement.rules.clone(),
            settings: settings.collect(),
            events: self.placement.events.clone(),
        };
        if !self.placement.paused && self.placement.held.is_none() {
            self.carry_on();
        }
        Ok(Response::Overview(Box::new(overview)))
    }

    pub(super) fn explain(&self, id: ShardId) -> Result<Response> {
        self.driver()?;
        let shard = self.shards.iter().find(|shard| shard.id == id);
        let shard = shard.ok_or_else(|| Error::NotFound {
            what: id.to_string(),
        })?;
        let held = self.placement.held.as_ref();
        let vacate = held.map_or("in order".to_owned(), |held| format!("held: {held}"));
        let findings = [("repair", "in order"), ("vacate", &vacate)];
        let rule = self.placement.rules.first().cloned();
        Ok(Response::Explain(Box::new(Explained {
            shard: self.shard_overview(shard),
            rule: rule.unwrap_or_default(),
            findings: findings
                .map(|(aim, text)| Finding {
                    aim: aim.to_owned(),
                    state: match text.strip_prefix("held") {
                        Some(_) => "held".to_owned(),
                        None => "in_order".to_owned(),
                    },
                    text: text.to_owned(),
                })
                .to_vec(),
        })))
    }

    pub(super) fn arrange(&mut self, arrangement: Arrangement) -> Result<Response> {
        self.driver()?;
        let placement = &mut self.placement;
        match arrangement {
            Arrangement::SetDuty { node, duty } => {
                placement.duties.insert(node.0, duty);
            }
            Arrangement::SetRule(rule) => {
                placement.rules.retain(|known| known.prefix != rule.prefix);
                placement.rules.push(rule);
            }
            Arrangement::DeleteRule { prefix } => {
                placement.rules.retain(|known| known.prefix != prefix);
            }
            Arrangement::SetSetting { name, value } => {
                let text = value.clone().unwrap_or_else(|| "5s".to_owned());
                let set = Policy::default().set(&name, &text);
                set.map_err(|error| Error::invalid("setting", error.to_string()))?;
                match value {
                    Some(value) => placement.settings.insert(name, value),
                    None => placement.settings.remove(&name),
                };
            }
            Arrangement::SetPaused(paused) => placement.paused = paused,
            Arrangement::CancelOperator { shard, number } => {
                let is_it = |order: &OperatorOverview| (order.shard, order.number);
                placement
                    .orders
                    .retain(|(order, _)| is_it(order) != (shard, number));
            }
            Arrangement::MoveReplica { shard, from, to } => self.order(shard, from, to)?,
            Arrangement::MergeShard { shard } => self.order_merge(shard)?,
            Arrangement::CreateKeyspace(keyspace) => self.create_keyspace(keyspace)?,
            Arrangement::DeleteKeyspace { name } => self.delete_keyspace(&name)?,
        }
        Ok(Response::Arrange)
    }

    fn order(&mut self, id: ShardId, from: NodeId, to: NodeId) -> Result<()> {
        let shard = self.shards.iter().find(|shard| shard.id == id);
        let leaving = shard.and_then(|shard| shard.replica_on(from));
        let Some(leaving) = leaving else {
            let reason = format!("{id} has no replica on {from}");
            return Err(Error::invalid("move_replica", reason));
        };
        let action = format!("move {} from {from} to {to}", leaving.id);
        let step = format!("add a replica on {to}");
        self.place_order(id, (action, step), Work::Move(from.0, to.0));
        Ok(())
    }

    fn order_merge(&mut self, id: ShardId) -> Result<()> {
        let left = self.shards.iter().find(|shard| shard.id == id);
        let end = left.and_then(|left| left.range.end.clone());
        let mut shards = self.shards.iter();
        let right = shards.find(|shard| Some(&shard.range.start) == end.as_ref());
        let Some(right) = right.map(|right| right.id) else {
            let reason = format!("{id} has the last keys: nothing is right of it");
            return Err(Error::invalid("merge_shard", reason));
        };
        let absorb = format!("absorb {right}");
        self.place_order(id, (absorb.clone(), absorb), Work::Merge(right));
        Ok(())
    }

    fn place_order(&mut self, shard: ShardId, (action, step): (String, String), work: Work) {
        self.placement.last_number += 1;
        let order = OperatorOverview {
            shard,
            number: self.placement.last_number,
            aim: "order".into(),
            action,
            reason: "a person wants it".into(),
            step,
            expires: self.stamp.plus(30_000 << 16),
            progress: "next".into(),
            bytes: 0,
        };
        self.placement.orders.push((order, work));
    }

    fn driver(&self) -> Result<u64> {
        let leader = self.leader.filter(|leader| !self.down.contains(leader));
        leader.ok_or_else(|| Error::unavailable("placement", "it has no leader"))
    }

    fn now(&self) -> Timestamp {
        self.stamp
    }

    /// The orders first; then, for each node that is not to serve, one lead or one replica.
    fn carry_on(&mut self) {
        for (order, work) in std::mem::take(&mut self.placement.orders) {
            let how = match self.placement.gives_up {
                true => "given up, since its time is over",
                false => "done",
            };
            match work {
                _ if self.placement.gives_up => {}
                Work::Move(from, to) => self.move_replica(order.shard, from, to),
                Work::Merge(right) => self.absorb(order.shard, right),
            }
            let text = format!("{how}: {}: {}", order.shard, order.action);
            let at = self.now();
            self.placement.events.push(Event { at, text });
        }
        for (node, duty) in self.placement.duties.clone() {
            if duty != Duty::Serve && !self.pass_lead(node) && duty == Duty::Leave {
                let had = self.vacate(node);
                if !had && self.leader == Some(node) {
                    self.leader = self.nodes().find(|other| self.serves(*other));
                } else if !had {
                    self.placement.left.insert(node);
                }
            }
        }
    }

    fn absorb(&mut self, left: ShardId, right: ShardId) {
        let place = self.shards.iter().position(|shard| shard.id == right);
        let right = self.shards.remove(place.unwrap());
        let left = self.shards.iter_mut().find(|shard| shard.id == left);
        let left = left.unwrap();
        left.range.end = right.range.end;
        left.epoch.bounds = left.epoch.bounds.max(right.epoch.bounds) + 1;
    }

    pub(crate) fn move_replica(&mut self, id: ShardId, from: u64, to: u64) {
        let shard = self.shards.iter_mut().find(|shard| shard.id == id).unwrap();
        let leaving = shard.replicas.iter_mut().find(|it| it.node.0 == from);
        *leaving.unwrap() = Replica {
            id: ReplicaId(10 * id.0 + to),
            node: NodeId(to),
        };
        shard.epoch.conf += 2;
        if self.leader_of(id) == Some(from) {
            self.leaders.insert(id.0, to);
        }
    }

    fn serves(&self, node: u64) -> bool {
        let duty = self.placement.duties.get(&node).copied();
        duty.unwrap_or_default() == Duty::Serve
    }

    fn pass_lead(&mut self, node: u64) -> bool {
        let mut shards = self.shards.iter();
        let Some(led) = shards.find(|shard| self.leader_of(shard.id) == Some(node)) else {
            return false;
        };
        let mut others = led.replicas.iter().map(|it| it.node.0);
        let Some(next) = others.find(|other| *other != node && self.serves(*other)) else {
            return false;
        };
        self.leaders.insert(led.id.0, next);
        true
    }

    /// Whether there was anything.
    fn vacate(&mut self, node: u64) -> bool {
        let is_on = |shard: &ShardDescriptor, node| shard.replica_on(NodeId(node)).is_some();
        let Some(shard) = self.shards.iter().find(|shard| is_on(shard, node)) else {
            return false;
        };
        let mut nodes = self.nodes();
        let free = nodes.find(|other| self.serves(*other) && !is_on(shard, *other));
        if let Some(free) = free {
            self.move_replica(shard.id, node, free);
        }
        true
    }

    fn node_overview(&self, node: u64) -> NodeOverview {
        let heard = self.shards.iter();
        let heard = heard.filter(|_| !self.placement.has_heard_nothing);
        let held = heard.clone();
        let held = held.filter(|shard| shard.replica_on(NodeId(node)).is_some());
        let led = heard.filter(|shard| self.leader_of(shard.id) == Some(node));
        let is_down = self.down.contains(&node);
        NodeOverview {
            member: self.member(node),
            report: (!is_down).then(|| NodeReport {
                node: NodeId(node),
                labels: BTreeMap::from([("zone".to_owned(), format!("z{node}"))]),
                capacity_bytes: 4 << 30,
                used_bytes: node << 30,
                ..NodeReport::default()
            }),
            duty: self
                .placement
                .duties
                .get(&node)
                .copied()
                .unwrap_or_default(),
            health: if is_down { "dead" } else { "up" }.to_owned(),
            silent_for: Duration::from_secs(if is_down { 400 } else { 0 }),
            replicas: held.count() as u32,
            leaders: led.count() as u32,
        }
    }

    fn shard_overview(&self, shard: &ShardDescriptor) -> ShardOverview {
        let leader = self.leader_of(shard.id);
        let leader = leader.and_then(|leader| shard.replica_on(NodeId(leader)));
        let report = leader.map(|leader| ShardReport {
            shard: shard.id,
            epoch: shard.epoch,
            leader: leader.id,
            term: 3,
            led_for: Duration::from_secs(61),
            learners: Vec::new(),
            lags: vec![(shard.replicas[1].id, 7)],
            size: Size {
                keys: 12,
                bytes: 2_048,
            },
            load: Load {
                operations: 34,
                bytes: 1_024,
            },
            sample: Vec::new(),
        });
        ShardOverview {
            shard: shard.clone(),
            report,
            busy_for: Duration::ZERO,
            quiet_for: Duration::ZERO,
        }
    }
}
