//! Histories known to be right and wrong. Decides only.

use crate::testkit::linear::Options;
use crate::testkit::linear::Verdict;
use crate::testkit::linear::check;
use crate::testkit::linear::check_followers;
use crate::testkit::linear::tests::words::history;

fn verdict(text: &str) -> Verdict {
    check(&history(text), &Options::default())
}

#[track_caller]
fn right(text: &str) {
    let verdict = verdict(text);
    assert!(
        matches!(verdict, Verdict::Linearizable(_)),
        "{text}\n{verdict}"
    );
}

/// There is no order, and the smallest part without one is these lines, the first line being 1.
#[track_caller]
fn wrong(text: &str, lines: &[usize]) {
    let Verdict::Violated(violation) = verdict(text) else {
        panic!("called right: {text}");
    };
    let all = history(text);
    let first = violation
        .unordered
        .first()
        .unwrap_or_else(|| panic!("{violation}"));
    let found = first.requests.iter().map(|request| {
        let at = all.iter().position(|observed| observed == request);
        at.expect("a part is made of requests") + 1
    });
    let mut found: Vec<usize> = found.collect();
    found.sort_unstable();
    assert_eq!(found, lines, "{text}\n{violation}");
}

/// There is a complaint with these words.
#[track_caller]
fn complains(text: &str, words: &str) {
    let Verdict::Violated(violation) = verdict(text) else {
        panic!("called right: {text}");
    };
    let said = violation.complaints.iter().any(|said| said.contains(words));
    assert!(said, "{text}\n{violation}");
}

#[test]
fn a_read_sees_the_last_write_that_ended_before_it() {
    right(
        "1 0-10 put a=x → 5
           1 20-30 get a → x@5
           2 25-60 put a=y → 6
           1 40-50 get a → x@5
           3 41-51 get a → y@6
           1 70-80 get a → y@6",
    );
    right("1 0-10 get a → none");
}

#[test]
fn a_stale_read_is_found() {
    wrong(
        "1 0-10 put a=x → 5
         2 5-15 put b=x → 9
         1 20-30 put a=y → 6
         2 22-35 get b → x@9
         2 40-50 get a → x@5",
        &[1, 3, 5],
    );
}

#[test]
fn two_reads_in_a_row_do_not_go_back() {
    wrong(
        "1 0-10 put a=x → 5
         1 20-90 put a=y → 6
         2 30-40 get a → y@6
         3 50-60 get a → x@5",
        &[1, 2, 3, 4],
    );
    right(
        "1 0-10 put a=x → 5
           1 20-90 put a=y → 6
           2 30-52 get a → y@6
           3 50-60 get a → x@5",
    );
}

#[test]
fn an_acknowledged_write_that_is_lost_is_found() {
    wrong(
        "1 0-10 put a=x → 5
           2 20-30 get a → none",
        &[1, 2],
    );
    wrong(
        "1 0-10 put a=x → 5
           1 20-30 delete a → 6 deleted 1
           1 40-50 put a=y → 7
           2 60-70 get a → none",
        &[2, 3, 4],
    );
}

#[test]
fn a_lost_update_is_found() {
    wrong(
        "1 0-10 put a=0 → 5
           1 20-30 put a=1 if a@5 → 6
           2 20-35 put a=1 if a@5 → 7",
        &[1, 2, 3],
    );
    wrong(
        "1 0-10 put a=0 → 5
           1 20-30 put a=1 if a=0 → 6
           2 20-35 put a=1 if a=0 → 7",
        &[1, 2, 3],
    );
    right(
        "1 0-10 put a=0 → 5
           1 20-30 put a=1 if a@5 → 6
           2 20-35 put a=1 if a@5 → failed 0 at 6
           2 40-50 put a=2 if a@6 → 7",
    );
}

#[test]
fn a_write_that_is_applied_twice_is_found() {
    wrong(
        "1 0-10 put a=x → 5
           1 20-30 put a=y → 6
           2 40-50 get a → y@6
           2 60-70 get a → x@5",
        &[1, 2, 4],
    );
    // Also when it gets another version the second time, or its own is not known.
    wrong(
        "1 0-10 put a=x → 5
           1 20-30 put a=y → 6
           2 60-70 get a → x@7",
        &[1, 3],
    );
    wrong(
        "1 0-10 put a=x → ?
           1 20-30 get a → x@5
           1 40-50 put a=y → 6
           2 60-70 get a → x@7",
        &[1, 2, 4],
    );
}

