//! A cluster forms from a list: under loss, reordering, duplicates, crashes at every point and wiped
//! disks it forms at most once, nobody comes back under an identity whose disk is gone, and when the
//! faults stop it forms.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use proptest::prelude::*;
use quorate::error::Error;
use quorate::error::Result;
use quorate::node::formation::Formation;
use quorate::node::formation::Formed;
use quorate::node::formation::FounderList;
use quorate::node::formation::Listed;
use quorate::node::formation::Next;
use quorate::node::formation::Record;
use quorate::node::formation::Refusal;
use quorate::node::formation::Waiting;
use quorate::node::formation::hash_of_listed;
use quorate::node::formation::layout;
use quorate::node::formation_driver::FormationError;
use quorate::node::formation_driver::FormationHandle;
use quorate::node::formation_driver::Setup;
use quorate::node::formation_driver::prepare;
use quorate::node::identity::DataDirectory;
use quorate::node::identity::IdentityError;
use quorate::testkit::disk::CrashDisk;
use quorate::types::ClusterId;
use quorate::types::Incarnation;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::log::Vote;
use quorate::types::node::Member;
use quorate::wire::request::AppendRequest;
use quorate::wire::request::AppendResponse;
use quorate::wire::request::Call;
use quorate::wire::request::Channel;
use quorate::wire::request::FormRequest;
use quorate::wire::request::FormResponse;
use quorate::wire::request::Founder;
use quorate::wire::request::Request;
use quorate::wire::request::Response;
use quorate::wire::request::Route;
use quorate::wire::request::Service;
use quorate::wire::request::SnapshotHeader;

fn listed(count: usize) -> Vec<Listed> {
    (0..count).map(entry).collect()
}

fn entry(place: usize) -> Listed {
    Listed {
        name: format!("n{}", place + 1),
        address: format!("host{}:7401", place + 1),
    }
}

fn founder(place: usize, incarnation: Incarnation) -> Founder {
    Founder {
        name: entry(place).name,
        incarnation,
        node_address: entry(place).address,
        client_address: format!("host{}:7400", place + 1),
    }
}

/// What survives a crash.
#[derive(Debug, Clone)]
struct Disk {
    incarnation: Incarnation,
    record: Record,
}

#[derive(Debug)]
struct Node {
    disk: Disk,
    token: String,
    /// None: crashed, stopped, or not started.
    running: Option<Formation>,
    refused: Option<Refusal>,
    /// Rises with each start: an answer to a call of an earlier life finds nobody.
    life: u32,
}

#[derive(Debug, Clone)]
enum Message {
    Dial {
        from: usize,
        life: u32,
        to: usize,
        request: FormRequest,
    },
    Answer {
        from: usize,
        to: usize,
        life: u32,
        asked: FormRequest,
        response: FormResponse,
    },
}

/// Where a node is when it loses its power.
#[derive(Debug, Clone, Copy)]
enum CrashPoint {
    None,
    BeforeSync,
    AfterSync,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Dial(usize, usize),
    Deliver { message: usize, again: bool },
    Lose(usize),
    Decide(usize, CrashPoint),
    Crash(usize),
    Start(usize),
    Wipe(usize),
    Retoken(usize, u8),
}

struct World {
    nodes: Vec<Node>,
    messages: Vec<Message>,
    incarnations: u8,
    /// Every confirmation ever synced: who, under which token, of what.
    confirmed: BTreeMap<(Incarnation, String), ClusterId>,
}

/// More wait on the network than this: the oldest is lost.
const MESSAGES_MAX: usize = 40;

impl World {
    fn new(count: usize) -> World {
        let mut world = World {
            nodes: Vec::new(),
            messages: Vec::new(),
            incarnations: 0,
            confirmed: BTreeMap::new(),
        };
        for _ in 0..count {
            let disk = world.empty_disk();
            world.nodes.push(Node {
                disk,
                token: "t0".into(),
                running: None,
                refused: None,
                life: 0,
            });
        }
        world
    }

