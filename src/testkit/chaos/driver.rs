//! One run: a cluster, clients beside it, faults one after the other, then everything put right, and
//! what was seen.
//!
//! Whatever happens to the run, nodes that stand still go on and ways are opened before it ends; a run
//! that is stopped early still reads what is left and can be judged.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::RequestIds;
use crate::client::Sender;
use crate::client::sender;
use crate::env::clock::Clock;
use crate::env::faults::Faults;
use crate::env::rng::Chance;
use crate::error::Error;
use crate::testkit::chaos::changer::Changer;
use crate::testkit::chaos::fault::Harm;
use crate::testkit::chaos::gaps::Happened;
use crate::testkit::chaos::nodes::Nodes;
use crate::testkit::chaos::outcome::Changed;
use crate::testkit::chaos::outcome::Findings;
use crate::testkit::chaos::schedule::Planned;
use crate::testkit::chaos::schedule::Schedule;
use crate::testkit::chaos::settled;
use crate::testkit::chaos::watcher;
use crate::testkit::chaos::watcher::Seen;
use crate::testkit::mix;
use crate::testkit::mix::Mix;
use crate::testkit::mix::Target;
use crate::testkit::mix::final_reads;
use crate::testkit::mix::layout::Kind;
use crate::testkit::mix::layout::Layout;
use crate::testkit::observed::Moment;
use crate::types::Key;
use crate::wire::request::Channel;

/// How long a cluster may take to be ready: at the beginning, and when everything was put right.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long all final reads may take.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);
/// So many writes show that a cluster is well again.
const WELL_WRITES: u64 = 20;
/// The next fault waits no longer than this for it.
const WELL_WITHIN: Duration = Duration::from_secs(15);
/// Clients go on for so long after all was put right.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// Changes that were made and not yet noted. Full: the next one waits.
const CHANGES_WAITING_MAX: usize = 64;

/// What a run consists of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What happens when.
    pub schedule: Schedule,
    /// How long it goes on.
    pub duration: Duration,
    /// The clients.
    pub mix: mix::Options,
    /// Shards are cut and moved by the run itself.
    pub changes: bool,
}

/// How far a run is.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// What it does.
    pub doing: String,
    /// Faults that are over.
    pub faults_over: usize,
    /// Since the clients began.
    pub since: Duration,
    /// What clients were told.
    pub progress: mix::Progress,
    /// How often a leader was another one than before.
    pub leader_changes: usize,
    /// Shards.
    pub shards: usize,
}

/// Says how far a run is to whoever looks.
pub type Show = watch::Sender<Now>;

/// Runs the plan on the nodes until it is over, or `stop` says so. The cluster is left running and put
/// right.
///
/// # Errors
/// The cluster did not come up, or a node could not be hurt or put right: then nothing is known.
pub async fn run(
    nodes: &mut Nodes,
    channel: Arc<dyn Channel>,
    plan: &Plan,
    show: &Show,
    stop: watch::Receiver<bool>,
) -> io::Result<Findings> {
    let target = Target {
        channel,
        addresses: nodes.addresses(),
        wall: Clock::system(),
        started: Instant::now(),
    };
    say(show, "waiting for the cluster");
    wait_formed(nodes, &target).await?;
    let changer = Changer::new(sender(&target)?, target.clone(), cuts(&plan.mix));
    if plan.changes {
        say(show, "spreading shards over the nodes");
        spread(&changer).await?;
    }
    let target = Target {
        started: Instant::now(),
        ..target
    };
    let mut run = Run::start(nodes, target, plan, show, stop)?;
    let changer = Changer::new(sender(&run.target)?, run.target.clone(), cuts(&plan.mix));
    run.hurt(changer).await?;
    run.heal().await;
    run.finish().await
}

