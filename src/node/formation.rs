//! How the nodes of `--initial-cluster` become one cluster, once. Decides only: `formation_driver.rs`
//! dials, answers and writes.
//!
//! There is no bootstrap leader. Every node dials every listed address and learns who lives there:
//! name, incarnation, token. Out of the first complete picture it makes **one** list, syncs it, and
//! from then on says that it has *confirmed* the list of this hash. When all that are on the list
//! have confirmed it, the cluster is formed, and the hash is its id.
//!
//! What makes this safe:
//! - **An incarnation confirms at most one list for each token, for ever** ([`Record::confirmed`] only
//!   grows). A list forms only when all its incarnations have confirmed it, so two lists under one
//!   token that share an incarnation never both form.
//! - **Nothing is said before it is synced.** [`Formation::request`] and [`Formation::answer`] speak
//!   of the record that was given to [`Formation::synced`], so a crash at any point leaves a node
//!   that knows at least what it has told.
//! - **A formed list is final.** A formed node answers with it and confirms nothing more. Who finds
//!   its own incarnation in it, and has confirmed it, adopts it: it crashed half-way. Who finds its
//!   name with another incarnation has lost its disk; it stops, and never gets the old id back.
//! - **A listed node is whoever answers at its listed address.** Requests that come in are believed
//!   only about a confirmation made by an incarnation already known, so that a second process under
//!   the same name cannot get into a list.
//!
//! What cannot form says why and waits, or stops where waiting is of no use.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::types::ClusterId;
use crate::types::Incarnation;
use crate::types::KeyRange;
use crate::types::NodeId;
use crate::types::ReplicaId;
use crate::types::ShardId;
use crate::types::node::Member;
use crate::types::shard::Epoch;
use crate::types::shard::Replica;
use crate::types::shard::ShardDescriptor;
use crate::wire::request::FormRequest;
use crate::wire::request::FormResponse;
use crate::wire::request::Founder;

/// One entry of `--initial-cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    /// The node's name.
    pub name: String,
    /// `host:port` of its node port, as the others reach it.
    pub address: String,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

/// A complete list: what is confirmed, and what a cluster is formed of. In the order of the node ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FounderList {
    /// `--initial-cluster-token`.
    pub token: String,
    /// The nodes, shorter names first, then by name.
    pub founders: Vec<Founder>,
}

/// Shorter names first, so that `n2` comes before `n10`.
fn sort_key(name: &str) -> (usize, &str) {
    (name.len(), name)
}

impl FounderList {
    /// Sorts the founders; the same nodes give the same list in whatever order they were named.
    pub fn new(token: String, mut founders: Vec<Founder>) -> FounderList {
        founders.sort_by(|left, right| sort_key(&left.name).cmp(&sort_key(&right.name)));
        FounderList { token, founders }
    }

    /// The hash over everything in it: the id of the cluster that it forms.
    pub fn id(&self) -> ClusterId {
        let mut hash = FieldHash::new("quorate cluster 1");
        hash.field(self.token.as_bytes());
        for founder in &self.founders {
            hash.field(founder.name.as_bytes());
            hash.field(&founder.incarnation.0);
            hash.field(founder.node_address.as_bytes());
            hash.field(founder.client_address.as_bytes());
        }
        hash.finish()
    }

    fn founder(&self, name: &str) -> Option<&Founder> {
        self.founders.iter().find(|founder| founder.name == name)
    }

    /// The founder of that incarnation.
    pub fn of_incarnation(&self, incarnation: Incarnation) -> Option<&Founder> {
        let mut founders = self.founders.iter();
        founders.find(|founder| founder.incarnation == incarnation)
    }

    /// Sorted, and no name, incarnation or address twice: as [`FounderList::new`] makes it of such.
    fn is_well_formed(&self) -> bool {
        let sorted = self
            .founders
            .is_sorted_by(|left, right| sort_key(&left.name) < sort_key(&right.name));
        let unique = self.founders.iter().enumerate().all(|(place, founder)| {
            self.founders[..place].iter().all(|other| {
                other.incarnation != founder.incarnation
                    && other.node_address != founder.node_address
            })
        });
        !self.founders.is_empty() && sorted && unique
    }
}