    fn empty_disk(&mut self) -> Disk {
        self.incarnations += 1;
        Disk {
            incarnation: Incarnation([self.incarnations; 16]),
            record: Record::default(),
        }
    }

    fn step(&mut self, step: Step) {
        let count = self.nodes.len();
        match step {
            Step::Dial(from, to) => self.dial(from % count, to % count),
            Step::Deliver { message, again } => self.deliver_one(message, again),
            Step::Lose(message) => {
                if !self.messages.is_empty() {
                    self.messages.swap_remove(message % self.messages.len());
                }
            }
            Step::Decide(node, crash) => self.decide(node % count, crash),
            Step::Crash(node) => self.nodes[node % count].running = None,
            Step::Start(node) => self.start(node % count),
            Step::Wipe(node) => {
                let disk = self.empty_disk();
                let node = &mut self.nodes[node % count];
                node.disk = disk;
                node.running = None;
            }
            Step::Retoken(node, token) => {
                let node = &mut self.nodes[node % count];
                node.token = format!("t{token}");
                node.running = None;
            }
        }
        self.check();
    }

    fn start(&mut self, place: usize) {
        let all = listed(self.nodes.len());
        let node = &mut self.nodes[place];
        if node.running.is_some() {
            return;
        }
        let own = founder(place, node.disk.incarnation);
        let made = Formation::new(own, node.token.clone(), &all, node.disk.record.clone());
        node.running = Some(made.expect("the flags do not change"));
        node.refused = None;
        node.life += 1;
    }

    fn dial(&mut self, from: usize, to: usize) {
        let node = &self.nodes[from];
        let Some(formation) = &node.running else {
            return;
        };
        // A formed node dials nobody.
        if from == to || node.disk.record.formed.is_some() {
            return;
        }
        self.messages.push(Message::Dial {
            from,
            life: node.life,
            to,
            request: formation.request(),
        });
        if self.messages.len() > MESSAGES_MAX {
            self.messages.remove(0);
        }
    }

