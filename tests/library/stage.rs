//! Real replicas of one group, each on a log, an engine and a disk of its own, joined by [`Wires`]. What each
//! machine is given to apply is watched, and what was answered is remembered.

use std::collections::BTreeMap;
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::Once;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use futures::stream::BoxStream;
use quorate::engine::Engine;
use quorate::engine::MemoryEngine;
use quorate::env::files::Files;
use quorate::env::rng;
use quorate::error::Error;
use quorate::error::Result;
use quorate::machine::Applied;
use quorate::machine::MachineError;
use quorate::machine::Membership;
use quorate::machine::Need;
use quorate::machine::Received;
use quorate::machine::SnapshotReceiver;
use quorate::machine::SnapshotSource;
use quorate::machine::StateMachine;
use quorate::raft::Alone;
use quorate::raft::Group;
use quorate::raft::Leadership;
use quorate::raft::Opening;
use quorate::raft::Options;
use quorate::shard;
use quorate::shard::Seed;
use quorate::shard::ShardMachine;
use quorate::shard::ShardReader;
use quorate::shard::Slots;
use quorate::shard::command::Answer;
use quorate::shard::command::Body;
use quorate::shard::command::Header;
use quorate::testkit::disk::CrashDisk;
use quorate::types::GroupId;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::Position;
use quorate::types::ReplicaId;
use quorate::types::RequestId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::Value;
use quorate::types::log::LogEntry;
use quorate::types::log::Vote;
use quorate::types::request::Operation;
use quorate::types::request::Write;
use quorate::types::request::WriteKind;
use quorate::types::request::WriteOutcome;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use quorate::wal;
use quorate::wal::Wal;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;
use tokio::runtime::RngSeed;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::wires::Wires;
use crate::wires::unexpected;

pub const GROUP: GroupId = GroupId::Shard(SHARD);
pub const SHARD: ShardId = ShardId(1);
/// How long what must happen may take. In virtual time it costs nothing; a loaded machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what must happen.
const PAUSE: Duration = Duration::from_millis(5);
/// The first position of every replica: as if it had been split off.
pub const BIRTH: Position = Position { term: 1, index: 1 };

/// Runs a test in virtual time, on one thread, where all that is drawn follows from the seed.
pub fn virtually<T>(seed: u64, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build();
    let runtime = runtime.expect("a runtime of one thread can be had");
    let _seeded = rng::seed_thread(seed);
    runtime.block_on(test)
}

static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Notes panics from now on, beside printing them: the library's tasks keep theirs to themselves.
fn note_panics() {
    static NOTES: Once = Once::new();
    NOTES.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            print(panic);
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or_default().to_owned();
            lock(&PANICS).push((thread, panic.to_string()));
        }));
    });
}

/// How many panics there were so far.
fn panics() -> usize {
    lock(&PANICS).len()
}

/// The panics so far of threads of this name: a test in virtual time has one thread, which has its name.
pub fn panics_of(thread: &str) -> Vec<String> {
    let panics = lock(&PANICS);
    let of_it = panics.iter().filter(|(name, _)| name == thread);
    of_it.map(|(_, panic)| panic.clone()).collect()
}