/// Hash over fields of any length; no two sequences of fields give the same bytes.
struct FieldHash(Sha256);

impl FieldHash {
    fn new(purpose: &str) -> FieldHash {
        let mut hash = FieldHash(Sha256::new());
        hash.field(purpose.as_bytes());
        hash
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> ClusterId {
        let digest = self.0.finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        ClusterId(id)
    }
}

/// Hash of names and addresses, in whatever order they were listed.
pub fn hash_of_listed(listed: &[Listed]) -> ClusterId {
    let mut sorted: Vec<&Listed> = listed.iter().collect();
    sorted.sort_by(|left, right| sort_key(&left.name).cmp(&sort_key(&right.name)));
    let mut hash = FieldHash::new("quorate initial cluster 1");
    for entry in sorted {
        hash.field(entry.name.as_bytes());
        hash.field(entry.address.as_bytes());
    }
    hash.finish()
}

/// What a data directory remembers of forming. It is synced before anything in it is spoken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Record {
    /// Every list confirmed so far, at most one for each token. Only grows.
    pub confirmed: Vec<FounderList>,
    /// The list that formed the cluster. Never changes once it is there.
    pub formed: Option<FounderList>,
    /// The id under which this directory's node joined that cluster later; `None` for its founders.
    pub joined: Option<NodeId>,
}

impl Record {
    fn confirmed_under(&self, token: &str) -> Option<&FounderList> {
        self.confirmed.iter().find(|list| list.token == token)
    }

    fn with_confirmed(&self, list: FounderList) -> Record {
        let mut record = self.clone();
        record.confirmed.push(list);
        record
    }

    fn with_formed(&self, list: FounderList) -> Record {
        let mut record = self.clone();
        record.formed = Some(list);
        record
    }

    /// The same for a node that has joined a formed cluster.
    pub fn with_joined(&self, list: FounderList, node: NodeId) -> Record {
        let mut record = self.with_formed(list);
        record.joined = Some(node);
        record
    }
}

/// A cluster that has been formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formed {
    /// Its id: the hash of the list.
    pub cluster: ClusterId,
    /// The token with which it was formed.
    pub token: String,
    /// Its first nodes, in the order of their ids.
    pub founders: Vec<Founder>,
}

impl From<FounderList> for Formed {
    fn from(list: FounderList) -> Formed {
        Formed {
            cluster: list.id(),
            token: list.token,
            founders: list.founders,
        }
    }
}

impl Formed {
    /// The id of the founder of that incarnation: its place in the list, from 1.
    pub fn node_of(&self, incarnation: Incarnation) -> Option<NodeId> {
        let mut founders = self.founders.iter();
        let place = founders.position(|founder| founder.incarnation == incarnation)?;
        Some(NodeId(place as u64 + 1))
    }

    /// The answer that a formed node gives for ever.
    pub fn response(&self) -> FormResponse {
        FormResponse::Formed {
            token: self.token.clone(),
            cluster: self.cluster,
            founders: self.founders.clone(),
        }
    }
}

