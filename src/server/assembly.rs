//! Puts a node together: its stores, what runs beside them, and the handler that answers for them all. A
//! process does it behind its doors ([`crate::server::start`]); a simulation does it without any.

use std::sync::Arc;

use tokio::time::Instant;

use crate::env::tasks::TaskSet;
use crate::node::boot::Boot;
use crate::node::boot::BootError;
use crate::node::boot::Stores;
use crate::node::changes::Changer;
use crate::node::formation::Formed;
use crate::node::members::Members;
use crate::node::orphans::Nodes;
use crate::node::orphans::Orphans;
use crate::node::placement::PlacementClient;
use crate::node::reporter::Reporter;
use crate::node::router::Router;
use crate::node::selfcheck;
use crate::node::selfcheck::SelfCheck;
use crate::server::handler::Handler;
use crate::server::host::Host;
use crate::server::space::Space;
use crate::server::space_driver;
use crate::types::node::Identity;
use crate::types::node::Member;
use crate::types::node::Room;

/// What a node is made of.
pub struct Assembly {
    /// Who it is.
    pub identity: Identity,
    /// How others know it.
    pub member: Member,
    /// The cluster as it was formed.
    pub formed: Formed,
    /// Every node of the cluster.
    pub members: Arc<Members>,
    /// Its stores, not open yet.
    pub boot: Boot,
    /// What is known of the room on its disk.
    pub space: Space,
    /// How its replicas are compared with others.
    pub selfcheck: selfcheck::Options,
}

impl Assembly {
    /// Opens the stores, starts what runs beside them, and lets the handler answer. On an error nothing runs
    /// but what is in `tasks`.
    pub async fn open(self, handler: &Handler, tasks: &mut TaskSet) -> Result<Stores, BootError> {
        let Assembly {
            identity,
            member,
            formed,
            members,
            boot,
            space,
            selfcheck,
        } = self;
        let channel = Arc::clone(&boot.channel);
        let of_placement = boot.layout.placement.iter();
        let of_placement = of_placement.map(|replica| replica.node).collect();
        let (files, directory) = (Arc::clone(&boot.files), boot.directory.clone());
        let space = Arc::new(space);
        let stores = boot.open(tasks).await?;
        space_driver::watch(
            &stores,
            (files, directory),
            Arc::clone(&space),
            (&members, &channel),
            identity.node,
            tasks,
        );
        let registry = &stores.registry;
        let placement = PlacementClient::new(
            identity,
            of_placement,
            Arc::clone(registry),
            Arc::clone(&channel),
        );
        let router = Arc::new(Router::new(
            identity,
            Arc::clone(registry),
            Arc::clone(&members),
            Arc::clone(&channel),
        ));
        let reporter = Reporter::new(
            member.clone(),
            Arc::clone(registry),
            placement.clone(),
            Arc::clone(&members),
            Arc::clone(&router),
        );
        tasks.spawn("reporter", |stop| reporter.run(stop));
        let (changes, changer) = Changer::new(
            Arc::clone(registry),
            placement.clone(),
            Arc::clone(&channel),
        );
        tasks.spawn("changes of replicas", |stop| changer.run(stop));
        let known = Arc::clone(&members);
        let nodes: Nodes =
            Arc::new(move || known.list().into_iter().map(|member| member.id).collect());
        let (hints, orphans) = Orphans::new(
            identity.node,
            Arc::clone(registry),
            stores.keeper.clone(),
            Arc::clone(&channel),
            Arc::clone(&nodes),
        );
        tasks.spawn("orphans", |stop| orphans.run(stop));
        let room = Arc::clone(&space);
        let selfcheck = SelfCheck {
            me: identity.node,
            options: selfcheck,
            registry: Arc::clone(registry),
            checks: stores.checks(),
            channel: Arc::clone(&channel),
            nodes,
            has_room: Arc::new(move || room.room() == Room::Enough),
        };
        let checks = selfcheck.checks.clone();
        let (compared, scrubbed) = (selfcheck.clone(), selfcheck.clone());
        tasks.spawn("comparison of replicas", |stop| compared.compare(stop));
        tasks.spawn("comparison of stored state", |stop| scrubbed.scrub(stop));
        tasks.spawn("rebuilding", |stop| selfcheck.rebuild(stop));
        handler.open(Host {
            identity,
            member,
            formed,
            members,
            router,
            placement,
            registry: Arc::clone(registry),
            keeper: stores.keeper.clone(),
            changes,
            hints,
            checks,
            channel,
            started: Instant::now(),
            space,
        });
        Ok(stores)
    }
}