/// The panics so far of the thread that asks.
pub fn panics_here() -> Vec<String> {
    let thread = std::thread::current();
    panics_of(thread.name().unwrap_or_default())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Looks until it is there; fails with the last reason for which it was not.
pub async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> std::result::Result<T, String>,
) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if Instant::now() > until => panic!("{what}: {why}"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// What replicas stand on.
#[derive(Clone)]
pub struct Ground {
    pub files: Arc<dyn Files>,
    pub directory: PathBuf,
    pub options: Options,
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
}

impl Ground {
    /// A disk in memory, and a log that keeps nothing behind a checkpoint.
    pub fn memory() -> Ground {
        Ground {
            files: Arc::new(CrashDisk::new()),
            directory: PathBuf::new(),
            options: Options {
                entries_kept: 0,
                bytes_kept: 0,
                ..Options::default()
            },
            segment_bytes: 256 * 1024,
        }
    }
}

/// One real replica.
pub struct Seat {
    pub node: NodeId,
    pub group: Group,
    pub reader: ShardReader,
    pub engine: Arc<dyn Engine>,
    witness: Arc<Mutex<Witness>>,
    wal: Wal,
}

/// What a machine was given.
#[derive(Default)]
struct Witness {
    last: u64,
    /// What must not happen.
    complaints: Vec<String>,
    installed: u64,
}

impl Seat {
    /// Opens a replica on the ground that it has or begins on, among these voters. Others reach it.
    pub async fn open(node: u64, voters: &[u64], ground: &Ground, wires: &Arc<Wires>) -> Seat {
        Seat::open_on(node, voters, ground, wires, Arc::new(MemoryEngine::new())).await
    }

    /// The same, on this engine.
    pub async fn open_on(
        node: u64,
        voters: &[u64],
        ground: &Ground,
        wires: &Arc<Wires>,
        engine: Arc<dyn Engine>,
    ) -> Seat {
        note_panics();
        let (id, replica) = (NodeId(node), ReplicaId(node));
        let options = wal::Options {
            segment_bytes: ground.segment_bytes,
            spare_segments: 1,
            ..wal::Options::default()
        };
        let directory = ground.directory.join(id.to_string());
        let opened = Wal::open(Arc::clone(&ground.files), &directory, options);
        let (wal, writer) = opened.unwrap();
        writer.spawn(&wal).unwrap();
        let log = match wal.log(replica) {
            Some(log) => log,
            None => wal.born(replica, Bytes::new()).await.unwrap(),
        };
        let witness = Arc::new(Mutex::new(Witness::default()));
        let machine = machine(&engine, replica, voters);
        let reader = machine.reader();
        lock(&witness).last = position_of(&machine.applied());
        let flushed = Arc::clone(&engine);
        let failed = Arc::clone(&witness);
        let opening = Opening {
            group: GROUP,
            replica,
            log,
            machine: Box::new(Watched {
                machine,
                witness: Arc::clone(&witness),
            }),
            committed: None,
            channel: wires.channel(id),
            flush: Arc::new(move || {
                flushed.flush().expect("an engine of a test is flushed");
                async {}.boxed()
            }),
            fail: Arc::new(move |why| lock(&failed).complaints.push(why)),
            neighbours: Arc::new(Alone),
            introduction: Arc::new(|| None),
            pace: Arc::default(),
            options: ground.options.clone(),
            holds_back: false,
        };
        let group = Group::open(opening).await.unwrap();
        wires.put(id, Arc::new(Real(group.clone())));
        Seat {
            node: id,
            group,
            reader,
            engine,
            witness,
            wal,
        }
    }

    /// What a task beside the test may do with it.
    pub fn reach(&self) -> Reach {
        Reach {
            group: self.group.clone(),
            reader: self.reader.clone(),
            engine: Arc::clone(&self.engine),
        }
    }

    /// Ends the replica; what it has stays.
    pub async fn close(self) -> Arc<dyn Engine> {
        self.group.stop().await;
        drop(self.wal);
        self.engine
    }

    /// The term in which it leads.
    pub fn leads(&self) -> Option<u64> {
        match *self.group.leadership().borrow() {
            Leadership::Leading { term } => Some(term),
            Leadership::Following { .. } | Leadership::Failed => None,
        }
    }

    /// How many snapshots it has installed.
    pub fn installed(&self) -> u64 {
        lock(&self.witness).installed
    }

    /// The last entry that its machine has applied.
    pub fn applied(&self) -> u64 {
        position_of(&self.group.machine_applied())
    }

    /// Fails when its machine was given something twice, or not in order, or has failed.
    pub fn check(&self) {
        let complaints = lock(&self.witness).complaints.clone();
        assert!(complaints.is_empty(), "{}: {complaints:?}", self.node);
    }

    /// The number that was written to a key.
    pub fn read(&self, key: &str) -> Option<u64> {
        let read = self.reader.get(key.as_bytes(), None).unwrap();
        let found = read.value.into_option()?;
        Some(number_in(&found.value))
    }

    /// The version of a key.
    pub fn version(&self, key: &str) -> Option<Timestamp> {
        let read = self.reader.get(key.as_bytes(), None).unwrap();
        read.value.into_option().map(|found| found.version)
    }

    /// Ends the library's core in a way that a message from outside can: a snapshot that claims to be of a later
    /// term than its sender. Returns when another core runs; false when none does any more.
    pub async fn fail_core(&self, chunks: &[Bytes]) -> bool {
        let view = self.group.view();
        let route = Route {
            group: GROUP,
            from: self.group.replica(),
            to: self.group.replica(),
        };
        let header = from_the_future(route, view.term, view.last_index);
        let chunks: Vec<_> = chunks.iter().cloned().map(Ok).collect();
        let before = panics();
        let answer = self.group.install(header, stream::iter(chunks).boxed());
        answer.await.expect_err("no core takes this");
        assert!(panics() > before, "the core was to panic");
        let until = Instant::now() + PATIENCE;
        while *self.group.leadership().borrow() != Leadership::Failed {
            if self.group.announce().await.is_ok() {
                return true;
            }
            assert!(Instant::now() < until, "{:?}", self.group.view());
            sleep(PAUSE).await;
        }
        false
    }
}

/// What a task beside the test may do with a replica.
pub struct Reach {
    pub group: Group,
    pub reader: ShardReader,
    engine: Arc<dyn Engine>,
}

impl Reach {
    /// Flushes the engine and lets the log be purged behind that, as the node's checkpoint does.
    pub async fn checkpoint(&self) {
        let applied = self.group.machine_applied();
        self.engine.flush().expect("an engine of a test is flushed");
        self.group.checkpointed(applied).await;
    }

    /// The number that was written to a key, read linearizable, if this replica leads.
    pub async fn read(&self, key: &str) -> Result<Option<u64>> {
        let position = self.group.read_position().await?;
        self.group.wait_applied(position).await?;
        let read = self.reader.get(key.as_bytes(), None).unwrap();
        let found = read.value.into_option();
        Ok(found.map(|found| number_in(&found.value)))
    }
}

fn number_in(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The head of a snapshot with an entry of a later term than that of the vote beside it. There cannot be one.
pub fn from_the_future(route: Route, term: u64, last: u64) -> SnapshotHeader {
    SnapshotHeader {
        route,
        vote: Vote {
            term: term + 1,
            replica: route.from,
            committed: true,
        },
        position: Some(Position {
            term: term + 100,
            index: last + 1_000_000,
        }),
        membership_position: Some(BIRTH),
        membership: Membership::of(&[of_node(1)]).encode(),
    }
}

fn position_of(applied: &Applied) -> u64 {
    applied.position.map_or(0, |position| position.index)
}

fn machine(engine: &Arc<dyn Engine>, replica: ReplicaId, voters: &[u64]) -> ShardMachine {
    let slots = Slots::open(Arc::clone(engine)).unwrap();
    let voters: Vec<_> = voters.iter().map(|node| of_node(*node)).collect();
    let applied = Applied {
        position: Some(BIRTH),
        membership_position: Some(BIRTH),
        membership: Membership::of(&voters).encode(),
    };
    let descriptor = ShardDescriptor {
        id: SHARD,
        range: KeyRange::ALL,
        epoch: Epoch::default(),
        replicas: voters,
    };
    shard::seed(engine, &slots, replica, Seed::new(descriptor, applied)).unwrap();
    let machine = ShardMachine::open(Arc::clone(engine), slots, replica, Arc::new(|_| false));
    machine.unwrap().expect("its first row was written")
}

/// A node's replica, which has its number.
pub fn of_node(node: u64) -> Replica {
    Replica {
        id: ReplicaId(node),
        node: NodeId(node),
    }
}

/// The state of a shard with nothing in it, as the chunks of a snapshot.
pub fn empty_snapshot() -> Vec<Bytes> {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let mut source = machine(&engine, ReplicaId(1), &[1]).snapshot().unwrap();
    std::iter::from_fn(|| source.next().unwrap()).collect()
}

/// A machine beside somebody who looks at what it is given.
struct Watched {
    machine: ShardMachine,
    witness: Arc<Mutex<Witness>>,
}

impl StateMachine for Watched {
    fn applied(&self) -> Applied {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[LogEntry]) -> std::result::Result<Vec<Bytes>, MachineError> {
        let mut witness = lock(&self.witness);
        for entry in entries {
            let (index, last) = (entry.position.index, witness.last);
            if index != last + 1 {
                let complaint = format!("entry {index} is applied after {last}");
                witness.complaints.push(complaint);
            }
            witness.last = index;
        }
        drop(witness);
        self.machine.apply(entries)
    }

    fn take_need(&mut self) -> Option<Need> {
        self.machine.take_need()
    }

    fn take_seeded(&mut self) -> Vec<ReplicaId> {
        self.machine.take_seeded()
    }

    fn take_ended(&mut self) -> Vec<ReplicaId> {
        self.machine.take_ended()
    }

    fn snapshot(&self) -> std::result::Result<Box<dyn SnapshotSource>, MachineError> {
        self.machine.snapshot()
    }

    fn collect(&mut self) -> std::result::Result<bool, MachineError> {
        self.machine.collect()
    }

    fn receiver(&self) -> Box<dyn SnapshotReceiver> {
        self.machine.receiver()
    }

    fn displaces(&self, received: &Received) -> std::result::Result<Vec<ReplicaId>, MachineError> {
        self.machine.displaces(received)
    }

    fn install(
        &mut self,
        applied: Applied,
        received: Received,
    ) -> std::result::Result<(), MachineError> {
        let mut witness = lock(&self.witness);
        let index = position_of(&applied);
        if index < witness.last {
            let complaint = format!("a snapshot at {index} replaces {}", witness.last);
            witness.complaints.push(complaint);
        }
        witness.last = index;
        witness.installed += 1;
        drop(witness);
        self.machine.install(applied, received)
    }
}

/// A real replica as the others reach it.
struct Real(Group);

impl Service for Real {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let group = self.0.clone();
        async move {
            match call.request {
                Request::Vote(_, vote) => group.vote(vote).await.map(Response::Vote),
                Request::Append(_, append) => group.append(append).await.map(Response::Append),
                Request::Term(_) => group.term().map(Response::Term),
                Request::TakeLead(_, take) => group.take_lead(take).await.map(Response::TakeLead),
                other => unexpected(&other),
            }
        }
        .boxed()
    }

    fn append(
        &self,
        _route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        self.0.append_stream(requests)
    }

    fn snapshot(
        &self,
        header: SnapshotHeader,
        chunks: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        let group = self.0.clone();
        async move { group.install(header, chunks).await }.boxed()
    }
}

/// Stamps for the writes of one test: each above the one before, whoever leads.
#[derive(Default)]
pub struct Stamps(AtomicU64);

impl Stamps {
    /// A write of a number to a key, with an identity of its own. The value has at least `bytes` bytes.
    pub fn write(&self, key: &str, number: u64, bytes: usize) -> Write {
        let value = format!("{number:<20}{:bytes$}", "");
        let operation = Operation::Put {
            key: Key::copy_from_slice(key.as_bytes()),
            value: Value::from(value),
        };
        let mut chance = [0; 10];
        chance[..8].copy_from_slice(&self.0.load(Ordering::Relaxed).to_be_bytes());
        Write {
            id: RequestId::new(self.0.fetch_add(1, Ordering::Relaxed), chance),
            kind: WriteKind::Keys {
                conditions: Vec::new(),
                operations: vec![operation],
            },
        }
    }

    /// The entry that asks for writes, stamped now: above all before it, and above the ids' times.
    pub fn entry(&self, writes: &[Write], epoch: Epoch) -> Bytes {
        let header = Header {
            stamp: Timestamp::from_wall(1 + self.0.fetch_add(1, Ordering::Relaxed)),
            epoch,
            ..Header::default()
        };
        let body = Body::Writes(writes.to_vec());
        shard::Command { header, body }.encode()
    }
}

/// The version that an entry's only write has made.
pub fn version_in(answer: &[u8]) -> Timestamp {
    versions_in(answer)[0]
}

/// The versions that an entry's writes have made.
pub fn versions_in(answer: &[u8]) -> Vec<Timestamp> {
    let outcomes = match Answer::decode(answer).unwrap() {
        Answer::Writes(outcomes) => outcomes,
        other @ (Answer::Split(_) | Answer::Merge(_)) => panic!("writes were answered {other:?}"),
    };
    let version = |outcome: WriteOutcome| match outcome {
        WriteOutcome::Done { version, .. } => version,
        other => panic!("a put was answered {other:?}"),
    };
    outcomes.into_iter().map(version).collect()
}

/// Real replicas of a group, and what they have answered.
pub struct Stage {
    pub wires: Arc<Wires>,
    pub seats: Vec<Seat>,
    pub stamps: Stamps,
    voters: Vec<u64>,
    ground: Ground,
    /// The last number answered for each key.
    answered: BTreeMap<String, u64>,
}

impl Stage {
    /// Replicas on nodes 1 to `count`, all of them voters.
    pub async fn of(count: u64) -> Stage {
        Stage::of_these(&(1..=count).collect::<Vec<_>>(), count).await
    }

    /// Replicas on these voters' nodes, and further ones that know the same voters and are none.
    pub async fn of_these(voters: &[u64], count: u64) -> Stage {
        Stage::on(voters, count, Ground::memory()).await
    }

    /// The same, on this ground.
    pub async fn on(voters: &[u64], count: u64, ground: Ground) -> Stage {
        let wires = Arc::<Wires>::default();
        let mut seats = Vec::new();
        for node in 1..=count {
            seats.push(Seat::open(node, voters, &ground, &wires).await);
        }
        Stage {
            wires,
            seats,
            stamps: Stamps::default(),
            voters: voters.to_vec(),
            ground,
            answered: BTreeMap::new(),
        }
    }

    /// A replica by its node's number.
    pub fn seat(&self, node: u64) -> &Seat {
        &self.seats[node as usize - 1]
    }

    /// The nodes' numbers.
    pub fn nodes(&self) -> Vec<u64> {
        self.seats.iter().map(|seat| seat.node.0).collect()
    }

    /// Waits for a leader among these nodes.
    pub async fn leader_of(&self, among: &[u64]) -> u64 {
        eventually("a leader", async || {
            let leads = |node: &&u64| self.seat(**node).leads();
            let leader = among.iter().filter(|node| leads(node).is_some());
            let newest = leader.max_by_key(|node| leads(node));
            newest.copied().ok_or_else(|| format!("{:?}", self.views()))
        })
        .await
    }

    /// Makes a node lead.
    pub async fn make_lead(&self, node: u64) {
        eventually("another leader", async || {
            let leader = self.leader_of(&self.nodes()).await;
            if leader == node {
                return Ok(());
            }
            let asked = self.seat(leader).group.transfer_leader(Some(NodeId(node)));
            let asked = asked.await;
            sleep(Duration::from_millis(200)).await;
            Err(format!("{asked:?}, {:?}", self.views()))
        })
        .await;
    }

    /// What each replica says of itself.
    pub fn views(&self) -> Vec<(NodeId, quorate::raft::View)> {
        let views = self.seats.iter();
        views.map(|seat| (seat.node, seat.group.view())).collect()
    }

    /// Proposes a write at a node that leads; gives what it will answer.
    pub async fn propose(
        &self,
        node: u64,
        write: &Write,
    ) -> Result<BoxFuture<'static, Result<Bytes>>> {
        self.propose_all(node, std::slice::from_ref(write)).await
    }

    /// Proposes writes in one entry.
    pub async fn propose_all(
        &self,
        node: u64,
        writes: &[Write],
    ) -> Result<BoxFuture<'static, Result<Bytes>>> {
        let seat = self.seat(node);
        let term = seat.leads().ok_or_else(|| Error::NotLeader {
            group: GROUP,
            leader: None,
        })?;
        let epoch = seat.reader.descriptor().epoch;
        let entry = self.stamps.entry(writes, epoch);
        seat.group.propose(term, entry).await
    }

    /// Writes a number until it is answered, at whoever of these nodes leads.
    pub async fn put(&mut self, among: &[u64], key: &str, number: u64, bytes: usize) {
        let write = self.stamps.write(key, number, bytes);
        eventually("an answered write", async || {
            let leader = self.leader_of(among).await;
            let asked = self.propose(leader, &write).await;
            let answer = asked.map_err(|error| error.to_string())?;
            let answer = tokio::time::timeout(Duration::from_secs(1), answer).await;
            let answer = answer.map_err(|_| format!("no answer of {leader}"))?;
            answer
                .map(|answer| version_in(&answer))
                .map_err(|error| error.to_string())
        })
        .await;
        self.answered.insert(key.to_owned(), number);
    }

    /// Makes checkpoints on these nodes until their logs are purged behind all that they have applied.
    pub async fn purge(&self, nodes: &[u64]) {
        for node in nodes {
            let seat = self.seat(*node);
            let applied = seat.applied();
            eventually("a purged log", async || {
                seat.reach().checkpoint().await;
                let purged = seat.group.view().purged_index;
                (purged >= applied)
                    .then_some(())
                    .ok_or_else(|| format!("{purged} of {applied} on n{node}"))
            })
            .await;
        }
    }

    /// Opens a replica again on what it has.
    pub async fn reopen(&mut self, node: u64) {
        let place = node as usize - 1;
        let seat = self.seats.remove(place);
        let engine = seat.close().await;
        let (voters, ground) = (self.voters.clone(), self.ground.clone());
        let seat = Seat::open_on(node, &voters, &ground, &self.wires, engine).await;
        self.seats.insert(place, seat);
    }

    /// Waits until these replicas are equal and know all that was answered; nothing else may have happened.
    pub async fn agree(&self, nodes: &[u64]) {
        eventually("equal replicas", async || {
            let leader = self.leader_of(nodes).await;
            let last = self.seat(leader).group.view().last_index;
            let behind = nodes
                .iter()
                .find(|node| self.seat(**node).applied() != last);
            if let Some(node) = behind {
                return Err(format!("n{node} is not at {last}: {:?}", self.views()));
            }
            let hashes = nodes.iter().map(|node| {
                let hash = self.seat(*node).reader.state_hash().unwrap();
                (hash.position, hash.hash)
            });
            let hashes: Vec<_> = hashes.collect();
            // Another leader may have begun in between.
            let moved = hashes.iter().any(|(position, _)| *position != hashes[0].0);
            if moved {
                return Err(format!("on the move: {hashes:?}"));
            }
            let are_equal = hashes.iter().all(|(_, hash)| *hash == hashes[0].1);
            assert!(are_equal, "replicas that differ: {hashes:?}");
            Ok(())
        })
        .await;
        for node in nodes {
            let seat = self.seat(*node);
            seat.check();
            for (key, number) in &self.answered {
                assert_eq!(seat.read(key), Some(*number), "{key} on n{node}");
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.wires.clear();
    }
}