    fn deliver_one(&mut self, message: usize, again: bool) {
        if self.messages.is_empty() {
            return;
        }
        let place = message % self.messages.len();
        let message = if again {
            self.messages[place].clone()
        } else {
            self.messages.swap_remove(place)
        };
        self.deliver(message);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Dial {
                from,
                life,
                to,
                request,
            } => {
                let Some(formation) = &mut self.nodes[to].running else {
                    return;
                };
                let response = formation.answer(&request);
                self.messages.push(Message::Answer {
                    from: to,
                    to: from,
                    life,
                    asked: request,
                    response,
                });
            }
            Message::Answer {
                from,
                to,
                life,
                asked,
                response,
            } => {
                let node = &mut self.nodes[to];
                if let Some(formation) = node.running.as_mut().filter(|_| node.life == life) {
                    formation.heard(&entry(from).name, &asked, response);
                }
            }
        }
    }

    fn decide(&mut self, place: usize, crash: CrashPoint) {
        let node = &mut self.nodes[place];
        let Some(formation) = &mut node.running else {
            return;
        };
        match formation.decide() {
            Next::Wait(_) | Next::Formed(_) => {}
            Next::Refused(refusal) => {
                node.refused = Some(refusal);
                node.running = None;
            }
            Next::Sync(record) => {
                if matches!(crash, CrashPoint::BeforeSync) {
                    node.running = None;
                    return;
                }
                node.disk.record = record.clone();
                if matches!(crash, CrashPoint::AfterSync) {
                    node.running = None;
                } else {
                    formation.synced(record);
                }
                self.note_confirmations(place);
            }
        }
    }

    fn note_confirmations(&mut self, place: usize) {
        let disk = self.nodes[place].disk.clone();
        for list in disk.record.confirmed {
            let key = (disk.incarnation, list.token.clone());
            let before = self.confirmed.insert(key, list.id());
            assert!(
                before.is_none_or(|before| before == list.id()),
                "an incarnation confirmed two lists under one token"
            );
        }
    }

    fn formed(&self) -> Vec<(usize, &FounderList)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter_map(|(place, node)| Some((place, node.disk.record.formed.as_ref()?)))
            .collect()
    }

    fn check(&self) {
        let formed = self.formed();
        for (place, list) in &formed {
            assert_eq!(
                list.id(),
                formed[0].1.id(),
                "two lists formed among disks that are there"
            );
            let own = &list.founders[*place];
            assert_eq!(own.incarnation, self.nodes[*place].disk.incarnation);
            for founder in &list.founders {
                let key = (founder.incarnation, list.token.clone());
                assert_eq!(
                    self.confirmed.get(&key),
                    Some(&list.id()),
                    "formed without {}",
                    founder.name
                );
            }
        }
    }

    /// The faults stop: everybody runs, is restarted when it stops, and every call gets through.
    fn heal(&mut self) {
        self.messages.clear();
        let count = self.nodes.len();
        for _ in 0..8 {
            for place in 0..count {
                self.start(place);
                self.decide(place, CrashPoint::None);
                for to in 0..count {
                    self.call(place, to);
                }
                self.decide(place, CrashPoint::None);
                self.check();
            }
        }
    }

    fn call(&mut self, from: usize, to: usize) {
        self.dial(from, to);
        while let Some(message) = self.messages.pop() {
            self.deliver(message);
        }
    }

    fn waiting(&self, place: usize) -> Vec<Waiting> {
        match self.nodes[place].running.as_ref().unwrap().decide() {
            Next::Wait(waiting) => waiting,
            other => panic!("n{} does not wait: {other:?}", place + 1),
        }
    }

    fn refusal(&self, place: usize) -> Refusal {
        self.nodes[place].refused.clone().unwrap()
    }
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0..5_usize;
    let crash = prop_oneof![
        6 => Just(CrashPoint::None),
        1 => Just(CrashPoint::BeforeSync),
        2 => Just(CrashPoint::AfterSync),
    ];
    prop_oneof![
        30 => (place.clone(), place.clone()).prop_map(|(from, to)| Step::Dial(from, to)),
        60 => (any::<usize>(), prop::bool::weighted(0.1))
            .prop_map(|(message, again)| Step::Deliver { message, again }),
        4 => any::<usize>().prop_map(Step::Lose),
        25 => (place.clone(), crash).prop_map(|(node, crash)| Step::Decide(node, crash)),
        2 => place.clone().prop_map(Step::Crash),
        12 => place.prop_map(Step::Start),
    ]
}

fn step_or_wipe() -> impl Strategy<Value = Step> {
    prop_oneof![60 => step(), 1 => (0..5_usize).prop_map(Step::Wipe)]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => step_or_wipe(),
        1 => (0..5_usize, 0..3_u8).prop_map(|(node, token)| Step::Retoken(node, token)),
    ]
}

fn played(count: usize, steps: Vec<Step>) -> World {
    let mut world = World::new(count);
    for place in 0..count {
        world.start(place);
    }
    for step in steps {
        world.step(step);
    }
    world
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(3), Just(3), Just(5)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn with_every_disk_kept_all_form_one_cluster_when_the_faults_stop(
        count in sizes(),
        steps in prop::collection::vec(step(), 0..250),
    ) {
        let mut world = played(count, steps);
        world.heal();
        prop_assert_eq!(world.formed().len(), count);
    }

    #[test]
    fn wiped_nodes_never_come_back_and_a_new_token_is_the_way_out(
        count in sizes(),
        steps in prop::collection::vec(step_or_wipe(), 0..300),
    ) {
        let mut world = played(count, steps);
        world.heal();
        for place in 0..count {
            world.step(Step::Retoken(place, 9));
        }
        world.heal();
        let formed: BTreeSet<usize> = world.formed().into_iter().map(|(place, _)| place).collect();
        prop_assert!(!formed.is_empty(), "nobody formed");
        for (place, node) in world.nodes.iter().enumerate() {
            let told = matches!(
                node.refused,
                Some(Refusal::Wiped { .. } | Refusal::OtherCluster { .. })
            );
            prop_assert!(formed.contains(&place) || told, "n{} neither formed nor was told", place + 1);
        }
    }

    #[test]
    fn whatever_tokens_and_disks_do_no_two_lists_form(
        count in sizes(),
        steps in prop::collection::vec(any_step(), 0..400),
    ) {
        played(count, steps);
    }
}

