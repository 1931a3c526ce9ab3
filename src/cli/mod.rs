//! The command line: what there is to type, and who does it.
//!
//! Results go to standard output, everything said to a person goes to standard error, and the exit code
//! tells a script: 0 done, 1 error, 2 cannot reach, 3 bad input, 4 not found.

pub mod failure;
pub mod text;
pub mod render;
pub mod records;
pub mod world;
pub mod progress;
pub mod context;
pub mod waiting;
pub mod keys;
pub mod import;
pub mod export;
pub mod cluster;
pub mod duty;
pub mod node;
pub mod replicas;
pub mod target;
pub mod explain;
pub mod orders;
pub mod moves;
pub mod merges;
pub mod shard;
pub mod operator;
pub mod placement;
pub mod rule_file;
pub mod rule;
pub mod keyspace;
pub mod load;
pub mod bench;
pub mod verify;
pub mod chaos;
pub mod serve;
pub mod dev;

use std::time::Duration;

use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;

use crate::cli::context::Context;
use crate::cli::failure::EXIT_BAD_INPUT;
use crate::cli::failure::Failure;
use crate::cli::text::Format;
use crate::cli::world::World;
use crate::server::options;
use crate::server::options::Addresses;
use crate::server::options::InitialCluster;
use crate::testkit::decoders::Decoder;
use crate::types::ClusterId;
use crate::types::keyspace::KeyspaceName;
use crate::types::rule::Label;

const EXIT_CODES: &str = "\
Exit codes:
  0 done, 1 error, 2 cannot reach, 3 bad input, 4 not found";

/// Everything that can be typed.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What holds for every verb.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Nodes to ask, as HOST:PORT[,HOST:PORT...]; any node answers for any key
    #[arg(
        long,
        env = "QUORATE_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        value_parser = parse_endpoint,
        global = true
    )]
    pub endpoints: Vec<String>,
    /// How results are written
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "table",
        global = true
    )]
    pub format: Format,
    /// Time for each request with all its attempts, such as 500ms or 10s [default: 10s; import: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, global = true)]
    pub timeout: Option<Duration>,
    /// The cluster that is meant, as `status` prints it; a node of another one refuses
    #[arg(long, value_name = "ID", value_parser = parse_cluster, global = true)]
    pub cluster: Option<ClusterId>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the value of a key
    Get(keys::GetArgs),
    /// Store a value
    Put(keys::PutArgs),
    /// Remove a key or a range of keys
    Delete(keys::DeleteArgs),
    /// Store a value if the key is as expected
    Cas(keys::CasArgs),
    /// List keys in order
    Scan(keys::ScanArgs),
    /// Store the records of a JSON Lines file
    Import(import::ImportArgs),
    /// Write all records, or a range of them, as JSON Lines
    Export(export::ExportArgs),
    /// Show nodes, groups and leaders
    Status(cluster::StatusArgs),
    /// List the nodes of the cluster, and say what is wanted of them
    #[command(
        subcommand,
        after_help = "Example:\n  quorate node list\n  quorate node decommission n4"
    )]
    Node(node::NodeVerb),
    /// List, split, merge and explain shards, and move their leaders and replicas
    Shard(Box<shard::ShardArgs>),
    /// Show what placement is doing with shards, and give it up
    #[command(subcommand, after_help = "Example:\n  quorate operator list")]
    Operator(operator::OperatorVerb),
    /// Show what placement sees and by which thresholds it acts, and have it pause
    #[command(subcommand, after_help = "Example:\n  quorate placement status")]
    Placement(placement::PlacementVerb),
    /// Say where the shards with a prefix shall be, and how many replicas of them
    #[command(
        subcommand,
        after_help = "Example:\n  quorate rule set user/ --replicas 5 --require region=eu"
    )]
    Rule(rule::RuleVerb),
    /// Name prefixes, and spread the keys behind one over shards by their hash
    #[command(
        subcommand,
        after_help = "Example:\n  quorate keyspace create orders --hash\n  quorate put --keyspace orders 1001 shipped"
    )]
    Keyspace(keyspace::KeyspaceVerb),
    /// Ask the node on this machine whether it is ready: for container health checks
    Health(cluster::HealthArgs),
    /// Measure throughput and latency
    Bench(bench::BenchArgs),
    /// Check the data directory of a stopped node
    Verify(verify::VerifyArgs),
    /// Break a throw-away cluster in many ways, and see that it keeps its promises
    Chaos(Box<chaos::ChaosArgs>),
    /// Run a node
    Serve(Box<serve::Args>),
    /// Run a whole cluster on this machine
    Dev(dev::Args),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  quorate completions bash > ~/.local/share/bash-completion/completions/quorate"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Does what was typed.
