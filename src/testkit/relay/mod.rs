//! A network that can be hurt: a TCP relay in front of each node, which knows for every byte from
//! which node to which it goes.
//!
//! Each node is known to the others by its *door*, an address of the relay, and listens elsewhere. A
//! connection that comes in at a door was opened by one of the nodes: which one, the operating system
//! says (`opener`). From then on it has two [`Way`]s, there and back, and each follows the [`Rule`]
//! that is set for its way at that moment. Rules may be set at any time and hold for connections that
//! exist already.
//!
//! What the relay does not do: the kernel answers a connect at a door at once, also while the way is
//! cut; the connection is then swallowed. In a network whose packets are dropped the connect would get
//! no answer, and a way would also lose the acknowledgements of the way back. Nodes in network
//! namespaces of their own see that.

mod line;
mod opener;
mod pump;
mod spoil;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::testkit::relay::opener::Processes;
use crate::testkit::relay::pump::Broken;
use crate::testkit::relay::pump::Pump;
use crate::testkit::relay::spoil::Spoils;

/// From one node to another; nodes are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Who sends.
    pub from: usize,
    /// Who receives.
    pub to: usize,
}

impl Way {
    /// Every way from one of `from` to one of `to`.
    pub fn across(from: &[usize], to: &[usize]) -> Vec<Way> {
        let each = from.iter().flat_map(|from| {
            let ways = to.iter().filter(move |to| *to != from);
            ways.map(|to| Way {
                from: *from,
                to: *to,
            })
        });
        each.collect()
    }

    /// Every way between one of `left` and one of `right`, there and back.
    pub fn between(left: &[usize], right: &[usize]) -> Vec<Way> {
        let mut ways = Way::across(left, right);
        ways.extend(Way::across(right, left));
        ways
    }

    fn back(self) -> Way {
        Way {
            from: self.to,
            to: self.from,
        }
    }
}

/// How bytes travel on a way. The default lets them pass at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// Whether they arrive at all.
    pub passage: Passage,
    /// How long they travel.
    pub delay: Duration,
    /// How much longer some of them do: each segment draws up to so much. None overtakes another.
    pub jitter: Duration,
    /// Of a hundred segments so many are lost and sent again, as TCP does: they, and all behind them,
    /// are late by a retransmission timeout, which doubles when the repeat is lost too. 0 to 100; at
    /// 100 each is late by all the repeats that there are.
    pub loss_percent: u64,
    /// How many pass in a second.
    pub bytes_per_second: Option<u64>,
}

/// Whether what is sent arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// It does.
    #[default]
    Open,
    /// Later: nothing passes and nothing is lost, as when TCP repeats what it sent until the network is
    /// well again. Old messages arrive when the way is opened.
    Stalled,
    /// Never. Connections stay open and new ones are taken. When the way is opened again, those that
    /// miss bytes are reset.
    Cut,
}

impl Rule {
    /// Nothing passes, ever.
    pub const CUT: Rule = Rule::of(Passage::Cut);
    /// Nothing passes until the rule is changed.
    pub const STALLED: Rule = Rule::of(Passage::Stalled);

    const fn of(passage: Passage) -> Rule {
        Rule {
            passage,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss_percent: 0,
            bytes_per_second: None,
        }
    }

    /// Everything arrives late by `delay` and up to `jitter` more.
    pub fn late(delay: Duration, jitter: Duration) -> Rule {
        Rule {
            delay,
            jitter,
            ..Rule::default()
        }
    }

    /// So many of a hundred segments are lost at first.
    pub fn lossy(percent: u64) -> Rule {
        Rule {
            loss_percent: percent,
            ..Rule::default()
        }
    }
}

/// Doors in front of nodes. Needs a runtime; dropping it ends every connection.
#[derive(Debug)]
pub struct Relay {
    seed: u64,
    rules: watch::Sender<Rules>,
    spoils: Arc<Spoils>,
    processes: watch::Sender<Processes>,
    doors: Vec<SocketAddr>,
    serving: JoinSet<()>,
}

/// Ways without an entry are open.
type Rules = BTreeMap<Way, Rule>;

/// Connections of one door at once. Full: the next ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1_024;
/// How long a door that could not accept (no file descriptor left) waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Bytes read at once from a connection that is swallowed.
const SWALLOW_BYTES: usize = 16 * 1024;

impl Relay {
    /// A relay without doors. What chance decides follows from the seed and from when bytes arrive.
    pub fn new(seed: u64) -> Relay {
        Relay {
            seed,
            rules: watch::Sender::default(),
            spoils: Arc::default(),
            processes: watch::Sender::default(),
            doors: Vec::new(),
            serving: JoinSet::new(),
        }
    }