/// Three nodes that have confirmed, and nobody has told anybody.
fn confirmed_by_all() -> World {
    let mut world = played(3, Vec::new());
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        world.call(from, to);
    }
    for place in 0..3 {
        world.decide(place, CrashPoint::None);
    }
    assert_eq!(world.confirmed.len(), 3);
    world
}

#[test]
fn a_node_wiped_after_forming_is_told_to_join() {
    let mut world = confirmed_by_all();
    world.heal();
    world.step(Step::Wipe(2));
    world.start(2);
    world.call(2, 0);
    world.decide(2, CrashPoint::None);
    let refusal = world.refusal(2);
    assert!(matches!(refusal, Refusal::Wiped { .. }), "{refusal}");
    let line = "quorate serve --name n3 --join host1:7401,host2:7401";
    assert!(refusal.to_string().contains(line), "{refusal}");
}

#[test]
fn a_node_wiped_after_a_confirmation_stops_the_others_once_none_of_them_has_formed() {
    let mut world = confirmed_by_all();
    world.step(Step::Wipe(2));
    world.start(2);
    world.call(0, 2);
    // n2 may have formed with the old n3: ask it before giving up.
    let reasons = world.waiting(0);
    assert!(
        reasons.iter().any(|entry| entry.listed.name == "n2"),
        "{reasons:?}"
    );
    world.call(0, 1);
    world.decide(0, CrashPoint::None);
    let refusal = world.refusal(0);
    assert!(matches!(refusal, Refusal::Replaced { .. }), "{refusal}");
    assert!(
        refusal.to_string().contains("--initial-cluster-token"),
        "{refusal}"
    );
}

#[test]
fn a_node_that_crashed_half_way_adopts_what_was_formed_without_it() {
    let mut world = confirmed_by_all();
    world.call(0, 1);
    world.call(0, 2);
    world.decide(0, CrashPoint::None);
    assert_eq!(world.formed().len(), 1);
    // Another token does not matter any more.
    world.step(Step::Retoken(1, 5));
    world.start(1);
    world.call(1, 0);
    world.decide(1, CrashPoint::None);
    assert_eq!(world.formed().len(), 2);
}

#[test]
fn an_old_copy_of_a_founders_directory_is_refused() {
    let mut world = played(3, Vec::new());
    let copy = world.nodes[2].disk.clone();
    world.heal();
    world.nodes[2].disk = copy;
    world.nodes[2].running = None;
    world.start(2);
    world.call(2, 0);
    world.decide(2, CrashPoint::None);
    let refusal = world.refusal(2);
    assert!(
        matches!(refusal, Refusal::NeverConfirmed { .. }),
        "{refusal}"
    );
}

#[test]
fn a_confirmation_that_was_under_way_since_before_a_new_token_forms_nothing() {
    let mut world = confirmed_by_all();
    let late: Vec<FormRequest> = world.nodes[..2]
        .iter()
        .map(|node| node.running.as_ref().unwrap().request())
        .collect();
    for place in 0..3 {
        world.step(Step::Retoken(place, 1));
        world.start(place);
    }
    for _ in 0..2 {
        for (from, to) in [(2, 0), (2, 1), (0, 1), (0, 2), (1, 0), (1, 2)] {
            world.call(from, to);
            world.decide(from, CrashPoint::None);
            world.check();
        }
    }
    assert!(world.formed().len() >= 2);
    // n3 has not heard of it, goes back to the first token, and gets what was under way.
    world.nodes[2].disk.record.formed = None;
    world.step(Step::Retoken(2, 0));
    world.start(2);
    for request in &late {
        world.nodes[2].running.as_mut().unwrap().answer(request);
    }
    world.decide(2, CrashPoint::None);
    world.check();
}

