//! The nodes of the cluster as this one knows them, and with them the addresses that its channel dials.
//!
//! They are remembered beside the log, so that a node that starts while placement is down reaches
//! those that joined later too.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::RwLock;

use tracing::info;

use crate::env::files::Files;
use crate::node::remembered;
use crate::node::remembered::Remembered;
use crate::types::NodeId;
use crate::types::node::Member;
use crate::wire::request::Channel;

const FILE: &str = "members";

/// The nodes of the cluster, as far as they are known here.
pub type Nodes = Arc<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// Every node known here.
pub struct Members {
    /// This node: nobody knows it better.
    own: NodeId,
    known: RwLock<BTreeMap<NodeId, Member>>,
    channel: Arc<dyn Channel>,
    remembered: Remembered,
}

impl Members {
    /// This node as it is now, those that `directory` remembers, and the ones given, who are what the
    /// cluster began with: what is remembered of them is newer. Tells the channel. Blocks on the disk.
    pub fn open(
        files: Arc<dyn Files>,
        directory: &Path,
        channel: Arc<dyn Channel>,
        own: Member,
        given: Vec<Member>,
    ) -> io::Result<Members> {
        let remembered = Remembered::new(files, directory, FILE);
        let earlier = remembered.read()?;
        channel.learn(own.clone());
        let members = Members {
            own: own.id,
            known: RwLock::new(BTreeMap::from([(own.id, own)])),
            channel,
            remembered,
        };
        members.take(given);
        members.take(earlier);
        Ok(members)
    }

    /// Learns members or what has changed about them. What is new is in the file when this returns; an
    /// error says that it is not, and does no harm until the next start. Cancel-safe: what was learned
    /// is known, and may not be in the file.
    pub async fn learn(&self, members: Vec<Member>) -> io::Result<()> {
        if !self.take(members) {
            return Ok(());
        }
        self.remembered.write(|| self.list()).await
    }

    /// All of them, by id.
    pub fn list(&self) -> Vec<Member> {
        let known = self.known.read().expect("nothing panics under this lock");
        known.values().cloned().collect()
    }

    /// Whether anything was new.
    fn take(&self, members: Vec<Member>) -> bool {
        let mut known = self.known.write().expect("nothing panics under this lock");
        let mut changed = false;
        for member in members {
            if member.id == self.own || known.get(&member.id) == Some(&member) {
                continue;
            }
            info!(node = %member.id, name = member.name, address = member.node_address, "member");
            self.channel.learn(member.clone());
            known.insert(member.id, member);
            changed = true;
        }
        changed
    }
}

/// How many members a directory remembers; `None` when it remembers none. The error says what is wrong with
/// the file, which does no harm: placement tells them again.
pub fn inspect(files: &dyn Files, directory: &Path) -> Result<Option<usize>, String> {
    remembered::inspect::<Member>(files, directory, FILE)
}

/// Whether these bytes are a file of members; what is read is written as it was. For the tests that try every
/// decoder.
pub(crate) fn is_members(bytes: &[u8]) -> bool {
    remembered::is_list::<Member>(FILE, bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::env::files::DiskFiles;
    use crate::types::Incarnation;
    use crate::wire::channel::GrpcChannel;
    use crate::wire::request::Service;

    /// Notes who was learned.
    #[derive(Default)]
    struct Learned(Mutex<Vec<String>>);

    impl Channel for Learned {
        fn node(&self, id: NodeId) -> Arc<dyn Service> {
            GrpcChannel::of_client().node(id)
        }

        fn address(&self, address: &str) -> Arc<dyn Service> {
            GrpcChannel::of_client().address(address)
        }

        fn learn(&self, member: Member) {
            self.0.lock().unwrap().push(member.node_address);
        }
    }

    fn member(id: u64, address: &str) -> Member {
        Member {
            id: NodeId(id),
            incarnation: Incarnation([id as u8; 16]),
            name: format!("n{id}"),
            node_address: address.into(),
            client_address: String::new(),
        }
    }

    fn open(directory: &Path, given: Vec<Member>) -> (Members, Arc<Learned>) {
        let learned = Arc::new(Learned::default());
        let files = Arc::new(DiskFiles);
        let own = member(9, "own:1");
        let members = Members::open(files, directory, learned.clone(), own, given).unwrap();
        assert_eq!(learned.0.lock().unwrap().remove(0), "own:1");
        (members, learned)
    }

    #[tokio::test]
    async fn what_was_learned_is_known_after_a_restart_and_newer_than_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let founder = member(1, "old:1");
        let (members, learned) = open(dir.path(), vec![founder.clone()]);
        let news = vec![member(1, "new:1"), member(4, "four:1")];
        let hearsay = vec![member(9, "elsewhere:1")];
        members.learn(hearsay).await.unwrap();
        members.learn(news.clone()).await.unwrap();
        assert_eq!(*learned.0.lock().unwrap(), ["old:1", "new:1", "four:1"]);
        members.learn(news.clone()).await.unwrap();
        assert_eq!(learned.0.lock().unwrap().len(), 3, "nothing new");
        let (again, _) = open(dir.path(), vec![founder]);
        assert_eq!(again.list(), [&news[..], &[member(9, "own:1")]].concat());
    }

    #[test]
    fn an_example_of_format_one_is_read() {
        let bytes = [&[1, 1, 4][..], &[4; 16], b"\x02n4\x06four:1\x00"].concat();
        let checksum = crc32c::crc32c(&bytes).to_be_bytes();
        let bytes = [&bytes[..], &checksum].concat();
        assert_eq!(
            remembered::decode(FILE, &bytes),
            Ok(vec![member(4, "four:1")])
        );
    }
}
