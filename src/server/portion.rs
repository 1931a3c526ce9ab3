//! Which part of a scan one shard answers, and what it leaves. Decides only.
//!
//! What is left always is the whole rest of the range that was asked for, counted from where this shard
//! stopped. So it does not matter whether a split moves a border between two portions: the next one
//! begins at the key behind the last one that was looked at, whoever holds it then.
//!
//! A merge may bring keys to a shard between two portions of one cut. What was written to them before the cut
//! began may be above its stamp, for they had a clock of their own. So the cut says where it ends, and what is
//! behind that is read as another one.

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::types::KeyRange;
use crate::wire::request::Page;
use crate::wire::request::Scan;

/// The scan of what a shard holds of the range, and of the cut.
pub(super) fn inside(asked: &Scan, shard: &KeyRange) -> Scan {
    let mut part = Scan {
        range: asked.range.intersect(shard),
        ..asked.clone()
    };
    let cut = asked.cut.as_ref();
    let border = cut.and_then(|cut| cut.border.as_ref());
    if let Some(border) = border.filter(|border| part.range.has_inside(border))
        && !mutant::lives(Mutant::CutOutgrown)
    {
        match asked.reverse {
            true => part.range.start = border.clone(),
            false => part.range.end = Some(border.clone()),
        }
    }
    part
}

/// The page that answers `asked`, out of the `page` that answered its `part`.
pub(super) fn whole(asked: &Scan, part: &Scan, page: Page) -> Page {
    let left_of_part = page.rest.as_ref();
    let rest = if asked.reverse {
        let left_of_part = left_of_part.map(|rest| rest.end.clone());
        let behind =
            || (part.range.start != asked.range.start).then(|| Some(part.range.start.clone()));
        let end = left_of_part.or_else(behind);
        end.map(|end| KeyRange {
            start: asked.range.start.clone(),
            end,
        })
    } else {
        let left_of_part = left_of_part.map(|rest| rest.start.clone());
        let behind = || {
            part.range
                .end
                .clone()
                .filter(|_| part.range.end != asked.range.end)
        };
        let start = left_of_part.or_else(behind);
        start.map(|start| KeyRange {
            start,
            end: asked.range.end.clone(),
        })
    };
    Page { rest, ..page }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Key;
    use crate::types::ReplicaId;
    use crate::types::ShardId;
    use crate::types::Timestamp;
    use crate::types::request::Answered;
    use crate::types::request::ReadKind;

    const AS_OF: Timestamp = Timestamp(7);

    fn range(text: &str) -> KeyRange {
        let (start, end) = text.split_once("..").unwrap();
        KeyRange {
            start: Key::copy_from_slice(start.as_bytes()),
            end: (!end.is_empty()).then(|| Key::copy_from_slice(end.as_bytes())),
        }
    }

    fn shown(range: &KeyRange) -> String {
        let text = |key: &Key| String::from_utf8(key.to_vec()).unwrap();
        let end = range.end.as_ref().map(text).unwrap_or_default();
        format!("{}..{end}", text(&range.start))
    }

    fn scan(reverse: bool, asked: &str) -> Scan {
        Scan {
            range: range(asked),
            keys_max: 1,
            bytes_max: 1,
            reverse,
            keys_only: false,
            read: ReadKind::Linearizable,
            cut: None,
        }
    }

    /// Asked for, the shard, what the shard leaves of its part -> the part, what is left of the whole.
    fn check(reverse: bool, asked: &str, shard: &str, left: &str, expected: &str) {
        let asked = scan(reverse, asked);
        let part = inside(&asked, &range(shard));
        let rest = (left != "-").then(|| range(left));
        let page = Page {
            items: Vec::new(),
            rest_cut: rest.as_ref().map(|_| part.cut_at(AS_OF)),
            rest,
            as_of: AS_OF,
            answered: Answered {
                shard: ShardId(1),
                replica: ReplicaId(1),
                leader: true,
                timestamp: AS_OF,
                as_of: AS_OF,
            },
            unordered: None,
        };
        let page = whole(&asked, &part, page);
        let way_on = match (&page.rest, &page.rest_cut) {
            (None, None) => "-".to_string(),
            (Some(rest), None) => format!("{} anew", shown(rest)),
            (Some(rest), Some(_)) => shown(rest),
            (None, Some(cut)) => panic!("nothing is left of {cut:?}"),
        };
        assert_eq!(format!("{} then {way_on}", shown(&part.range)), expected);
    }

    #[test]
    fn forwards_it_goes_on_behind_the_shard_with_a_new_cut() {
        check(false, "..", "..", "-", ".. then -");
        check(false, "..", "..m", "-", "..m then m.. anew");
        check(false, "..", "..m", "e..m", "..m then e..");
        check(false, "b..z", "a..m", "-", "b..m then m..z anew");
        check(false, "b..z", "a..m", "e..m", "b..m then e..z");
        check(false, "b..m", "a..m", "-", "b..m then -");
        check(false, "b..k", "a..m", "-", "b..k then -");
        check(false, "b..k", "a..m", "e..k", "b..k then e..k");
        check(false, "n..", "m..", "-", "n.. then -");
    }

    #[test]
    fn backwards_it_goes_on_below_the_shard_with_a_new_cut() {
        check(true, "..", "..", "-", ".. then -");
        check(true, "..", "m..", "-", "m.. then ..m anew");
        check(true, "..", "m..", "m..p", "m.. then ..p");
        check(true, "b..z", "m..", "-", "m..z then b..m anew");
        check(true, "b..z", "m..", "m..p", "m..z then b..p");
        check(true, "b..m", "a..m", "-", "b..m then -");
        check(true, "a..k", "a..m", "-", "a..k then -");
        check(true, "b..k", "a..m", "b..e", "b..k then b..e");
    }

    /// Asked for, the shard when the cut began, what it left, and the shard when it goes on -> the part that is
    /// read of the same cut.
    fn check_cut(reverse: bool, asked: &str, shard: &str, left: &str, grown: &str, expected: &str) {
        let asked = scan(reverse, asked);
        let next = Scan {
            range: range(left),
            cut: Some(inside(&asked, &range(shard)).cut_at(AS_OF)),
            ..asked
        };
        assert_eq!(shown(&inside(&next, &range(grown)).range), expected);
    }

    #[test]
    fn a_cut_ends_where_its_shard_did_when_it_began() {
        check_cut(false, "..", "..m", "e..", "..", "e..m");
        check_cut(false, "b..k", "..m", "e..k", "..", "e..k");
        check_cut(false, "..", "..m", "e..", "..g", "e..g");
        check_cut(false, "..", "m..", "n..", "..", "n..");
        check_cut(true, "..", "m..", "..p", "..", "m..p");
        check_cut(true, "n..z", "m..", "n..p", "..", "n..p");
        check_cut(true, "..", "m..", "..p", "o..", "o..p");
        check_cut(true, "..", "..m", "..e", "..", "..e");
    }
}
