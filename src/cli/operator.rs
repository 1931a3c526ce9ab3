//! The verbs about what placement is doing: operator list, operator cancel.

use clap::Args;
use clap::Subcommand;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::cluster::table;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::render;
use crate::cli::text;
use crate::error::Error;
use crate::types::ShardId;
use crate::types::overview::Arrangement;
use crate::types::overview::OperatorOverview;
use crate::types::overview::Overview;
use crate::wire::request::OverviewQuery;

/// `quorate operator`.
#[derive(Debug, Subcommand)]
pub enum OperatorVerb {
    /// List what is being done with shards, and why
    List(ListArgs),
    /// Give up what is being done with a shard
    Cancel(CancelArgs),
}

/// Runs a verb about operators.
pub async fn run(verb: OperatorVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        OperatorVerb::List(ListArgs {}) => list(context).await,
        OperatorVerb::Cancel(args) => cancel(args, context).await,
    }
}

/// `quorate operator list`.
#[derive(Debug, Args)]
#[command(after_help = "\
An operator is what placement wants done with one shard; a shard has one at most. AIM says what for, NEXT
what the shard's leader does next, EXPIRES when it is given up.

Example:
  quorate operator list
  quorate operator list -o json")]
pub struct ListArgs {}

async fn list(context: &Context) -> Result<(), Failure> {
    let query = OverviewQuery::default();
    let overview = context.admin()?.overview(query, None).await?;
    if context.is_json() {
        let operators: Vec<Json> = overview.operators.iter().map(operator_json).collect();
        let list = json!({ "paused": overview.paused, "operators": operators });
        return context.print_json(list);
    }
    let mut table = table(&["SHARD", "AIM", "ACTION", "NEXT", "EXPIRES", "REASON"]);
    for operator in &overview.operators {
        table.add_row([
            operator.shard.to_string(),
            operator.aim.clone(),
            operator.action.clone(),
            operator.step.clone(),
            render::until(overview.at, operator.expires),
            operator.reason.clone(),
        ]);
    }
    if overview.paused {
        context.world.tell("placement is paused");
    }
    context.world.print(format!("{table}\n"))
}

fn operator_json(operator: &OperatorOverview) -> Json {
    json!({
        "shard": operator.shard.to_string(),
        "number": operator.number,
        "aim": operator.aim,
        "action": operator.action,
        "next": operator.step,
        "reason": operator.reason,
        "expires_ms": operator.expires.wall_ms(),
    })
}

/// `quorate operator cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
What of it has been done stays. Placement may want the same again: see `placement pause`.

Example:
  quorate operator cancel s5")]
pub struct CancelArgs {
    /// The shard with which something is being done, such as s5
    #[arg(value_parser = text::decode_shard)]
    shard: ShardId,
}

async fn cancel(args: CancelArgs, context: &Context) -> Result<(), Failure> {
    let shard = args.shard;
    let admin = context.admin()?;
    let overview = admin.overview(OverviewQuery::default(), None).await?;
    let operator = operator_of(&overview, shard)?;
    let arrangement = Arrangement::CancelOperator {
        shard,
        number: operator.number,
    };
    admin
        .arrange(arrangement, None)
        .await
        .map_err(|error| match error {
            Error::NotFound { .. } => Failure::not_found(format!(
                "what was being done with {shard} has come to its end"
            )),
            other => other.into(),
        })?;
    let line = format!("given up: {shard}: {}", operator.action);
    context.print_result(operator_json(operator), &line)
}

fn operator_of(overview: &Overview, shard: ShardId) -> Result<&OperatorOverview, Failure> {
    let mut operators = overview.operators.iter();
    let found = operators.find(|operator| operator.shard == shard);
    found.ok_or_else(|| Failure::not_found(format!("nothing is being done with {shard}")))
}
