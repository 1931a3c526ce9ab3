//! Forms the cluster: dials the listed nodes, answers theirs, and writes what `formation.rs` decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::error::Error;
use crate::node::formation::Formation;
use crate::node::formation::Formed;
use crate::node::formation::Listed;
use crate::node::formation::Next;
use crate::node::formation::Refusal;
use crate::node::formation::Waiting;
use crate::node::identity::DataDirectory;
use crate::node::identity::IdentityError;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::FormRequest;
use crate::wire::request::FormResponse;
use crate::wire::request::Founder;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// How often a listed node that has no call outstanding is dialled.
const DIAL_INTERVAL: Duration = Duration::from_millis(200);

/// How long one call may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(1);

/// How often a reason to wait that does not change is logged again.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What a node is told about the cluster by the person who starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// `--name`.
    pub name: String,
    /// `--initial-cluster`; empty: this node alone.
    pub initial_cluster: Vec<Listed>,
    /// `--initial-cluster-token`.
    pub token: String,
    /// `--join`; empty: not given.
    pub join: Vec<String>,
    /// `host:port` where other nodes reach this one.
    pub node_address: String,
    /// `host:port` where clients reach this one.
    pub client_address: String,
}

/// Why a node has no cluster.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// It must not form or come back.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    /// The data directory failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Answers `Form` calls: before, while and after the cluster forms. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FormationHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held for moments, never over a write or an await.
    state: Mutex<State>,
    /// An answer may have taught the node something.
    changed: Notify,
}

#[derive(Debug)]
enum State {
    Forming(Box<Formation>),
    Formed(FormResponse),
}

impl FormationHandle {
    /// This node's answer to a listed node. Never waits; says only what is synced.
    pub fn answer(&self, request: &FormRequest) -> FormResponse {
        let response = match &mut *self.shared.lock() {
            State::Forming(formation) => formation.answer(request),
            State::Formed(response) => response.clone(),
        };
        self.shared.changed.notify_one();
        response
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing that could fail half-way runs under this lock")
    }
}

/// Takes the node from its data directory and flags to a formed cluster.
pub struct FormationDriver {
    shared: Arc<Shared>,
    directory: DataDirectory,
    channel: Arc<dyn Channel>,
}

/// Prepares forming; nothing is sent yet. The handle can answer at once: open the node port with it,
/// then [`FormationDriver::run`]. A directory with data returns to its cluster whatever the flags say; one
/// without it that is to join a cluster has been through `joining.rs` before.
pub fn prepare(
    setup: Setup,
    directory: DataDirectory,
    channel: Arc<dyn Channel>,
) -> Result<(FormationHandle, FormationDriver), FormationError> {
    let state = match directory.formed() {
        Some(formed) => {
            report_ignored(&setup, &formed);
            State::Formed(formed.response())
        }
        None => State::Forming(Box::new(formation(setup, &directory)?)),
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        changed: Notify::new(),
    });
    let handle = FormationHandle {
        shared: Arc::clone(&shared),
    };
    let driver = FormationDriver {
        shared,
        directory,
        channel,
    };
    Ok((handle, driver))
}

fn formation(setup: Setup, directory: &DataDirectory) -> Result<Formation, Box<Refusal>> {
    let own = Founder {
        name: setup.name.clone(),
        incarnation: directory.incarnation(),
        node_address: setup.node_address.clone(),
        client_address: setup.client_address,
    };
    let alone = Listed {
        name: setup.name,
        address: setup.node_address,
    };
    let listed = if setup.initial_cluster.is_empty() {
        vec![alone]
    } else {
        setup.initial_cluster
    };
    Formation::new(own, setup.token, &listed, directory.record().clone())
}

/// Flags are for the first start; afterwards a difference is worth a word.
fn report_ignored(setup: &Setup, formed: &Formed) {
    let listed = &setup.initial_cluster;
    let known = |entry: &Listed| {
        let mut founders = formed.founders.iter();
        founders.any(|founder| founder.name == entry.name && founder.node_address == entry.address)
    };
    let same = listed.len() == formed.founders.len() && listed.iter().all(known);
    if !setup.join.is_empty() || (!listed.is_empty() && (!same || setup.token != formed.token)) {
        warn!(
            cluster = %formed.cluster,
            "the data directory has a cluster: --initial-cluster, its token and --join are ignored, though they differ from it"
        );
    }
}

type Dial = BoxFuture<'static, (String, FormRequest, Result<Response, Error>)>;

