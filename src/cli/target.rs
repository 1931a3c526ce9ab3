//! A shard that is named by its id or by a key that it holds.

use clap::Args;

use crate::cli::failure::Failure;
use crate::cli::keys::EncodingArgs;
use crate::cli::text;
use crate::client::admin::ClusterStatus;
use crate::types::Key;
use crate::types::ShardId;

/// A shard as it is typed. What looks like an id is one, unless it is said to be a key.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The shard, such as s5, or a key that it holds
    #[arg(value_name = "SHARD|KEY")]
    target: String,
    /// The argument is a key, whatever it looks like
    #[arg(long)]
    key: bool,
    #[command(flatten)]
    encoding: EncodingArgs,
}

/// Which shard is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Shard(ShardId),
    Key(Key),
}

impl TargetArgs {
    /// The shard that is meant, as far as the nodes that answer tell.
    pub(super) fn find(&self, cluster: &ClusterStatus) -> Result<ShardId, Failure> {
        find(cluster, &self.target()?)
    }

    /// Refuses what cannot be understood, before anybody is asked.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.target().map(drop)
    }

    fn target(&self) -> Result<Target, Failure> {
        let digits = self.target.strip_prefix('s').unwrap_or_default();
        let is_id = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_id || self.key || self.encoding.is_given() {
            let key = self.encoding.decode("KEY", &self.target)?;
            return Ok(Target::Key(key));
        }
        let shard = text::decode_shard(&self.target);
        shard.map(Target::Shard).map_err(Failure::bad_input)
    }
}

/// Placement answers late for what it has not heard of: what no node has is not asked for.
fn find(cluster: &ClusterStatus, target: &Target) -> Result<ShardId, Failure> {
    let shards = cluster.shards();
    let mut shards = shards.iter().map(|view| &view.shard);
    match target {
        Target::Key(key) => {
            let holder = shards.find(|shard| shard.range.contains(key));
            let missing = "no node that answers has the shard of that key";
            let holder = holder.ok_or_else(|| Failure::unreachable(missing))?;
            Ok(holder.id)
        }
        Target::Shard(id) => {
            let is_known = shards.any(|shard| shard.id == *id);
            match is_known || !cluster.silent.is_empty() {
                true => Ok(*id),
                false => Err(Failure::not_found(format!("no node has {id}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: TargetArgs,
    }

    fn target(words: &[&str]) -> Result<Target, String> {
        let typed = Typed::try_parse_from(["explain"].iter().chain(words)).unwrap();
        typed.args.target().map_err(|failure| failure.to_string())
    }

    #[test]
    fn an_id_is_an_id_unless_it_is_said_to_be_a_key() {
        let key = |bytes: &'static [u8]| Ok(Target::Key(Key::from_static(bytes)));
        assert_eq!(target(&["s5"]), Ok(Target::Shard(ShardId(5))));
        assert_eq!(target(&["s5", "--key"]), key(b"s5"));
        assert_eq!(target(&["5"]), key(b"5"));
        assert_eq!(target(&["s"]), key(b"s"));
        assert_eq!(target(&["s5x"]), key(b"s5x"));
        assert_eq!(target(&["s123", "--base64"]), key(&[0xb3, 0x5d, 0xb7]));
        assert!(target(&["s0"]).unwrap_err().contains("is no shard"));
        assert!(target(&["xy", "--hex"]).unwrap_err().contains("hex"));
    }
}
