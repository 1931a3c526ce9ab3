//! What placement shows to people: the state, what nodes have said, and what follows from both. Decides only.

use std::collections::BTreeMap;

use crate::placement::operator::Progress;
use crate::placement::plan;
use crate::placement::plan::Finding as Found;
use crate::placement::policy::Policy;
use crate::placement::sightings::Sightings;
use crate::placement::state::PlacementState;
use crate::placement::view::View;
use crate::types::NodeId;
use crate::types::ShardId;
use crate::types::Timestamp;
use crate::types::operator::Action;
use crate::types::operator::Operator;
use crate::types::overview::Explained;
use crate::types::overview::Finding;
use crate::types::overview::NodeOverview;
use crate::types::overview::OperatorOverview;
use crate::types::overview::Overview;
use crate::types::overview::Setting;
use crate::types::overview::ShardOverview;
use crate::types::report::ShardReport;
use crate::types::shard::ShardDescriptor;

/// What there is to be shown.
pub struct Shown<'a> {
    /// What is recorded.
    pub state: &'a PlacementState,
    /// What nodes have said.
    pub sightings: &'a Sightings,
    /// Both at this moment.
    pub view: &'a View,
    /// The thresholds.
    pub policy: &'a Policy,
    /// The cluster's clock.
    pub now: Timestamp,
}

impl Shown<'_> {
    /// Everything but the events; the shards only if they are asked for.
    pub fn overview(&self, driver: NodeId, shards: bool) -> Overview {
        let mut listed: Vec<&ShardDescriptor> = match shards {
            true => self.state.shards().collect(),
            false => Vec::new(),
        };
        listed.sort_by(|one, other| one.range.start.cmp(&other.range.start));
        let operators = self.state.operators();
        Overview {
            driver,
            at: self.now,
            paused: self.state.is_paused(),
            nodes: self.nodes(),
            shards: listed.into_iter().map(|it| self.shard(it)).collect(),
            operators: operators
                .map(|(operator, number)| self.operator(operator, number))
                .collect(),
            rules: self.state.rules().to_vec(),
            settings: self.settings(),
            events: Vec::new(),
        }
    }

    /// Why a shard is where it is; `None` when placement has not heard of it.
    pub fn explain(&self, id: ShardId) -> Option<Explained> {
        let explanation = plan::explain(self.view, self.policy, self.now, id)?;
        let shard = self.view.shard(id)?;
        let findings = explanation.findings.into_iter();
        Some(Explained {
            shard: self.shard(&shard.descriptor),
            rule: self.view.rule(shard, self.policy).clone(),
            findings: findings
                .map(|(aim, finding)| Finding {
                    aim: aim.to_string(),
                    state: state_of(&finding).to_owned(),
                    text: finding.to_string(),
                })
                .collect(),
        })
    }

    fn nodes(&self) -> Vec<NodeOverview> {
        let mut replicas: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut leaders: BTreeMap<NodeId, u32> = BTreeMap::new();
        for shard in self.view.shards.values() {
            for replica in &shard.descriptor.replicas {
                *replicas.entry(replica.node).or_default() += 1;
            }
            if let Some(leading) = shard.leading() {
                *leaders.entry(leading.node).or_default() += 1;
            }
        }
        // What is on its way to a node is as good as there: it may be by the next look.
        for (operator, _) in self.state.operators() {
            if let Action::Add { to } | Action::Move { to, .. } = operator.action {
                let held = self.view.shard(operator.shard);
                let is_there = held.is_some_and(|shard| shard.descriptor.replica_on(to).is_some());
                *replicas.entry(to).or_default() += u32::from(!is_there);
            }
        }
        let count = |counts: &BTreeMap<NodeId, u32>, id| counts.get(&id).copied().unwrap_or(0);
        let members = self.state.members();
        let nodes = members.map(|member| NodeOverview {
            member: member.clone(),
            report: self.sightings.node(member.id).cloned(),
            duty: self.state.node(member.id).duty,
            health: self.view.health(member.id, self.policy).to_string(),
            silent_for: self
                .view
                .nodes
                .get(&member.id)
                .map(|node| node.silent_for)
                .unwrap_or_default(),
            replicas: count(&replicas, member.id),
            leaders: count(&leaders, member.id),
        });
        nodes.collect()
    }

    fn shard(&self, descriptor: &ShardDescriptor) -> ShardOverview {
        let report = self.sightings.last_of(descriptor.id).cloned();
        // It may be large, and is for planning alone.
        let report = report.map(|report| ShardReport {
            sample: Vec::new(),
            ..report
        });
        let view = self.view.shard(descriptor.id);
        ShardOverview {
            shard: descriptor.clone(),
            report,
            busy_for: view.map(|shard| shard.busy_for).unwrap_or_default(),
            quiet_for: view.map(|shard| shard.quiet_for).unwrap_or_default(),
        }
    }

    fn operator(&self, operator: &Operator, number: u64) -> OperatorOverview {
        let shard = self.view.shard(operator.shard);
        let (progress, step) = match shard.map(|shard| operator.next(shard)) {
            Some(Progress::Next(step, _)) => ("next", step.to_string()),
            Some(Progress::Done) => ("done", "done".to_owned()),
            Some(Progress::Stale) | None => ("stale", "none: the shard has changed".to_owned()),
        };
        OperatorOverview {
            shard: operator.shard,
            number,
            aim: operator.aim.to_string(),
            action: operator.action.to_string(),
            reason: operator.reason.clone(),
            step,
            progress: progress.to_owned(),
            bytes: operator.bytes,
            expires: operator.expires,
        }
    }

    fn settings(&self) -> Vec<Setting> {
        let settings = self.policy.settings().into_iter();
        let settings = settings.map(|(name, value)| Setting {
            is_set: self.state.settings().contains_key(name),
            name: name.to_owned(),
            value,
        });
        settings.collect()
    }
}

fn state_of(found: &Found) -> &'static str {
    match found {
        Found::InOrder => "in_order",
        Found::Planned(..) => "planned",
        Found::Held(_) => "held",
        Found::Beside(_, found) => state_of(found),
    }
}