/// Why this node stops instead of forming. Nothing was formed by it, and nothing is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The list or the name makes no sense.
    #[error("--initial-cluster: {0}")]
    List(String),
    /// The flags name other nodes than the list confirmed under the same token.
    #[error(
        "under token {token:?} this node has already confirmed the list [{confirmed}] and now --initial-cluster names [{listed}]; \
         restore the flags, or change --initial-cluster-token on all listed nodes"
    )]
    ListChanged {
        /// The token.
        token: String,
        /// Names and addresses confirmed.
        confirmed: String,
        /// Names and addresses given now.
        listed: String,
    },
    /// The name belongs to a founder with another disk.
    #[error(
        "node {name} founded cluster {cluster} with the data directory of incarnation {founding}, but this one is {own}: \
         its disk was wiped or replaced. It cannot come back under its old id without risking acknowledged writes; \
         it can join as a new node with an empty data directory: quorate serve --name {name} --join {join}"
    )]
    Wiped {
        /// This node's name.
        name: String,
        /// The formed cluster.
        cluster: ClusterId,
        /// The incarnation that founded it.
        founding: Incarnation,
        /// This directory's.
        own: Incarnation,
        /// Addresses of the others.
        join: String,
    },
    /// The formed list has this incarnation, but this directory does not know of it.
    #[error(
        "cluster {cluster} was formed with this directory's incarnation {own}, which never confirmed it: \
         the directory is an old copy. Start with an empty one and: quorate serve --name {name} --join {join}"
    )]
    NeverConfirmed {
        /// This node's name.
        name: String,
        /// The formed cluster.
        cluster: ClusterId,
        /// This directory's incarnation.
        own: Incarnation,
        /// Addresses of the others.
        join: String,
    },
    /// A listed address belongs to a cluster that this node is not meant to be in.
    #[error(
        "{listed} is a member of cluster {cluster}, formed with token {token:?} of [{founders}], not with this node ({name}) under token {own_token:?}. \
         To join that cluster: quorate serve --name {name} --join {join}. \
         To form a new one, give each listed node an empty data directory"
    )]
    OtherCluster {
        /// This node's name.
        name: String,
        /// Who answered.
        listed: Listed,
        /// Its cluster.
        cluster: ClusterId,
        /// The token of that cluster.
        token: String,
        /// This node's token.
        own_token: String,
        /// Names and addresses of its founders.
        founders: String,
        /// Addresses of its founders.
        join: String,
    },
    /// A listed node lost its disk after the list with its old incarnation was confirmed here.
    #[error(
        "{listed} was replaced while the cluster formed: incarnation {confirmed} is confirmed here, {now} answers. \
         Change --initial-cluster-token on all listed nodes and start them again; nothing is lost"
    )]
    Replaced {
        /// The node.
        listed: Listed,
        /// The incarnation in the list confirmed here.
        confirmed: Incarnation,
        /// The one that answers now.
        now: Incarnation,
    },
    /// Another listed node confirmed another list under the same token; neither can ever form.
    #[error(
        "{listed} has confirmed list {theirs}, this node {ours}, under one token: neither can form. \
         Change --initial-cluster-token on all listed nodes and start them again; nothing is lost"
    )]
    Disagree {
        /// The other node.
        listed: Listed,
        /// The hash that it has confirmed.
        theirs: ClusterId,
        /// The hash confirmed here.
        ours: ClusterId,
    },
}

/// One reason why the cluster has not formed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// For whom.
    pub listed: Listed,
    /// For what.
    pub reason: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.listed, self.reason)
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Write and sync this, then call [`Formation::synced`] with it.
    Sync(Record),
    /// Go on dialling.
    Wait(Vec<Waiting>),
    /// Done; the record says so and is synced.
    Formed(Formed),
    /// Stop.
    Refused(Refusal),
}

/// What is known of whoever answers at a listed address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Nobody has answered yet.
    Nobody,
    /// Somebody who cannot be counted, for this reason.
    Unusable(String),
    /// The listed node itself.
    Node {
        founder: Founder,
        confirmed: Option<ClusterId>,
        /// It has answered a request that carried our confirmation, and was not formed.
        told: bool,
    },
}

#[derive(Debug)]
struct Peer {
    listed: Listed,
    seen: Seen,
    /// The incarnation in the list confirmed here has confirmed it too.
    confirmed_ours: bool,
}

/// The forming of one cluster as one listed node sees it. After a restart it is made anew from the
/// synced record; all else it learns again.
#[derive(Debug)]
pub struct Formation {
    own: Founder,
    token: String,
    listed_hash: ClusterId,
    record: Record,
    /// The other listed nodes by name.
    peers: BTreeMap<String, Peer>,
    /// A formed list that has this node in it, not yet synced here.
    adopting: Option<FounderList>,
    refusal: Option<Refusal>,
}

