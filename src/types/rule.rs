//! Rules: what a person wants of the shards whose keys begin with a prefix. Decides only.
//!
//! A rule says how many replicas there are, on which nodes they may be, over what they are spread, and where
//! the leader is best. Nodes are known by their labels (`zone=a`, `disk=ssd`). Pinning data to a country or a
//! tenant to nodes of its own is a rule with a required label.
//!
//! A shard keeps the rule with the longest prefix that covers all of its keys. Where a rule begins or ends in
//! the middle of a shard, the shard is split there first ([`bounds_inside`]), so that in the end no shard has
//! keys of two rules; nor are two shards merged that a rule parts. What a rule requires is never broken: a shard
//! for which there are not enough nodes has fewer replicas. What it spreads over and whom it prefers is followed as
//! far as there are nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::types::key::Key;
use crate::types::key::KeyRange;

/// What a node says of itself, by name: `zone` is `a`.
pub type Labels = BTreeMap<String, String>;

/// One name and value of a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label {
    /// `zone`.
    pub name: String,
    /// `a`.
    pub value: String,
}

impl Label {
    fn is_on(&self, labels: &Labels) -> bool {
        labels.get(&self.name) == Some(&self.value)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// Characters of a label's name, and of its value.
pub const LABEL_CHARS_MAX: usize = 63;
/// Labels of one kind in a rule, and those of a node.
pub const LABELS_MAX: usize = 64;

impl FromStr for Label {
    type Err = String;

    /// `zone=a`. Letters, digits, dots, underscores and dashes.
    fn from_str(text: &str) -> Result<Label, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not name=value"))?;
        let fits = |word: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            (1..=LABEL_CHARS_MAX).contains(&word.len()) && word.chars().all(is_plain)
        };
        match fits(name) && fits(value) {
            true => Ok(Label {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            false => Err(format!(
                "{text:?}: a label's name and value have 1 to {LABEL_CHARS_MAX} letters, digits, dots, underscores or dashes"
            )),
        }
    }
}

/// What is wanted of the shards whose keys begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The keys that it is for. Empty: all.
    pub prefix: Key,
    /// Replicas of each shard: 1, 3, 5 or 7.
    pub replicas: usize,
    /// A node must have all of these to hold a replica.
    pub required: Vec<Label>,
    /// And none of these.
    pub forbidden: Vec<Label>,
    /// A node that has one of these leads rather than others. Empty: all are alike.
    pub preferred_leaders: Vec<Label>,
    /// The name of the label over whose values the replicas are spread. A node without it stands alone.
    pub spread: String,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            prefix: Key::new(),
            replicas: 3,
            required: Vec::new(),
            forbidden: Vec::new(),
            preferred_leaders: Vec::new(),
            spread: "zone".to_owned(),
        }
    }
}

impl Rule {
    /// Why a node with these labels may not hold a replica.
    pub fn refusal(&self, labels: &Labels) -> Option<Label> {
        let lacking = self.required.iter().find(|label| !label.is_on(labels));
        let unwanted = || self.forbidden.iter().find(|label| label.is_on(labels));
        lacking.or_else(unwanted).cloned()
    }

    /// Whether a node with these labels leads rather than others, or all are alike.
    pub fn prefers(&self, labels: &Labels) -> bool {
        let mut preferred = self.preferred_leaders.iter();
        self.preferred_leaders.is_empty() || preferred.any(|label| label.is_on(labels))
    }

    /// The part of the cluster that is lost together with a node with these labels.
    pub fn zone<'a>(&self, labels: &'a Labels) -> Option<&'a str> {
        labels.get(&self.spread).map(String::as_str)
    }

    fn range(&self) -> KeyRange {
        KeyRange::of_prefix(&self.prefix)
    }
}

/// The rule for a range of keys: the longest prefix that covers it, or `default`.
pub fn rule_of<'a>(rules: &'a [Rule], default: &'a Rule, range: &KeyRange) -> &'a Rule {
    let covering = rules.iter().filter(|rule| rule.range().covers(range));
    let longest = covering.max_by_key(|rule| rule.prefix.len());
    longest.unwrap_or(default)
}

/// The keys inside the range at which a rule begins or ends, so that the parts may have different ones.
pub fn bounds_inside(rules: &[Rule], range: &KeyRange) -> impl Iterator<Item = Key> {
    let ranges = rules.iter().map(Rule::range);
    let bounds = ranges.flat_map(|rule| [Some(rule.start), rule.end]);
    bounds.flatten().filter(|key| range.has_inside(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &'static str) -> Rule {
        Rule {
            prefix: prefix.into(),
            ..Rule::default()
        }
    }

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange {
            start: start.into(),
            end: (!end.is_empty()).then(|| end.into()),
        }
    }

    #[test]
    fn the_longest_prefix_that_covers_the_whole_range_rules_it() {
        let (rules, default) = ([rule("a"), rule("ab"), rule("b")], Rule::default());
        for (start, end, prefix) in [
            ("a", "b", "a"),
            ("ab", "ac", "ab"),
            ("aba", "abc", "ab"),
            ("aa", "abc", "a"),
            ("a", "c", ""),
            ("b", "", ""),
        ] {
            let found = rule_of(&rules, &default, &range(start, end));
            assert_eq!(found.prefix, prefix, "{start} to {end}");
        }
    }

    #[test]
    fn a_range_with_keys_of_two_rules_has_a_bound_inside() {
        let rules = [rule("m")];
        let bounds = |start, end| bounds_inside(&rules, &range(start, end)).collect::<Vec<_>>();
        assert_eq!(bounds("", ""), ["m", "n"]);
        assert_eq!(bounds("m", ""), ["n"]);
        for (start, end) in [("m", "n"), ("", "m"), ("n", "")] {
            assert!(bounds(start, end).is_empty(), "{start} to {end}");
        }
        assert_eq!(bounds_inside(&[rule("")], &KeyRange::ALL).count(), 0);
    }

    #[test]
    fn labels_allow_forbid_and_prefer() {
        let label = |name: &str, value: &str| Label {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let rule = Rule {
            required: vec![label("region", "eu")],
            forbidden: vec![label("disk", "hdd")],
            preferred_leaders: vec![label("zone", "a"), label("zone", "b")],
            ..Rule::default()
        };
        let labels = |words: &[(&str, &str)]| -> Labels {
            let pairs = words.iter();
            pairs
                .map(|(name, value)| (String::from(*name), String::from(*value)))
                .collect()
        };
        let good = labels(&[("region", "eu"), ("zone", "b")]);
        assert_eq!((rule.refusal(&good), rule.prefers(&good)), (None, true));
        let slow = labels(&[("region", "eu"), ("disk", "hdd"), ("zone", "c")]);
        assert_eq!(rule.refusal(&slow), Some(label("disk", "hdd")));
        assert!(!rule.prefers(&slow) && Rule::default().prefers(&slow));
        assert_eq!(rule.refusal(&labels(&[])), Some(label("region", "eu")));
        assert_eq!(
            (rule.zone(&good), rule.zone(&labels(&[]))),
            (Some("b"), None)
        );
    }
}
