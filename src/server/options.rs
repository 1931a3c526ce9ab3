//! What a node can be told: every option with its unit, its default and its limits. Decides only.
//!
//! One name in three places: `--data-dir`, `QUORATE_DATA_DIR` and `data_dir` in the file.

use core::net::IpAddr;
use core::net::SocketAddr;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;

use crate::node::formation::Listed;
use crate::types::node::Role;
use crate::types::rule::Label;
use crate::types::rule::Labels;

/// Everything a node can be told. `Default` is what a node alone on its machine runs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The node's name, as in `initial_cluster`: letters, digits, `.`, `_` and `-`, at most 63.
    /// Default `n1`. Belongs to the data directory from the first start on.
    pub name: String,
    /// Where the node keeps its data. Default `quorate-data`.
    pub data_dir: PathBuf,
    /// The nodes that form the cluster, this one among them, `name=host:port,..` with node ports; the
    /// same on each. Default empty: this node alone. Ignored once the directory has a cluster.
    pub initial_cluster: InitialCluster,
    /// Tells clusters apart that are formed of the same list; the same on each listed node.
    /// Default `quorate`.
    pub initial_cluster_token: String,
    /// Node addresses of an existing cluster to join, `host:port,..`. Default empty.
    pub join: Addresses,
    /// What is known of the node: `zone=a,disk=ssd`. Rules go by it, and replicas are spread over zones. May
    /// change with each start. Default empty.
    pub labels: LabelList,
    /// What the node is for: `both`, `data` (shards alone) or `placement` (placement's group alone). May change
    /// with each start; replicas then move. Default `both`.
    #[serde(with = "as_role")]
    pub role: Role,
    /// Where clients are served. Default `127.0.0.1:7400`.
    pub listen_client: SocketAddr,
    /// Where the other nodes are served. Default `127.0.0.1:7401`.
    pub listen_node: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` are served. Default `127.0.0.1:7402`.
    pub listen_http: SocketAddr,
    /// `host:port` where clients reach this node. Default: `listen_client`.
    pub advertise_client: Option<String>,
    /// `host:port` where nodes reach this one. Default: its entry in `initial_cluster`, else `listen_node`.
    pub advertise_node: Option<String>,
    /// Allows other addresses than loopback, though nothing is encrypted and nobody is asked who they
    /// are. Default false.
    pub insecure: bool,
    /// How long a stopping node lets requests end. Default 10 s.
    #[serde(with = "human_duration")]
    pub drain_timeout: Duration,
    /// The engine's page cache. It takes about 2.6 times as much memory. Default 64 MiB.
    pub cache_bytes: Bytes,
    /// With less free disk than this, puts are refused. Half of it is really taken, and counts as free: where
    /// others fill the disk up, deletes go on. Default 256 MiB.
    pub free_space_reserve_bytes: Bytes,
    /// How often a leader says that it is there. Default 100 ms.
    #[serde(with = "human_duration")]
    pub heartbeat_interval: Duration,
    /// A follower that hears nothing waits at least this long; at least three heartbeats. Default 300 ms.
    #[serde(with = "human_duration")]
    pub election_timeout_min: Duration,
    /// And at most this long. Default 450 ms.
    #[serde(with = "human_duration")]
    pub election_timeout_max: Duration,
    /// How long the engine may go without a checkpoint. Default 5 s.
    #[serde(with = "human_duration")]
    pub checkpoint_interval: Duration,
    /// How often the replicas of a shard compare what they have applied. Default 10 s.
    #[serde(with = "human_duration")]
    pub self_check_interval: Duration,
    /// Stored state that a node reads in a second at most to compare replicas; 0 compares none. Default 4 MiB.
    pub scrub_bytes_per_second: Bytes,
    /// From the beginning of one comparison of all stored state to that of the next, at least. Default 1 h.
    #[serde(with = "human_duration")]
    pub scrub_interval: Duration,
    /// Size of one log segment. Default 32 MiB.
    pub log_segment_bytes: Bytes,
    /// Segments kept ready, filled with zeros. Default 2.
    pub log_spare_segments: u32,
    /// Recent log entries kept in memory, for all groups together. Default 64 MiB.
    pub log_cache_bytes: Bytes,
    /// Entries of each group that stay in the log behind a checkpoint, for followers that lag. Default 10,000.
    pub log_entries_kept: u64,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or per module as in
    /// `info,quorate::raft=debug`. Default `info,openraft=error`: Raft warns at each attempt to reach a
    /// node that is down.
    pub log: String,
    /// `text`, `json`, or `auto`: text on a terminal, else JSON. Default `auto`.
    pub log_format: LogFormat,
}

impl Default for Options {
    fn default() -> Options {
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Options {
            name: "n1".into(),
            data_dir: "quorate-data".into(),
            initial_cluster: InitialCluster::default(),
            initial_cluster_token: "quorate".into(),
            join: Addresses::default(),
            labels: LabelList::default(),
            role: Role::Both,
            listen_client: loopback(7400),
            listen_node: loopback(7401),
            listen_http: loopback(7402),
            advertise_client: None,
            advertise_node: None,
            insecure: false,
            drain_timeout: Duration::from_secs(10),
            cache_bytes: Bytes::mebi(64),
            free_space_reserve_bytes: Bytes::mebi(256),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(450),
            checkpoint_interval: Duration::from_secs(5),
            self_check_interval: Duration::from_secs(10),
            scrub_bytes_per_second: Bytes::mebi(4),
            scrub_interval: Duration::from_secs(3_600),
            log_segment_bytes: Bytes::mebi(32),
            log_spare_segments: 2,
            log_cache_bytes: Bytes::mebi(64),
            log_entries_kept: 10_000,
            log: "info,openraft=error".into(),
            log_format: LogFormat::Auto,
        }
    }
}

/// An option that makes no sense, alone or beside another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {reason}")]
pub struct OptionError {
    /// Its name in the file; the flag has dashes for underscores.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What is wrong, and the way out.
    pub reason: String,
}

fn refuse<T>(
    key: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
) -> Result<T, OptionError> {
    Err(OptionError {
        key,
        value: value.to_string(),
        reason: reason.into(),
    })
}

impl Options {
    /// Whether the options make sense together.
    pub fn validate(&self) -> Result<(), OptionError> {
        check_name("name", &self.name)?;
        for listed in &self.initial_cluster.0 {
            check_name("initial_cluster", &listed.name)?;
        }
        self.check_membership()?;
        self.check_addresses()?;
        self.check_times()?;
        self.check_sizes()
    }

    /// `host:port` where clients reach this node.
    pub fn client_address(&self) -> String {
        let given = self.advertise_client.clone();
        given.unwrap_or_else(|| self.listen_client.to_string())
    }

    /// `host:port` where other nodes reach this one.
    pub fn node_address(&self) -> String {
        let listed = self.initial_cluster.address_of(&self.name);
        let given = self.advertise_node.as_deref().or(listed);
        given.map_or_else(|| self.listen_node.to_string(), str::to_owned)
    }

    fn check_membership(&self) -> Result<(), OptionError> {
        let token = &self.initial_cluster_token;
        if token.is_empty() || token.len() > 255 {
            return refuse(
                "initial_cluster_token",
                token,
                "must have 1 to 255 characters",
            );
        }
        let listed = &self.initial_cluster;
        if listed.0.is_empty() {
            return Ok(());
        }
        if !self.join.0.is_empty() {
            return refuse(
                "join",
                &self.join,
                "cannot be given with initial_cluster: a node either forms a cluster or joins one",
            );
        }
        let Some(address) = listed.address_of(&self.name) else {
            return refuse(
                "initial_cluster",
                listed,
                format!(
                    "does not name this node ({}); add it, or set name to one of these",
                    self.name
                ),
            );
        };
        match &self.advertise_node {
            Some(own) if own != address => refuse(
                "advertise_node",
                own,
                format!("initial_cluster says {}={address}", self.name),
            ),
            Some(_) | None => Ok(()),
        }
    }

    fn check_addresses(&self) -> Result<(), OptionError> {
        let listens = [
            ("listen_client", self.listen_client),
            ("listen_node", self.listen_node),
            ("listen_http", self.listen_http),
        ];
        for (place, (key, address)) in listens.into_iter().enumerate() {
            if !is_loopback(address.ip()) && !self.insecure {
                return refuse(
                    key,
                    address,
                    "another address than loopback needs --insecure until TLS exists: anybody who reaches the port can read and write everything",
                );
            }
            let mut others = listens[..place].iter();
            let same = |(_, other): &&(_, SocketAddr)| address.port() != 0 && *other == address;
            if let Some((other, _)) = others.find(same) {
                return refuse(key, address, format!("{other} has the same address"));
            }
        }
        let advertised = [
            (
                "advertise_client",
                "listen_client",
                &self.advertise_client,
                self.client_address(),
            ),
            (
                "advertise_node",
                "listen_node",
                &self.advertise_node,
                self.node_address(),
            ),
        ];
        for (key, listen, given, address) in advertised {
            if let Err(reason) = check_address(&address) {
                return refuse(key, address, reason);
            }
            let unspecified = SocketAddr::from_str(&address);
            if given.is_none() && unspecified.is_ok_and(|address| address.ip().is_unspecified()) {
                return refuse(
                    listen,
                    address,
                    format!("others cannot dial that; set {key} to the host:port that they reach"),
                );
            }
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), OptionError> {
        let millisecond = Duration::from_millis(1);
        let positive = [
            ("heartbeat_interval", self.heartbeat_interval),
            ("checkpoint_interval", self.checkpoint_interval),
            ("self_check_interval", self.self_check_interval),
            ("scrub_interval", self.scrub_interval),
        ];
        for (key, value) in positive {
            if value < millisecond {
                return refuse(key, human(value), "must be at least 1ms");
            }
        }
        let minimum = self.heartbeat_interval * 3;
        if self.election_timeout_min < minimum {
            return refuse(
                "election_timeout_min",
                human(self.election_timeout_min),
                format!(
                    "must be at least three heartbeats ({}), or a late one deposes a healthy leader",
                    human(minimum)
                ),
            );
        }
        if self.election_timeout_max <= self.election_timeout_min {
            return refuse(
                "election_timeout_max",
                human(self.election_timeout_max),
                format!(
                    "must be above election_timeout_min ({}), or candidates split votes",
                    human(self.election_timeout_min)
                ),
            );
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), OptionError> {
        let minimums = [
            ("cache_bytes", self.cache_bytes, Bytes::mebi(1)),
            // The largest entry is a request of 4 MiB with its header.
            ("log_segment_bytes", self.log_segment_bytes, Bytes::mebi(8)),
            ("log_cache_bytes", self.log_cache_bytes, Bytes::mebi(1)),
        ];
        for (key, value, minimum) in minimums {
            if value < minimum {
                return refuse(key, value, format!("must be at least {minimum}"));
            }
        }
        if self.log_segment_bytes > Bytes::mebi(1024) {
            return refuse(
                "log_segment_bytes",
                self.log_segment_bytes,
                "must be at most 1GiB",
            );
        }
        Ok(())
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn check_name(key: &'static str, name: &str) -> Result<(), OptionError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return refuse(
            key,
            name,
            "a node's name has 1 to 63 letters, digits, dots, underscores or dashes",
        );
    }
    Ok(())
}

/// `host:port` as others dial it: a host, a port above 0 unless the system chooses it.
fn check_address(address: &str) -> Result<(), String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(format!("{address:?} is not host:port"));
    };
    if host.is_empty() || host.contains(['/', '=', ',', ' ']) {
        return Err(format!("{address:?} has no host that can be dialled"));
    }
    match port.parse::<u16>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{port:?} is no port")),
    }
}

/// The list of `initial_cluster`: `n1=host:7401,n2=host:7401`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InitialCluster(pub Vec<Listed>);

impl InitialCluster {
    /// The address listed for a name.
    pub fn address_of(&self, name: &str) -> Option<&str> {
        let mut entries = self.0.iter();
        let entry = entries.find(|entry| entry.name == name)?;
        Some(&entry.address)
    }
}

impl FromStr for InitialCluster {
    type Err = String;

    fn from_str(text: &str) -> Result<InitialCluster, String> {
        let entries = non_empty_parts(text).map(|part| {
            let (name, address) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not name=host:port"))?;
            check_address(address)?;
            Ok(Listed {
                name: name.to_owned(),
                address: address.to_owned(),
            })
        });
        let listed: Vec<Listed> = entries.collect::<Result<_, String>>()?;
        for (place, entry) in listed.iter().enumerate() {
            let twin = listed[..place]
                .iter()
                .find(|other| other.name == entry.name || other.address == entry.address);
            if let Some(other) = twin {
                return Err(format!("{entry} repeats a name or address of {other}"));
            }
        }
        Ok(InitialCluster(listed))
    }
}

impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&entries.join(","))
    }
}

/// Several `host:port`, with commas between.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses(pub Vec<String>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Addresses, String> {
        let addresses = non_empty_parts(text).map(|part| {
            check_address(part)?;
            Ok(part.to_owned())
        });
        Ok(Addresses(addresses.collect::<Result<_, String>>()?))
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// What is known of a node: `zone=a,disk=ssd`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelList(pub Labels);

impl FromStr for LabelList {
    type Err = String;

    fn from_str(text: &str) -> Result<LabelList, String> {
        let mut labels = Labels::new();
        for part in non_empty_parts(text) {
            let label: Label = part.parse()?;
            if labels.insert(label.name.clone(), label.value).is_some() {
                return Err(format!("{} is given twice", label.name));
            }
        }
        Ok(LabelList(labels))
    }
}

impl fmt::Display for LabelList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        f.write_str(&labels.collect::<Vec<_>>().join(","))
    }
}

fn non_empty_parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// A number of bytes, written `96MiB`, `1GiB`, `512KiB` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("B", 1),
];

impl Bytes {
    /// Mebibytes.
    pub const fn mebi(count: u64) -> Bytes {
        Bytes(count << 20)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let unit = UNITS
            .iter()
            .find_map(|(name, size)| Some((text.strip_suffix(name)?, *size)));
        let (number, size) = unit.unwrap_or((text, 1));
        let count: Option<u64> = number.trim().parse().ok();
        let bytes = count.and_then(|count| count.checked_mul(size));
        bytes
            .map(Bytes)
            .ok_or_else(|| format!("{text:?} is no size such as 64MiB, 1GiB or a number of bytes"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = UNITS.iter().rev();
        let fitting =
            units.find(|(_, size)| *size > 1 && self.0 > 0 && self.0.is_multiple_of(*size));
        match fitting {
            Some((name, size)) => write!(f, "{}{name}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "auto" => Ok(LogFormat::Auto),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("{other:?} is none of auto, text, json")),
        }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

as_text!(InitialCluster);
as_text!(Addresses);
as_text!(LabelList);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

fn human(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// As people write it; where it is stored it is a number.
mod as_role {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;
    use serde::de::Error as _;

    use crate::types::node::Role;

    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(role)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Role, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

mod human_duration {
    //! Durations as people write them: `300ms`, `5s`, `10min`.

    use super::*;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&human(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!(
                "{text:?} is no duration such as 300ms, 5s or 10min: {error}"
            ))
        })
    }
}
