//! Who leads what, seen from outside by asking every node again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;

use crate::testkit::chaos::outcome::Led;
use crate::testkit::mix::Target;
use crate::types::GroupId;
use crate::types::ShardId;
use crate::wire::request::Call;
use crate::wire::request::NodeStatus;
use crate::wire::request::Request;
use crate::wire::request::Response;
use crate::wire::request::StatusQuery;

/// How often the nodes are asked.
const INTERVAL: Duration = Duration::from_millis(150);
/// How long one may take: a node that stands still must not hide the others.
const PATIENCE: Duration = Duration::from_millis(300);

/// What was seen so far. Clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The newest term heard of and its leader, by shard.
    leads: BTreeMap<ShardId, (u64, Option<usize>)>,
    /// Who led last, by shard: nobody for a while is not another one.
    last: BTreeMap<ShardId, usize>,
    changes: usize,
    log: Vec<Led>,
}

impl Seen {
    /// The node that leads most shards; the first of several.
    pub fn leader(&self) -> Option<usize> {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, leader) in self.with(|inner| inner.leads.clone()).into_values() {
            if let Some(node) = leader {
                *counts.entry(node).or_default() += 1;
            }
        }
        let most = counts.values().copied().max()?;
        let mut nodes = counts.into_iter();
        nodes
            .find(|(_, count)| *count == most)
            .map(|(node, _)| node)
    }

    /// How often a leader was another one than before, and how many shards there are.
    pub fn counts(&self) -> (usize, usize) {
        self.with(|inner| (inner.changes, inner.leads.len()))
    }

    /// Everything that was seen, in order.
    pub fn log(&self) -> Vec<Led> {
        self.with(|inner| inner.log.clone())
    }

    fn with<T>(&self, action: impl FnOnce(&mut Inner) -> T) -> T {
        // What is inside is consistent after each statement.
        action(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what the nodes said at one moment; `None`: one said nothing.
    fn take(&self, target: &Target, statuses: &[Option<NodeStatus>]) {
        let at = target.moment();
        let mut told: BTreeMap<ShardId, (u64, Option<usize>)> = BTreeMap::new();
        for (node, status) in statuses.iter().enumerate() {
            for group in status.iter().flat_map(|status| &status.groups) {
                let GroupId::Shard(shard) = group.group else {
                    continue;
                };
                // Who says so of itself counts: what the others hold may be late.
                let leader = (group.role == "leader").then_some(node);
                let known = told.entry(shard).or_insert((group.term, leader));
                if group.term > known.0 {
                    *known = (group.term, leader);
                } else if group.term == known.0 {
                    known.1 = known.1.or(leader);
                }
            }
        }
        self.with(|inner| {
            for (shard, (term, leader)) in told {
                let known = inner.leads.get(&shard).copied();
                if known.is_some_and(|(newest, _)| newest > term) {
                    continue;
                }
                inner.leads.insert(shard, (term, leader));
                if let Some(node) = leader {
                    let before = inner.last.insert(shard, node);
                    inner.changes += usize::from(before.is_some_and(|before| before != node));
                }
                if known.map(|(_, leader)| leader) != Some(leader) {
                    inner.log.push(Led {
                        at,
                        shard: shard.to_string(),
                        node: leader,
                    });
                }
            }
        });
    }
}

/// Asks until it is dropped.
pub async fn watch(target: Target, seen: Seen) {
    loop {
        let statuses = statuses(&target, false, PATIENCE).await;
        seen.take(&target, &statuses);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What each node says of itself, asked once; `None` where it says nothing in time.
pub async fn statuses(
    target: &Target,
    state_hash: bool,
    patience: Duration,
) -> Vec<Option<NodeStatus>> {
    let asked = target.addresses.iter().map(|address| async move {
        let call = Call {
            request: Request::Status(StatusQuery { state_hash }),
            deadline: patience,
            forwarded: false,
            cluster: None,
        };
        let answer = target.channel.address(address).call(call);
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(Response::Status(status))) => Some(*status),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        }
    });
    join_all(asked).await
}