impl Formation {
    /// `own` is this node as its flags describe it; `record` what its directory remembers.
    pub fn new(
        own: Founder,
        token: String,
        listed: &[Listed],
        record: Record,
    ) -> Result<Formation, Box<Refusal>> {
        check_listed(listed, &own)?;
        let confirmed = record.confirmed_under(&token);
        if let Some(confirmed) = confirmed {
            check_unchanged(confirmed, listed)?;
        }
        // What was confirmed is what the others know: changed flags do not change it any more.
        let own = confirmed
            .and_then(|list| list.founder(&own.name))
            .cloned()
            .unwrap_or(own);
        let others = listed.iter().filter(|entry| entry.name != own.name);
        let peers = others.map(|entry| (entry.name.clone(), Peer::new(entry.clone())));
        Ok(Formation {
            listed_hash: hash_of_listed(listed),
            peers: peers.collect(),
            own,
            token,
            record,
            adopting: None,
            refusal: None,
        })
    }

    /// Whom to dial, again and again until formed: the node that knows the outcome may be any.
    pub fn targets(&self) -> Vec<Listed> {
        self.peers
            .values()
            .map(|peer| peer.listed.clone())
            .collect()
    }

    /// What this node says of itself: synced facts only.
    pub fn request(&self) -> FormRequest {
        FormRequest {
            token: self.token.clone(),
            list: self.listed_hash,
            from: self.own.clone(),
            confirmed: self.confirmed().map(FounderList::id),
        }
    }

    /// Answers another node. Learns at most that a known incarnation has confirmed our list.
    pub fn answer(&mut self, request: &FormRequest) -> FormResponse {
        if let Some(formed) = &self.record.formed {
            return Formed::from(formed.clone()).response();
        }
        if request.token == self.token && request.list == self.listed_hash {
            self.note_confirmation(&request.from, request.confirmed);
        }
        FormResponse::Forming(self.request())
    }

    /// The answer of whoever lives at the listed address of `name` to the request `asked`.
    pub fn heard(&mut self, name: &str, asked: &FormRequest, response: FormResponse) {
        match response {
            FormResponse::Forming(theirs) => self.heard_forming(name, asked, theirs),
            FormResponse::Formed {
                token,
                cluster,
                founders,
            } => self.heard_formed(name, cluster, FounderList { token, founders }),
        }
    }

    /// What to do now. Asking changes nothing.
    pub fn decide(&self) -> Next {
        if let Some(formed) = &self.record.formed {
            return Next::Formed(formed.clone().into());
        }
        if let Some(list) = &self.adopting {
            return Next::Sync(self.record.with_formed(list.clone()));
        }
        if let Some(refusal) = &self.refusal {
            return Next::Refused(refusal.clone());
        }
        match self.confirmed() {
            None => self.next_unconfirmed(),
            Some(list) => self.next_confirmed(list),
        }
    }

    /// The record that [`Next::Sync`] gave is on disk.
    pub fn synced(&mut self, record: Record) {
        assert!(
            self.record.formed.is_none() && record.confirmed.starts_with(&self.record.confirmed),
            "a record of forming only grows"
        );
        self.record = record;
    }

    fn confirmed(&self) -> Option<&FounderList> {
        self.record.confirmed_under(&self.token)
    }

    fn heard_forming(&mut self, name: &str, asked: &FormRequest, theirs: FormRequest) {
        let unusable = self.why_unusable(name, &theirs);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        if let Some(reason) = unusable {
            peer.seen = Seen::Unusable(reason);
            return;
        }
        peer.seen = Seen::Node {
            founder: theirs.from.clone(),
            confirmed: theirs.confirmed,
            told: asked.confirmed.is_some(),
        };
        self.note_confirmation(&theirs.from, theirs.confirmed);
    }