pub async fn run(cli: Cli, world: World) -> Result<(), Failure> {
    let context = Context::new(cli.global, world);
    let result = match cli.verb {
        Verb::Get(args) => keys::get(args, &context).await,
        Verb::Put(args) => keys::put(args, &context).await,
        Verb::Delete(args) => keys::delete(args, &context).await,
        Verb::Cas(args) => keys::cas(args, &context).await,
        Verb::Scan(args) => keys::scan(args, &context).await,
        Verb::Import(args) => import::run(args, &context).await,
        Verb::Export(args) => export::run(args, &context).await,
        Verb::Status(args) => cluster::status(args, &context).await,
        Verb::Node(verb) => node::run(verb, &context).await,
        Verb::Shard(args) => shard::run(*args, &context).await,
        Verb::Operator(verb) => operator::run(verb, &context).await,
        Verb::Placement(verb) => placement::run(verb, &context).await,
        Verb::Rule(verb) => rule::run(verb, &context).await,
        Verb::Keyspace(verb) => keyspace::run(verb, &context).await,
        Verb::Health(args) => cluster::health(args, &context).await,
        Verb::Bench(args) => bench::run(args, &context).await,
        Verb::Verify(args) => verify::run(args, &context),
        Verb::Chaos(args) => chaos::run(*args, &context).await,
        Verb::Serve(args) => serve::run(*args).await,
        Verb::Dev(args) => dev::run(args).await,
        Verb::Completions { shell } => completions(shell, &context),
    };
    // What was printed before a failure still belongs to the reader.
    let flushed = context.world.flush();
    let failure = match result.and(flushed) {
        Ok(()) => return Ok(()),
        Err(failure) => failure,
    };
    context.tell_failure(&failure);
    Err(failure)
}

/// The exit code of what could not be understood, or was a question about how to type.
pub fn usage_exit_code(error: &clap::Error) -> u8 {
    if error.use_stderr() {
        EXIT_BAD_INPUT
    } else {
        0
    }
}

fn completions(shell: clap_complete::Shell, context: &Context) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
    context.world.print(script)
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    let port = text
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(_))) if !host.is_empty() => Ok(text.to_string()),
        _ => Err("it must be HOST:PORT".to_string()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        return Err("it must be longer than nothing".to_string());
    }
    Ok(time)
}

fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    text::decode_id(text).map(ClusterId)
}

/// What people and files tell the command line, beside what [`crate::testkit::decoders`] lists.
pub const DECODERS: &[Decoder] = &[
    Decoder {
        name: "import line",
        read: read_line,
    },
    Decoder {
        name: "argument",
        read: read_argument,
    },
    Decoder {
        name: "rule file",
        read: read_rule_file,
    },
];

fn read_line(bytes: &[u8]) -> bool {
    let Ok(record) = records::parse(bytes) else {
        return false;
    };
    let again = records::format(&record.key, &record.value);
    assert_eq!(records::parse(again.as_bytes()), Ok(record));
    true
}

fn read_rule_file(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes);
    let decode = |prefix: &str| text::Encoding::Text.decode(prefix);
    text.is_ok_and(|text| rule_file::parse(text, decode).is_ok())
}

fn read_argument(bytes: &[u8]) -> bool {
    let Ok(word) = std::str::from_utf8(bytes) else {
        return false;
    };
    let understood = [
        text::decode_hex(word).is_ok(),
        text::decode_id(word).is_ok(),
        text::decode_request_id(word).is_ok(),
        text::decode_group(word).is_ok(),
        text::decode_shard(word).is_ok(),
        text::decode_node(word).is_ok(),
        text::Encoding::Base64.decode(word).is_ok(),
        parse_endpoint(word).is_ok(),
        parse_time(word).is_ok(),
        parse_cluster(word).is_ok(),
        word.parse::<InitialCluster>().is_ok(),
        word.parse::<Label>().is_ok(),
        word.parse::<KeyspaceName>().is_ok(),
        rule_file::parse_replicas(word).is_ok(),
        word.parse::<Addresses>().is_ok(),
        word.parse::<options::Bytes>().is_ok(),
    ];
    understood.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_that_talks_to_a_cluster_has_an_example() {
        for verb in Cli::command().get_subcommands() {
            if ["serve", "dev", "help"].contains(&verb.get_name()) {
                continue;
            }
            let help = verb.get_after_help().map(ToString::to_string);
            let name = verb.get_name();
            let example = help.is_some_and(|help| help.contains(&format!("quorate {name}")));
            assert!(example, "{name}");
            for inner in verb.get_subcommands() {
                let help = inner.get_after_help().map(ToString::to_string);
                let words = format!("quorate {name} {}", inner.get_name());
                assert!(help.is_some_and(|help| help.contains(&words)), "{words}");
            }
        }
    }

    #[test]
    fn endpoints_are_host_and_port() {
        assert!(parse_endpoint("127.0.0.1:7400").is_ok() && parse_endpoint("[::1]:7400").is_ok());
        for wrong in ["", "localhost", ":7400", "a:port", "a:70000"] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
