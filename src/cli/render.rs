//! Shards, rules and nodes in the words of people and of programs. Decides only.

use std::time::Duration;

use serde_json::Map;
use serde_json::Value as Json;
use serde_json::json;

use crate::cli::text;
use crate::types::Key;
use crate::types::KeyRange;
use crate::types::Timestamp;
use crate::types::rule::Label;
use crate::types::rule::Labels;
use crate::types::rule::Rule;
use crate::types::shard::ShardDescriptor;

/// In a table: there is none, or it is not known.
pub(super) const NONE: &str = "-";

/// Both ends of a range; - is before the first key and behind the last one.
pub(super) fn bounds(range: &KeyRange) -> (String, String) {
    let bound = |key: &Key| match key.is_empty() {
        true => NONE.to_owned(),
        false => text::shown(key),
    };
    let end = range.end.as_ref().map_or(NONE.to_owned(), bound);
    (bound(&range.start), end)
}

/// Id, range and epoch; an end of null is behind the last key.
pub(super) fn shard_object(shard: &ShardDescriptor) -> Map<String, Json> {
    let mut object = Map::new();
    object.insert("shard".into(), shard.id.to_string().into());
    text::insert_bytes(&mut object, "start", &shard.range.start);
    match &shard.range.end {
        Some(end) => text::insert_bytes(&mut object, "end", end),
        None => {
            object.insert("end".into(), Json::Null);
        }
    }
    let epoch = json!({ "bounds": shard.epoch.bounds, "conf": shard.epoch.conf });
    object.insert("epoch".into(), epoch);
    object
}

/// `disk=ssd,zone=a`
pub(super) fn node_labels(labels: &Labels) -> String {
    let labels = labels.iter().map(|(name, value)| format!("{name}={value}"));
    listed(labels, ",")
}

/// `zone=a,zone=b`
pub(super) fn rule_labels(labels: &[Label]) -> String {
    listed(labels.iter().map(ToString::to_string), ",")
}

fn listed(words: impl Iterator<Item = String>, comma: &str) -> String {
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => NONE.to_owned(),
        false => words.join(comma),
    }
}

/// The prefix of a rule; - is every key.
pub(super) fn prefix(prefix: &[u8]) -> String {
    match prefix.is_empty() {
        true => NONE.to_owned(),
        false => text::shown(prefix),
    }
}

/// What a rule says, without its prefix.
pub(super) fn rule_sentence(rule: &Rule) -> String {
    let count = rule.replicas;
    let replicas = if count == 1 { "replica" } else { "replicas" };
    let mut parts = vec![format!("{count} {replicas} spread over {}", rule.spread)];
    for (words, labels, between) in [
        ("only on ", &rule.required, " and "),
        ("never on ", &rule.forbidden, " or "),
        ("led best on ", &rule.preferred_leaders, " or "),
    ] {
        if !labels.is_empty() {
            let labels = listed(labels.iter().map(ToString::to_string), between);
            parts.push(format!("{words}{labels}"));
        }
    }
    parts.join(", ")
}

/// A rule under the names of its flags.
pub(super) fn rule_object(rule: &Rule) -> Map<String, Json> {
    let labels = |labels: &[Label]| -> Json {
        let labels = labels.iter().map(ToString::to_string);
        labels.collect::<Vec<String>>().into()
    };
    let mut object = Map::new();
    text::insert_bytes(&mut object, "prefix", &rule.prefix);
    object.insert("replicas".into(), rule.replicas.into());
    object.insert("require".into(), labels(&rule.required));
    object.insert("forbid".into(), labels(&rule.forbidden));
    object.insert("prefer_leader".into(), labels(&rule.preferred_leaders));
    object.insert("spread".into(), rule.spread.clone().into());
    object
}

/// How long ago something was: whole seconds.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(at, now))
}

/// How long there is until something: whole seconds.
pub(super) fn until(now: Timestamp, at: Timestamp) -> String {
    match at <= now {
        true => "now".to_owned(),
        false => format!("in {}", span(now, at)),
    }
}

fn span(from: Timestamp, to: Timestamp) -> String {
    let span_ms = to.wall_ms().saturating_sub(from.wall_ms());
    seconds(Duration::from_millis(span_ms))
}

/// A length of time in whole seconds.
pub(super) fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_sentence() {
        let label = |text: &str| text.parse::<Label>().unwrap();
        let mut rule = Rule::default();
        assert_eq!(rule_sentence(&rule), "3 replicas spread over zone");
        rule.replicas = 1;
        rule.required = vec![label("region=eu"), label("disk=ssd")];
        rule.forbidden = vec![label("zone=c")];
        rule.preferred_leaders = vec![label("zone=a"), label("zone=b")];
        assert_eq!(
            rule_sentence(&rule),
            "1 replica spread over zone, only on region=eu and disk=ssd, never on zone=c, led best on zone=a or zone=b"
        );
    }

    #[test]
    fn times_are_in_whole_seconds() {
        let at = Timestamp::from_wall;
        assert_eq!(ago(at(1_000), at(63_999)), "1m 2s ago");
        assert_eq!(ago(at(9), at(3)), "0s ago");
        assert_eq!(
            (until(at(0), at(5_000)), until(at(5), at(5))),
            ("in 5s".to_owned(), "now".to_owned())
        );
    }

    #[test]
    fn what_is_missing_is_a_dash() {
        assert_eq!(bounds(&KeyRange::ALL), (NONE.to_owned(), NONE.to_owned()));
        assert_eq!(node_labels(&Labels::new()), NONE);
        assert_eq!(prefix(b"a\n"), "a\\n");
    }
}
