//! Rules as they are written in a file. Decides only.
//!
//! A mistake is told with its line. All rules of a file are read before the first one is sent, so that a
//! mistake in the last one has not let half of them hold.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use crate::types::Key;
use crate::types::key::KEY_BYTES_MAX;
use crate::types::rule::LABEL_CHARS_MAX;
use crate::types::rule::LABELS_MAX;
use crate::types::rule::Label;
use crate::types::rule::Rule;

/// `[[rule]]` for each rule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Entry>,
}

/// One rule. What is not said is as in [`Rule::default`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    prefix: Spanned<String>,
    replicas: Option<Replicas>,
    #[serde(default)]
    require: Vec<Wanted>,
    #[serde(default)]
    forbid: Vec<Wanted>,
    #[serde(default)]
    prefer_leader: Vec<Wanted>,
    spread: Option<Spread>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
struct Replicas(usize);

impl TryFrom<i64> for Replicas {
    type Error = String;

    fn try_from(count: i64) -> Result<Replicas, String> {
        parse_replicas(&count.to_string()).map(Replicas)
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Wanted(Label);

impl TryFrom<String> for Wanted {
    type Error = String;

    fn try_from(text: String) -> Result<Wanted, String> {
        text.parse().map(Wanted)
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Spread(String);

impl TryFrom<String> for Spread {
    type Error = String;

    fn try_from(text: String) -> Result<Spread, String> {
        parse_spread(&text).map(Spread)
    }
}

/// How many replicas a shard may have.
pub fn parse_replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5 | 7)) => Ok(count),
        Ok(_) | Err(_) => Err(format!("there are 1, 3, 5 or 7 replicas, not {text}")),
    }
}

/// The name of the label over whose values replicas are spread.
pub fn parse_spread(text: &str) -> Result<String, String> {
    // A name by itself is what a label has before its `=`.
    let label: Result<Label, String> = format!("{text}=x").parse();
    label.map(|label| label.name).map_err(|_| {
        format!(
            "{text:?} is no name of a label: it has 1 to {LABEL_CHARS_MAX} letters, digits, dots, underscores or dashes"
        )
    })
}

/// Whether the rule keeps within what a node accepts. The error is the end of a sentence.
pub fn check(rule: &Rule) -> Result<(), String> {
    if rule.prefix.len() > KEY_BYTES_MAX {
        let bytes = rule.prefix.len();
        return Err(format!(
            "the prefix has {bytes} bytes, and a key has at most {KEY_BYTES_MAX}"
        ));
    }
    for labels in [&rule.required, &rule.forbidden, &rule.preferred_leaders] {
        if labels.len() > LABELS_MAX {
            let count = labels.len();
            return Err(format!("{count} labels of one kind, at most {LABELS_MAX}"));
        }
    }
    if let Some(both) = rule.required.iter().find(|it| rule.forbidden.contains(it)) {
        return Err(format!(
            "{both} is required and forbidden: no node has it so"
        ));
    }
    Ok(())
}

/// The rules of a file. `decode` gives the bytes of a prefix. The error names the line.
pub fn parse(
    text: &str,
    decode: impl Fn(&str) -> Result<Key, String>,
) -> Result<Vec<Rule>, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let message = error.message();
        match error.span() {
            Some(span) => at_line(text, &span, message),
            None => message.to_owned(),
        }
    })?;
    if file.rule.is_empty() {
        return Err("there is no [[rule]] in it".to_owned());
    }
    let mut rules: Vec<Rule> = Vec::new();
    for entry in file.rule {
        let span = entry.prefix.span();
        let here = |message: String| at_line(text, &span, &message);
        let prefix = decode(entry.prefix.get_ref()).map_err(here)?;
        if rules.iter().any(|rule| rule.prefix == prefix) {
            return Err(here("there is a rule for this prefix already".to_owned()));
        }
        let rule = entry.into_rule(prefix);
        check(&rule).map_err(here)?;
        rules.push(rule);
    }
    Ok(rules)
}

impl Entry {
    fn into_rule(self, prefix: Key) -> Rule {
        let labels = |wanted: Vec<Wanted>| wanted.into_iter().map(|Wanted(label)| label).collect();
        let default = Rule::default();
        Rule {
            prefix,
            replicas: self.replicas.map_or(default.replicas, |Replicas(it)| it),
            required: labels(self.require),
            forbidden: labels(self.forbid),
            preferred_leaders: labels(self.prefer_leader),
            spread: self.spread.map_or(default.spread, |Spread(name)| name),
        }
    }
}

fn at_line(text: &str, span: &Range<usize>, message: &str) -> String {
    let before = text.as_bytes().iter().take(span.start);
    let line = before.filter(|byte| **byte == b'\n').count() + 1;
    format!("line {line}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Rule>, String> {
        parse(text, |prefix| Ok(Key::copy_from_slice(prefix.as_bytes())))
    }

    #[test]
    fn what_is_not_said_is_as_always() {
        let text = r#"
            [[rule]]
            prefix = "user/"
            replicas = 5
            require = ["zone=a"]
            forbid = ["disk=hdd"]
            prefer_leader = ["zone=a", "zone=b"]
            spread = "rack"

            [[rule]]
            prefix = ""
        "#;
        let label = |text: &str| text.parse::<Label>().unwrap();
        let first = Rule {
            prefix: "user/".into(),
            replicas: 5,
            required: vec![label("zone=a")],
            forbidden: vec![label("disk=hdd")],
            preferred_leaders: vec![label("zone=a"), label("zone=b")],
            spread: "rack".into(),
        };
        assert_eq!(read(text), Ok(vec![first, Rule::default()]));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        let rule = |line: &str| format!("# rules\n[[rule]]\nprefix = \"a\"\n{line}\n");
        for (text, said) in [
            (rule("zones = 3"), "line 4: unknown field `zones`"),
            (
                rule("replicas = 4"),
                "line 4: there are 1, 3, 5 or 7 replicas, not 4",
            ),
            (rule("replicas = -1"), "line 4: there are"),
            (rule("replicas = \"3\""), "line 4: invalid type"),
            (
                rule("require = [\n\"zone=a\",\n\"zone\"]"),
                "line 4: \"zone\" is not name=value",
            ),
            (rule("forbid = \"zone=a\""), "line 4: invalid type"),
            (rule("spread = \"\""), "line 4: \"\" is no name"),
            (rule("spread = \"a=b\""), "line 4: \"a=b\" is no name"),
            (rule("replicas ="), "line 4: "),
            (
                rule("[[rule]]\nprefix = \"a\""),
                "line 5: there is a rule for this prefix already",
            ),
            (
                rule("[[rule]]\nreplicas = 3"),
                "line 4: missing field `prefix`",
            ),
            (rule("[rules]"), "line 4: unknown field `rules`"),
            (
                rule("require=[\"a=b\"]\nforbid=[\"a=b\"]"),
                "line 3: a=b is required and forbidden",
            ),
            (
                format!("[[rule]]\nprefix = \"{}\"", "x".repeat(2_049)),
                "line 2: the prefix has 2049 bytes",
            ),
            (String::new(), "there is no [[rule]] in it"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