#[test]
fn an_unknown_write_may_appear_late_or_never() {
    right(
        "1 0-10 put a=x → 5
           2 12-20 put a=y → ?
           1 30-40 get a → x@5
           1 50-60 get a → y@7
           1 70-80 get a → y@7",
    );
    right(
        "1 0-10 put a=x → 5
           2 12-20 put a=y → ?
           1 30-40 get a → x@5",
    );
    right(
        "2 12-20 delete a → ?
           1 15-20 put a=x → 5
           1 30-40 get a → x@5
           1 50-60 get a → none
           1 70-80 put a=y if a@0 → 9",
    );
}

#[test]
fn an_unknown_write_happens_once_and_not_before_it_was_sent() {
    wrong(
        "1 0-10 put a=x → 5
           2 12-20 put a=y → ?
           1 30-40 get a → y@7
           1 50-60 put a=z → 8
           1 70-80 get a → y@9",
        &[2, 3, 5],
    );
    wrong(
        "2 12-20 delete a → ?
           1 25-28 put a=x → 5
           1 30-40 get a → none
           1 45-50 put a=z → 8
           1 70-80 get a → none",
        &[1, 2, 3, 4, 5],
    );
    complains(
        "1 0-10 get a → x@5
               2 12-20 put a=x → ?",
        "nobody had written yet",
    );
}

#[test]
fn an_unknown_write_has_one_version() {
    wrong(
        "2 12-20 put a=y b=y → ?
           1 30-40 get a → y@7
           1 50-60 get b → y@8",
        &[1, 2, 3],
    );
    wrong(
        "2 0-20 put a=y b=y → ?
           1 30-40 get a → y@7
           1 45-48 put b=z → 8
           1 50-60 get b → y@7",
        &[1, 2, 3, 4],
    );
}

#[test]
fn a_refused_write_must_not_have_happened() {
    complains(
        "1 0-10 put a=x → refused
               1 20-30 get a → x@5",
        "did not happen",
    );
    right(
        "1 0-10 put a=x → refused
           1 20-30 get a → none",
    );
    right(
        "1 0-10 put a=x → refused
           2 0-10 put a=x → ?
           1 20-30 get a → x@5",
    );
}

#[test]
fn a_condition_that_failed_is_a_read() {
    right(
        "1 0-10 put a=x → 5
           1 20-30 put a=y if a@4 → failed 0 at 5
           1 40-50 put a=y if a@5 a=y → failed 1 at 5
           1 60-70 put a=y if b → failed 0 at 0",
    );
    wrong(
        "1 0-10 put a=x → 5
           1 20-30 put a=y if a=x → failed 0 at 5",
        &[1, 2],
    );
    complains(
        "1 0-10 put a=x → 5
               1 20-30 put a=y if a@5 → failed 0 at 5",
        "although the condition held",
    );
    complains(
        "1 0-10 put a=x → 5
               1 20-30 put a=y if a → failed 0 at 5",
        "although the condition held",
    );
    // The conditions before it held.
    wrong(
        "1 0-10 put a=x → 5
           1 11-12 put b=x → 6
           1 20-30 put a=y if a=z b@5 → failed 1 at 6",
        &[3],
    );
    wrong(
        "1 0-10 put a=x → 5
           1 11-18 put a=z → 6
           1 20-30 put a=y if a@7 → failed 0 at 5",
        &[1, 2, 3],
    );
}

#[test]
fn an_unknown_write_is_seen_through_conditions() {
    right(
        "1 0-10 put a=x → ?
           1 20-30 put a=y if a → 7",
    );
    wrong("1 20-30 put a=y if a → 7", &[1]);
    right(
        "1 0-10 put a=x → ?
           1 20-30 put a=y if a@3 → failed 0 at 6",
    );
    right(
        "1 0-10 put a=x → ?
           1 20-30 put a=y if a=x → 7
           1 40-50 get a → y@7",
    );
    right(
        "1 0-10 put a=x → 5
           1 11-12 put a=y if a=x → ?
           2 13-14 put a=z if a=y → ?
           1 20-30 get a → z@9",
    );
    wrong(
        "1 0-10 put a=x → 5
           1 11-12 put a=y if a=w → ?
           2 13-14 put a=z if a=y → ?
           1 20-30 get a → z@9",
        &[2, 3, 4],
    );
}

