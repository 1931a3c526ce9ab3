//! The verbs about rules: list, set, delete.

use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::keys::EncodingArgs;
use crate::cli::render;
use crate::cli::rule_file;
use crate::types::Key;
use crate::types::overview::Arrangement;
use crate::types::rule::Label;
use crate::types::rule::Rule;
use crate::wire::request::OverviewQuery;

/// `quorate rule`.
#[derive(Debug, Subcommand)]
pub enum RuleVerb {
    /// List the rules
    List(ListArgs),
    /// Set the rule for a prefix, or all rules of a file
    Set(SetArgs),
    /// Delete the rule for a prefix
    Delete(DeleteArgs),
}

/// Runs a verb about rules.
pub async fn run(verb: RuleVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        RuleVerb::List(ListArgs {}) => list(context).await,
        RuleVerb::Set(args) => set(args, context).await,
        RuleVerb::Delete(args) => delete(args, context).await,
    }
}

/// `quorate rule list`.
#[derive(Debug, Args)]
#[command(after_help = "\
A shard keeps the rule with the longest prefix that covers it; - is every key. Where there is none, a shard
has 3 replicas spread over zones.

Example:
  quorate rule list
  quorate rule list -o json")]
pub struct ListArgs {}

async fn list(context: &Context) -> Result<(), Failure> {
    let query = OverviewQuery::default();
    let overview = context.admin()?.overview(query, None).await?;
    if context.is_json() {
        let rules = overview.rules.iter().map(render::rule_object);
        let rules: Vec<Json> = rules.map(Json::from).collect();
        return context.print_json(json!({ "rules": rules }));
    }
    let mut table = table(&[
        "PREFIX", "REPLICAS", "REQUIRE", "FORBID", "LEADERS", "SPREAD",
    ]);
    for rule in &overview.rules {
        table.add_row([
            render::prefix(&rule.prefix),
            rule.replicas.to_string(),
            render::rule_labels(&rule.required),
            render::rule_labels(&rule.forbidden),
            render::rule_labels(&rule.preferred_leaders),
            rule.spread.clone(),
        ]);
    }
    context.world.print(format!("{table}\n"))
}

/// `quorate rule set`.
#[derive(Debug, Args)]
#[command(after_help = "\
Says what is wanted of the shards whose keys begin with PREFIX, in place of the rule that it has: what is
not given is the default again. Shards are split where rules begin and end. What is required or forbidden is
never broken: where there are too few nodes, there are fewer replicas.

A file has one [[rule]] for each prefix; rules for other prefixes stay:
  [[rule]]
  prefix = \"user/\"
  replicas = 5
  require = [\"region=eu\"]
  forbid = []
  prefer_leader = [\"zone=a\"]
  spread = \"zone\"
All of it is checked before the first rule is sent. --hex and --base64 hold for the prefixes in it too.

Example:
  quorate rule set user/ --replicas 5 --require region=eu --prefer-leader zone=a
  quorate rule set '' --spread rack
  quorate rule set --file rules.toml")]
pub struct SetArgs {
    /// Keys that begin with this; '' for every key
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    prefix: Option<String>,
    /// Read rules from a TOML file
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["replicas", "require", "forbid", "prefer_leader", "spread"]
    )]
    file: Option<PathBuf>,
    /// Replicas of each shard: 1, 3, 5 or 7
    #[arg(long, value_name = "N", default_value = "3", value_parser = rule_file::parse_replicas)]
    replicas: usize,
    /// A node must have this label to hold a replica; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    require: Vec<Label>,
    /// A node that has this label holds no replica; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    forbid: Vec<Label>,
    /// A node that has one of these labels leads rather than others; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    prefer_leader: Vec<Label>,
    /// The label over whose values the replicas are spread
    #[arg(long, value_name = "NAME", default_value = "zone", value_parser = rule_file::parse_spread)]
    spread: String,
    #[command(flatten)]
    encoding: EncodingArgs,
}

impl SetArgs {
    /// All of them, checked.
    fn rules(self) -> Result<Vec<Rule>, Failure> {
        if let Some(path) = &self.file {
            return read_file(path, &self.encoding);
        }
        let prefix = self.prefix.unwrap_or_default();
        let rule = Rule {
            prefix: self.encoding.decode("PREFIX", &prefix)?,
            replicas: self.replicas,
            required: self.require,
            forbidden: self.forbid,
            preferred_leaders: self.prefer_leader,
            spread: self.spread,
        };
        rule_file::check(&rule).map_err(Failure::bad_input)?;
        Ok(vec![rule])
    }
}

fn read_file(path: &Path, encoding: &EncodingArgs) -> Result<Vec<Rule>, Failure> {
    let named = |error: String| {
        let name = path.display();
        Failure::bad_input(format!("{name}: {error}; nothing was done"))
    };
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let decode = |prefix: &str| {
        let decoded = encoding.decode("prefix", prefix);
        decoded.map_err(|failure| failure.to_string())
    };
    rule_file::parse(&text, decode).map_err(named)
}

async fn set(args: SetArgs, context: &Context) -> Result<(), Failure> {
    let rules = args.rules()?;
    let admin = context.admin()?;
    for (done, rule) in rules.iter().enumerate() {
        let arrangement = Arrangement::SetRule(rule.clone());
        admin.arrange(arrangement, None).await.map_err(|error| {
            let (count, name) = (rules.len(), named(&rule.prefix));
            let failure = Failure::from(error);
            failure.while_doing(format!("after {done} of {count} rules, {name}"))
        })?;
    }
    if context.is_json() {
        let rules = rules.iter().map(render::rule_object);
        let rules: Vec<Json> = rules.map(Json::from).collect();
        return context.print_json(json!({ "rules": rules }));
    }
    for rule in &rules {
        let line = format!("{}: {}\n", named(&rule.prefix), render::rule_sentence(rule));
        context.world.print(line)?;
    }
    Ok(())
}

fn named(prefix: &[u8]) -> String {
    match prefix.is_empty() {
        true => "every key".to_owned(),
        false => render::prefix(prefix),
    }
}

/// `quorate rule delete`.
#[derive(Debug, Args)]
#[command(after_help = "\
The shards with the prefix keep to the rule with a shorter prefix then, or to the default.

Example:
  quorate rule delete user/
  quorate rule delete ''")]
pub struct DeleteArgs {
    /// The prefix of the rule; '' for the rule for every key
    prefix: String,
    #[command(flatten)]
    encoding: EncodingArgs,
}

/// Placement answers late for a rule that there is not: so it is looked up first.
async fn delete(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    let prefix: Key = args.encoding.decode("PREFIX", &args.prefix)?;
    let admin = context.admin()?;
    let overview = admin.overview(OverviewQuery::default(), None).await?;
    let name = named(&prefix);
    let Some(rule) = overview.rules.iter().find(|rule| rule.prefix == prefix) else {
        return Err(Failure::not_found(format!("there is no rule for {name}")));
    };
    admin
        .arrange(Arrangement::DeleteRule { prefix }, None)
        .await?;
    let line = format!("deleted the rule for {name}");
    context.print_result(render::rule_object(rule), &line)
}