    /// Why an answer from the address of `name` does not count.
    fn why_unusable(&self, name: &str, theirs: &FormRequest) -> Option<String> {
        if theirs.token != self.token {
            return Some(format!(
                "it was started with token {:?}, this node with {:?}",
                theirs.token, self.token
            ));
        }
        if theirs.list != self.listed_hash {
            return Some(format!(
                "it was started with another --initial-cluster ({}) than this node ({}: {})",
                theirs.list,
                self.listed_hash,
                self.listed_text()
            ));
        }
        if theirs.from.name != name {
            return Some(format!("node {} answers at its address", theirs.from.name));
        }
        let listed = &self.peers.get(name)?.listed;
        (theirs.from.node_address != listed.address)
            .then(|| format!("it calls itself {}", theirs.from.node_address))
    }

    fn listed_text(&self) -> String {
        let own = Listed {
            name: self.own.name.clone(),
            address: self.own.node_address.clone(),
        };
        let mut all = self.targets();
        all.push(own);
        text_of(&all)
    }

    /// A confirmation counts only from the very incarnation that the list names.
    fn note_confirmation(&mut self, from: &Founder, confirmed: Option<ClusterId>) {
        let Some(list) = self.record.confirmed_under(&self.token) else {
            return;
        };
        let ours = confirmed == Some(list.id()) && list.founder(&from.name) == Some(from);
        if let Some(peer) = self.peers.get_mut(&from.name) {
            peer.confirmed_ours |= ours;
        }
    }

    fn heard_formed(&mut self, name: &str, cluster: ClusterId, list: FounderList) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        if list.id() != cluster || !list.is_well_formed() {
            peer.seen = Seen::Unusable("it sent a formed list that does not match its id".into());
            return;
        }
        if self.record.confirmed.contains(&list) {
            self.adopting = Some(list);
            return;
        }
        let listed = peer.listed.clone();
        self.refusal = Some(self.refusal_of(listed, cluster, &list));
    }

    /// Why a cluster that has been formed cannot take this node in.
    fn refusal_of(&self, listed: Listed, cluster: ClusterId, list: &FounderList) -> Refusal {
        let own = self.own.incarnation;
        let name = self.own.name.clone();
        let others = list.founders.iter().filter(|other| other.name != name);
        let addresses: Vec<&str> = others.map(|other| other.node_address.as_str()).collect();
        let join = addresses.join(",");
        if list.of_incarnation(own).is_some() {
            return Refusal::NeverConfirmed {
                name,
                cluster,
                own,
                join,
            };
        }
        match list.founder(&name) {
            Some(founder) if list.token == self.token => Refusal::Wiped {
                name,
                cluster,
                founding: founder.incarnation,
                own,
                join,
            },
            _ => Refusal::OtherCluster {
                name,
                listed,
                cluster,
                token: list.token.clone(),
                own_token: self.token.clone(),
                founders: text_of(&listed_of(list)),
                join,
            },
        }
    }

    fn next_unconfirmed(&self) -> Next {
        let list = match self.complete_list() {
            Ok(list) => list,
            Err(waiting) => return Next::Wait(waiting),
        };
        // Confirming a list that somebody else never will would only use the token up.
        let id = list.id();
        let disagree = self.others_confirmed(id);
        if disagree.is_empty() {
            return Next::Sync(self.record.with_confirmed(list));
        }
        let waiting = disagree.into_iter().map(|(listed, theirs)| Waiting {
            listed,
            reason: format!(
                "it has confirmed list {theirs}, made of other incarnations than answer now ({id}); \
                 if it stays so, change --initial-cluster-token on all listed nodes"
            ),
        });
        Next::Wait(waiting.collect())
    }

    /// The list of all who answer now, or who is missing.
    fn complete_list(&self) -> Result<FounderList, Vec<Waiting>> {
        let mut founders = vec![self.own.clone()];
        let mut waiting = Vec::new();
        for peer in self.peers.values() {
            match peer.usable() {
                Ok((founder, ..)) => match twin(&founders, founder) {
                    None => founders.push(founder.clone()),
                    Some(twin) => waiting.push(peer.wait(format!(
                        "its incarnation is the same as {twin}'s: one data directory is a copy of the other; empty it"
                    ))),
                },
                Err(reason) => waiting.push(peer.wait(reason)),
            }
        }
        if waiting.is_empty() {
            Ok(FounderList::new(self.token.clone(), founders))
        } else {
            Err(waiting)
        }
    }

    /// Who has confirmed something else than `id`.
    fn others_confirmed(&self, id: ClusterId) -> Vec<(Listed, ClusterId)> {
        let peers = self.peers.values();
        let theirs = peers.filter_map(|peer| match &peer.seen {
            Seen::Node {
                confirmed: Some(theirs),
                ..
            } if *theirs != id => Some((peer.listed.clone(), *theirs)),
            Seen::Nobody | Seen::Unusable(_) | Seen::Node { .. } => None,
        });
        theirs.collect()
    }

    fn next_confirmed(&self, list: &FounderList) -> Next {
        let waiting: Vec<Waiting> = self
            .peers
            .values()
            .filter_map(|peer| peer.why_not_confirmed(list))
            .collect();
        if waiting.is_empty() {
            return Next::Sync(self.record.with_formed(list.clone()));
        }
        match self.hopeless(list) {
            // Stopping must wait until nobody is left who may know that the cluster has formed.
            Some(refusal) if self.peers.values().all(Peer::was_told) => Next::Refused(refusal),
            _ => Next::Wait(waiting),
        }
    }

    /// Why the list confirmed here can form no more, as far as one can see from here.
    fn hopeless(&self, list: &FounderList) -> Option<Refusal> {
        self.peers.values().find_map(|peer| {
            let (founder, confirmed, _) = peer.usable().ok()?;
            let known = list.founder(&founder.name)?;
            if known.incarnation != founder.incarnation {
                return Some(Refusal::Replaced {
                    listed: peer.listed.clone(),
                    confirmed: known.incarnation,
                    now: founder.incarnation,
                });
            }
            let theirs = confirmed.filter(|theirs| *theirs != list.id())?;
            Some(Refusal::Disagree {
                listed: peer.listed.clone(),
                theirs,
                ours: list.id(),
            })
        })
    }
}