    /// Opens a door in front of the next node, which listens at `target`; where the door is.
    pub fn add(&mut self, target: SocketAddr) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let door = Door {
            seed: self.seed,
            node: self.doors.len(),
            address,
            target,
            rules: self.rules.clone(),
            spoils: self.spoils.clone(),
            processes: self.processes.clone(),
        };
        self.serving.spawn(serve(Arc::new(door), listener));
        self.doors.push(address);
        Ok(address)
    }

    /// The process that a node is from now on: connections that it opens are the node's.
    pub fn set_process(&self, node: usize, process: u32) {
        self.processes.send_modify(|processes| {
            processes.insert(node, process);
        });
    }

    /// How bytes travel on this way from now on.
    pub fn rule(&self, way: Way) -> Rule {
        rule_of(&self.rules.borrow(), way)
    }

    /// Sets one rule for all these ways at once.
    pub fn set(&self, ways: &[Way], rule: Rule) {
        self.rules.send_modify(|rules| {
            rules.extend(ways.iter().map(|way| (*way, rule)));
        });
    }

    /// From now on a bit flips in these bytes when they pass on this way: in the last of them, if all are
    /// read at once, as bytes that were sent together mostly are.
    pub fn spoil(&self, way: Way, marked: Bytes) {
        self.spoils.add(way, marked);
    }

    /// How many bits have flipped so far.
    pub fn spoilt(&self) -> u64 {
        self.spoils.count()
    }

    /// Opens every way, and spoils nothing more.
    pub fn heal(&self) {
        self.spoils.clear();
        self.rules.send_modify(Rules::clear);
    }
}

fn rule_of(rules: &Rules, way: Way) -> Rule {
    rules.get(&way).copied().unwrap_or_default()
}

/// One node's door.
struct Door {
    seed: u64,
    node: usize,
    address: SocketAddr,
    target: SocketAddr,
    rules: watch::Sender<Rules>,
    spoils: Arc<Spoils>,
    processes: watch::Sender<Processes>,
}

async fn serve(door: Arc<Door>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut seed = door.seed ^ (door.node as u64) << 32;
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((opened, from)) => {
                    seed += 1;
                    connections.spawn(door.clone().carry(opened, from, seed));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

impl Door {
    /// Carries one connection to its end.
    async fn carry(self: Arc<Door>, mut opened: TcpStream, from: SocketAddr, seed: u64) {
        let opener = opener::find(from, self.address, self.processes.subscribe()).await;
        let Some(from) = opener else {
            return reset(&opened);
        };
        let there = Way {
            from,
            to: self.node,
        };
        if !self.asks(&mut opened, there).await {
            return reset(&opened);
        }
        let Ok(mut target) = TcpStream::connect(self.target).await else {
            return reset(&opened);
        };
        if self
            .join(&mut opened, &mut target, there, seed)
            .await
            .is_err()
        {
            reset(&opened);
            reset(&target);
        }
    }

    /// Whether the request for a connection arrives at the node; says so when it does, or when the way
    /// is open again after it was swallowed, or when the opener has given up.
    async fn asks(&self, opened: &mut TcpStream, there: Way) -> bool {
        let mut rules = self.rules.subscribe();
        let mut swallowed = false;
        loop {
            let passage = rule_of(&rules.borrow_and_update(), there).passage;
            match passage {
                Passage::Open => return !swallowed,
                Passage::Stalled if swallowed => return false,
                Passage::Stalled => wait_for_change(&mut rules).await,
                Passage::Cut => {
                    swallowed = true;
                    tokio::select! {
                        biased;
                        () = wait_for_change(&mut rules) => {}
                        () = swallow(opened) => return false,
                    }
                }
            }
        }
    }

    /// Carries bytes both ways until both have ended.
    async fn join(
        &self,
        opened: &mut TcpStream,
        target: &mut TcpStream,
        there: Way,
        seed: u64,
    ) -> Result<(), Broken> {
        opened.set_nodelay(true).map_err(|_| Broken)?;
        target.set_nodelay(true).map_err(|_| Broken)?;
        let (opened_in, opened_out) = opened.split();
        let (target_in, target_out) = target.split();
        let pump = |way, seed| Pump::new(way, self.rules.subscribe(), self.spoils.clone(), seed);
        let (there_pump, back_pump) = (pump(there, seed), pump(there.back(), !seed));
        tokio::try_join!(
            there_pump.run(opened_in, target_out),
            back_pump.run(target_in, opened_out),
        )?;
        Ok(())
    }
}

/// Waits until a rule is set; for ever when the relay is gone, since its tasks go with it. Cancel-safe.
async fn wait_for_change(rules: &mut watch::Receiver<Rules>) {
    if rules.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Reads and forgets until the sender ends.
async fn swallow(from: &mut TcpStream) {
    let mut buffer = vec![0; SWALLOW_BYTES];
    while matches!(from.read(&mut buffer).await, Ok(count) if count > 0) {}
}

/// The other end sees that the connection broke, not that it ended.
fn reset(stream: &TcpStream) {
    // A socket that is gone already is what is wanted.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests;
