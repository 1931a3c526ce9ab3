//! The verbs about keyspaces: create, list, delete.

use clap::Args;
use clap::Subcommand;
use serde_json::Map;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::keys::EncodingArgs;
use crate::cli::render;
use crate::cli::text;
use crate::types::keyspace::Buckets;
use crate::types::keyspace::Definition;
use crate::types::keyspace::Keyspace;
use crate::types::keyspace::KeyspaceName;
use crate::types::keyspace::Layout;
use crate::types::overview::Arrangement;

/// `quorate keyspace`.
#[derive(Debug, Subcommand)]
pub enum KeyspaceVerb {
    /// Make a keyspace
    Create(CreateArgs),
    /// List the keyspaces
    List(ListArgs),
    /// Delete a keyspace that has no keys
    Delete(DeleteArgs),
}

/// Runs a verb about keyspaces.
pub async fn run(verb: KeyspaceVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        KeyspaceVerb::Create(args) => create(args, context).await,
        KeyspaceVerb::List(args) => list(args, context).await,
        KeyspaceVerb::Delete(args) => delete(args, context).await,
    }
}

/// `quorate keyspace create`.
#[derive(Debug, Args)]
#[command(after_help = "\
A keyspace is a prefix with a name: its keys are stored behind the prefix. With --hash each key is put into one
of so many buckets, by its hash, so that keys that follow one another are written to different shards. Then a
scan gives the keys bucket by bucket, and not in order; everything else is as without. A keyspace never
changes: choose more buckets than the cluster will ever have shards for it.

Example:
  quorate keyspace create users
  quorate keyspace create orders --hash
  quorate keyspace create events --hash --buckets 1024 --parts 32 --prefix e/")]
pub struct CreateArgs {
    /// Its name: 1 to 64 of a-z, 0-9, dot, underscore and dash
    name: KeyspaceName,
    /// What stored keys begin with [default: the name and a slash]
    #[arg(long, value_name = "KEY")]
    prefix: Option<String>,
    /// Spread keys over buckets by their hash
    #[arg(long)]
    hash: bool,
    /// How many buckets: a power of two, 2 to 65536 [default: 256]
    #[arg(long, value_name = "N", requires = "hash")]
    buckets: Option<u32>,
    /// Into how many ranges of buckets it is split from the start, 1 to 256 [default: 8]
    #[arg(long, value_name = "N", requires = "hash")]
    parts: Option<u32>,
    #[command(flatten)]
    encoding: EncodingArgs,
}

impl CreateArgs {
    fn keyspace(self) -> Result<Keyspace, Failure> {
        let prefix = self.prefix.as_ref();
        let prefix = prefix.map(|prefix| self.encoding.decode("--prefix", prefix));
        let layout = match self.hash {
            false => Layout::Ordered,
            true => Layout::Hash(Buckets::of(self.buckets, self.parts)),
        };
        let keyspace = Keyspace::new(self.name, prefix.transpose()?, layout);
        keyspace.map_err(|reason| Failure::bad_input(format!("{reason}; nothing was done")))
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let keyspace = args.keyspace()?;
    let arrangement = Arrangement::CreateKeyspace(keyspace.clone());
    context.admin()?.arrange(arrangement, None).await?;
    let line = format!(
        "created keyspace {}: {}",
        keyspace.name,
        sentence(&keyspace)
    );
    let definition = Definition {
        keyspace,
        retired: false,
    };
    context.print_result(object(&definition), &line)
}

/// `quorate keyspace list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate keyspace list
  quorate keyspace list --deleted -o json")]
pub struct ListArgs {
    /// Also those that were deleted, whose names and prefixes stay taken
    #[arg(long)]
    deleted: bool,
}

async fn list(args: ListArgs, context: &Context) -> Result<(), Failure> {
    let mut keyspaces = context.admin()?.keyspaces(None).await?;
    keyspaces.retain(|known| args.deleted || !known.retired);
    if context.is_json() {
        let keyspaces: Vec<Json> = keyspaces.iter().map(object).map(Json::from).collect();
        return context.print_json(json!({ "keyspaces": keyspaces }));
    }
    let mut table = table(&["NAME", "PREFIX", "KIND", "BUCKETS", "PARTS", "STATE"]);
    for known in &keyspaces {
        let keyspace = &known.keyspace;
        let (kind, buckets, parts) = match keyspace.layout {
            Layout::Ordered => ("ordered", String::new(), String::new()),
            Layout::Hash(buckets) => ("hash", buckets.count.to_string(), buckets.parts.to_string()),
        };
        table.add_row([
            keyspace.name.to_string(),
            render::prefix(&keyspace.prefix),
            kind.to_owned(),
            buckets,
            parts,
            state(known).to_owned(),
        ]);
    }
    context.world.print(format!("{table}\n"))
}

/// `quorate keyspace delete`.
#[derive(Debug, Args)]
#[command(after_help = "\
Refused while the keyspace has keys. Its name and its prefix are not used again: another keyspace needs others.
What is written to it at the same moment is lost with it.

Example:
  quorate delete --keyspace orders --all
  quorate keyspace delete orders")]
pub struct DeleteArgs {
    /// Its name
    name: KeyspaceName,
}

async fn delete(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    let DeleteArgs { name } = args;
    let arrangement = Arrangement::DeleteKeyspace { name: name.clone() };
    context.admin()?.arrange(arrangement, None).await?;
    let line = format!("deleted keyspace {name}; its name and its prefix are not used again");
    context.print_result(json!({ "name": name.as_str() }), &line)
}

fn sentence(keyspace: &Keyspace) -> String {
    let prefix = render::prefix(&keyspace.prefix);
    match keyspace.layout {
        Layout::Ordered => format!("ordered, behind {prefix}"),
        Layout::Hash(Buckets { count, parts }) => {
            format!("{count} buckets in {parts} parts, behind {prefix}")
        }
    }
}

fn state(known: &Definition) -> &'static str {
    match known.retired {
        true => "deleted",
        false => "there",
    }
}

fn object(known: &Definition) -> Map<String, Json> {
    let keyspace = &known.keyspace;
    let mut object = Map::new();
    object.insert("name".into(), keyspace.name.as_str().into());
    text::insert_bytes(&mut object, "prefix", &keyspace.prefix);
    match keyspace.layout {
        Layout::Ordered => {
            object.insert("kind".into(), "ordered".into());
        }
        Layout::Hash(Buckets { count, parts }) => {
            object.insert("kind".into(), "hash".into());
            object.insert("buckets".into(), count.into());
            object.insert("parts".into(), parts.into());
        }
    }
    object.insert("deleted".into(), known.retired.into());
    object
}
