//! Joins a cluster that exists: asks its nodes to take this one in, and writes down what they answer.
//!
//! The id belongs to the incarnation, which was synced before the first packet: whoever asks again
//! after a lost answer or a crash gets the same one, and a wiped disk gets a new one. The node has
//! joined when its identity file says so; nothing before that has to survive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep;
use tracing::info;
use tracing::warn;

use crate::env::tasks::offload;
use crate::error::Error;
use crate::node::formation::FounderList;
use crate::node::formation_driver::Setup;
use crate::node::identity::DataDirectory;
use crate::node::identity::IdentityError;
use crate::types::NodeId;
use crate::types::node::Member;
use crate::types::node::Newcomer;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::JoinRequest;
use crate::wire::request::JoinResponse;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// How long the cluster is asked before the node gives up: its nodes may be starting too.
const JOIN_MAX: Duration = Duration::from_secs(60);
/// How long one node may take; it may have to wait for an election of placement's group.
const ATTEMPT_MAX: Duration = Duration::from_secs(6);
/// After every address was asked in vain.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Why a node is in no cluster. Nothing that it wrote is in the way of another attempt.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster could not be asked.
    #[error(
        "--join {addresses}: no node there took this one in within {} s, the last said: {last}. Check that these are node \
         addresses (port 7401 by default) and that most of the cluster's first nodes run; then start this node again",
        after.as_secs()
    )]
    NobodyAnswers {
        /// The addresses.
        addresses: String,
        /// How long they were asked.
        after: Duration,
        /// What the last one said.
        last: Error,
    },
    /// The cluster does not take it.
    #[error("the node at {address} does not take this one in: {reason}")]
    Refused {
        /// Who was asked.
        address: String,
        /// Why.
        reason: String,
    },
    /// The directory may be in a cluster already.
    #[error(
        "--join: this data directory has agreed to form a cluster with --initial-cluster, which may exist by now. \
         Start it with those flags again, or give this node an empty data directory"
    )]
    Forming,
    /// The data directory failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Makes the node of a directory without a cluster a member of the one that `setup.join` names. Gives
/// the directory back, and every member that the cluster knows. Dropping it half-way is like a crash:
/// the next start asks again and gets the same id.
pub async fn join(
    setup: &Setup,
    directory: DataDirectory,
    channel: &Arc<dyn Channel>,
) -> Result<(DataDirectory, Vec<Member>), JoinError> {
    if !directory.record().confirmed.is_empty() {
        return Err(JoinError::Forming);
    }
    let request = JoinRequest {
        token: setup.token.clone(),
        newcomer: Newcomer {
            incarnation: directory.incarnation(),
            name: setup.name.clone(),
            node_address: setup.node_address.clone(),
            client_address: setup.client_address.clone(),
        },
    };
    let (address, joined) = ask(&setup.join, &request, channel).await?;
    let list = check(&joined, &setup.token).map_err(|reason| JoinError::Refused {
        address: address.clone(),
        reason,
    })?;
    info!(cluster = %joined.cluster, node = %joined.node, by = address, "joined");
    let directory = write(directory, list, joined.node).await?;
    Ok((directory, joined.members))
}

/// Asks one address after the other until one says yes or no.
async fn ask(
    addresses: &[String],
    request: &JoinRequest,
    channel: &Arc<dyn Channel>,
) -> Result<(String, JoinResponse), JoinError> {
    let until = Instant::now() + JOIN_MAX;
    loop {
        let mut last = Error::unavailable("the cluster", "no address was given");
        for address in addresses {
            let call = Call {
                request: Request::Join(request.clone()),
                deadline: ATTEMPT_MAX,
                forwarded: false,
                cluster: None,
            };
            last = match channel.address(address).call(call).await {
                Ok(Response::Join(joined)) => return Ok((address.clone(), joined)),
                Err(Error::Invalid { reason, .. }) => {
                    let address = address.clone();
                    return Err(JoinError::Refused { address, reason });
                }
                Ok(other) => Error::Internal(format!("it answered {other:?}")),
                Err(error) => error,
            };
            warn!(address, error = %last, "the node there cannot take this one in now");
        }
        if Instant::now() >= until {
            return Err(JoinError::NobodyAnswers {
                addresses: addresses.join(","),
                after: JOIN_MAX,
                last,
            });
        }
        sleep(ROUND_PAUSE).await;
    }
}

/// The list of the cluster's founders, if the answer is of one piece.
fn check(joined: &JoinResponse, token: &str) -> Result<FounderList, String> {
    let list = FounderList::new(token.to_owned(), joined.founders.clone());
    if list.id() != joined.cluster {
        return Err(format!(
            "its founders hash to cluster {}, not to {}",
            list.id(),
            joined.cluster
        ));
    }
    if joined.node.0 <= joined.founders.len() as u64 {
        return Err(format!("it gave the id {} of a founder", joined.node));
    }
    Ok(list)
}