impl Peer {
    fn new(listed: Listed) -> Peer {
        Peer {
            listed,
            seen: Seen::Nobody,
            confirmed_ours: false,
        }
    }

    fn wait(&self, reason: String) -> Waiting {
        Waiting {
            listed: self.listed.clone(),
            reason,
        }
    }

    /// The listed node as it last answered, or why it does not count.
    fn usable(&self) -> Result<(&Founder, Option<ClusterId>, bool), String> {
        match &self.seen {
            Seen::Nobody => Err("it has not answered yet".into()),
            Seen::Unusable(reason) => Err(reason.clone()),
            Seen::Node {
                founder,
                confirmed,
                told,
            } => Ok((founder, *confirmed, *told)),
        }
    }

    fn was_told(&self) -> bool {
        matches!(self.seen, Seen::Node { told: true, .. })
    }

    fn why_not_confirmed(&self, list: &FounderList) -> Option<Waiting> {
        let founder = match self.usable() {
            Ok((founder, ..)) => founder,
            Err(reason) => return Some(self.wait(reason)),
        };
        if list.founder(&founder.name) != Some(founder) {
            return Some(self.wait(format!(
                "it answers with incarnation {}, which is not the one confirmed here",
                founder.incarnation
            )));
        }
        (!self.confirmed_ours)
            .then(|| self.wait(format!("it has not confirmed list {} yet", list.id())))
    }
}

fn twin<'a>(founders: &'a [Founder], founder: &Founder) -> Option<&'a str> {
    let mut founders = founders.iter();
    let twin = founders.find(|other| other.incarnation == founder.incarnation)?;
    Some(&twin.name)
}

fn listed_of(list: &FounderList) -> Vec<Listed> {
    let entries = list.founders.iter().map(|founder| Listed {
        name: founder.name.clone(),
        address: founder.node_address.clone(),
    });
    entries.collect()
}