#[test]
fn a_delete_says_whether_the_key_was_there() {
    right(
        "1 0-10 delete a → 0
           1 20-30 put a=x → 5
           1 40-50 delete a → 6 deleted 1
           1 60-70 delete a → 0",
    );
    wrong(
        "1 20-30 put a=x → 5
           1 40-50 delete a → 0",
        &[1, 2],
    );
    wrong(
        "1 20-30 put a=x → 5
           1 40-50 delete a → 6 deleted 1
           2 40-50 delete a → 7 deleted 1",
        &[1, 2, 3],
    );
}

#[test]
fn a_write_of_several_keys_is_one_step() {
    right(
        "1 0-10 put a=x b=x → 5
           2 20-30 scan a..c → a=x@5 b=x@5",
    );
    wrong(
        "1 0-50 put a=x b=x → 5
           2 20-30 scan a..c → a=x@5",
        &[1, 2],
    );
    wrong(
        "1 0-10 put a=x b=x → 5
           1 20-50 put a=y b=y → 6
           2 21-31 scan a..c → a=y@6 b=x@5",
        &[1, 2, 3],
    );
    wrong(
        "1 0-10 put a=x b=x → 5
           1 20-50 put a=y b=y → 6
           2 21-31 get a → y@6
           2 32-40 get b → x@5",
        &[1, 2, 3, 4],
    );
    right(
        "1 0-10 put a=x b=x → 5
           1 20-50 put a=y b=y → 6
           2 21-33 get a → y@6
           2 32-40 get b → x@5",
    );
}

#[test]
fn a_scan_misses_nothing_and_shows_nothing_else() {
    wrong(
        "1 0-10 put a=x → 5
           1 12-15 put b=x → 6
           2 20-30 scan a..d → b=x@6",
        &[1, 3],
    );
    right(
        "1 0-10 put a=x → 5
           1 12-15 put b=x → 6
           2 20-30 scan a..d → a=x@5 to b",
    );
    complains("2 20-30 scan a..d → b=x@6", "nobody wrote");
    complains(
        "1 0-10 put e=x → 6
               2 20-30 scan a..d → e=x@6",
        "outside of what it covers",
    );
    complains(
        "1 0-10 put a=x → 6
               1 0-10 put b=x → 7
               2 20-30 limit 1 scan a..d → a=x@6 b=x@7",
        "more entries",
    );
    complains(
        "1 0-10 put a=x → 6
               1 0-10 put b=x → 7
               2 20-30 scan a..d → b=x@7 a=x@6",
        "out of order",
    );
    right(
        "1 0-10 put a=x → 6
           1 0-10 put b=x → 7
           2 20-30 reverse scan a..d → b=x@7 a=x@6",
    );
}

#[test]
fn two_scans_do_not_see_two_writes_in_different_orders() {
    wrong(
        "1 0-90 put a=x → 5
           2 0-90 put b=x → 6
           3 10-80 scan a..c → a=x@5
           4 10-80 scan a..c → b=x@6",
        &[1, 2, 3, 4],
    );
    right(
        "1 0-90 put a=x → 5
           2 0-90 put b=x → 6
           3 10-80 scan a..c → nothing
           4 10-80 scan a..c → b=x@6
           3 81-85 scan a..c → a=x@5 b=x@6",
    );
}

#[test]
fn a_range_delete_removes_what_it_says() {
    right(
        "1 0-10 put a=x b=x c=x → 5
           1 20-30 clear a..z limit 2 → 6 deleted 2 resume c
           1 40-50 scan a..z → c=x@5
           1 60-70 clear c..z → 7 deleted 1
           1 80-90 clear a..z → 0",
    );
    wrong(
        "1 0-10 put a=x b=x c=x → 5
           1 20-30 clear a..z → 6 deleted 2",
        &[1, 2],
    );
    wrong(
        "1 0-10 put a=x b=x → 5
           1 20-30 clear a..z → 6 deleted 2
           1 40-50 get b → x@5",
        &[1, 2, 3],
    );
    complains(
        "1 0-10 put a=x b=x c=x → 5
               1 20-30 clear a..z limit 2 → 6 deleted 3",
        "more keys deleted",
    );
}

#[test]
fn an_unknown_range_delete_removes_keys_from_its_start_on() {
    let removed = |scan: &str| {
        format!(
            "1 0-10 put a=x b=x c=x → 5
             2 20-30 clear a..z limit 2 → ?
             1 40-50 scan a..z → {scan}"
        )
    };
    right(&removed("a=x@5 b=x@5 c=x@5"));
    right(&removed("b=x@5 c=x@5"));
    right(&removed("c=x@5"));
    wrong(&removed("a=x@5 c=x@5"), &[1, 2, 3]);
    wrong(&removed("nothing"), &[1, 2, 3]);
}