async fn write(
    mut directory: DataDirectory,
    list: FounderList,
    node: NodeId,
) -> Result<DataDirectory, IdentityError> {
    offload(move || {
        let record = directory.record().with_joined(list, node);
        directory.save(record)?;
        Ok(directory)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::path::Path;
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use futures::stream::BoxStream;

    use super::*;
    use crate::env::files::DiskFiles;
    use crate::error::Result;
    use crate::types::Incarnation;
    use crate::types::log::Vote;
    use crate::wire::channel::GrpcChannel;
    use crate::wire::request::AppendRequest;
    use crate::wire::request::AppendResponse;
    use crate::wire::request::Founder;
    use crate::wire::request::Route;
    use crate::wire::request::Service;
    use crate::wire::request::SnapshotHeader;

    /// Answers one request after the other, wherever they are sent, with what was put in; then like
    /// nodes that cannot be reached. Notes what was asked.
    #[derive(Clone, Default)]
    struct Cluster {
        answers: Arc<Mutex<VecDeque<Result<Response>>>>,
        asked: Arc<Mutex<Vec<Request>>>,
    }

    impl Channel for Cluster {
        fn node(&self, id: NodeId) -> Arc<dyn Service> {
            GrpcChannel::of_client().node(id)
        }

        fn address(&self, _: &str) -> Arc<dyn Service> {
            Arc::new(self.clone())
        }

        fn learn(&self, _: Member) {}
    }

    impl Service for Cluster {
        fn call(&self, call: Call) -> BoxFuture<'static, Result<Response>> {
            self.asked.lock().unwrap().push(call.request);
            let answer = self.answers.lock().unwrap().pop_front();
            let gone = || Err(Error::unavailable("a", "no connection"));
            futures::future::ready(answer.unwrap_or_else(gone)).boxed()
        }

        fn append(
            &self,
            _: Route,
            _: BoxStream<'static, AppendRequest>,
        ) -> BoxStream<'static, Result<AppendResponse>> {
            panic!("a node that joins sends no entries")
        }

        fn snapshot(
            &self,
            _: SnapshotHeader,
            _: BoxStream<'static, Result<Bytes>>,
        ) -> BoxFuture<'static, Result<Vote>> {
            panic!("a node that joins sends no snapshot")
        }
    }

    fn directory(path: &Path) -> DataDirectory {
        DataDirectory::open(Arc::new(DiskFiles), path, "n4", Incarnation([4; 16])).unwrap()
    }

    fn founder() -> Founder {
        Founder {
            name: "n1".into(),
            incarnation: Incarnation([1; 16]),
            node_address: "n1:7401".into(),
            client_address: "n1:7400".into(),
        }
    }

    fn joined(node: u64) -> JoinResponse {
        JoinResponse {
            node: NodeId(node),
            cluster: FounderList::new("t".into(), vec![founder()]).id(),
            founders: vec![founder()],
            members: Vec::new(),
        }
    }

    async fn joins(
        directory: DataDirectory,
        answers: Vec<Result<Response>>,
    ) -> (Result<DataDirectory, JoinError>, Vec<Request>) {
        let cluster = Cluster::default();
        cluster.answers.lock().unwrap().extend(answers);
        let setup = Setup {
            name: "n4".into(),
            initial_cluster: Vec::new(),
            token: "t".into(),
            join: vec!["a:7401".into(), "b:7401".into()],
            node_address: "n4:7401".into(),
            client_address: "n4:7400".into(),
        };
        let channel: Arc<dyn Channel> = Arc::new(cluster.clone());
        let ended = join(&setup, directory, &channel).await;
        let asked = std::mem::take(&mut *cluster.asked.lock().unwrap());
        (ended.map(|(directory, _)| directory), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_asks_until_it_is_taken_in_and_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let starting = || Err(Error::unavailable("the node", "it is starting"));
        let answers = vec![
            starting(),
            starting(),
            starting(),
            Ok(Response::Join(joined(9))),
        ];
        let (ended, asked) = joins(directory(dir.path()), answers).await;
        let directory = ended.unwrap();
        assert_eq!(directory.node(), Some(NodeId(9)));
        assert_eq!(directory.formed().unwrap().cluster, joined(9).cluster);
        assert_eq!(asked.len(), 4);
        for request in asked {
            let Request::Join(request) = request else {
                panic!("asked {request:?}");
            };
            assert_eq!(request.newcomer.incarnation, Incarnation([4; 16]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_no_is_final_and_says_who_said_it() {
        let dir = tempfile::tempdir().unwrap();
        let no = Err(Error::invalid("token", "another one"));
        let (ended, asked) = joins(directory(dir.path()), vec![no]).await;
        let error = ended.unwrap_err().to_string();
        assert!(
            error.contains("a:7401") && error.contains("another one"),
            "{error}"
        );
        assert_eq!(asked.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_of_one_piece_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let forged = JoinResponse {
            cluster: crate::types::ClusterId([7; 16]),
            ..joined(9)
        };
        for answer in [forged, joined(1), joined(0)] {
            let answers = vec![Ok(Response::Join(answer))];
            let (ended, _) = joins(opened_again(dir.path()).await, answers).await;
            assert!(matches!(ended, Err(JoinError::Refused { .. })));
        }
        assert_eq!(opened_again(dir.path()).await.node(), None);
    }

    /// A lock let go of here may be held a moment longer by a child that another test is starting.
    async fn opened_again(path: &Path) -> DataDirectory {
        loop {
            let opened = DataDirectory::open(Arc::new(DiskFiles), path, "n4", Incarnation([4; 16]));
            match opened {
                Err(IdentityError::InUse { .. }) => tokio::task::yield_now().await,
                other => return other.unwrap(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_answers_is_said_after_a_minute_with_the_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let (ended, asked) = joins(directory(dir.path()), Vec::new()).await;
        let error = ended.unwrap_err().to_string();
        assert!(
            error.contains("a:7401,b:7401") && error.contains("no connection"),
            "{error}"
        );
        assert!(began.elapsed() >= JOIN_MAX && asked.len() > 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_may_have_founded_a_cluster_joins_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory = directory(dir.path());
        let own = Founder {
            incarnation: Incarnation([4; 16]),
            ..founder()
        };
        let mut record = directory.record().clone();
        record
            .confirmed
            .push(FounderList::new("t".into(), vec![own]));
        directory.save(record).unwrap();
        let (ended, asked) = joins(directory, vec![Ok(Response::Join(joined(9)))]).await;
        assert!(matches!(ended, Err(JoinError::Forming)));
        assert!(asked.is_empty());
    }
}
