//! Looks at the room on the disk, and holds back what there is no room for: see `server/space.rs`.

use std::collections::BTreeMap;
use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::env::files::Files;
use crate::env::tasks::TaskResult;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::error::Error;
use crate::error::Result;
use crate::node::boot::Stores;
use crate::node::members::Members;
use crate::node::registry::Registry;
use crate::raft::Leadership;
use crate::server::space::Space;
use crate::server::space::in_turn;
use crate::telemetry::metrics;
use crate::types::GroupId;
use crate::types::NodeId;
use crate::types::log::LogEntry;
use crate::types::log::Payload;
use crate::types::node::Room;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Channel;
use crate::wire::request::Route;

/// How often the disk is looked at. What is written between two looks must fit in a quarter of the reserve.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Who was asked to lead in place of this node has so long to do it.
const LEAD_INTERVAL: Duration = Duration::from_secs(1);

/// Looks ten times a second at the room on this node's disk and the others', sets room aside, and gives the
/// lead to somebody else where there is too little.
pub(super) fn watch(
    stores: &Stores,
    (files, path): (Arc<dyn Files>, PathBuf),
    space: Arc<Space>,
    (members, channel): (&Arc<Members>, &Arc<dyn Channel>),
    here: NodeId,
    tasks: &mut TaskSet,
) {
    let engine = stores.engine();
    let registry = Arc::clone(&stores.registry);
    let (members, channel) = (Arc::clone(members), Arc::clone(channel));
    tasks.spawn("space", move |stop: CancellationToken| async move {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asked, mut next) = (BTreeMap::new(), Instant::now());
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let (looked, engine, wanted) = (path.clone(), engine.clone(), space.to_set_aside());
            let files = Arc::clone(&files);
            let look = move || {
                let set_aside = engine.set_aside(wanted);
                let free = files.free_bytes(&looked)?;
                std::io::Result::Ok((free, set_aside, files.capacity_bytes(&looked)?))
            };
            let (free, set_aside, capacity) = offload(look).await?;
            space.found(free, set_aside);
            space.found_capacity(capacity);
            metrics::free_space(space.free_bytes());
            let others = members.list().into_iter().map(|member| member.id);
            let others: Vec<_> = others.filter(|node| *node != here).collect();
            let lacks =
                |node: &NodeId| channel.room(*node).is_some_and(|room| room != Room::Enough);
            space.found_others(others.iter().any(lacks));
            match space.room() {
                Room::Enough => asked.clear(),
                Room::Short | Room::Full if Instant::now() < next => {}
                Room::Short | Room::Full => {
                    next = Instant::now() + LEAD_INTERVAL;
                    lead_elsewhere(&registry, &channel, here, &mut asked).await;
                }
            }
        }
        TaskResult::Ok(())
    });
}

/// Asks a replica with enough room to lead each shard that this node leads. Where none has, it leads on.
/// `asked`: whom it asked last for each group, and whom it asks last now if that one does not take the lead.
async fn lead_elsewhere(
    registry: &Registry,
    channel: &Arc<dyn Channel>,
    here: NodeId,
    asked: &mut BTreeMap<GroupId, NodeId>,
) {
    for group in registry.groups() {
        let leads = matches!(*group.leadership().borrow(), Leadership::Leading { .. });
        if !leads || group.id() == GroupId::Placement {
            continue;
        }
        let mut roomy: Vec<NodeId> = group.membership().nodes.into_values().collect();
        roomy.retain(|node| *node != here && channel.room(*node) == Some(Room::Enough));
        // One that is no voter cannot be asked at all, so the next one is; one that is not up to date, or
        // holds back, does not say so, and is seen not to have taken the lead at the next look.
        for node in in_turn(roomy, asked.get(&group.id()).copied()) {
            if group.transfer_leader(Some(node)).await.is_ok() {
                info!(group = %group.id(), to = %node, "no room here, another is asked to lead");
                asked.insert(group.id(), node);
                break;
            }
        }
    }
}

/// Refuses what a node with less room does not take.
pub(super) fn check_room(space: &Space, needed: Room) -> Result<()> {
    match space.room() >= needed {
        true => Ok(()),
        false => Err(Error::NoSpace {
            free_bytes: space.free_bytes(),
        }),
    }
}

/// Has a shard's replica take commands until the disk is full, and then ends the stream with an error: the
/// leader tries again later. What placement's group writes is little, and is always taken.
pub(super) fn while_there_is_room(
    space: Arc<Space>,
    route: Route,
    requests: BoxStream<'static, AppendRequest>,
    take: impl FnOnce(BoxStream<'static, AppendRequest>) -> BoxStream<'static, Result<AppendResponse>>,
) -> BoxStream<'static, Result<AppendResponse>> {
    if route.group == GroupId::Placement {
        return take(requests);
    }
    let refused = Arc::new(OnceLock::new());
    let refusal = Arc::clone(&refused);
    let requests = requests.take_while(move |request| {
        // What a new leader and a change of replicas need is little: without it nobody could read any more.
        let is_command = |entry: &LogEntry| matches!(entry.payload, Payload::Command(_));
        let room = match request.entries.iter().any(is_command) {
            true => check_room(&space, Room::Short),
            false => Ok(()),
        };
        ready(room.map_err(|error| refusal.set(error)).is_ok())
    });
    let end = stream::iter([()]).filter_map(move |()| ready(refused.get().cloned().map(Err)));
    take(requests.boxed()).chain(end).boxed()
}
