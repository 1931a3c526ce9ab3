//! One run: a cluster, clients, the faults of its plan, and then the proof that everything has recovered and
//! nothing is missing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate::client::Admin;
use quorate::client::Kv;
use quorate::client::RequestIds;
use quorate::client::Sender;
use quorate::client::kv::WriteOptions;
use quorate::client::sender;
use quorate::env::clock::Clock;
use quorate::env::rng;
use quorate::env::rng::Chance;
use quorate::node::merges::Wanted;
use quorate::node::registry::Registry;
use quorate::placement::PlacementState;
use quorate::placement::Policy;
use quorate::raft::Leadership;
use quorate::testkit::invariants::ranges;
use quorate::testkit::linear;
use quorate::testkit::linear::Verdict;
use quorate::testkit::mix;
use quorate::testkit::mix::Mix;
use quorate::testkit::mix::layout::Layout;
use quorate::testkit::mix::lost::lost;
use quorate::testkit::observed::Answer;
use quorate::testkit::observed::Observed;
use quorate::types::GroupId;
use quorate::types::Key;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::node::Duty;
use quorate::types::overview::Arrangement;
use quorate::types::rule::Rule;
use quorate::types::rule::rule_of;
use quorate::types::shard::ShardDescriptor;
use tokio::runtime::RngSeed;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::cluster::Opened;
use crate::fault::Fault;
use crate::fault::Plan;
use crate::fault::What;
use crate::net::CLIENTS;
use crate::net::Net;
use crate::net::Weather;
use crate::seeds;
use crate::trace::Trace;
use crate::watch::Event;
use crate::watch::Seen;
use crate::watch::Watch;

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(25);
/// Every so-manieth look reads the states too.
const DEEP: u64 = 8;
/// What must happen in a healthy cluster happens within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// The cluster forms its first groups within this.
const FIRST: Duration = Duration::from_secs(20);
/// Acknowledged writes after all is well again.
const PROGRESS: u64 = 20;

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What cannot be; a good run has none.
    pub violations: Vec<String>,
    /// Writes acknowledged to clients.
    pub acknowledged: u64,
    /// Shards at the end.
    pub shards: usize,
    /// What was watched.
    pub seen: Seen,
    /// How often the library's core failed as it is known to, and its group had to be reopened.
    pub library_failures: u64,
    /// Virtual time that passed.
    pub lasted: Duration,
    /// Lines of the trace, and their checksum.
    pub trace: (u64, u32),
    /// What was kept of it.
    pub text: String,
}

/// Runs a plan. Everything in it follows from the seed.
pub fn run(seed: u64, plan: &Plan, trace_all: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build();
    let runtime = runtime.expect("a runtime of one thread can be had");
    let _seeded = rng::seed_thread(seed);
    let mut outcome = runtime.block_on(async {
        let mut run = Run::new(seed, plan, trace_all);
        run.play(plan).await;
        run.outcome()
    });
    outcome.violations.extend(seeds::panics());
    outcome.library_failures = seeds::library_failures();
    outcome
}

struct Run {
    seed: u64,
    cluster: Cluster,
    watch: Arc<Watch>,
    trace: Trace,
    began: Instant,
    looks: u64,
    acknowledged: u64,
    shards: usize,
    /// What goes on until when.
    lasting: Vec<(Instant, What)>,
}

/// What lasts on one node.
#[derive(Debug, Clone, Copy, Default)]
struct Suffering {
    paused: bool,
    is_full: bool,
    busy_ms: u64,
}

impl Run {
    fn new(seed: u64, plan: &Plan, trace_all: bool) -> Run {
        let trace = Trace::new(trace_all);
        let watch = Watch::new(plan.least_voters());
        let net = Net::new(trace.clone(), Arc::clone(&watch));
        Run {
            seed,
            cluster: Cluster::new(net, plan, trace.clone()),
            watch,
            trace,
            began: Instant::now(),
            looks: 0,
            acknowledged: 0,
            shards: 0,
            lasting: Vec::new(),
        }
    }