fn text_of(listed: &[Listed]) -> String {
    let mut sorted: Vec<&Listed> = listed.iter().collect();
    sorted.sort_by(|left, right| sort_key(&left.name).cmp(&sort_key(&right.name)));
    let entries: Vec<String> = sorted.iter().map(ToString::to_string).collect();
    entries.join(",")
}

/// Nodes that a cluster is formed of at most; more join later.
pub const FOUNDERS_MAX: usize = 32;

fn check_listed(listed: &[Listed], own: &Founder) -> Result<(), Box<Refusal>> {
    let refuse = |reason: String| Err(Box::new(Refusal::List(reason)));
    if listed.len() > FOUNDERS_MAX {
        let count = listed.len();
        return refuse(format!(
            "{count} nodes; a cluster is formed of at most {FOUNDERS_MAX}"
        ));
    }
    for (place, entry) in listed.iter().enumerate() {
        if let Some(other) = listed[..place]
            .iter()
            .find(|other| other.name == entry.name || other.address == entry.address)
        {
            return refuse(format!("{entry} repeats a name or address of {other}"));
        }
    }
    match listed.iter().find(|entry| entry.name == own.name) {
        None => refuse(format!(
            "this node's name {} is not in it ({})",
            own.name,
            text_of(listed)
        )),
        Some(entry) if entry.address != own.node_address => refuse(format!(
            "it says {entry}, but this node advertises {}",
            own.node_address
        )),
        Some(_) => Ok(()),
    }
}

fn check_unchanged(confirmed: &FounderList, listed: &[Listed]) -> Result<(), Box<Refusal>> {
    let before = listed_of(confirmed);
    if hash_of_listed(&before) == hash_of_listed(listed) {
        return Ok(());
    }
    Err(Box::new(Refusal::ListChanged {
        token: confirmed.token.clone(),
        confirmed: text_of(&before),
        listed: text_of(listed),
    }))
}

/// What a cluster consists of at its first moment. The same on every node that knows the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialLayout {
    /// Every founder; ids from 1 in the order of the list.
    pub members: Vec<Member>,
    /// The placement group.
    pub placement: Vec<Replica>,
    /// The one shard, over all keys.
    pub shard: ShardDescriptor,
    /// The first number that placement's counter may give out.
    pub next_id: u64,
}

/// Replicas of a shard unless rules say otherwise.
const SHARD_REPLICAS: usize = 3;

/// Replicas of the placement group: five outlive two losses, and an even number adds nothing.
fn placement_replicas(nodes: usize) -> usize {
    if nodes >= 5 { 5 } else { nodes.min(3) }
}

/// Where everything is when the cluster begins. One counter gives all replica ids, placement's first.
pub fn layout(formed: &Formed) -> InitialLayout {
    let members: Vec<Member> = formed
        .founders
        .iter()
        .zip(1..)
        .map(|(founder, id)| Member {
            id: NodeId(id),
            incarnation: founder.incarnation,
            name: founder.name.clone(),
            node_address: founder.node_address.clone(),
            client_address: founder.client_address.clone(),
        })
        .collect();
    let mut replicas = (1..).map(ReplicaId);
    let mut first = |count: usize| -> Vec<Replica> {
        let nodes = members.iter().take(count).map(|member| member.id);
        let placed = nodes.zip(&mut replicas);
        placed.map(|(node, id)| Replica { id, node }).collect()
    };
    let placement = first(placement_replicas(members.len()));
    let shard_replicas = first(SHARD_REPLICAS.min(members.len()));
    let ids_used = members.len().max(placement.len() + shard_replicas.len()) as u64;
    InitialLayout {
        placement,
        shard: ShardDescriptor {
            id: ShardId(1),
            range: KeyRange::ALL,
            epoch: Epoch::default(),
            replicas: shard_replicas,
        },
        // One counter for all kinds of ids, above everything given out so far.
        next_id: ids_used + 1,
        members,
    }
}
