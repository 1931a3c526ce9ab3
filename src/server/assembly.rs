//! Puts a node together: its stores, what runs beside them, and the handler that answers for them all. A
//! process does it behind its doors ([`crate::server::start`]); a simulation does it without any.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::env::files::Files;
use crate::env::tasks::TaskSet;
use crate::env::tasks::offload;
use crate::node::boot::Boot;
use crate::node::boot::BootError;
use crate::node::boot::Stores;
use crate::node::changes::Changer;
use crate::node::driver;
use crate::node::driver::Driver;
use crate::node::formation::Formed;
use crate::node::keyspaces::Keyspaces;
use crate::node::members::Members;
use crate::node::members::Nodes;
use crate::node::merges::Merges;
use crate::node::orphans::Orphans;
use crate::node::placement::PlacementClient;
use crate::node::pulse::Pulse;
use crate::node::reporter::Reported;
use crate::node::reporter::Reporter;
use crate::node::router::Router;
use crate::node::selfcheck;
use crate::node::selfcheck::SelfCheck;
use crate::node::stepper::Stepper;
use crate::node::stepper::Worker;
use crate::server::handler::Handler;
use crate::server::host::Host;
use crate::server::space::Space;
use crate::server::space_driver;
use crate::types::node::Identity;
use crate::types::node::Member;
use crate::types::node::Role;
use crate::types::node::Room;
use crate::types::rule::Labels;

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
    /// By which placement knows it.
    pub labels: Labels,
    /// What it is for.
    pub role: Role,
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
            labels,
            role,
        } = self;
        let clock = boot.clock.clone();
        let channel = Arc::clone(&boot.channel);
        let of_placement = boot.layout.placement.iter();
        let of_placement = of_placement.map(|replica| replica.node).collect();
        let (files, directory) = (Arc::clone(&boot.files), boot.directory.clone());
        let keyspaces = open_keyspaces(Arc::clone(&files), directory.clone()).await?;
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
        let known = Arc::clone(&members);
        let nodes: Nodes =
            Arc::new(move || known.list().into_iter().map(|member| member.id).collect());
        let driver = Driver::new(clock);
        let placement = PlacementClient::new(
            identity,
            of_placement,
            Arc::clone(registry),
            Arc::clone(&channel),
            (driver.clone(), Arc::clone(&nodes)),
        );
        let driven = placement.clone();
        tasks.spawn("placement's driver", |stop| {
            driver::drive(driver, driven, stop)
        });
        let router = Arc::new(Router::new(
            identity,
            Arc::clone(registry),
            Arc::clone(&members),
            Arc::clone(&channel),
        ));
        let (changes, changer) = Changer::new(
            Arc::clone(registry),
            placement.clone(),
            Arc::clone(&channel),
        );
        tasks.spawn("changes of replicas", |stop| changer.run(stop));
        let merges = Merges::new(
            identity.node,
            Arc::clone(registry),
            (stores.engine(), stores.checkpoints.as_flush()),
            changes.clone(),
            (Arc::clone(&channel), Arc::clone(&nodes)),
        );
        let settled = merges.clone();
        tasks.spawn("what is left of merges", |stop| settled.run(stop));
        let (steps, stepper) = Stepper::new(Worker {
            me: identity.node,
            registry: Arc::clone(registry),
            placement: placement.clone(),
            changes: changes.clone(),
            merges: merges.clone(),
            router: Arc::clone(&router),
        });
        tasks.spawn("steps of placement", |stop| stepper.run(stop));
        let (disk, wal) = (Arc::clone(&space), stores.wal());
        let reported = Reported {
            own: member.clone(),
            labels,
            role,
            disk: Box::new(move || disk.disk()),
            pace: Arc::clone(&stores.pace),
            syncs: Box::new(move || wal.syncs()),
        };
        let pulse = Pulse::new(identity.node, Arc::clone(registry), Arc::clone(&channel));
        let reporter = Reporter::new(
            (reported, pulse),
            Arc::clone(registry),
            placement.clone(),
            (Arc::clone(&members), Arc::clone(&keyspaces)),
            Arc::clone(&router),
            steps,
        );
        tasks.spawn("reporter", |stop| reporter.run(stop));
        let (hints, orphans) = Orphans::new(
            identity.node,
            (Arc::clone(registry), stores.engine()),
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
            keyspaces,
            registry: Arc::clone(registry),
            keeper: stores.keeper.clone(),
            changes,
            merges,
            hints,
            checks,
            channel,
            started: Instant::now(),
            space,
        });
        Ok(stores)
    }
}

/// Opens the memory of the keyspaces.
async fn open_keyspaces(
    files: Arc<dyn Files>,
    directory: PathBuf,
) -> Result<Arc<Keyspaces>, BootError> {
    let opened = offload(move || Keyspaces::open(files, &directory)).await;
    opened.map(Arc::new).map_err(|error| BootError::Files {
        what: "remember the keyspaces".to_owned(),
        error,
    })
}
