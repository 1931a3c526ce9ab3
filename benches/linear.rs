//! How long the checker takes over long histories. All of them follow from a seed.
//!
//! `cargo bench --bench linear`

use clap::Parser;
use quorate::testkit::linear::Options;
use quorate::testkit::linear::Verdict;
use quorate::testkit::linear::check;
use quorate::testkit::linear::sample::Shape;
use quorate::testkit::linear::sample::sample;
use quorate::testkit::observed::Answer;
use quorate::testkit::observed::Observed;
use tokio::time::Instant;

#[derive(Parser)]
#[command(about = "The checker over long histories")]
struct Args {
    /// Requests of each history
    #[arg(long, default_value_t = 100_000)]
    requests: usize,
    /// What the histories follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only histories whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let registers = Shape {
        requests: args.requests,
        clients: 64,
        keys: 50,
        values: 0,
        unknown: 0,
        wide: 0,
        scans: 0,
        range_deletes: 0,
    };
    let one_shard = Shape {
        keys: 200,
        wide: 100,
        scans: 50,
        ..registers.clone()
    };
    let shapes = [
        ("50 keys", registers.clone()),
        (
            "500 keys",
            Shape {
                keys: 500,
                ..registers.clone()
            },
        ),
        (
            "50 keys, 1 % unknown",
            Shape {
                unknown: 10,
                ..registers.clone()
            },
        ),
        (
            "500 keys, 1 % unknown, 10 values",
            Shape {
                keys: 500,
                unknown: 10,
                values: 10,
                ..registers.clone()
            },
        ),
        ("one shard of 200 keys", one_shard.clone()),
        (
            "a fifth as long, one shard, 1 % unknown",
            Shape {
                requests: args.requests / 5,
                unknown: 10,
                ..one_shard.clone()
            },
        ),
        (
            "one shard, range deletes",
            Shape {
                range_deletes: 2,
                ..one_shard.clone()
            },
        ),
    ];
    for (name, shape) in shapes.iter().filter(|(name, _)| name.contains(&args.only)) {
        let mut history = sample(shape, args.seed);
        let verdict = time(name, &history);
        assert!(matches!(verdict, Verdict::Linearizable(_)), "{verdict}");
        make_stale(&mut history);
        let verdict = time(&format!("{name}, one stale read"), &history);
        assert!(matches!(verdict, Verdict::Violated(_)), "{verdict}");
        println!("{verdict}");
    }
}

fn time(name: &str, history: &[Observed]) -> Verdict {
    let begin = Instant::now();
    let verdict = check(history, &Options::default());
    let took = begin.elapsed();
    let rate = history.len() as f64 / took.as_secs_f64();
    println!(
        "{name}: {} requests in {:.2} s, {rate:.0} a second",
        history.len(),
        took.as_secs_f64()
    );
    verdict
}

/// Gives a read from the middle what another one saw of the same key long before.
fn make_stale(history: &mut [Observed]) {
    let middle = history.len() * 2 / 3;
    let stale = (middle..history.len()).find_map(|late| {
        let (before, after) = history.split_at(middle / 2);
        let late = &after[late - before.len()];
        let (Answer::Found(Some(now), _), asked) = (&late.answer, &late.asked) else {
            return None;
        };
        let early = before.iter().rev().find(|early| early.asked == *asked)?;
        match &early.answer {
            Answer::Found(Some(found), _) if found.version < now.version => {
                Some((late.clone(), early.answer.clone()))
            }
            _ => None,
        }
    });
    let (late, answer) = stale.expect("a long history has such reads");
    let place = history.iter().position(|observed| *observed == late);
    history[place.expect("it is from there")].answer = answer;
}
