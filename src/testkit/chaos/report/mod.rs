//! The report of a run: one HTML file that needs nothing else. Decides only.
//!
//! Everything that is shown as text goes through `escape`: keys and values are bytes that anybody may
//! have written, and words of errors come from elsewhere.

mod series;
mod chart;

use std::fmt::Write as _;
use std::time::Duration;

use crate::testkit::chaos::outcome::Counts;
use crate::testkit::chaos::outcome::Findings;
use crate::testkit::chaos::outcome::Order;
use crate::testkit::chaos::outcome::Outcome;
use crate::testkit::chaos::outcome::Verdict;

const STYLE: &str = include_str!("style.css");

/// A run that was woken later than this says so: it is a part of an election timeout.
const LATE_SHOWN: Duration = Duration::from_millis(100);

/// What is said of how to read the picture.
const READING: &str = "A request counts when it was answered. Violet bars are faults; red marks the \
    longest time from a fault on in which no write was acknowledged at all. “Worst shard” is the longest \
    time in which one shard acknowledged none, though others may have. “Back” is the time from the end of \
    a fault to the next acknowledged write.";

/// The page. `command` repeats the schedule.
pub fn html(findings: &Findings, outcome: &Outcome, command: &str) -> String {
    let mut page = String::new();
    let title = format!("quorate chaos, seed {}", findings.seed);
    let mut put = |part: &str| page.push_str(part);
    put("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    put("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    put(&format!("<title>{}</title>", escape(&title)));
    put(&format!("<style>{STYLE}</style></head><body><main>"));
    put(&format!("<h1>{}</h1>", escape(&title)));
    put(&verdict(findings, outcome));
    put(&cards(findings, outcome));
    put(&evidence(outcome));
    put("<h2>What happened</h2>");
    put(&legend(findings));
    put(&format!(
        "<div class=\"panel\">{}</div>",
        chart::timeline(findings, outcome)
    ));
    put(&format!("<p class=\"note\">{READING}</p>"));
    put(&starved(findings));
    put(&kinds(outcome));
    put(&faults(findings, outcome));
    put(&changes(findings));
    put(&format!(
        "<h2>Again</h2><p>The same schedule of faults; what falls in between differs from run to \
         run:</p><pre>{}</pre>",
        escape(command)
    ));
    put("</main></body></html>\n");
    page
}

/// A text as it stands in HTML, in an element or between double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Microseconds for people.
pub fn seconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn verdict(findings: &Findings, outcome: &Outcome) -> String {
    let class = match outcome.verdict {
        Verdict::Good => "good",
        Verdict::Bad => "bad",
        Verdict::SaysNothing => "open",
    };
    let sentence = escape(outcome.verdict.sentence());
    let mut said = format!("<div class=\"verdict {class}\"><strong>{sentence}</strong>");
    if !outcome.reasons.is_empty() {
        let reasons = outcome.reasons.iter();
        let reasons = reasons.map(|reason| format!("<li>{}</li>", escape(reason)));
        said += &format!("<ul>{}</ul>", reasons.collect::<String>());
    }
    let Counts {
        requests, unknown, ..
    } = outcome.counts;
    said += &format!(
        "<p>{requests} requests of clients on {} nodes through {} faults; {unknown} writes with an unknown \
         outcome; {} keys compared at the end{}.</p></div>",
        findings.nodes.len(),
        findings.faults.len(),
        findings.finals.len(),
        if findings.interrupted {
            "; stopped early"
        } else {
            ""
        }
    );
    said
}

fn cards(findings: &Findings, outcome: &Outcome) -> String {
    let counts = &outcome.counts;
    let run_s = findings.ended.0 as f64 / 1e6;
    let answered = counts.reads + counts.acknowledged + counts.conditions_failed;
    let gaps = outcome.effects.iter().map(|effect| effect.gap_us());
    let cards = [
        (format!("{run_s:.0} s"), "under clients"),
        (
            format!("{:.0}/s", answered as f64 / run_s.max(0.001)),
            "answers",
        ),
        (counts.acknowledged.to_string(), "writes acknowledged"),
        (outcome.lost.writes.to_string(), "acknowledged and lost"),
        (counts.unknown.to_string(), "writes unknown"),
        (counts.refused.to_string(), "writes refused"),
        (findings.faults.len().to_string(), "faults"),
        (
            seconds(gaps.max().unwrap_or_default()),
            "longest without a write",
        ),
    ];
    let cards = cards.map(|(figure, what)| {
        let figure = escape(&figure);
        format!("<div class=\"card\"><b>{figure}</b><span>{what}</span></div>")
    });
    format!("<div class=\"cards\">{}</div>", cards.concat())
}

/// Figures of a machine without time for its processes are no figures of the store.
fn starved(findings: &Findings) -> String {
    if findings.late < LATE_SHOWN {
        return String::new();
    }
    let late = seconds(u64::try_from(findings.late.as_micros()).unwrap_or(u64::MAX));
    format!(
        "<p class=\"note\">The machine was short of time: the run itself was woken up to {late} late. \
         Nodes that wait as long take each other for dead.</p>"
    )
}

/// What shows that a promise was broken.
fn evidence(outcome: &Outcome) -> String {
    let mut said = String::new();
    if let Order::Broken(lines) = &outcome.order {
        said += "<h2>What cannot be ordered</h2><p>The smallest part of the history that no order explains, \
            from the first request to the last.</p>";
        let _ = write!(said, "<pre>{}</pre>", escape(&lines.join("\n")));
    }
    if !outcome.lost.complaints.is_empty() {
        said += "<h2>What is missing</h2>";
        let complaints = outcome.lost.complaints.join("\n");
        let _ = write!(said, "<pre>{}</pre>", escape(&complaints));
    }
    said
}

fn legend(findings: &Findings) -> String {
    let parts = [
        ("--all".to_owned(), "answers"),
        ("--writes".to_owned(), "acknowledged writes"),
        ("--late".to_owned(), "99 of 100 answered within"),
        ("--fault".to_owned(), "fault"),
        ("--gap".to_owned(), "no write acknowledged"),
    ];
    let nodes = findings.nodes.iter().enumerate();
    let leaders = nodes.map(|(place, name)| (format!("--n{}", place % 9), name.as_str()));
    let entry = |(colour, what): (String, &str)| {
        let what = escape(what);
        format!("<span><i style=\"background:var({colour})\"></i>{what}</span>")
    };
    let parts: String = parts.into_iter().map(entry).collect();
    let leaders: String = leaders.map(entry).collect();
    format!("<div class=\"legend\">{parts}</div><div class=\"legend\">leaders: {leaders}</div>")
}

fn kinds(outcome: &Outcome) -> String {
    if outcome.kinds.is_empty() {
        return String::new();
    }
    let worst = outcome.kinds.iter().map(|kind| kind.gap_worst_us).max();
    let worst = worst.unwrap_or_default().max(1);
    let rows = outcome.kinds.iter().map(|kind| {
        let part = 100.0 * kind.gap_worst_us as f64 / worst as f64;
        let back = kind.back_worst_us.map_or("never".to_owned(), seconds);
        let (name, description) = (escape(kind.kind.name()), escape(kind.kind.description()));
        let figures = [
            kind.times.to_string(),
            seconds(kind.lasted_us),
            seconds(kind.gap_median_us),
            seconds(kind.gap_worst_us),
            seconds(kind.shard_gap_median_us),
            seconds(kind.shard_gap_worst_us),
            back,
        ];
        let figures = figures.map(|figure| format!("<td class=\"number\">{figure}</td>"));
        format!(
            "<tr><td title=\"{description}\">{name}</td>{}<td class=\"bar\"><div class=\"meter\" \
             style=\"width:{part:.1}%\"></div></td></tr>",
            figures.concat()
        )
    });
    format!(
        "<h2>Time without writes, by kind of fault</h2><div class=\"panel\"><table><tr><th>fault</th>\
         <th class=\"number\">times</th><th class=\"number\">lasted</th><th class=\"number\">no write, \
         median</th><th class=\"number\">worst</th><th class=\"number\">worst shard, median</th>\
         <th class=\"number\">worst</th><th class=\"number\">back after</th><th></th></tr>{}</table></div>",
        rows.collect::<String>()
    )
}

fn faults(findings: &Findings, outcome: &Outcome) -> String {
    let both = findings.faults.iter().zip(&outcome.effects);
    let rows = both.map(|(fault, effect)| {
        let back = effect.back_us.map_or("never".to_owned(), seconds);
        format!(
            "<tr><td class=\"number\">{}</td><td>{}</td><td>{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{back}</td></tr>",
            seconds(fault.began.0),
            escape(fault.kind.name()),
            escape(&fault.what),
            seconds(fault.ended.0 - fault.began.0),
            seconds(effect.gap_us()),
            seconds(effect.shard_gap_us),
        )
    });
    format!(
        "<details><summary>Each fault in order</summary><div class=\"panel\"><table><tr>\
         <th class=\"number\">at</th><th>kind</th><th>what was done</th><th class=\"number\">lasted</th>\
         <th class=\"number\">no write</th><th class=\"number\">worst shard</th><th class=\"number\">back\
         </th></tr>{}</table></div></details>",
        rows.collect::<String>()
    )
}

fn changes(findings: &Findings) -> String {
    if findings.changes.is_empty() {
        return String::new();
    }
    let rows = findings.changes.iter().map(|change| {
        let became = match &change.refused {
            None => "done".to_owned(),
            Some(why) => format!("<span class=\"refused\">{}</span>", escape(why)),
        };
        format!(
            "<tr><td class=\"number\">{}</td><td>{}</td><td>{became}</td></tr>",
            seconds(change.at.0),
            escape(&change.what)
        )
    });
    format!(
        "<details><summary>What was asked of the cluster itself: splits, moves of leaders and \
         replicas</summary><div class=\"panel\"><table>{}</table></div></details>",
        rows.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::chaos::outcome::Changed;
    use crate::testkit::chaos::outcome::judge;
    use crate::testkit::chaos::sample::findings;
    use crate::testkit::mix::model::Lie;
    use crate::testkit::observed::Moment;

    const NASTY: &str = "<script>alert('\"1\" & 2')</script>";

    #[tokio::test(start_paused = true)]
    async fn every_shown_text_is_escaped() {
        let mut findings = findings(Lie::None, 1).await;
        findings.nodes[0] = NASTY.to_owned();
        findings.faults[0].what = NASTY.to_owned();
        findings.leaders[0].shard = NASTY.to_owned();
        findings.complaints.push(NASTY.to_owned());
        findings.changes.push(Changed {
            at: Moment(5),
            what: NASTY.to_owned(),
            refused: Some(NASTY.to_owned()),
        });
        let mut outcome = judge(&findings, Order::Broken(vec![NASTY.to_owned()]));
        outcome.lost.complaints.push(NASTY.to_owned());
        let page = html(&findings, &outcome, NASTY);
        assert!(!page.contains("<script") && !page.contains("alert('"));
        assert!(page.matches(&escape(NASTY)).count() >= 12);
    }

    #[tokio::test(start_paused = true)]
    async fn the_page_needs_nothing_else_and_every_element_ends() {
        let findings = findings(Lie::None, 1).await;
        let outcome = judge(&findings, Order::Linearizable);
        let page = html(&findings, &outcome, "quorate chaos --seed 1");
        assert!(!page.contains("http") && !page.contains("src=") && !page.contains("@import"));
        assert_well_formed(&page);
        assert!(page.contains("class=\"verdict good\"") && page.contains("quorate chaos --seed 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_promise_is_shown_with_its_evidence() {
        let findings = findings(Lie::LosesWrites, 3).await;
        let evidence = vec!["c1 put a".to_owned(), "c2 found nothing".to_owned()];
        let outcome = judge(&findings, Order::Broken(evidence));
        let page = html(&findings, &outcome, "");
        assert!(page.contains("class=\"verdict bad\"") && page.contains("What is missing"));
        assert!(page.contains("c1 put a\nc2 found nothing"));
        assert_well_formed(&page);
    }

    /// Each element that begins also ends, in order.
    fn assert_well_formed(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let body = page.split("</style>").nth(1).unwrap();
        for tag in body.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                _ if tag.ends_with('/') => {}
                Some(name) if ["head", "html"].contains(&name) => {}
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }

    #[test]
    fn times_are_said_in_their_unit() {
        let said = [7, 1_500, 2_340_000].map(seconds);
        assert_eq!(said, ["7 µs", "1 ms", "2.3 s"]);
    }
}