impl FormationDriver {
    /// Returns when the cluster is formed and that is synced, or when it cannot be. Gives the data
    /// directory, and with it its lock, back. Dropping it half-way is like a crash: safe, and the next
    /// start goes on from what was synced.
    pub async fn run(mut self) -> Result<(Formed, DataDirectory), FormationError> {
        let mut report = Report::default();
        let mut dials: FuturesUnordered<Dial> = FuturesUnordered::new();
        let mut dialled: BTreeSet<String> = BTreeSet::new();
        let mut ticks = tokio::time::interval(DIAL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.settle()? {
                Settled::Formed(formed) => return Ok((formed, self.directory)),
                Settled::Waiting(waiting) => report.say(&waiting),
            }
            tokio::select! {
                biased;
                Some((name, asked, result)) = dials.next() => {
                    dialled.remove(&name);
                    self.heard(&name, &asked, result);
                }
                () = self.shared.changed.notified() => {}
                _ = ticks.tick() => {
                    for (listed, request) in self.targets() {
                        if dialled.insert(listed.name.clone()) {
                            dials.push(self.dial(listed, request));
                        }
                    }
                }
            }
        }
    }

    /// Does what is decided until there is nothing left to do but wait.
    fn settle(&mut self) -> Result<Settled, FormationError> {
        loop {
            let next = match &*self.shared.lock() {
                State::Formed(_) => None,
                State::Forming(formation) => Some(formation.decide()),
            };
            match next {
                None => return Ok(Settled::Formed(self.formed())),
                Some(Next::Wait(waiting)) => return Ok(Settled::Waiting(waiting)),
                Some(Next::Refused(refusal)) => return Err(Box::new(refusal).into()),
                Some(Next::Formed(formed)) => {
                    info!(cluster = %formed.cluster, nodes = formed.founders.len(), "the cluster is formed");
                    *self.shared.lock() = State::Formed(formed.response());
                }
                Some(Next::Sync(record)) => {
                    // A few milliseconds, twice in a node's life, and nothing else runs yet.
                    self.directory.save(record.clone())?;
                    if let State::Forming(formation) = &mut *self.shared.lock() {
                        formation.synced(record);
                    }
                }
            }
        }
    }

    fn formed(&self) -> Formed {
        self.directory
            .formed()
            .expect("the handle says formed only after the directory does")
    }

    fn targets(&self) -> Vec<(Listed, FormRequest)> {
        match &*self.shared.lock() {
            State::Formed(_) => Vec::new(),
            State::Forming(formation) => {
                let targets = formation.targets().into_iter();
                targets
                    .map(|listed| (listed, formation.request()))
                    .collect()
            }
        }
    }

    fn dial(&self, listed: Listed, request: FormRequest) -> Dial {
        let service = self.channel.address(&listed.address);
        let call = Call {
            request: Request::Form(request.clone()),
            deadline: DIAL_DEADLINE,
            forwarded: false,
            cluster: None,
        };
        Box::pin(async move {
            let answer = tokio::time::timeout(DIAL_DEADLINE, service.call(call)).await;
            let late = |_| Error::Timeout {
                what: format!("dial {listed}"),
                after: DIAL_DEADLINE,
            };
            let result = answer.map_err(late).and_then(|answer| answer);
            (listed.name, request, result)
        })
    }

    fn heard(&self, name: &str, asked: &FormRequest, result: Result<Response, Error>) {
        match (result, &mut *self.shared.lock()) {
            (Ok(Response::Form(response)), State::Forming(formation)) => {
                formation.heard(name, asked, response);
            }
            (Ok(response), _) => debug!(node = name, ?response, "an answer that was not asked for"),
            (Err(error), _) => debug!(node = name, %error, "the listed node does not answer"),
        }
    }
}

enum Settled {
    Formed(Formed),
    Waiting(Vec<Waiting>),
}

/// Says whom the node waits for: when that changes, and every few seconds.
#[derive(Default)]
struct Report {
    last: Option<(Vec<Waiting>, Instant)>,
}

impl Report {
    fn say(&mut self, waiting: &[Waiting]) {
        let now = Instant::now();
        let said = self
            .last
            .as_ref()
            .is_some_and(|(last, at)| last == waiting && now < *at + REPORT_INTERVAL);
        if said {
            return;
        }
        for entry in waiting {
            info!(node = %entry.listed, reason = %entry.reason, "waiting for a listed node");
        }
        self.last = Some((waiting.to_vec(), now));
    }
}