#[test]
fn versions_give_no_order_but_fall_for_nobody() {
    // Two writes at once, in the other order than their versions: an order, and a complaint.
    let text = "1 0-10 put a=x → 6
                2 0-10 put a=y → 5
                1 20-30 get a → y@5";
    let Verdict::Violated(violation) = verdict(text) else {
        panic!("called right: {text}");
    };
    assert_eq!(
        (violation.unordered_parts, violation.complaints.len()),
        (0, 1),
        "{violation}"
    );
    complains(
        "1 0-10 put a=x → 6
               2 12-20 put a=y → 5",
        "do not rise",
    );
    complains(
        "1 0-10 put a=x → 6
               2 0-20 put a=y → 6",
        "one version for two writes",
    );
    complains(
        "1 0-10 put a=x → 6
               2 20-30 get a → x@7",
        "was not told",
    );
}

#[test]
fn two_attempts_of_one_write_are_one_write() {
    right(
        "1 0-10 #7 put a=x → ?
           2 20-30 get a → x@5
           1 40-50 #7 put a=x → 5",
    );
    right(
        "1 0-10 #7 put a=x → 5
           1 40-50 #7 put a=x → 5",
    );
    complains(
        "1 0-10 #7 put a=x → 5
               1 40-50 #7 put a=x → 6",
        "two outcomes",
    );
    complains(
        "1 0-10 #7 put a=x → ?
               1 40-50 #7 put a=y → 6",
        "two writes",
    );
}

#[test]
fn a_counter_that_counts_twice_is_found() {
    right(
        "1 0-10 put n=1 if n@0 → 5
           1 20-30 put n=2 if n@5 → ?
           1 40-50 put n=2 if n@5 → failed 0 at 6
           1 60-70 get n → 2@6",
    );
    wrong(
        "1 0-10 put n=1 if n@0 → 5
           1 20-30 put n=2 if n@5 → ?
           1 40-50 get n → 2@6
           1 60-70 get n → 2@7",
        &[2, 3, 4],
    );
}

#[test]
fn followers_may_be_late_but_make_nothing_up() {
    let said = |text: &str| check_followers(&history(text));
    let late = "1 0-10 put a=x → 5
                1 20-30 put a=y → 6
                2 40-50 follower get a → y@6
                2 60-70 follower get a → x@5
                2 80-90 follower get a → none";
    assert_eq!(said(late), Vec::<String>::new());
    right(late);
    assert_eq!(said("2 0-10 follower get a → x@5").len(), 1);
    let early = "2 0-10 follower get a → x@5
                 1 20-30 put a=x → 5";
    assert_eq!(said(early).len(), 1);
    let other_version = "1 0-10 put a=x → 5
                         2 20-30 follower get a → x@6";
    assert_eq!(said(other_version).len(), 1);
    let torn = "1 0-10 put a=x b=x → 5
                1 20-30 put a=y b=y → 6
                2 40-50 follower scan a..c → a=y@6 b=x@5";
    assert_eq!(said(torn).len(), 1);
    complains(torn, "a part of a write");
}

#[test]
fn a_search_that_gives_up_never_says_right() {
    let text = "1 0-10 put a=x → 5
                2 0-10 put a=y → 6
                3 20-30 get a → y@6";
    let options = Options { placements_max: 0 };
    let verdict = check(&history(text), &options);
    assert!(matches!(verdict, Verdict::Inconclusive { .. }), "{verdict}");
}

#[test]
fn a_violation_reads_like_a_timeline() {
    let text = "1 0-10 put b=w c=w → 4
                1 11000-12500 put a=x b=x → 5
                3 20000-21000 put a=y → 6
                2 40000-41017 scan a..d → a=x@5 b=x@5 c=w@4
                3 42000-43000 get c → w@4";
    let said = verdict(text).to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[2..],
        [
            "no order of these requests explains their answers:",
            "    client 1  11.000–12.500 ms  put a=x, put b=x  → version 0.5",
            "    client 3  20.000–21.000 ms  put a=y  → version 0.6",
            "    client 2  40.000–41.017 ms  scan [a, d) up to 1000  → of 3 in [a, d): a=x at 0.5",
            "  After client 1's put a=x, put b=x: client 3's put a=y would end a being at 0.5, which \
             client 2's scan [a, d) up to 1000 has still to see.",
        ]
    );
}