#[test]
fn a_second_process_under_a_listed_name_gets_into_no_list_and_stops_nobody() {
    let mut world = confirmed_by_all();
    let impostor = FormRequest {
        token: "t0".into(),
        list: hash_of_listed(&listed(3)),
        from: founder(2, Incarnation([99; 16])),
        confirmed: Some(ClusterId([9; 16])),
    };
    for node in &mut world.nodes {
        node.running.as_mut().unwrap().answer(&impostor);
    }
    world.heal();
    assert_eq!(world.formed().len(), 3);
}

#[test]
fn other_tokens_and_other_lists_never_form_and_both_say_why() {
    let mut world = played(3, Vec::new());
    world.step(Step::Retoken(1, 7));
    world.start(1);
    let other_list = [entry(0), entry(2)];
    let own = founder(2, world.nodes[2].disk.incarnation);
    let formation = Formation::new(own, "t0".into(), &other_list, Record::default());
    world.nodes[2].running = Some(formation.unwrap());
    for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
        world.call(from, to);
    }
    let all = [world.waiting(0), world.waiting(1), world.waiting(2)].concat();
    let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
    let text = lines.join("\n");
    let ours = hash_of_listed(&listed(3));
    let theirs = hash_of_listed(&other_list);
    for part in [
        "n2=host2:7401: it was started with token \"t7\", this node with \"t0\"",
        "n1=host1:7401: it was started with token \"t0\", this node with \"t7\"",
        &format!(
            "n3=host3:7401: it was started with another --initial-cluster ({theirs}) than this node ({ours}: n1="
        ),
        &format!(
            "n1=host1:7401: it was started with another --initial-cluster ({ours}) than this node ({theirs}: n1=host1:7401,n3=host3:7401)"
        ),
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}

#[test]
fn flags_that_change_after_a_confirmation_are_refused_under_the_same_token() {
    let world = confirmed_by_all();
    let disk = &world.nodes[0].disk;
    let again = |token: &str, listed: &[Listed]| {
        let own = founder(0, disk.incarnation);
        Formation::new(own, token.into(), listed, disk.record.clone())
    };
    let refusal = again("t0", &listed(2)).unwrap_err();
    assert!(matches!(*refusal, Refusal::ListChanged { .. }), "{refusal}");
    again("t1", &listed(2)).unwrap();
    let missing = again("t0", &[entry(1), entry(2)]).unwrap_err();
    assert!(matches!(*missing, Refusal::List(_)), "{missing}");
    let twice = again("t1", &[entry(0), entry(0)]).unwrap_err();
    assert!(matches!(*twice, Refusal::List(_)), "{twice}");
}

/// Named in reverse, to see the order of the list and not that of the flags.
fn formed_of(count: usize) -> Formed {
    let founders = (0..count)
        .rev()
        .map(|place| founder(place, Incarnation([place as u8 + 1; 16])));
    FounderList::new("t".into(), founders.collect()).into()
}

