//! What a plan costs: 1,000 shards on three nodes, in order and out of order.
//!
//! `cargo bench --bench plan`

use std::time::Duration;

use quorate::placement::NodeView;
use quorate::placement::Policy;
use quorate::placement::ShardView;
use quorate::placement::View;
use quorate::placement::plan;
use quorate::types::Key;
use quorate::types::KeyRange;
use quorate::types::NodeId;
use quorate::types::ReplicaId;
use quorate::types::ShardId;
use quorate::types::Timestamp;
use quorate::types::shard::Epoch;
use quorate::types::shard::Replica;
use quorate::types::shard::ShardDescriptor;
use tokio::time::Instant;

const ROUNDS: u32 = 200;

fn main() {
    let policy = Policy::default();
    let even = view(1_000, 3);
    let mut one_joins = even.clone();
    one_joins.nodes.insert(NodeId(4), node(4));
    let mut one_dies = one_joins.clone();
    if let Some(node) = one_dies.nodes.get_mut(&NodeId(2)) {
        node.silent_for = Duration::from_secs(400);
    }
    for (name, view) in [
        ("in order", even),
        ("a node joins", one_joins),
        ("a node dies", one_dies),
        ("10,000 shards on 20 nodes", view(10_000, 20)),
    ] {
        let began = Instant::now();
        let mut planned = 0;
        for _ in 0..ROUNDS {
            planned = plan(&view, &policy, Timestamp::ZERO).len();
        }
        let each = began.elapsed() / ROUNDS;
        println!("{name:<26} {each:>10.1?} for a plan of {planned} operators");
    }
}

fn node(id: u64) -> NodeView {
    NodeView {
        id: NodeId(id),
        capacity_bytes: 1 << 40,
        ..NodeView::default()
    }
}

fn view(shards: u64, nodes: u64) -> View {
    let mut view = View::default();
    view.nodes
        .extend((1..=nodes).map(|id| (NodeId(id), node(id))));
    for id in 1..=shards {
        let replicas = (0..3).map(|place| Replica {
            id: ReplicaId(id * 10 + place),
            node: NodeId((id + place) % nodes + 1),
        });
        let mut shard = ShardView::new(ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: key(id),
                end: Some(key(id + 1)),
            },
            epoch: Epoch::default(),
            replicas: replicas.collect(),
        });
        shard.leader = Some(ReplicaId(id * 10));
        shard.led_for = Duration::from_secs(3_600);
        shard.lags = shard.voters().map(|voter| (voter.id, 0)).collect();
        shard.bytes = 30 << 20;
        shard.keys = 1_000;
        shard.load.operations = id % 7;
        shard.steady = shard.load;
        view.shards.insert(ShardId(id), shard);
    }
    view
}

fn key(id: u64) -> Key {
    Key::from(format!("{id:06}"))
}