    async fn play(&mut self, plan: &Plan) {
        for id in self.cluster.ids() {
            self.cluster.start(id);
        }
        if !self.until("a first leader", FIRST, Run::settled).await {
            return;
        }
        let settings = plan.settings.iter().cloned();
        let settings = settings.map(|(name, value)| Arrangement::SetSetting {
            name: name.to_owned(),
            value: Some(value),
        });
        self.arrange(settings.collect());
        let target = self.target();
        let options = mix::Options {
            clients: 5,
            seed: self.seed,
            patience: Duration::from_secs(6),
            pause: Duration::from_millis(15),
            ..mix::Options::default()
        };
        let mix = Mix::start(&target, &options).expect("there are addresses");
        self.suffer(plan).await;
        self.trace.say(format_args!("all is well again"));
        self.lasting.clear();
        self.make_weather();
        self.cluster.heal();
        self.until(
            "every node is open and every group led",
            PATIENCE,
            Run::settled_roughly,
        )
        .await;
        self.cluster.must_not_fail();
        self.watch.calm();
        let nodes = self.cluster.ids().into_iter();
        let serving = nodes.map(|node| Arrangement::SetDuty {
            node,
            duty: Duty::Serve,
        });
        self.arrange(serving.collect());
        let goal = mix.progress().acknowledged + PROGRESS;
        let reached = |_: &Run| match mix.progress().acknowledged >= goal {
            true => Ok(()),
            false => Err(format!("{:?}", mix.progress())),
        };
        self.until("writes go on", PATIENCE, reached).await;
        self.write_everywhere().await;
        self.acknowledged = mix.progress().acknowledged;
        let history = mix.stop().await;
        // What was slow under the faults leads nothing for a while, and then what leads is to be evened out.
        let Policy {
            slow_recovery,
            leader_rest,
            ..
        } = Policy::default();
        let patience = PATIENCE + slow_recovery + leader_rest;
        self.until("placement has nothing to do", patience, Run::placed)
            .await;
        // What is judged must stand still.
        self.arrange(vec![Arrangement::SetPaused(true)]);
        self.until("placement is paused", PATIENCE, Run::paused)
            .await;
        self.until("replicas are equal", PATIENCE, Run::settled)
            .await;
        self.judge(&target, history, options.clients).await;
    }

    /// The faults of the plan, each at its time.
    async fn suffer(&mut self, plan: &Plan) {
        let began = Instant::now();
        let mut faults = plan.faults.iter().peekable();
        let ends = began + Duration::from_millis(plan.ends_ms() + 500);
        while Instant::now() < ends {
            let now = Instant::now();
            while let Some(fault) =
                faults.next_if(|fault| began + Duration::from_millis(fault.at_ms) <= now)
            {
                self.inflict(fault);
            }
            self.repair();
            self.look();
            sleep(LOOK).await;
        }
    }