/// Where shards may be cut: between kinds of keys, inside some, and once between keys that are written
/// together, so that such writes are refused.
fn cuts(mix: &mix::Options) -> Vec<Key> {
    let layout = Layout::new(&mix.prefix);
    let registers = mix.counts.registers;
    let mut cuts = vec![
        layout.counter(0),
        layout.collection(Kind::List, 0, 0),
        layout.pair(0, 2),
        layout.pair(1, 0),
        layout.register(registers / 4),
        layout.register(registers / 2),
        layout.register(registers * 3 / 4),
        layout.collection(Kind::Set, 0, 0),
        layout.span(0, 0),
        layout.span(0, 4),
        layout.span(1, 0),
    ];
    cuts.sort();
    cuts.dedup();
    cuts
}

fn sender(target: &Target) -> io::Result<Arc<Sender>> {
    let wall = target.wall.clone();
    let ids = RequestIds::new(move || wall.wall_ms(), || Chance.bytes());
    let options = sender::Options::default();
    let channel = Arc::clone(&target.channel);
    let sender = Sender::new(channel, target.addresses.clone(), Arc::new(ids), options);
    sender.map(Arc::new).map_err(failed)
}

fn failed(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn say(show: &Show, doing: impl Into<String>) {
    show.send_modify(|now| now.doing = doing.into());
}

/// A node that ends before the cluster is there has said why.
async fn wait_formed(nodes: &mut Nodes, target: &Target) -> io::Result<()> {
    let names = nodes.names();
    let end = Instant::now() + READY_WITHIN;
    loop {
        if let Some((node, how)) = nodes.ended().into_iter().next() {
            let (name, logs) = (&names[node], nodes.logs());
            return Err(io::Error::other(format!("{name} ended ({how})\n{logs}")));
        }
        match settled::ready(target, &names).await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > end => {
                let (limit, logs) = (READY_WITHIN.as_secs(), nodes.logs());
                let what = format!("after {limit} s {why}\n{logs}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Nothing is hurt yet, so what is refused is only early: it is asked again.
async fn spread(changer: &Changer) -> io::Result<()> {
    let end = Instant::now() + READY_WITHIN;
    loop {
        match changer.spread().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(failed(error)),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// One run under way.
struct Run<'a> {
    nodes: &'a mut Nodes,
    names: Vec<String>,
    target: Target,
    plan: &'a Plan,
    show: &'a Show,
    stop: watch::Receiver<bool>,
    mix: Mix,
    seen: Seen,
    /// Ends with the run.
    watcher: JoinSet<()>,
    faults: Vec<Happened>,
    changes: Vec<Changed>,
    complaints: Vec<String>,
    healed: Moment,
    interrupted: bool,
    late: Duration,
}

impl<'a> Run<'a> {
    fn start(
        nodes: &'a mut Nodes,
        target: Target,
        plan: &'a Plan,
        show: &'a Show,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Run<'a>> {
        let seen = Seen::default();
        let mut watcher = JoinSet::new();
        watcher.spawn(watcher::watch(target.clone(), seen.clone()));
        Ok(Run {
            names: nodes.names(),
            nodes,
            mix: Mix::start(&target, &plan.mix).map_err(failed)?,
            watcher,
            seen,
            target,
            plan,
            show,
            stop,
            faults: Vec::new(),
            changes: Vec::new(),
            complaints: Vec::new(),
            healed: Moment(0),
            interrupted: false,
            late: Duration::ZERO,
        })
    }

    /// Every fault at its time, until the run's time is over or it is stopped.
    async fn hurt(&mut self, changer: Changer) -> io::Result<()> {
        let (report, mut changes) = mpsc::channel(CHANGES_WAITING_MAX);
        let mut tasks = JoinSet::new();
        if self.plan.changes {
            let planned = self.plan.schedule.changes.clone();
            tasks.spawn(changer.run(planned, report));
        }
        self.say("calm");
        for planned in &self.plan.schedule.faults {
            if !self.wait_until(planned.at).await || !self.wait_well().await {
                break;
            }
            let late = self.target.started.elapsed() >= self.plan.duration;
            if late && !self.faults.is_empty() {
                break;
            }
            self.fault(planned).await?;
            self.say("calm");
            while let Ok(change) = changes.try_recv() {
                self.changes.push(change);
            }
        }
        self.wait_until(self.plan.duration).await;
        tasks.shutdown().await;
        while let Ok(change) = changes.try_recv() {
            self.changes.push(change);
        }
        Ok(())
    }

    /// Until writes are acknowledged again, or it has taken too long: what a fault does is seen only on a
    /// cluster that is well. False when the run was stopped meanwhile.
    async fn wait_well(&mut self) -> bool {
        let goal = self.mix.progress().acknowledged + WELL_WRITES;
        let end = Instant::now() + WELL_WITHIN;
        while self.mix.progress().acknowledged < goal && Instant::now() < end {
            if !self.wait(POLL).await {
                return false;
            }
        }
        !self.is_stopped()
    }

    async fn fault(&mut self, planned: &Planned) -> io::Result<()> {
        let harm = planned.fault.harm(self.seen.leader());
        let what = harm.in_words(&self.names);
        self.say(what.clone());
        let began = self.target.moment();
        let hurt = self.hurt_for(&harm, planned.lasts).await;
        // Also after an error: nobody shall stay hurt.
        let cured = self.cure(&harm);
        hurt.and(cured)?;
        self.faults.push(Happened {
            kind: planned.fault.kind,
            what,
            began,
            ended: self.target.moment(),
        });
        self.show.send_modify(|now| now.faults_over += 1);
        Ok(())
    }

    async fn hurt_for(&mut self, harm: &Harm, lasts: Duration) -> io::Result<()> {
        match harm {
            Harm::Kill(nodes) => self.nodes.kill(nodes)?,
            Harm::Pause(nodes) => self.nodes.pause(nodes)?,
            Harm::Restart(nodes) => return self.restart(nodes).await,
            Harm::Net(ways, rule) => self.nodes.set_ways(ways, *rule)?,
            Harm::Separate(node) => self.nodes.separate(*node, true)?,
            Harm::Flap(node, each) => return self.flap(*node, *each, lasts).await,
            Harm::SlowSync(nodes, delay) => {
                let faults = Faults {
                    sync_delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                    ..Faults::default()
                };
                self.fail(nodes, faults)?;
            }
            Harm::Full(nodes) => {
                let faults = Faults {
                    full: true,
                    ..Faults::default()
                };
                self.fail(nodes, faults)?;
            }
            Harm::Clock(node, offset_ms) => {
                let faults = Faults {
                    clock_offset_ms: *offset_ms,
                    ..Faults::default()
                };
                self.fail(&[*node], faults)?;
            }
        }
        self.wait(lasts).await;
        Ok(())
    }

    fn cure(&mut self, harm: &Harm) -> io::Result<()> {
        match harm {
            Harm::Kill(nodes) => self.nodes.start(nodes),
            Harm::Pause(nodes) => self.nodes.resume(nodes),
            Harm::Restart(_) => Ok(()),
            Harm::Net(..) => {
                self.nodes.heal_ways();
                Ok(())
            }
            Harm::Separate(node) | Harm::Flap(node, _) => self.nodes.separate(*node, false),
            Harm::SlowSync(nodes, _) | Harm::Full(nodes) => self.fail(nodes, Faults::default()),
            Harm::Clock(node, _) => self.fail(&[*node], Faults::default()),
        }
    }

    fn fail(&self, nodes: &[usize], faults: Faults) -> io::Result<()> {
        let mut nodes = nodes.iter();
        nodes.try_for_each(|node| self.nodes.fail(*node, faults))
    }

    async fn restart(&mut self, nodes: &[usize]) -> io::Result<()> {
        for node in nodes {
            if self.is_stopped() {
                break;
            }
            self.nodes.restart(*node).await?;
            let end = Instant::now() + READY_WITHIN;
            while let Err(why) = settled::node(&self.target, &self.names, *node).await {
                if Instant::now() > end {
                    self.complaints.push(format!("after its restart {why}"));
                    break;
                }
                if !self.wait(POLL).await {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn flap(&mut self, node: usize, each: Duration, lasts: Duration) -> io::Result<()> {
        let end = Instant::now() + lasts;
        let mut cut = true;
        while Instant::now() < end && !self.is_stopped() {
            self.nodes.separate(node, cut)?;
            self.wait(each).await;
            cut = !cut;
        }
        Ok(())
    }

    /// Puts everything right, and waits until every replica serves.
    async fn heal(&mut self) {
        self.say("healing");
        self.nodes.heal_ways();
        self.interrupted = self.is_stopped();
        self.healed = self.target.moment();
        let end = Instant::now() + READY_WITHIN;
        loop {
            self.look_after();
            self.show_figures();
            match settled::ready(&self.target, &self.names).await {
                Ok(()) => break,
                Err(why) if Instant::now() > end => {
                    let limit = READY_WITHIN.as_secs();
                    self.complaints
                        .push(format!("{limit} s after the last fault {why}"));
                    break;
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
        tokio::time::sleep(AFTERGLOW).await;
    }

    /// Stops the clients, reads what is left, compares the replicas.
    async fn finish(mut self) -> io::Result<Findings> {
        self.look_after();
        self.show_figures();
        self.watcher.shutdown().await;
        let history = self.mix.stop().await;
        let ended = self.target.moment();
        say(self.show, "reading what is left");
        let client = self.plan.mix.clients;
        let finals = final_reads(&self.target, &history, client, READ_WITHIN).await;
        let finals = finals.map_err(failed)?;
        say(self.show, "comparing the replicas");
        self.complaints
            .extend(settled::differences(&self.target, &self.names).await);
        for (node, how) in self.nodes.ended() {
            let name = &self.names[node];
            self.complaints
                .push(format!("{name} ended by itself at the end ({how})"));
        }
        Ok(Findings {
            seed: self.plan.mix.seed,
            nodes: self.names,
            duration: self.plan.duration,
            prefix: self.plan.mix.prefix.clone(),
            history,
            finals,
            faults: self.faults,
            changes: self.changes,
            leaders: self.seen.log(),
            healed: self.healed,
            ended,
            complaints: self.complaints,
            interrupted: self.interrupted,
            late: self.late,
        })
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Nodes that end by themselves break a promise; they are started again, so that the rest of the
    /// run says something.
    fn look_after(&mut self) {
        for (node, how) in self.nodes.ended() {
            let name = &self.names[node];
            let at = self.target.moment().0 / 1_000;
            self.complaints
                .push(format!("{name} ended by itself at {at} ms ({how})"));
            if let Err(error) = self.nodes.start(&[node]) {
                self.complaints.push(format!("start {name}: {error}"));
            }
        }
    }

    fn say(&self, doing: impl Into<String>) {
        let doing = doing.into();
        self.show.send_modify(|now| now.doing = doing);
    }

    fn show_figures(&self) {
        let (leader_changes, shards) = self.seen.counts();
        self.show.send_modify(|now| {
            now.since = self.target.started.elapsed();
            now.progress = self.mix.progress();
            now.leader_changes = leader_changes;
            now.shards = shards;
        });
    }

    /// False when the run was stopped meanwhile.
    async fn wait(&mut self, time: Duration) -> bool {
        let passed = self.target.started.elapsed();
        self.wait_until(passed + time).await
    }

    /// Until so long after the beginning.
    async fn wait_until(&mut self, since: Duration) -> bool {
        let end = self.target.started + since;
        loop {
            self.look_after();
            self.show_figures();
            if self.is_stopped() {
                return false;
            }
            let now = Instant::now();
            if now >= end {
                return true;
            }
            let until = end.min(now + POLL);
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return false,
                () = tokio::time::sleep_until(until) => {}
            }
            self.late = self.late.max(until.elapsed());
        }
    }
}