#[test]
fn the_first_layout_follows_from_the_list_alone() {
    let of = |count: usize| {
        let layout = layout(&formed_of(count));
        assert_eq!(layout.members.len(), count);
        assert_eq!(layout.shard.range, KeyRange::ALL);
        let replicas = layout.placement.iter().chain(&layout.shard.replicas);
        let ids: Vec<u64> = replicas.map(|replica| replica.id.0).collect();
        assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
        let shard = layout.shard.replicas.iter();
        let nodes: Vec<u64> = shard.map(|replica| replica.node.0).collect();
        (layout.placement.len(), nodes, layout.next_id)
    };
    assert_eq!(of(1), (1, vec![1], 3));
    assert_eq!(of(2), (2, vec![1, 2], 5));
    assert_eq!(of(3), (3, vec![1, 2, 3], 7));
    assert_eq!(of(4), (3, vec![1, 2, 3], 7));
    assert_eq!(of(5), (5, vec![1, 2, 3], 9));
    assert_eq!(of(12), (5, vec![1, 2, 3], 13));
    let twelve = layout(&formed_of(12));
    assert_eq!(
        (&*twelve.members[1].name, &*twelve.members[9].name),
        ("n2", "n10")
    );
    assert_eq!(
        formed_of(12).node_of(Incarnation([10; 16])),
        Some(NodeId(10))
    );
}

#[test]
fn a_cluster_id_is_the_same_in_every_release() {
    assert_eq!(
        formed_of(3).cluster.to_string(),
        "7e74f69273b685383234ff30c6558a66"
    );
}

/// Nodes of one process that reach each other by address.
#[derive(Clone, Default)]
struct Wires {
    doors: Arc<Mutex<HashMap<String, FormationHandle>>>,
}

impl Wires {
    fn open(&self, address: String, handle: FormationHandle) {
        self.doors.lock().unwrap().insert(address, handle);
    }

    fn close(&self, address: &str) {
        self.doors.lock().unwrap().remove(address);
    }
}

struct Door(Option<FormationHandle>);

impl Channel for Wires {
    fn node(&self, _: NodeId) -> Arc<dyn Service> {
        Arc::new(Door(None))
    }

    fn address(&self, address: &str) -> Arc<dyn Service> {
        Arc::new(Door(self.doors.lock().unwrap().get(address).cloned()))
    }

    fn learn(&self, _: Member) {}
}