    fn inflict(&mut self, fault: &Fault) {
        self.trace.say(format_args!("fault {:?}", fault.what));
        match fault.what.clone() {
            What::Crash {
                nodes,
                how,
                at_step,
                back_after_ms,
            } => {
                let nodes: Vec<NodeId> = nodes.into_iter().map(NodeId).collect();
                let back = Duration::from_millis(back_after_ms);
                self.cluster.crash(&nodes, how, at_step, back);
            }
            What::Pause { for_ms, .. }
            | What::Cut { for_ms, .. }
            | What::Slow { for_ms, .. }
            | What::Lossy { for_ms, .. }
            | What::SlowDisk { for_ms, .. }
            | What::FullDisk { for_ms, .. } => {
                let until = Instant::now() + Duration::from_millis(for_ms);
                self.lasting.push((until, fault.what.clone()));
                self.make_weather();
            }
            What::FailingSync { node, nth } => {
                self.cluster.fail_sync(NodeId(node), nth);
            }
            What::ClockStep { node, by_ms } => {
                self.cluster.clock(NodeId(node)).set_offset_ms(by_ms);
            }
            What::Checkpoint { node } => self.checkpoint(NodeId(node)),
            What::Split { key } => self.split(key),
            What::Merge { key } => self.merge(key),
            What::Transfer { key, to } => self.transfer(key, NodeId(to)),
            What::Move { key, to } => self.move_replica(key, NodeId(to)),
            What::Order { key, to } => self.order(key, NodeId(to)),
            What::Duty { node, duty } => {
                let node = NodeId(node);
                self.arrange(vec![Arrangement::SetDuty { node, duty }]);
            }
            What::Rule { prefix, replicas } => self.arrange(vec![Arrangement::SetRule(Rule {
                prefix: prefix.into(),
                replicas,
                ..Rule::default()
            })]),
        }
    }

    /// Ends what has lasted long enough.
    fn repair(&mut self) {
        let now = Instant::now();
        let is_over = |(until, _): &mut (Instant, What)| *until <= now;
        let over: Vec<_> = self.lasting.extract_if(.., is_over).collect();
        for (_, what) in &over {
            self.trace.say(format_args!("over {what:?}"));
        }
        if !over.is_empty() {
            self.make_weather();
        }
    }

    /// Makes everything as bad as what lasts now says, and no worse: faults of one kind may overlap.
    fn make_weather(&mut self) {
        let mut weather = Weather::default();
        let mut nodes: BTreeMap<NodeId, Suffering> = BTreeMap::new();
        for (_, what) in &self.lasting {
            match what {
                What::Pause { node, .. } => nodes.entry(NodeId(*node)).or_default().paused = true,
                What::FullDisk { node, .. } => {
                    nodes.entry(NodeId(*node)).or_default().is_full = true;
                }
                What::SlowDisk { node, busy_ms, .. } => {
                    let known = nodes.entry(NodeId(*node)).or_default();
                    known.busy_ms = known.busy_ms.max(*busy_ms);
                }
                What::Cut { links, .. } => weather.cut.extend(pairs(links)),
                What::Slow {
                    node,
                    delay_ms,
                    clients,
                    ..
                } => {
                    let known = weather.slow.entry(NodeId(*node)).or_default();
                    known.delay_ms = known.delay_ms.max(*delay_ms);
                    known.clients |= clients;
                }
                What::Lossy {
                    lost_per_mille,
                    doubled_per_mille,
                    ..
                } => {
                    weather.lost_per_mille = weather.lost_per_mille.max(*lost_per_mille);
                    weather.doubled_per_mille = weather.doubled_per_mille.max(*doubled_per_mille);
                }
                What::Crash { .. }
                | What::FailingSync { .. }
                | What::ClockStep { .. }
                | What::Checkpoint { .. }
                | What::Split { .. }
                | What::Merge { .. }
                | What::Transfer { .. }
                | What::Move { .. }
                | What::Order { .. }
                | What::Duty { .. }
                | What::Rule { .. } => unreachable!("{what:?} does not last"),
            }
        }
        self.cluster.net.change(|now| *now = weather);
        for id in self.cluster.ids() {
            let suffering = nodes.get(&id).copied().unwrap_or_default();
            self.cluster.pause(id, suffering.paused);
            self.cluster.fill_disk(id, suffering.is_full);
            self.cluster.slow_disk(id, suffering.busy_ms);
        }
    }

    fn look(&mut self) {
        let buried = self.cluster.bury();
        if !buried.nodes.is_empty() {
            // A crash has taken what ailed the disk with it.
            self.make_weather();
        }
        for node in buried.nodes {
            self.watch.ended(node);
            self.watch.count(Event::Crash);
        }
        for surprise in buried.surprises {
            self.watch.complain(surprise);
        }
        self.looks += 1;
        let deep = self.looks.is_multiple_of(DEEP);
        for (id, opened) in self.cluster.open() {
            self.watch.node(id, &opened.registry, deep);
            if let Some(placement) = opened.registry.placement() {
                self.watch.placement(&placement.state());
            }
        }
    }

    /// Looks until it holds; complains when it does not in time.
    async fn until(
        &mut self,
        what: &str,
        within: Duration,
        holds: impl Fn(&Run) -> Result<(), String>,
    ) -> bool {
        let until = Instant::now() + within;
        loop {
            self.look();
            match holds(self) {
                Ok(()) => return true,
                Err(why) if Instant::now() > until => {
                    self.watch
                        .complain(format!("not within {within:?}: {what}: {why}"));
                    return false;
                }
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// Every node is open, and every group that somebody has a replica of is led.
    fn settled_roughly(&self) -> Result<(), String> {
        self.led().map(drop)
    }

    /// Every group is led, all its replicas have applied the same, and no change of them is half-way.
    fn settled(&self) -> Result<(), String> {
        let led = self.led()?;
        let open: BTreeMap<NodeId, _> = self.cluster.open().into_iter().collect();
        for (id, (leader, view)) in led {
            for replica in &view.replicas {
                let registry = &open[&replica.node].registry;
                let Ok(group) = registry.group(id) else {
                    return Err(format!("{id} is not open on {}", replica.node));
                };
                let other = group.view();
                if group.is_joint() {
                    return Err(format!("the voters of {id} are half changed"));
                }
                if group.replica() != replica.id {
                    return Err(format!("{id} on {} is not {}", replica.node, replica.id));
                }
                if other.applied_index != view.last_index {
                    return Err(format!(
                        "{id} has applied {} on {}, its leader {leader} has {}",
                        other.applied_index, replica.node, view.last_index
                    ));
                }
            }
            for (node, opened) in &open {
                let Ok(group) = opened.registry.group(id) else {
                    continue;
                };
                if !view
                    .replicas
                    .iter()
                    .any(|replica| replica.id == group.replica())
                {
                    return Err(format!(
                        "{} of {id} is left over on {node}",
                        group.replica()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Who leads each group, and how it sees it.
    fn led(&self) -> Result<BTreeMap<GroupId, (ReplicaId, quorate::raft::View)>, String> {
        let open = self.cluster.open();
        if open.len() < self.cluster.ids().len() {
            return Err(format!("{} nodes are open", open.len()));
        }
        let mut led = BTreeMap::new();
        let mut known = BTreeSet::new();
        for (_, opened) in &open {
            for group in opened.registry.groups() {
                known.insert(group.id());
                let view = group.view();
                let leads = view
                    .leader
                    .is_some_and(|leader| leader.id == group.replica());
                if view.role == "leader" && leads {
                    let newer = led.get(&group.id()).is_none_or(
                        |(_, other): &(ReplicaId, quorate::raft::View)| other.term < view.term,
                    );
                    if newer {
                        led.insert(group.id(), (group.replica(), view));
                    }
                }
            }
        }
        match known.iter().find(|id| !led.contains_key(id)) {
            Some(id) => Err(format!("nobody leads {id}")),
            None if known.len() < 2 => Err("there are no groups yet".to_owned()),
            None => Ok(led),
        }
    }

    fn target(&self) -> mix::Target {
        mix::Target {
            channel: self.cluster.net.channel(CLIENTS),
            addresses: self.cluster.ids().iter().map(NodeId::to_string).collect(),
            wall: Clock::virtual_from(1_750_000_000_000, 0),
            started: self.began,
        }
    }

    async fn judge(&mut self, target: &mix::Target, mut history: Vec<Observed>, client: u32) {
        let finals = mix::final_reads(target, &history, client, PATIENCE).await;
        let finals = finals.expect("there are addresses");
        let lost = lost(&history, &finals, &Layout::new(""));
        for complaint in lost.complaints {
            self.watch.complain(format!("lost: {complaint}"));
        }
        for read in finals.iter().filter(|read| !is_found(read)) {
            self.watch
                .complain(format!("cannot be read in the end: {:?}", read.asked));
        }
        history.extend(finals);
        match linear::check(&history, &linear::Options::default()) {
            Verdict::Linearizable(_) => {}
            verdict @ (Verdict::Violated(_) | Verdict::Inconclusive { .. }) => {
                self.watch.complain(verdict.to_string());
            }
        }
        // While the answers were judged, placement may have passed a lead on.
        self.until("every group is led", PATIENCE, Run::settled_roughly)
            .await;
        let led = self.led();
        let open: BTreeMap<NodeId, _> = self.cluster.open().into_iter().collect();
        let mut shards: BTreeMap<ShardId, ShardDescriptor> = BTreeMap::new();
        for opened in open.values() {
            for replica in opened.registry.shards() {
                let descriptor = replica.reader().descriptor();
                let leads = led.as_ref().is_ok_and(|led| {
                    let id = GroupId::Shard(descriptor.id);
                    led.get(&id)
                        .is_some_and(|(leader, _)| *leader == replica.group().replica())
                });
                if leads {
                    shards.insert(descriptor.id, descriptor);
                }
            }
        }
        let shards: Vec<ShardDescriptor> = shards.into_values().collect();
        self.shards = shards.len();
        if let Err(why) = ranges::cover(&shards) {
            self.watch.complain(why);
        }
        for (id, opened) in &open {
            self.watch.node(*id, &opened.registry, true);
        }
    }

    fn checkpoint(&self, id: NodeId) {
        let open = self
            .cluster
            .open()
            .into_iter()
            .find(|(node, _)| *node == id);
        if let Some((_, opened)) = open {
            let flush = opened.checkpoints.as_flush();
            tokio::spawn(async move { flush().await });
        }
    }

    /// A leader that proposes nothing looks like any other: every shard shall take a write.
    async fn write_everywhere(&mut self) {
        let open = self.cluster.open().into_iter();
        let shards = open.flat_map(|(_, opened)| opened.registry.shards());
        let starts = shards.map(|replica| replica.reader().descriptor().range.start);
        let starts: BTreeSet<Key> = starts.collect();
        let kv = Kv::new(self.sender());
        let writing = tokio::spawn(async move {
            for start in starts {
                // Nobody has written it.
                let key = Key::from([&start[..], b"\0none"].concat());
                let options = WriteOptions {
                    deadline: Some(PATIENCE),
                    ..WriteOptions::default()
                };
                let written = kv.delete(key, options).await;
                written.map_err(|error| format!("behind {start:?}: {error}"))?;
            }
            Ok::<(), String>(())
        });
        let has_ended = |_: &Run| match writing.is_finished() {
            true => Ok(()),
            false => Err("some do not".to_owned()),
        };
        let what = "every shard takes a write";
        if self.until(what, PATIENCE, has_ended).await
            && let Err(why) = writing.await.expect("it does not panic")
        {
            self.watch.complain(format!("not {what}: {why}"));
        }
    }

    fn admin(&self) -> Admin {
        Admin::new(self.sender())
    }

    fn sender(&self) -> Arc<Sender> {
        let addresses = self.cluster.ids().iter().map(NodeId::to_string).collect();
        let clock = Clock::virtual_from(1_750_000_000_000, 0);
        let ids = RequestIds::new(move || clock.wall_ms(), || Chance.bytes());
        let channel = self.cluster.net.channel(CLIENTS);
        let first = Chance.below(self.cluster.ids().len() as u64) as usize;
        let options = sender::Options {
            attempt: Duration::from_secs(3),
            deadline: Duration::from_secs(6),
            first,
            ..sender::Options::default()
        };
        let sender = Sender::new(channel, addresses, Arc::new(ids), options);
        Arc::new(sender.expect("there are addresses"))
    }

    /// The shard that holds a key, as some node knows it.
    fn shard_of(&self, key: &Key) -> Option<ShardDescriptor> {
        let mut open = self.cluster.open().into_iter();
        open.find_map(|(_, opened)| {
            let replica = opened.registry.shard_of(key).ok()?;
            Some(replica.reader().descriptor())
        })
    }

    fn split(&self, key: u64) {
        let key = key_of(key);
        let Some(shard) = self.shard_of(&key) else {
            return;
        };
        let (admin, trace) = (self.admin(), self.trace.clone());
        let watch = Arc::clone(&self.watch);
        tokio::spawn(async move {
            let done = admin.split_shard(shard.id, key, None).await;
            if done.is_ok() {
                watch.count(Event::Split);
            }
            trace.say(format_args!(
                "split of {}: {:?}",
                shard.id,
                done.map(|(_, right)| right.id)
            ));
        });
    }

    /// The shard's leader is told, as by placement, a few times. Nobody looks whether they fit together.
    fn merge(&self, key: u64) {
        let Some(left) = self.shard_of(&key_of(key)) else {
            return;
        };
        let mut open = self.cluster.open().into_iter();
        let leading = open.find_map(|(node, opened)| {
            let group = opened.registry.group(left.id.group()).ok()?;
            let leads = matches!(*group.leadership().borrow(), Leadership::Leading { .. });
            leads.then_some((node, opened))
        });
        let Some((
            node,
            Opened {
                registry,
                merges,
                life,
                ..
            },
        )) = leading
        else {
            return;
        };
        let trace = self.trace.clone();
        tokio::spawn(life.live(async move {
            for _ in 0..5 {
                let Some(wanted) = neighbours(&registry, left.id) else {
                    return;
                };
                let done = merges.merge(wanted).await;
                trace.say(format_args!(
                    "merge of {} with {} by {node}: {:?}",
                    wanted.left,
                    wanted.right,
                    done.as_ref().map(|shard| shard.epoch)
                ));
                match done {
                    Ok(_) => return,
                    Err(_) => sleep(Duration::from_millis(300)).await,
                }
            }
        }));
    }

    /// Says what is wanted of placement, one after the other, until it is recorded or long after.
    fn arrange(&self, arrangements: Vec<Arrangement>) {
        let (admin, trace) = (self.admin(), self.trace.clone());
        tokio::spawn(async move {
            for arrangement in arrangements {
                let done = admin.arrange(arrangement.clone(), Some(PATIENCE)).await;
                trace.say(format_args!("{arrangement:?}: {:?}", done.is_ok()));
            }
        });
    }

    fn order(&self, key: u64, to: NodeId) {
        let Some(shard) = self.shard_of(&key_of(key)) else {
            return;
        };
        let leaving = shard.replicas[Chance.below(shard.replicas.len() as u64) as usize];
        self.arrange(vec![Arrangement::MoveReplica {
            shard: shard.id,
            from: leaving.node,
            to,
        }]);
    }

    /// Nothing more is begun; what was begun since the last look ends long before it is judged.
    fn paused(&self) -> Result<(), String> {
        match self.placement()?.is_paused() {
            true => Ok(()),
            false => Err("it goes on".to_owned()),
        }
    }

    /// What placement's leader knows.
    fn placement(&self) -> Result<Arc<PlacementState>, String> {
        let led = self.led()?;
        let (leader, _) = led
            .get(&GroupId::Placement)
            .ok_or("nobody leads placement")?;
        let mut open = self.cluster.open().into_iter();
        let driver = open.find(|(_, opened)| {
            let group = opened.registry.group(GroupId::Placement);
            group.is_ok_and(|group| group.replica() == *leader)
        });
        let (_, driver) = driver.ok_or("placement's leader is not open")?;
        let reader = driver.registry.placement();
        Ok(reader.ok_or("it has no state")?.state())
    }

    /// Nothing is being done, and each shard has as many replicas as its rule says and there are nodes.
    fn placed(&self) -> Result<(), String> {
        let (led, state) = (self.led()?, self.placement()?);
        if let Some((operator, _)) = state.operators().next() {
            return Err(format!("under way: {operator}"));
        }
        let default = Rule::default();
        for (id, (_, view)) in &led {
            let GroupId::Shard(shard) = id else { continue };
            let shard = state.shard(*shard).ok_or("a shard is not known")?;
            let rule = rule_of(state.rules(), &default, &shard.range);
            let wanted = rule.replicas.min(self.cluster.ids().len());
            if view.replicas.len() != wanted {
                let has = view.replicas.len();
                return Err(format!("{id} has {has} replicas of {wanted}"));
            }
        }
        Ok(())
    }

    fn transfer(&self, key: u64, to: NodeId) {
        let Some(shard) = self.shard_of(&key_of(key)) else {
            return;
        };
        let (admin, trace) = (self.admin(), self.trace.clone());
        tokio::spawn(async move {
            let group = GroupId::Shard(shard.id);
            let done = admin.transfer_leader(group, Some(to), None).await;
            trace.say(format_args!("transfer of {} to {to}: {done:?}", shard.id));
        });
    }

    /// The shard gets a replica on a node, and gives up another one, or only that if the node has one.
    fn move_replica(&self, key: u64, to: NodeId) {
        let Some(shard) = self.shard_of(&key_of(key)) else {
            return;
        };
        let (admin, trace) = (self.admin(), self.trace.clone());
        let watch = Arc::clone(&self.watch);
        let victim = shard.replicas[Chance.below(shard.replicas.len() as u64) as usize];
        tokio::spawn(async move {
            let added = admin.add_replica(shard.id, to, Some(PATIENCE)).await;
            trace.say(format_args!(
                "add of {} on {to}: {:?}",
                shard.id,
                added.is_ok()
            ));
            if added.is_ok() && victim.node != to {
                let done = admin
                    .remove_replica(shard.id, victim.id, Some(PATIENCE))
                    .await;
                trace.say(format_args!(
                    "removal of {} from {}: {:?}",
                    victim.id,
                    shard.id,
                    done.is_ok()
                ));
                if done.is_ok() {
                    watch.count(Event::Move);
                }
            }
        });
    }

    fn outcome(self) -> Outcome {
        Outcome {
            violations: self.watch.violations(),
            acknowledged: self.acknowledged,
            shards: self.shards,
            seen: self.watch.seen(),
            library_failures: 0,
            lasted: self.trace.elapsed(),
            trace: self.trace.sum(),
            text: self.trace.text(),
        }
    }
}

/// A shard and the one to its right, as a node has them now.
fn neighbours(registry: &Registry, left: ShardId) -> Option<Wanted> {
    let left = registry.shard(left).ok()?.reader().descriptor();
    let right = registry.shard_of(left.range.end.as_ref()?).ok()?;
    let right = right.reader().descriptor();
    Some(Wanted {
        left: left.id,
        left_epoch: left.epoch,
        right: right.id,
        right_epoch: right.epoch,
    })
}

fn is_found(read: &Observed) -> bool {
    matches!(read.answer, Answer::Found(..))
}

fn pairs(links: &[(u64, u64)]) -> Vec<(NodeId, NodeId)> {
    links
        .iter()
        .map(|(from, to)| (NodeId(*from), NodeId(*to)))
        .collect()
}

/// A key of the mix.
fn key_of(number: u64) -> Key {
    let kind = ["count", "list", "pair", "reg", "reg", "reg", "set", "span"][(number % 8) as usize];
    Key::from(format!("{kind}/{:04}", number / 8 * 3))
}