impl Service for Door {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
        let answer = match (&self.0, call.request) {
            (Some(handle), Request::Form(request)) => Ok(Response::Form(handle.answer(&request))),
            _ => Err(Error::unavailable("node", "nobody listens")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn append(
        &self,
        _: Route,
        _: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse>> {
        unreachable!("nothing is appended while a cluster forms")
    }

    fn snapshot(
        &self,
        _: SnapshotHeader,
        _: BoxStream<'static, Result<Bytes>>,
    ) -> BoxFuture<'static, Result<Vote>> {
        unreachable!("no snapshot is sent while a cluster forms")
    }
}

/// Nodes with a disk each, that stays when they end.
struct Home {
    disks: Vec<CrashDisk>,
    wires: Wires,
}

impl Home {
    fn new(count: usize) -> Home {
        Home {
            disks: (0..count).map(|_| CrashDisk::new()).collect(),
            wires: Wires::default(),
        }
    }

    fn directory(
        &self,
        place: usize,
        fresh: u8,
    ) -> std::result::Result<DataDirectory, IdentityError> {
        let fresh = Incarnation([fresh; 16]);
        let files = Arc::new(self.disks[place].clone());
        DataDirectory::open(files, Path::new("data"), &entry(place).name, fresh)
    }

    fn setup(&self, place: usize, count: usize) -> Setup {
        Setup {
            name: entry(place).name,
            initial_cluster: listed(count),
            token: "t".into(),
            join: Vec::new(),
            node_address: entry(place).address,
            client_address: "c:1".into(),
        }
    }

    async fn run(
        &self,
        place: usize,
        count: usize,
        fresh: u8,
    ) -> std::result::Result<Formed, FormationError> {
        let directory = self.directory(place, fresh)?;
        let channel = Arc::new(self.wires.clone());
        let (handle, driver) = prepare(self.setup(place, count), directory, channel)?;
        self.wires.open(entry(place).address, handle);
        let formed = driver.run().await.map(|(formed, _)| formed);
        if formed.is_err() {
            self.wires.close(&entry(place).address);
        }
        formed
    }
}

/// Long enough for anything that can happen without the one who is missing.
const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn three_drivers_form_and_return_and_a_wiped_one_does_not() {
    let mut home = Home::new(3);
    let (first, second) = tokio::join!(
        tokio::time::timeout(LIMIT, home.run(0, 3, 1)),
        tokio::time::timeout(LIMIT, home.run(1, 3, 2)),
    );
    assert!(first.is_err() && second.is_err(), "formed without n3");
    let (first, second, third) =
        tokio::join!(home.run(0, 3, 11), home.run(1, 3, 12), home.run(2, 3, 13));
    let formed = first.unwrap();
    assert_eq!(formed.founders[0].incarnation, Incarnation([1; 16]));
    assert_eq!(second.unwrap(), formed);
    assert_eq!(third.unwrap(), formed);
    // With data the list is not looked at any more.
    assert_eq!(home.run(0, 1, 21).await.unwrap(), formed);
    home.disks[1] = CrashDisk::new();
    let refused = home.run(1, 3, 22).await.unwrap_err();
    assert!(
        matches!(&refused, FormationError::Refused(refusal) if matches!(**refusal, Refusal::Wiped { .. })),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_forms_at_once() {
    let home = Home::new(2);
    let formed = home.run(0, 1, 1).await.unwrap();
    assert_eq!(formed.founders.len(), 1);
}

/// Every write of forming fails once, half done, on each node; then all lose their power.
#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_write_ends_in_one_cluster() {
    let mut cut = 0;
    for (victim, nth, seed) in (0..90).map(|case| (case % 3, case / 3 % 3 + 1, case)) {
        let home = Home::new(3);
        home.disks[victim].fail_write(nth as u64);
        let runs = (0..3).map(|place| tokio::time::timeout(LIMIT, home.run(place, 3, place as u8)));
        let before = futures::future::join_all(runs).await;
        cut += usize::from(matches!(
            before[victim],
            Ok(Err(FormationError::Identity(_)))
        ));
        for disk in &home.disks {
            disk.crash(seed as u64);
        }
        let runs = (0..3).map(|place| home.run(place, 3, 10 + place as u8));
        let after = tokio::time::timeout(LIMIT, futures::future::join_all(runs)).await;
        let formed: Vec<Formed> = after.unwrap().into_iter().map(|run| run.unwrap()).collect();
        assert!(formed.iter().all(|other| *other == formed[0]));
        for run in before.into_iter().flatten().flatten() {
            assert_eq!(run, formed[0], "formed anew after the power cut");
        }
    }
    assert_eq!(cut, 90, "not every failing write was met");
}

/// How often of 100 power cuts a directory forgets what it had said.
fn forgotten(lying: bool) -> usize {
    let forgets = |seed: u64| {
        let home = Home::new(1);
        home.disks[0].set_lying(lying);
        let incarnation = home.directory(0, 1).unwrap().incarnation();
        home.disks[0].crash(seed);
        let Ok(mut directory) = home.directory(0, 2) else {
            return true;
        };
        let list = FounderList::new("t".into(), vec![founder(0, directory.incarnation())]);
        let record = Record {
            joined: None,
            confirmed: vec![list],
            formed: None,
        };
        let known = directory.incarnation() == incarnation;
        directory.save(record.clone()).unwrap();
        home.disks[0].crash(seed + 1_000);
        let kept = home
            .directory(0, 3)
            .is_ok_and(|directory| *directory.record() == record);
        !(known && kept)
    };
    (0..100).filter(|seed| forgets(*seed)).count()
}

#[test]
fn what_a_directory_has_said_survives_a_power_cut() {
    assert_eq!(forgotten(false), 0);
    // The same on a disk that only claims to sync, or the line above would prove nothing.
    let lost = forgotten(true);
    assert!(lost > 20, "only {lost} of 100");
}
